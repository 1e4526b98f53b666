"""Work on the database without a server: what nobody can be let in for yet."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from hansard_server import telemetry
from hansard_server.access import tenants
from hansard_server.config import ConfigurationMistake, Settings
from hansard_server.domain.clock import now_us
from hansard_server.domain.keys import is_key
from hansard_server.lifecycle import Closers
from hansard_server.repository.api import Store
from hansard_server.stores import open_store

_CLOSE_S = 10.0


def make_tenant(settings: Settings, tenant: str) -> str:
    """Make a tenant, and return its administrator's key. Raises ConfigurationMistake, CannotStart.

    A SQLite database must have no server meanwhile; on PostgreSQL servers go on.
    """
    _check(tenant)
    key = _run(settings, lambda store: tenants.make_tenant(store, tenant, clock=now_us))
    if key is None:
        raise ConfigurationMistake(f"there is a tenant {tenant} already")
    return key


def make_administrator_key(settings: Settings, tenant: str) -> str:
    """Return a new administrator's key of the tenant. Raises as `make_tenant`."""
    _check(tenant)
    key = _run(settings, lambda store: tenants.make_administrator_key(store, tenant, clock=now_us))
    if key is None:
        raise ConfigurationMistake(f"there is no tenant {tenant}")
    return key


def _check(tenant: str) -> None:
    if not is_key(tenant):
        raise ConfigurationMistake(
            "a tenant's name has 1 to 50 characters: letters of ASCII, digits, _ and -"
        )


def _run(settings: Settings, work: Callable[[Store], Awaitable[str | None]]) -> str | None:
    telemetry.configure(settings.log_level)

    async def run() -> str | None:
        closers = Closers()
        try:
            return await work(await open_store(settings, closers, now_us))
        finally:
            await closers.close(_CLOSE_S)

    return asyncio.run(run())
