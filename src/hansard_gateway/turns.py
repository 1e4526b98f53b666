"""SendEvent over HTTP: one input in, the whole turn out, as one answer or as it happens.

Once an input is stored the answer is a success, whatever becomes of the turn: clients of the
documented API send an input again after 408, 409, 429 and 5xx, and it would be another one.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing, suppress
from typing import Any, Final

import grpc.aio
from starlette.requests import Request
from starlette.responses import Response

from hansard.v1 import event_service_pb2, turn_pb2
from hansard_gateway import bodies
from hansard_gateway.contract import Binding
from hansard_gateway.errors import HttpError, draining, from_grpc, invalid
from hansard_gateway.json_reader import read_object
from hansard_gateway.json_text import Member
from hansard_gateway.json_writer import member, to_json
from hansard_gateway.naming import LISTED_EVENT_TYPES
from hansard_gateway.replies import json_reply
from hansard_gateway.requests import build
from hansard_gateway.sse import EventStream, comment, frame
from hansard_gateway.telling import Teller
from hansard_gateway.upstream import Broken, Metadata, Upstream, metadata_of

STREAM: Final = "stream_response"
_OWN_MEMBERS: Final = frozenset({STREAM, "behavior", "since"})
_BEHAVIORS: Final = {
    "steer": event_service_pb2.WHEN_BUSY_STEER,
    "follow_up": event_service_pb2.WHEN_BUSY_QUEUE,
}
_CREATED: Final = 201
_LISTED: Final = frozenset(LISTED_EVENT_TYPES)

Answer = event_service_pb2.SendEventResponse


class Turns:
    """Serves SendEvent."""

    def __init__(self, upstream: Upstream) -> None:
        """Call this server."""
        self._upstream = upstream

    async def __call__(self, binding: Binding, request: Request) -> Response | EventStream:
        """Return the answer. Raises HttpError, ClientGone, grpc.aio.AioRpcError."""
        bodies.check_json(request)
        members = read_object(await bodies.read(request, self._upstream.options))
        message, streamed = read_input(binding, request, members)
        return await self.run(binding, request, message, streamed=streamed)

    async def run(
        self,
        binding: Binding,
        request: Request,
        message: Any,
        *,
        streamed: bool,
        before: tuple[Any, ...] = (),
    ) -> Response | EventStream:
        """Return the turn of the input; `before` are events that belong to the answer too."""
        metadata = metadata_of(request)
        if streamed:
            frames = self._frames(binding, message, metadata, before)
            try:
                first = await anext(frames)
            except BaseException:
                await frames.aclose()
                raise
            heartbeat_s = self._upstream.options.heartbeat_s
            return EventStream(first, frames, status=_CREATED, heartbeat_s=heartbeat_s)
        if message.deltas == event_service_pb2.DELTA_MODE_UNSPECIFIED:
            message.deltas = event_service_pb2.DELTA_MODE_NONE
        collecting = asyncio.create_task(self._collect(binding, message, metadata, before))
        leaving = asyncio.create_task(_wait_for_leaving(request))
        try:
            await asyncio.wait({collecting, leaving}, return_when=asyncio.FIRST_COMPLETED)
            if not collecting.done():
                raise bodies.ClientGone
            return json_reply(collecting.result(), _CREATED)
        finally:
            for task in (collecting, leaving):
                task.cancel()
                with suppress(BaseException):
                    await task

    def only(
        self, events: tuple[Any, ...], session_key: str, *, streamed: bool
    ) -> Response | EventStream:
        """Return an answer of events alone: there was no input, and no turn."""
        if streamed:
            frames = _frames_of(events)
            heartbeat_s = self._upstream.options.heartbeat_s
            return EventStream(b"", frames, status=_CREATED, heartbeat_s=heartbeat_s)
        shown = ",".join(map(to_json, events))
        body = f'{{"events":[{shown}],{member("session_key", session_key)}}}'
        return json_reply(body, _CREATED)

    async def _collect(
        self, binding: Binding, message: Any, metadata: Metadata, before: tuple[Any, ...]
    ) -> str:
        """Return the whole turn as one answer."""
        events = [to_json(event) for event in before]
        turn = _Turn()
        sequence = 0
        try:
            async with aclosing(self._answers(binding, message, metadata)) as answers:
                async for answer in answers:
                    turn.see(answer)
                    if answer.WhichOneof("item") == "event":
                        event = answer.event
                        if event.sequence > sequence and event.WhichOneof("payload") in _LISTED:
                            events.append(to_json(event))
                        sequence = max(sequence, event.sequence)
        except HttpError as error:
            if not turn.stored:
                raise
            turn.error = error
        shown = [
            f'"events":[{",".join(events)}]',
            member("session_key", message.session_key),
            f'"turn":{turn.json()}',
        ]
        return "{" + ",".join(shown) + "}"

    async def _frames(
        self, binding: Binding, message: Any, metadata: Metadata, before: tuple[Any, ...]
    ) -> AsyncGenerator[bytes, None]:
        """Yield the turn as it happens. Raises HttpError, only before the first frame."""
        for event in before:
            yield frame(to_json(event))
        teller, turn = Teller(whole_texts=False), _Turn()
        begun = bool(before)
        try:
            async with aclosing(self._answers(binding, message, metadata)) as answers:
                async for answer in answers:
                    turn.see(answer)
                    data = _tell(teller, answer)
                    if data:
                        begun = True
                        yield data
        except HttpError as error:
            if not begun:
                raise
            turn.error = error
        for text in teller.void():
            yield frame(text)
        if turn.failure is not None:
            yield frame(_error(turn, teller.sequence))
        ending = ['"type":"end"', member("sequence", max(teller.sequence, turn.sequence))]
        yield frame("{" + ",".join([*ending, f'"turn":{turn.json()}']) + "}")

    async def _answers(
        self, binding: Binding, message: Any, metadata: Metadata
    ) -> AsyncGenerator[Answer, None]:
        """Yield the answers; a stream that breaks is taken up again, and begins anew.

        The request_id makes that one turn. Raises HttpError.
        """
        patience = self._upstream.patience()
        known = ""
        while True:
            try:
                stream = self._upstream.stream(binding.rpc, message, metadata)
                async with aclosing(stream) as answers:
                    async for answer in answers:
                        patience.progress()
                        known = known or answer.session_uid
                        yield answer
                    return
            except Broken as broken:
                if broken.cause is None:
                    raise draining() from None
                if not await patience.wait() or self._upstream.stopping.begun:
                    raise from_grpc(broken.cause, message.DESCRIPTOR) from None
            except grpc.aio.AioRpcError as error:
                raise from_grpc(error, message.DESCRIPTOR) from None


class _Turn:
    """What is known of the turn."""

    def __init__(self) -> None:
        self.stored = False
        self.error: HttpError | None = None
        self.sequence = 0
        self._id = ""
        self._status = "running"
        self._turn: turn_pb2.Turn | None = None

    def see(self, answer: Answer) -> None:
        """Take notice of an answer."""
        self._id = answer.turn_id or self._id
        self.stored = True
        self.sequence = max(self.sequence, answer.sequence)
        match answer.WhichOneof("item"):
            case "queued":
                self._status = "queued"
            case "turn_end":
                self._turn = answer.turn_end.turn
            case "requires_action":
                self._turn = answer.requires_action.turn
            case _:
                self._status = "running"

    @property
    def failure(self) -> tuple[str, list[str]] | None:
        """Code and words, when the turn failed or could not be followed to its end."""
        if self.error is not None:
            return self.error.code, self.error.messages
        turn = self._turn
        if turn is not None and turn.status == turn_pb2.TURN_STATUS_FAILED:
            return "turn_failed", [turn.error.message or "the turn failed"]
        return None

    def json(self) -> str:
        """Return the turn; when its end is not known, what is."""
        if self._turn is not None:
            return to_json(self._turn)
        if not self._id and self.error is None:
            # An interrupt that had nothing to end.
            return "null"
        known = [member("id", self._id), member("status", self._status)]
        if self.error is not None:
            known.append(member("error", {**self.error.body(""), "request_id": None}))
        return "{" + ",".join(known) + "}"


def _tell(teller: Teller, answer: Answer) -> bytes:
    match answer.WhichOneof("item"):
        case "delta":
            told = teller.delta(answer.delta)
        case "event":
            event = answer.event
            if event.WhichOneof("payload") not in _LISTED:
                return b""
            told = teller.event(event)
        case "void":
            told = teller.void(answer.void.event_id)
        case "queued":
            return comment(f"queued {answer.queued.position}")
        case _:
            return b""
    return b"".join(map(frame, told))


def _error(turn: _Turn, sequence: int) -> str:
    code, messages = turn.failure or ("", [])
    shown = ['"type":"error"', member("code", code), member("messages", messages)]
    return "{" + ",".join([*shown, member("sequence", max(sequence, turn.sequence))]) + "}"


def read_input(binding: Binding, request: Request, members: dict[str, Member]) -> tuple[Any, bool]:
    """Return the request, and whether its turn is streamed. Raises HttpError."""
    given = {name: each for name, each in members.items() if each.value is not None}
    if "since" in given:
        raise invalid("since", "is not supported")
    short = _short_form(given)
    message = build(
        binding, request, given, ignored=_OWN_MEMBERS | ({"content"} if short else set())
    )
    if short:
        message.input_message.messages.add().text.content = short
    if "behavior" in given:
        behavior = given["behavior"].value
        if not isinstance(behavior, str) or behavior not in _BEHAVIORS:
            raise invalid("behavior", f"must be one of {', '.join(_BEHAVIORS)}")
        message.when_busy = _BEHAVIORS[behavior]
    streamed = given[STREAM].value if STREAM in given else False
    if not isinstance(streamed, bool):
        raise invalid(STREAM, "must be true or false")
    return message, streamed


def _short_form(given: Mapping[str, Member]) -> str:
    """Return the text of an input_message in the oldest guide's form, or ""."""
    kind, content = given.get("type"), given.get("content")
    if kind is None or content is None or kind.value != "input_message" or "messages" in given:
        return ""
    return content.value if type(content.value) is str else ""


async def _frames_of(events: tuple[Any, ...]) -> AsyncGenerator[bytes, None]:
    for event in events:
        yield frame(to_json(event))
    yield frame('{"type":"end"}')


async def _wait_for_leaving(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
