"""Opens what the settings name outside the process, and says in one line why that can't be done."""

from __future__ import annotations

import asyncio
import secrets
from contextlib import suppress
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import TYPE_CHECKING

from hansard_server.access.tenants import BadKeyFile, make_default_tenant
from hansard_server.agents.outgoing import BadAddress, parse_rules
from hansard_server.agents.outside import Outside
from hansard_server.artifacts.blobs import Blobs
from hansard_server.artifacts.object_stores import BadLocation, CloudOptions, Unreachable, probe
from hansard_server.config import ConfigurationMistake, Settings
from hansard_server.domain.clock import Clock
from hansard_server.repository.api import Store
from hansard_server.servicers.tls import BadCertificate, CertificateFiles, Certificates
from hansard_server.stores import CannotStart

if TYPE_CHECKING:
    from hansard_server.agents.connections import Connections

_SECRET_BYTES = 32


def page_token_secret(settings: Settings) -> bytes:
    """Return the secret of page tokens: given, or kept in a file. Raises CannotStart."""
    given = settings.page_token_secret.get_secret_value()
    if given:
        return given.encode()
    path = settings.data_dir / "page-token.key"
    try:
        if not path.exists():
            # Processes that start together must agree, so the file appears whole, and once.
            with NamedTemporaryFile(dir=path.parent) as new:
                new.write(secrets.token_bytes(_SECRET_BYTES))
                new.flush()
                with suppress(FileExistsError):
                    path.hardlink_to(new.name)
        secret = path.read_bytes()
    except OSError as error:
        raise CannotStart(f"data_dir: {path}: {error.strerror}") from None
    if len(secret) != _SECRET_BYTES:
        raise CannotStart(f"data_dir: {path} is damaged; remove it, a new one is made")
    return secret


def open_outside(settings: Settings) -> Outside:
    """Return what agents may reach. Raises ConfigurationMistake."""
    try:
        rules = parse_rules(settings.outgoing_allow)
    except BadAddress as error:
        raise ConfigurationMistake(f"outgoing_allow: {error}") from None
    known = _read_connections(settings.connections) if settings.connections else None
    return Outside.of(known, rules)


def _read_connections(path: Path) -> Connections:
    # Most servers have no such file.
    from hansard_server.agents.connections import BadConnections, load_connections  # noqa: PLC0415

    try:
        return load_connections(path)
    except BadConnections as error:
        raise ConfigurationMistake(f"connections: {error}") from None


def open_certificates(settings: Settings) -> Certificates | None:
    """Return the certificates, None without TLS. Raises ConfigurationMistake."""
    if settings.tls_certificate is None or settings.tls_key is None:
        return None
    try:
        return Certificates(
            CertificateFiles(
                certificate=settings.tls_certificate,
                key=settings.tls_key,
                client_ca=settings.tls_client_ca,
            )
        )
    except BadCertificate as error:
        raise ConfigurationMistake(str(error)) from None


async def open_default_tenant(store: Store, settings: Settings, clock: Clock) -> None:
    """Make the tenant that a new store begins with, and its key's file. Raises CannotStart."""
    try:
        await make_default_tenant(store, settings.data_dir, clock=clock)
    except BadKeyFile as error:
        raise CannotStart(f"data_dir: {error}") from None
    except OSError as error:
        raise CannotStart(f"data_dir: {error.filename}: {error.strerror}") from None


async def open_blobs(settings: Settings) -> Blobs:
    """Return where files' bytes are. Raises ConfigurationMistake, CannotStart."""
    url = settings.artifacts_url
    options = CloudOptions(
        endpoint=settings.artifacts_endpoint,
        region=settings.artifacts_region,
        access_key_id=settings.artifacts_access_key_id,
        secret_access_key=settings.artifacts_secret_access_key.get_secret_value(),
    )
    try:
        blobs = await asyncio.to_thread(Blobs.open, url, options)
        await probe(url, options)
    except BadLocation as error:
        raise ConfigurationMistake(f"artifacts: {error}") from None
    except Unreachable as error:
        raise CannotStart(f"artifacts: {url}: {error}") from None
    except OSError as error:
        raise CannotStart(f"artifacts: {error.filename}: {error.strerror}") from None
    return blobs
