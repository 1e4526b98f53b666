"""The public listener: grpc's server, the pipeline that every call comes through, the port."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from functools import partial

import grpc.aio

from hansard_server import failpoints
from hansard_server.access.authentication import Authenticator
from hansard_server.access.authorization import Authorizer
from hansard_server.access.rates import LocalPermits, PermitSource, RateLimiter, StoredPermits
from hansard_server.app.opening import open_certificates
from hansard_server.app.services import Service
from hansard_server.config import Settings
from hansard_server.domain.clock import Clock
from hansard_server.domain.limits import KIB
from hansard_server.domain.rates import Rate
from hansard_server.domain.values import dataclass
from hansard_server.lifecycle import Calls, Closers, Drain
from hansard_server.repository.api import Store
from hansard_server.servicers.admission import Admission, RequestReader
from hansard_server.servicers.arrivals import CHANNELZ_OPTION, count_arrivals
from hansard_server.servicers.entrance import Authentication, Authorization
from hansard_server.servicers.interceptors import AccessLog, DrainGate, Errors, Pipeline
from hansard_server.servicers.rate_limits import AgentRates, KeyLimits, agent_rates
from hansard_server.servicers.stalls import Stalls
from hansard_server.servicers.validation import Validation
from hansard_server.stores import CannotStart, sqlite_path

_LARGE_REQUESTS = 64
"""So many large requests are in memory at a time, each of twice `request_max_bytes` at most."""
_STOP_GRACE_S = 0.1
_HANDSHAKE_TIMEOUT_MS = 10_000
_PENDING_CALLS = 20_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Entrance:
    """What calls go through before a servicer has them.

    `authenticator` is None where everybody is let in.
    """

    settings: Settings
    store: Store
    authenticator: Authenticator | None
    drain: Drain
    calls: Calls
    closers: Closers
    clock: Clock

    def make_server(self, services: Iterable[Service]) -> grpc.aio.Server:
        """Return a server of the services, whose calls all come through the pipeline."""
        settings = self.settings
        admission = Admission(
            max_calls=settings.process_max_calls,
            max_streams=settings.process_max_streams,
            max_uploads=settings.process_max_uploads,
        )
        pipeline = self._pipeline(Authorizer(self.store), admission)
        for service in services:
            service.register(service.servicer, pipeline)
        server, arrivals = count_arrivals(lambda: grpc.aio.server(options=_grpc_options(settings)))
        admission.count(arrivals)
        self.store.expect(admission.crowd)
        pipeline.serve(server)
        return server

    def _pipeline(self, authorizer: Authorizer, admission: Admission) -> Pipeline:
        settings, limits = self.settings, self.settings.limits
        limiter = RateLimiter(self._permits())
        key_rate = settings.key_max_calls_per_s
        key_limits = KeyLimits(
            limiter,
            max_calls=settings.key_max_calls,
            max_streams=settings.key_max_streams,
            rate=Rate(key_rate) if key_rate else None,
        )
        of_agents = agent_rates(
            max_sessions_per_s=settings.agent_max_sessions_per_s,
            max_inputs_per_s=settings.agent_max_inputs_per_s,
        )
        validation = Validation(
            self.drain,
            request_max_bytes=limits.request_max_bytes,
            metadata_max_bytes=limits.metadata_max_bytes,
        )
        stalls = Stalls(settings.stall_s)
        self.closers.run("stalls", stalls.run())
        return Pipeline(
            [
                admission,
                *(AccessLog(self.calls), Errors(), DrainGate(self.drain)),
                Authentication(self.authenticator, authorizer),
                key_limits,
                RequestReader(large_requests=_LARGE_REQUESTS),
                validation,
                Authorization(authorizer),
                AgentRates(limiter, of_agents),
            ],
            stalls,
        )

    def _permits(self) -> PermitSource:
        if sqlite_path(self.settings.store_url) is not None:
            return LocalPermits(self.clock)
        permits = StoredPermits(self.store)
        self.closers.run("rates", permits.forget_full())
        return permits


async def listen(server: grpc.aio.Server, settings: Settings, closers: Closers) -> str:
    """Have the server take calls until it is closed, and return its address.

    Raises ConfigurationMistake, CannotStart.
    """
    address = settings.listen
    certificates = await asyncio.to_thread(open_certificates, settings)
    try:
        if certificates is None:
            port = server.add_insecure_port(address)
        else:
            port = server.add_secure_port(address, certificates.credentials())
            closers.run("certificates", certificates.watch())
    except RuntimeError:
        raise CannotStart(f"listen: can't listen on {address}; is the port taken?") from None
    await server.start()
    failpoints.begin_serving()
    # The streams have been told by the drain: whoever is left does not read, and is cut off.
    closers.add("listener", partial(server.stop, _STOP_GRACE_S))
    return f"{address.rpartition(':')[0]}:{port}"


def _grpc_options(settings: Settings) -> list[tuple[str, int]]:
    return [
        # Ours is half of it, and answers with details.
        ("grpc.max_receive_message_length", 2 * settings.request_max_bytes),
        ("grpc.max_send_message_length", -1),
        CHANNELZ_OPTION,
        ("grpc.so_reuseport", int(settings.reuse_port)),
        # A stream's window stays at 64 KiB until its request is read. With probes for bandwidth it
        # grows to megabytes, which clients fill before anybody has let them in.
        ("grpc.http2.bdp_probe", 0),
        ("grpc.max_concurrent_streams", settings.connection_max_streams),
        # What has arrived and was not looked at yet: beyond the first, grpc drops calls at random,
        # and their clients hear CANCELLED with no word of why or when to come again.
        ("grpc.server.max_pending_requests", _PENDING_CALLS),
        ("grpc.server.max_pending_requests_hard_limit", 2 * _PENDING_CALLS),
        ("grpc.max_connection_idle_ms", round(1_000 * settings.connection_idle_s)),
        # Of all headers of a call together: beyond the first, calls are refused at random, beyond
        # the second always.
        ("grpc.max_metadata_size", 16 * KIB),
        ("grpc.absolute_max_metadata_size", 32 * KIB),
        # Dead peers are found; clients that ping more often than every 10 s are sent away.
        ("grpc.keepalive_time_ms", 60_000),
        ("grpc.keepalive_timeout_ms", 20_000),
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.http2.min_ping_interval_without_data_ms", 10_000),
        # Who does not speak TLS or HTTP/2 within this time is not kept waiting for.
        ("grpc.server_handshake_timeout_ms", _HANDSHAKE_TIMEOUT_MS),
    ]
