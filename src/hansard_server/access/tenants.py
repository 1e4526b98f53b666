"""Tenants and their first keys; the secret that tokens are signed with."""

from __future__ import annotations

import asyncio
import os
import secrets
import stat
from contextlib import suppress
from pathlib import Path
from tempfile import NamedTemporaryFile

import structlog

from hansard_server.access.credentials import Presented, hash_secret, make_secret, read_key
from hansard_server.domain import keys
from hansard_server.domain.access import DEFAULT_TENANT, ApiKeyRecord, Grant, Role
from hansard_server.domain.clock import Clock
from hansard_server.repository.api import Store, WriteTx

_log = structlog.get_logger("hansard.access")

ADMIN_KEY_FILE = "admin.key"
"""In the data folder: the key of the default tenant's first administrator."""
_TOKEN_SECRET = "tokens"  # noqa: S105 - its name
_SECRET_BYTES = 32


class BadKeyFile(Exception):  # noqa: N818 - a state of affairs
    """The file that should hold the administrator's key holds something else."""


async def token_secret(store: Store) -> bytes:
    """Return the secret that signs tokens, the same for every server on the database."""
    new = secrets.token_bytes(_SECRET_BYTES)
    return await store.write(lambda tx: tx.ensure_secret(_TOKEN_SECRET, new))


async def make_default_tenant(store: Store, folder: Path, *, clock: Clock) -> None:
    """Make the default tenant, unless it was made, and its administrator's key in the folder.

    The key is in its file before it is valid, so that it is never lost; servers that start together
    make one tenant with one key. Raises OSError.
    """
    if await store.read(lambda tx: tx.has_tenant(DEFAULT_TENANT)):
        return
    path = folder / ADMIN_KEY_FILE
    secret, presented = await asyncio.to_thread(_read_or_make, path)
    key = _administrator(DEFAULT_TENANT, presented, "First administrator", clock())

    def decide(tx: WriteTx) -> bool:
        if not tx.insert_tenant(DEFAULT_TENANT, clock()):
            return presented.key_id in tx.find_api_keys([presented.key_id])
        tx.insert_api_key(key, None)
        return True

    if await store.write(decide):
        _log.info("administrator key", file=str(path))
        return
    # Another server, with a folder of its own, was faster: its key is the one that counts.
    await asyncio.to_thread(_discard, path, secret)


async def make_tenant(store: Store, tenant: str, *, clock: Clock) -> str | None:
    """Make a tenant, and return the key of its administrator; None when there is such a tenant."""
    secret, key = _new_administrator(tenant, clock())

    def decide(tx: WriteTx) -> bool:
        if not tx.insert_tenant(tenant, clock()):
            return False
        tx.insert_api_key(key, None)
        return True

    return secret if await store.write(decide) else None


async def make_administrator_key(store: Store, tenant: str, *, clock: Clock) -> str | None:
    """Return a new administrator's key of the tenant; None when there is no such tenant."""
    secret, key = _new_administrator(tenant, clock())

    def decide(tx: WriteTx) -> bool:
        if not tx.has_tenant(tenant):
            return False
        tx.insert_api_key(key, None)
        return True

    return secret if await store.write(decide) else None


def _new_administrator(tenant: str, now_us: int) -> tuple[str, ApiKeyRecord]:
    key_id = keys.make_api_key_id()
    secret = make_secret(key_id)
    presented = Presented(key_id, hash_secret(secret))
    return secret, _administrator(tenant, presented, "Administrator", now_us)


def _administrator(tenant: str, presented: Presented, name: str, now_us: int) -> ApiKeyRecord:
    return ApiKeyRecord(
        tenant=tenant,
        id=presented.key_id,
        name=name,
        secret_sha256=presented.secret_sha256,
        grants=(Grant(Role.ADMINISTRATOR),),
        created_at_us=now_us,
    )


def _read_or_make(path: Path) -> tuple[str, Presented]:
    """Return the key that the file holds, which is made if there is none. Raises BadKeyFile."""
    if not path.exists():
        secret = make_secret(keys.make_api_key_id())
        # Servers that start together in one folder must agree, so the file appears whole, and once;
        # from the first moment on its owner alone can read it.
        with NamedTemporaryFile(mode="w", encoding="ascii", dir=path.parent) as new:
            new.write(f"{secret}\n")
            new.flush()
            os.fsync(new.fileno())
            with suppress(FileExistsError):
                path.hardlink_to(new.name)
    if stat.S_IMODE(path.stat().st_mode) & (stat.S_IRWXG | stat.S_IRWXO):
        _log.warning("others than its owner may read the administrator's key", file=str(path))
    secret = path.read_text(encoding="ascii", errors="replace").strip()
    presented = read_key(secret)
    if presented is None:
        raise BadKeyFile(f"{path} holds no key; remove it, a new one is made")
    return secret, presented


def _discard(path: Path, secret: str) -> None:
    if path.read_text(encoding="ascii", errors="replace").strip() == secret:
        path.unlink()
