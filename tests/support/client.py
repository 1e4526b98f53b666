"""The client library over a transport that says what a test's script says, without a server."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Coroutine, Generator, Iterator, Sequence
from typing import Any, Generic, TypeVar

from google.protobuf.message import Message

from hansard_client.async_client import AsyncHansard, AsyncSession
from hansard_client.client import Hansard, Session
from hansard_client.errors import ClientClosed, HansardError, Unreachable
from hansard_client.link import Link
from hansard_client.methods import AsyncTurnStream, TurnStream
from hansard_client.operations.values import Place

T = TypeVar("T")
ADDRESS = "one:1"


def broken() -> HansardError:
    """Return what a connection that breaks is to the client."""
    return Unreachable("socket closed")


class ScriptedReading:
    """A stream of answers; an exception among them is raised."""

    def __init__(self, answers: Sequence[Any], address: str) -> None:
        self._answers = iter(answers)
        self._address = address
        self.cancelled = False

    async def next(self) -> Any:
        answer = next(self._answers, None)
        if isinstance(answer, HansardError):
            answer.address = self._address
            raise answer
        return answer

    def cancel(self) -> None:
        self.cancelled = True


class ScriptedTransport:
    """Answers each call with the next entry of its script; without one with an empty message.

    A script belongs to a call's name (`GetAgent`). An entry is an answer, an exception, or, for a
    stream, a list of them. All requests and waits are kept.
    """

    def __init__(self, *addresses: str, **scripts: Sequence[Any]) -> None:
        self.addresses = addresses or (ADDRESS,)
        self.scripts = {name: list(script) for name, script in scripts.items()}
        self.calls: list[tuple[str, Any]] = []
        self.used: list[str] = []
        self.waits_s: list[float] = []
        self.waited_for_connection: list[bool] = []
        self.readings: list[ScriptedReading] = []
        self.closed = False
        self._current = 0

    def requests(self, name: str) -> list[Any]:
        """Return the requests of one call."""
        return [request for called, request in self.calls if called == name]

    async def unary(self, rpc: Any, request: Any, *, timeout_s: float, wait: bool) -> Any:
        assert timeout_s > 0
        self.waited_for_connection.append(wait)
        return self._answer(rpc, request)

    def stream(self, rpc: Any, request: Any, *, timeout_s: float | None = None) -> ScriptedReading:
        assert timeout_s is None or timeout_s > 0
        self._note(rpc, request)
        script = self.scripts.get(rpc.method.name)
        self.readings.append(ScriptedReading(script.pop(0) if script else [], self.used[-1]))
        return self.readings[-1]

    async def upload(self, rpc: Any, parts: Iterator[Any]) -> Any:
        return self._answer(rpc, list(parts))

    async def sleep(self, seconds: float) -> None:
        self.waits_s.append(seconds)

    async def run(self, function: Callable[[], T]) -> T:
        return function()

    def leave(self, address: str) -> bool:
        if self.addresses[self._current] == address:
            self._current = (self._current + 1) % len(self.addresses)
        return self.addresses[self._current] != address

    def _note(self, rpc: Any, request: Any) -> None:
        if self.closed:
            raise ClientClosed("closed")
        if isinstance(request, Message):
            copy = type(request)()
            copy.CopyFrom(request)
            request = copy
        self.calls.append((rpc.method.name, request))
        self.used.append(self.addresses[self._current])

    def _answer(self, rpc: Any, request: Any) -> Any:
        self._note(rpc, request)
        script = self.scripts.get(rpc.method.name)
        answer = script.pop(0) if script else rpc.reply_type()
        if isinstance(answer, Exception):
            if isinstance(answer, HansardError):
                answer.address = self.used[-1]
            raise answer
        return answer


class Caller(Generic[T]):
    """A client of one kind, over a transport; the same words drive both kinds."""

    def __init__(
        self, kind: str, transport: Any, *, patience_s: float = 60.0, first_contact_s: float = 60.0
    ) -> None:
        self.transport = transport
        link = Link(
            transport, timeout_s=30.0, patience_s=patience_s, first_contact_s=first_contact_s
        )
        made: Any = Hansard() if kind == "blocking" else AsyncHansard()
        # The façade is made with a transport of its own; these take the parts over.
        self.hansard: Any = made
        for name in ("agents", "sessions", "api_keys", "corpora"):
            setattr(made, name, type(getattr(made, name))(link))
        of_session: Any = Session if kind == "blocking" else AsyncSession
        self.session: Any = of_session(Place(link, "agent", "session"))
        self.place_uid = lambda uid: of_session(Place(link, "agent", "session", uid))

    @staticmethod
    def get(made: Any) -> Any:
        """Return what a call returns, or the list of what it yields, whichever kind it is of."""
        match made:
            case TurnStream() | Generator():
                return list(made)
            case AsyncTurnStream() | AsyncGenerator():
                return asyncio.run(_all(made))
            case Coroutine():
                return asyncio.run(made)
            case _:
                return made


async def _all(items: Any) -> list[Any]:
    return [item async for item in items]
