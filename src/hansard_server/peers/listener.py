"""The private listener of a process: it answers other replicas for the turns that run here."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from typing import Any

import grpc
import grpc.aio

from hansard.internal.v1 import peer_service_pb2, peer_service_pb2_grpc
from hansard_server.agents.api import TextKind
from hansard_server.domain.records import Claim
from hansard_server.peers.proof import METADATA_KEY, is_proven
from hansard_server.turns.engine import Interruption, TurnEngine
from hansard_server.turns.feeds import Feeds, SessionFeed
from hansard_server.turns.mirrors import TurnKey

_REQUEST_MAX_BYTES = 64 * 1024
_STOP_GRACE_S = 0.1
_KINDS = {
    TextKind.THINKING: peer_service_pb2.TEXT_KIND_THINKING,
    TextKind.OUTPUT: peer_service_pb2.TEXT_KIND_OUTPUT,
}

Context = grpc.aio.ServicerContext[Any, Any]
Request = peer_service_pb2.FollowTurnRequest | peer_service_pb2.InterruptTurnRequest


class PeerServicer(peer_service_pb2_grpc.PeerServiceServicer):
    """Serves what the engine runs, and nothing that it follows elsewhere."""

    def __init__(self, secret: bytes, engine: TurnEngine, feeds: Feeds) -> None:
        """Answer those who know the secret."""
        self._secret = secret
        self._engine = engine
        self._feeds = feeds

    async def FollowTurn(  # noqa: N802 - the definition's name
        self, request: peer_service_pb2.FollowTurnRequest, context: Context
    ) -> AsyncIterator[peer_service_pb2.FollowTurnResponse]:
        """See the definition."""
        turn = await self._check("FollowTurn", request, context)
        with self._feeds.use(*turn[:2]) as feed:
            async with aclosing(self._follow(turn[2], feed)) as responses:
                async for response in responses:
                    yield response

    async def InterruptTurn(  # noqa: N802 - the definition's name
        self, request: peer_service_pb2.InterruptTurnRequest, context: Context
    ) -> peer_service_pb2.InterruptTurnResponse:
        """See the definition."""
        turn = await self._check("InterruptTurn", request, context)
        claim = Claim(request.request_id, request.fingerprint) if request.request_id else None
        if not await self._engine.interrupt_here(turn[2], Interruption(request.reason, claim)):
            await context.abort(grpc.StatusCode.UNAVAILABLE, "the turn has not ended in time")
        return peer_service_pb2.InterruptTurnResponse()

    async def _check(self, method: str, request: Request, context: Context) -> TurnKey:
        turn = (request.tenant, request.session_uid, request.turn_id)
        proof = dict(context.invocation_metadata() or ()).get(METADATA_KEY, "")
        if not isinstance(proof, str) or not is_proven(self._secret, method, turn, proof):
            await context.abort(grpc.StatusCode.UNAUTHENTICATED, "not a peer")
        if turn not in self._engine.turn_keys:
            await context.abort(grpc.StatusCode.NOT_FOUND, "the turn does not run here")
        return turn

    async def _follow(
        self, turn_id: str, feed: SessionFeed
    ) -> AsyncGenerator[peer_service_pb2.FollowTurnResponse, None]:
        event_id: str | None = None
        told_bytes = 0
        told_sequence = -1
        while turn_id in self._engine.turn_ids:
            version, sequence, text = feed.version, feed.last_sequence, feed.text
            if text is not None and text.turn_id == turn_id:
                if text.event_id != event_id:
                    event_id, told_bytes = text.event_id, 0
                if len(text.content) > told_bytes or sequence != told_sequence:
                    piece = peer_service_pb2.OpenText(
                        event_id=event_id,
                        kind=_KINDS[text.kind],
                        offset=told_bytes,
                        text=text.content[told_bytes:].decode(),
                    )
                    told_bytes, told_sequence = len(text.content), sequence
                    yield peer_service_pb2.FollowTurnResponse(sequence=sequence, text=piece)
            elif event_id is not None or sequence != told_sequence:
                event_id, told_sequence = None, sequence
                yield peer_service_pb2.FollowTurnResponse(sequence=sequence)
            await feed.wait(version)


class PeerListener:
    """A server of its own for peers, on a port of its own. `address` is what leases tell."""

    def __init__(self, server: grpc.aio.Server, address: str) -> None:
        """Take over a server that has a port; `bind` makes one."""
        self._server = server
        self.address = address

    @classmethod
    def bind(cls, listen: str, host: str) -> PeerListener:
        """Return a listener on `listen`, host:port, that others reach at `host`.

        It takes no calls yet. Raises RuntimeError when that can't be listened on.
        """
        options = (
            ("grpc.so_reuseport", 0),
            ("grpc.max_receive_message_length", _REQUEST_MAX_BYTES),
            ("grpc.max_send_message_length", -1),
            ("grpc.http2.min_ping_interval_without_data_ms", 5_000),
        )
        server = grpc.aio.server(options=options)
        port = server.add_insecure_port(listen)
        return cls(server, f"{f'[{host}]' if ':' in host else host}:{port}")

    async def start(self, servicer: PeerServicer) -> None:
        """Take calls."""
        peer_service_pb2_grpc.add_PeerServiceServicer_to_server(servicer, self._server)
        await self._server.start()

    async def close(self) -> None:
        """End all calls."""
        await self._server.stop(_STOP_GRACE_S)
