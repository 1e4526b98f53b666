"""Calls that are cancelled leave nothing behind, no task, connection or feed: at random moments,
and at every named place of a write, after which the same request gets its one answer.
"""

from __future__ import annotations

import asyncio
import random
import threading
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from hansard.v1 import artifact_service_pb2, session_pb2, session_service_pb2
from hansard_server import failpoints
from hansard_server.repository.sql.store import SqlStore
from hansard_server.turns.engine import TurnEngine
from hansard_server.turns.feeds import Feeds
from tests.support.invariants import check_store
from tests.support.server import Running, make_settings, running_server
from tests.support.talk import TWENTY_DELTAS, Talk, rating, stored

ROUNDS = 40
GRPC_OWN = ("_AioCall", "AioServer", "_consume_request_iterator")
SEED = 3
WAIT_S = 30.0
# These are passed when a server starts, not by anybody's call.
NOT_OF_CALLS = {"migration.step", "turn.taken", "blobs.settled"}
KINDS = ("send", "append", "upload", "create", "fork")


class Parts:
    """The feeds, engine and store of the servers that are made."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.made: dict[type, Any] = {}
        for kind in (Feeds, TurnEngine, SqlStore):
            self._note(monkeypatch, kind)

    def _note(self, monkeypatch: pytest.MonkeyPatch, kind: type) -> None:
        init = kind.__init__  # type: ignore[misc]

        def noting(part: Any, *args: Any, **kwargs: Any) -> None:
            self.made[kind] = part
            init(part, *args, **kwargs)

        monkeypatch.setattr(kind, "__init__", noting)

    def __repr__(self) -> str:
        """Return what is in use."""
        engine, store = self.made[TurnEngine], self.made[SqlStore]
        feeds = len(self.made[Feeds])
        return f"{feeds} feeds, turns {set(engine.turn_ids)}, {store._engine.pool.status()}"

    @property
    def idle(self) -> bool:
        """Whether nothing is in use any more."""
        store = self.made[SqlStore]
        return (
            len(self.made[Feeds]) == 0
            and not self.made[TurnEngine].turn_ids
            # The writer keeps one, and so does each reader.
            and store._engine.pool.checkedout() <= 1 + store._readers.connections
        )

    async def until_idle(self, tasks: int) -> None:
        """Return when nothing is in use and there are no more tasks than that."""
        for _ in range(600):
            if self.idle and _tasks() <= tasks:
                return
            await asyncio.sleep(0.05)
        assert self.idle, self
        assert _tasks() <= tasks, asyncio.all_tasks()


@pytest.fixture
def parts(monkeypatch: pytest.MonkeyPatch) -> Parts:
    """Give the parts of the server that is made next."""
    return Parts(monkeypatch)


@pytest.fixture
async def hansard(parts: Parts, store_url: str, tmp_path: Path) -> AsyncIterator[Running]:
    """Give a server whose parts are known."""
    assert not parts.made
    async with running_server(make_settings(tmp_path / "data", store_url)) as running:
        yield running
    check_store(store_url)


def calls_of(talk: Talk, number: int) -> dict[str, Callable[[], Any]]:
    """Return one call of each kind, as running calls of grpc."""
    server = talk.server
    return {
        "send": lambda: talk.stream(f"{number}", request_id=f"send-{number}"),
        "append": lambda: talk.append_call(rating(), rating(), request_id=f"append-{number}"),
        "watch": lambda: talk.watch(include_deltas=True),
        "list": talk.list_call,
        "upload": lambda: server.artifacts.UploadArtifacts(upload_parts(talk, f"up-{number}")),
        "create": lambda: server.sessions.CreateSession(
            session_service_pb2.CreateSessionRequest(
                agent_key=talk.agent_key, name="Another", request_id=f"create-{number}"
            )
        ),
        "fork": lambda: server.sessions.CreateSession(
            session_service_pb2.CreateSessionRequest(
                agent_key=talk.agent_key,
                name="A fork",
                request_id=f"fork-{number}",
                from_session=session_pb2.FromSession(session_key=talk.session_key),
            )
        ),
    }


async def upload_parts(
    talk: Talk, request_id: str
) -> AsyncIterator[artifact_service_pb2.UploadArtifactsRequest]:
    make = artifact_service_pb2.UploadArtifactsRequest
    yield make(start=artifact_service_pb2.UploadStart(request_id=request_id, **talk.keys))
    yield make(header=artifact_service_pb2.UploadHeader(filename="a"))
    for _ in range(20):
        yield make(chunk=b"x" * 10_000)
        await asyncio.sleep(0)


async def test_cancelled_calls_leave_nothing(hansard: Running, parts: Parts) -> None:
    rng = random.Random(SEED)
    talk = await Talk(hansard).begin(TWENTY_DELTAS)
    await talk.send()
    tasks = _tasks()
    for number in range(ROUNDS):
        calls = [make() for make in calls_of(talk, number).values()]
        waiting = [asyncio.ensure_future(_answer(call)) for call in calls]
        await asyncio.wait(waiting, timeout=rng.random() * 0.05)
        for call in calls:
            # By the call, not by the task: cancelled before its first step a task never reaches
            # the call, which then stays open at the client and, rightly, at the server.
            call.cancel()
        await asyncio.wait(waiting)
    await parts.until_idle(tasks)
    # And all goes on as ever.
    assert (await talk.send())[-1].HasField("turn_end")
    assert len(await talk.append(rating())) == 1


async def test_calls_cancelled_at_each_failpoint(hansard: Running, parts: Parts) -> None:
    """The writing thread stops at the place until the call is gone from the server."""
    talk = await Talk(hansard).begin(TWENTY_DELTAS)
    tasks = _tasks()
    reached = set()
    number = 0
    for name in sorted(failpoints.NAMES - NOT_OF_CALLS):
        for kind in KINDS:
            number += 1
            make = calls_of(talk, number)[kind]
            if not await _cancel_at(name, make, hansard):
                continue
            reached.add((name, kind))
            await parts.until_idle(tasks)
            # What became of it is its own business; repeated, it has happened once.
            again, repeated = [await _answer(calls_of(talk, number)[kind]()) for _ in range(2)]
            if kind == "send":
                # A turn that still runs is told with its deltas, an ended one without.
                again, repeated = stored(again), stored(repeated)
                assert len(again) == 3, (name, kind)
            assert again == repeated, (name, kind)
    assert {name for name, _ in reached} == failpoints.NAMES - NOT_OF_CALLS
    assert {kind for _, kind in reached} == set(KINDS)
    inputs = [turn.input.input_message.messages[0].text.content for turn in await talk.turns()]
    assert len(inputs) == len(set(inputs)), "an input ran twice"
    await parts.until_idle(tasks)


async def _cancel_at(name: str, make: Callable[[], Any], hansard: Running) -> bool:
    """Make the call and cancel it at the place; return whether it came by there."""
    loop = asyncio.get_running_loop()
    gone = threading.Event()
    came = asyncio.Event()
    main = threading.get_ident()

    def act() -> None:
        loop.call_soon_threadsafe(came.set)
        if threading.get_ident() != main:
            assert gone.wait(WAIT_S), "the call did not go"

    with failpoints.armed(name, act):
        call = make()
        answering = asyncio.ensure_future(_answer(call))
        coming = asyncio.ensure_future(came.wait())
        await asyncio.wait({answering, coming}, return_when=asyncio.FIRST_COMPLETED)
        reached = came.is_set()
        coming.cancel()
        call.cancel()
        await asyncio.wait({answering})
        try:
            await _until(lambda: hansard.server._calls.running == 0)
        finally:
            gone.set()
    return reached


async def _until(holds: Callable[[], bool]) -> None:
    async with asyncio.timeout(WAIT_S):
        while not holds():  # noqa: ASYNC110 - the server has no event for it
            await asyncio.sleep(0.005)


def _tasks() -> int:
    """Return how many tasks there are, but grpc's own: those of its client end when they like."""
    return sum(not any(own in repr(task) for own in GRPC_OWN) for task in asyncio.all_tasks())


async def _answer(call: Any) -> Any:
    """Return a unary call's answer, or all of a stream's."""
    if isinstance(call, Awaitable):
        return await call
    return [response async for response in call]
