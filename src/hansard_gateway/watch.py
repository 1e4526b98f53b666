"""WatchEvents, and any other stream of the contract, as server-sent events."""

from __future__ import annotations

import re
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any, Final

import grpc.aio
from starlette.requests import Request

from hansard_gateway.contract import Binding
from hansard_gateway.errors import HttpError, draining, from_grpc, invalid
from hansard_gateway.json_writer import member, to_json
from hansard_gateway.requests import build
from hansard_gateway.sse import EventStream, frame
from hansard_gateway.telling import Teller
from hansard_gateway.upstream import Broken, Metadata, Upstream, metadata_of

_LAST_EVENT_ID: Final = re.compile(r"([!-~]{1,64})\.([0-9]{1,18})\Z")
_RETRY: Final = b"retry: 1000\n"


class Streams:
    """Serves bindings whose RPC answers a stream that needs no words of its own."""

    def __init__(self, upstream: Upstream) -> None:
        """Call this server."""
        self._upstream = upstream

    async def __call__(self, binding: Binding, request: Request) -> EventStream:
        """Return the stream. Raises HttpError."""
        metadata = metadata_of(request)
        message = build(binding, request, {})
        frames = self._frames(binding, message, metadata)
        return await started(frames, 200, self._upstream.options.heartbeat_s)

    async def _frames(
        self, binding: Binding, message: Any, metadata: Metadata
    ) -> AsyncGenerator[bytes, None]:
        try:
            stream = self._upstream.stream(binding.rpc, message, metadata)
            async with aclosing(stream) as answers:
                async for answer in answers:
                    yield frame(to_json(answer))
        except (Broken, grpc.aio.AioRpcError) as error:
            raise _to_http(error, message) from None


class Watches(Streams):
    """Serves WatchEvents: it can be taken up again at any place."""

    async def __call__(self, binding: Binding, request: Request) -> EventStream:
        """Return the stream. Raises HttpError."""
        metadata = metadata_of(request)
        message = build(binding, request, {})
        last = request.headers.get("last-event-id")
        if last:
            found = _LAST_EVENT_ID.match(last)
            if found is None:
                raise invalid("Last-Event-ID", "is not an id of this stream")
            message.session_uid, message.after_sequence = found[1], int(found[2])
        frames = self._follow(binding, message, metadata)
        return await started(frames, 200, self._upstream.options.heartbeat_s)

    async def _follow(
        self, binding: Binding, message: Any, metadata: Metadata
    ) -> AsyncGenerator[bytes, None]:
        teller = Teller(message.after_sequence, whole_texts=True)
        patience = self._upstream.patience()
        begun = caught_up = False
        while True:
            failure: HttpError | None = None
            try:
                stream = self._upstream.stream(binding.rpc, message, metadata)
                async with aclosing(stream) as answers:
                    async for answer in answers:
                        patience.progress()
                        message.session_uid = answer.session_uid or message.session_uid
                        place = f"{message.session_uid}.{answer.sequence}"
                        if answer.WhichOneof("item") == "caught_up":
                            if caught_up:
                                continue
                            caught_up = True
                        told = _tell(teller, answer)
                        message.after_sequence = teller.sequence
                        if told:
                            begun = True
                            yield b"".join(frame(text, place) for text in told)
            except (Broken, grpc.aio.AioRpcError) as error:
                failure = _to_http(error, message)
                cause = error.cause if isinstance(error, Broken) else None
                again = cause is not None and not self._upstream.stopping.begun
                if again and await patience.wait():
                    continue
            if failure is not None and not begun:
                raise failure
            if failure is not None:
                yield _RETRY + frame(_error(failure, message))
            return


async def started(
    frames: AsyncGenerator[bytes, None], status: int, heartbeat_s: float
) -> EventStream:
    """Return the answer once its first frame is there; what fails before it is raised."""
    try:
        first = await anext(frames, b"")
    except BaseException:
        await frames.aclose()
        raise
    return EventStream(first, frames, status=status, heartbeat_s=heartbeat_s)


def _tell(teller: Teller, answer: Any) -> list[str]:
    told: list[str] = []
    match answer.WhichOneof("item"):
        case "event":
            told = teller.event(answer.event)
        case "delta":
            told = teller.delta(answer.delta)
        case "void":
            told = teller.void(answer.void.event_id)
        case "caught_up":
            told = [f'{{"type":"caught_up","sequence":{answer.sequence}}}']
        case "changed":
            told = [f'{{"type":"changed","event":{to_json(answer.changed.event)}}}']
        case "turn_end":
            turn = to_json(answer.turn_end.turn)
            told = [*teller.void(), f'{{"type":"turn_end","turn":{turn}}}']
    return told


def _error(failure: HttpError, message: Any) -> str:
    shown = [
        '"type":"error"',
        member("code", failure.code),
        member("messages", failure.messages),
        member("session_uid", message.session_uid),
        member("sequence", message.after_sequence),
    ]
    return "{" + ",".join(shown) + "}"


def _to_http(error: Broken | grpc.aio.AioRpcError, message: Any) -> HttpError:
    if isinstance(error, Broken):
        if error.cause is None:
            return draining(sequence=getattr(message, "after_sequence", 0))
        error = error.cause
    return from_grpc(error, message.DESCRIPTOR)
