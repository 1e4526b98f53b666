"""The client of other processes. It implements turns.mirrors.Peers."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager

import grpc
import grpc.aio

from hansard.internal.v1 import peer_service_pb2, peer_service_pb2_grpc
from hansard_server.agents.api import TextKind
from hansard_server.domain.records import Claim
from hansard_server.domain.values import dataclass
from hansard_server.peers.proof import METADATA_KEY, prove
from hansard_server.turns.mirrors import PeerNews, PeerUnavailable, TextPiece, TurnKey

CONNECT_TIMEOUT_S = 1.0
_OPTIONS = (
    # A text may be as large as an event.
    ("grpc.max_receive_message_length", -1),
    # An owner whose machine is gone is noticed.
    ("grpc.keepalive_time_ms", 10_000),
    ("grpc.keepalive_timeout_ms", 5_000),
    ("grpc.enable_http_proxy", 0),
)
_KINDS = {
    peer_service_pb2.TEXT_KIND_THINKING: TextKind.THINKING,
    peer_service_pb2.TEXT_KIND_OUTPUT: TextKind.OUTPUT,
}


@dataclass(slots=True)
class _Shared:
    """A connection that all calls to one process share."""

    channel: grpc.aio.Channel
    users: int = 0


class PeerClient:
    """Calls other processes; a connection lasts as long as a call needs it."""

    def __init__(self, secret: bytes) -> None:
        """Prove calls by the store's secret."""
        self._secret = secret
        self._connections: dict[str, _Shared] = {}

    async def follow_turn(self, address: str, turn: TurnKey) -> AsyncGenerator[PeerNews, None]:
        """Yield the turn's texts; see the Protocol."""
        request = peer_service_pb2.FollowTurnRequest(
            tenant=turn[0], session_uid=turn[1], turn_id=turn[2]
        )
        async with self._connected(address) as stub:
            call = stub.FollowTurn(request, metadata=self._metadata("FollowTurn", turn))
            try:
                async for response in call:
                    yield _news(response)
            except grpc.aio.AioRpcError as error:
                raise PeerUnavailable(error.code().name) from None
            finally:
                call.cancel()

    async def interrupt_turn(
        self, address: str, turn: TurnKey, reason: str, claim: Claim | None
    ) -> None:
        """Return when the owner has ended the turn; see the Protocol."""
        request = peer_service_pb2.InterruptTurnRequest(
            tenant=turn[0], session_uid=turn[1], turn_id=turn[2], reason=reason
        )
        if claim is not None:
            request.request_id = claim.request_id
            request.fingerprint = claim.fingerprint
        async with self._connected(address) as stub:
            try:
                await stub.InterruptTurn(request, metadata=self._metadata("InterruptTurn", turn))
            except grpc.aio.AioRpcError as error:
                raise PeerUnavailable(error.code().name) from None

    def _metadata(self, method: str, turn: TurnKey) -> tuple[tuple[str, str], ...]:
        return ((METADATA_KEY, prove(self._secret, method, turn)),)

    @asynccontextmanager
    async def _connected(
        self, address: str
    ) -> AsyncIterator[peer_service_pb2_grpc.PeerServiceAsyncStub]:
        shared = self._connections.get(address)
        if shared is None:
            channel = grpc.aio.insecure_channel(address, options=_OPTIONS)
            shared = self._connections[address] = _Shared(channel)
        shared.users += 1
        try:
            try:
                async with asyncio.timeout(CONNECT_TIMEOUT_S):
                    await shared.channel.channel_ready()
            except TimeoutError:
                msg = "no connection"
                raise PeerUnavailable(msg) from None
            yield peer_service_pb2_grpc.PeerServiceStub(shared.channel)
        finally:
            shared.users -= 1
            if shared.users == 0:
                del self._connections[address]
                await shared.channel.close()


def _news(response: peer_service_pb2.FollowTurnResponse) -> PeerNews:
    if not response.HasField("text"):
        return PeerNews(sequence=response.sequence, piece=None)
    text = response.text
    piece = TextPiece(
        event_id=text.event_id, kind=_KINDS[text.kind], offset=text.offset, text=text.text
    )
    return PeerNews(sequence=response.sequence, piece=piece)
