"""Health of each service (grpc.health.v1), kept up to date by a loop that asks the store.

grpc's own servicer writes to a watcher while it holds the lock that a change needs: one watcher
that stops reading would keep the health of all from ever changing.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from typing import Any

import grpc
import grpc.aio
import structlog
from grpc_health.v1 import health_pb2, health_pb2_grpc

from hansard_server.lifecycle import Drain, shutting_down

_log = structlog.get_logger("hansard.health")
_SERVING = health_pb2.HealthCheckResponse.SERVING
_NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING
_SERVICE_UNKNOWN = health_pb2.HealthCheckResponse.SERVICE_UNKNOWN


class Health:
    """Whether the server can do its work; the same for every service, since all need the store."""

    def __init__(self, services: Iterable[str], drain: Drain) -> None:
        """Know the services, and `""`, which stands for all. Serving until told otherwise."""
        self._services = frozenset(services) | {""}
        self._drain = drain
        self._working = True
        self._changed = asyncio.Event()

    @property
    def working(self) -> bool:
        """Whether the last check went well."""
        return self._working

    @property
    def changed(self) -> asyncio.Event:
        """The event that the next change sets; after it there is another."""
        return self._changed

    def set(self, *, working: bool) -> None:
        """Note how a check went, and tell watchers of a change."""
        if working == self._working:
            return
        self._working = working
        self.announce()

    def announce(self) -> None:
        """Have watchers look again."""
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()

    def of(self, service: str) -> health_pb2.HealthCheckResponse:
        """Return the health of a service; SERVICE_UNKNOWN when there is none of that name."""
        if service not in self._services:
            return health_pb2.HealthCheckResponse(status=_SERVICE_UNKNOWN)
        works = self._working and not self._drain.started.is_set()
        return health_pb2.HealthCheckResponse(status=_SERVING if works else _NOT_SERVING)

    def of_all(self) -> dict[str, health_pb2.HealthCheckResponse]:
        """Return the health of every service."""
        return {service: self.of(service) for service in sorted(self._services)}


class HealthServicer(health_pb2_grpc.HealthServicer):
    """grpc.health.v1.Health. A watcher is a cursor: it reads the status when it can take one."""

    def __init__(self, health: Health, drain: Drain) -> None:
        self._health = health
        self._drain = drain

    async def Check(
        self,
        request: health_pb2.HealthCheckRequest,
        context: grpc.aio.ServicerContext[Any, Any],
    ) -> health_pb2.HealthCheckResponse:
        """Answer the status; NOT_FOUND for a service that is not there, as the protocol has it."""
        response = self._health.of(request.service)
        if response.status == _SERVICE_UNKNOWN:
            await context.abort(grpc.StatusCode.NOT_FOUND, "there is no such service")
        return response

    async def List(
        self,
        request: Any,  # noqa: ARG002 - the protocol's signature
        context: grpc.aio.ServicerContext[Any, Any],  # noqa: ARG002
    ) -> Any:
        """Answer the status of every service."""
        # The stubs are older than the call.
        listed: Any = health_pb2.HealthListResponse  # type: ignore[attr-defined]
        return listed(statuses=self._health.of_all())

    async def Watch(
        self,
        request: health_pb2.HealthCheckRequest,
        context: grpc.aio.ServicerContext[Any, Any],  # noqa: ARG002 - the protocol's signature
    ) -> AsyncIterator[health_pb2.HealthCheckResponse]:
        """Stream the status whenever it changes; the last one of a stopping server ends it."""
        sent: health_pb2.HealthCheckResponse | None = None
        while True:
            changed = self._health.changed
            stopping = self._drain.started.is_set()
            response = self._health.of(request.service)
            if response != sent:
                yield response
                sent = response
            if stopping:
                raise shutting_down()
            await changed.wait()


async def watch_store(
    health: Health, check: Callable[[], Awaitable[None]], *, interval_s: float
) -> None:
    """Check the store again and again, until cancelled."""
    while True:
        try:
            async with asyncio.timeout(max(1.0, interval_s)):
                await check()
        except Exception as error:  # noqa: BLE001 - whatever it is, the store can't be used
            if health.working:
                _log.error("store does not work", error=type(error).__name__)
            health.set(working=False)
        else:
            if not health.working:
                _log.info("store works again")
            health.set(working=True)
        await asyncio.sleep(interval_s)
