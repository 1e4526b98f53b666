"""/healthz and /readyz: whether the gateway lives, and whether the server behind it takes calls."""

from __future__ import annotations

import grpc.aio
from grpc_health.v1 import health_pb2
from starlette.requests import Request
from starlette.responses import Response

from hansard_gateway.replies import json_reply
from hansard_gateway.upstream import Upstream

_CHECK = "/grpc.health.v1.Health/Check"
_TIMEOUT_S = 5.0


class Health:
    """Answers for those who watch over processes; needs no key."""

    def __init__(self, upstream: Upstream) -> None:
        """Ask this server."""
        self._upstream = upstream

    async def live(self, _request: Request) -> Response:
        """Return that the gateway lives."""
        return json_reply('{"status":"ok"}')

    async def ready(self, _request: Request) -> Response:
        """Return whether calls are served."""
        if self._upstream.stopping.begun:
            return _not_ready("stopping")
        check = self._upstream.unary(
            _CHECK, health_pb2.HealthCheckRequest, health_pb2.HealthCheckResponse
        )
        try:
            answer = await check(health_pb2.HealthCheckRequest(), timeout=_TIMEOUT_S)
        except grpc.aio.AioRpcError:
            return _not_ready("the server does not answer")
        if answer.status != health_pb2.HealthCheckResponse.SERVING:
            return _not_ready("the server does not serve")
        return json_reply('{"status":"ready"}')


def _not_ready(why: str) -> Response:
    return json_reply(f'{{"status":"{why}"}}', 503, {"retry-after": "1"})
