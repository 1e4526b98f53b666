"""Orders of events in time that are rare, made to happen: news that is late, or never comes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Connection
from sqlalchemy.exc import OperationalError

from hansard.v1 import corpus_service_pb2, event_service_pb2, session_service_pb2, turn_pb2
from hansard_server.agents.api import ModelRequest, Part, TextDelta, TextEnd, TextKind
from hansard_server.agents.models.scripted import ScriptedModel
from hansard_server.domain.errors import StoreUnavailable
from hansard_server.domain.records import EventType
from hansard_server.repository.commands import (
    AwaitCalls,
    CancelQueued,
    Command,
    FindInterrupted,
    FinishTurn,
    RecordStep,
)
from hansard_server.repository.sql.jobs import Job
from hansard_server.repository.sql.reads import SqlReadTx
from hansard_server.repository.sql.store import SqlStore
from hansard_server.repository.sql.writer import Writer
from hansard_server.turns import engine, keeper, patience
from hansard_server.turns.engine import RunningTurn
from tests.support.actions import answer_call, ask, begin, output
from tests.support.invariants import check_store
from tests.support.server import Running, make_settings, running_server
from tests.support.talk import Talk, check_turn, content, items, stored, take_until
from tests.wire.conftest import agent_request

TIMEOUT_S = 30.0
NEVER_S = 3_600.0
INTERRUPTED = turn_pb2.TURN_STATUS_INTERRUPTED
STEER = event_service_pb2.WHEN_BUSY_STEER

Respond = Callable[[ScriptedModel, ModelRequest], AsyncIterator[Part]]


class HeldNews:
    """Holds what commits of one kind of command have come to, from now on until it is told."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *kinds: type) -> None:
        self._deliver = SqlStore._deliver
        self._held: list[tuple[Any, ...]] = []
        self._came = asyncio.Event()
        self._told = False

        def hold(store: SqlStore, written: Any, changes: Any) -> None:
            if self._told or not any(isinstance(done.job.work, kinds) for done in written):
                self._deliver(store, written, changes)
                return
            self._held.append((store, written, changes))
            self._came.set()

        monkeypatch.setattr(SqlStore, "_deliver", hold)

    async def until_held(self, count: int = 1) -> None:
        """Return when so much is held."""
        while len(self._held) < count:
            self._came.clear()
            await self._came.wait()

    def tell(self) -> None:
        """Deliver it all, in order and in one go, and hold nothing more."""
        self._told = True
        for arguments in self._held:
            self._deliver(*arguments)


# Interrupts ---------------------------------------------------------------------------------------


async def test_interrupt_of_a_turn_that_is_about_to_begin(
    hansard: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Nobody ends it by force: it must end itself.
    monkeypatch.setattr(engine, "INTERRUPT_PATIENCE_S", NEVER_S)
    talk = await Talk(hansard).begin([{"agent_output": {"content": "x"}}, {"pause_ms": 60_000}])
    running, first_id = await talk.hold()
    async with asyncio.timeout(TIMEOUT_S):
        waiting = asyncio.create_task(talk.send("B"))
        _, second = await talk.until_turns(2)
        end = HeldNews(monkeypatch, FinishTurn)
        releasing = asyncio.create_task(talk.release(first_id))
        await end.until_held()
        found = HeldNews(monkeypatch, CancelQueued)
        cancelling = asyncio.create_task(talk.release(second.id))
        await found.until_held()
        # The first one's end starts the second one, and before that has a chance it is cancelled.
        end.tell()
        found.tell()
        ended = await cancelling
        await releasing
        responses = await waiting
    assert ended.status == INTERRUPTED
    check_turn(responses)
    assert [e.WhichOneof("payload") for e in stored(responses)] == [
        "input_message",
        "session_interrupted",
    ]
    running.cancel()


async def test_interrupt_of_a_turn_that_was_about_to_end_and_goes_on(
    hansard: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine, "INTERRUPT_PATIENCE_S", NEVER_S)
    calls = 0
    steered, stopped = asyncio.Event(), asyncio.Event()
    stop_agent = RunningTurn.stop_agent

    async def respond(_: ScriptedModel, __: ModelRequest) -> AsyncIterator[Part]:
        nonlocal calls
        calls += 1
        yield TextDelta(TextKind.OUTPUT, "Hel")
        await (steered.wait() if calls == 1 else asyncio.sleep(NEVER_S))
        yield TextDelta(TextKind.OUTPUT, "lo")
        yield TextEnd()

    def stop(running: RunningTurn) -> None:
        stop_agent(running)
        stopped.set()

    talk = await Talk(hansard).begin()
    monkeypatch.setattr(ScriptedModel, "respond", respond)
    monkeypatch.setattr(RunningTurn, "stop_agent", stop)
    news = HeldNews(monkeypatch, FinishTurn)
    async with asyncio.timeout(TIMEOUT_S):
        source = aiter(talk.stream("A"))
        seen = await take_until(source, "delta")
        await talk.send("B", when_busy=STEER, detach=True)
        steered.set()
        # It has not ended since it has not read that; the interrupt comes before it hears so.
        await news.until_held()
        cancelling = asyncio.create_task(talk.release(seen[0].turn_id))
        await stopped.wait()
        news.tell()
        ended = await cancelling
        seen += [response async for response in source]
    assert ended.status == INTERRUPTED
    check_turn(seen)
    assert calls == 1
    assert [content(e) for e in stored(seen) if e.HasField("agent_output")] == ["Hello"]


async def test_turn_that_comes_back_before_the_news_that_it_waits(
    hansard: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine, "INTERRUPT_PATIENCE_S", NEVER_S)
    talk = await begin(Talk(hansard), [ask(), {"agent_output": {"content": "x"}}])
    scripted = ScriptedModel.respond

    async def respond(model: ScriptedModel, request: ModelRequest) -> AsyncIterator[Part]:
        if request.step == 0:
            async for part in scripted(model, request):
                yield part
            return
        yield TextDelta(TextKind.OUTPUT, "Hel")
        await asyncio.sleep(NEVER_S)

    monkeypatch.setattr(ScriptedModel, "respond", respond)
    news = HeldNews(monkeypatch, AwaitCalls)
    async with asyncio.timeout(TIMEOUT_S):
        sending = asyncio.create_task(talk.send())
        await news.until_held()
        (turn,) = await talk.turns()
        (call,) = turn.pending_calls
        source = aiter(answer_call(talk, output(call.tool_call_id)))
        seen = await take_until(source, "delta")
        # Only now does it hear that the turn, which it runs again, has begun to wait.
        news.tell()
        assert (await talk.release(turn.id)).status == INTERRUPTED
        seen += [response async for response in source]
        check_turn(await sending)
    check_turn(seen)
    assert [content(e) for e in stored(seen) if e.HasField("agent_output")] == ["Hel"]


@pytest.fixture
async def adopting(
    store_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Running]:
    """Give a server that soon takes up what is its own without its knowledge."""
    monkeypatch.setattr(keeper, "RECOVERY_INTERVAL_S", 0.05)
    async with running_server(make_settings(tmp_path / "data", store_url)) as running:
        yield running
    check_store(store_url, tmp_path / "data")


async def test_turn_that_was_adopted_before_the_news_that_it_starts(
    adopting: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine, "INTERRUPT_PATIENCE_S", NEVER_S)
    talk = await Talk(adopting).begin()

    async def respond(_: ScriptedModel, __: ModelRequest) -> AsyncIterator[Part]:
        yield TextDelta(TextKind.OUTPUT, "Hel")
        await asyncio.sleep(NEVER_S)

    monkeypatch.setattr(ScriptedModel, "respond", respond)
    async with asyncio.timeout(TIMEOUT_S):
        first = await talk.send("A", detach=True)
        source = aiter(talk.stream("B", request_id="r"))
        seen = await take_until(source, "queued")
        news = HeldNews(monkeypatch, FinishTurn)
        releasing = asyncio.create_task(talk.release(first[0].turn_id))
        await news.until_held()
        joined = talk.stream("B", request_id="r")
        await take_until(aiter(joined), "delta")
        news.tell()
        await releasing
        seen += await take_until(source, "delta")
        assert (await talk.release(seen[0].turn_id)).status == INTERRUPTED
        seen += [response async for response in source]
    joined.cancel()
    check_turn(seen)
    assert [content(e) for e in stored(seen) if e.HasField("agent_output")] == ["Hel"]


async def test_interrupt_while_a_step_that_fails_is_on_its_way(
    hansard: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    submit, stop_agent = SqlStore.submit, RunningTurn.stop_agent
    begun, stopped = asyncio.Event(), asyncio.Event()

    async def fail(store: SqlStore, command: Command) -> Any:
        if isinstance(command, RecordStep) and not stopped.is_set():
            begun.set()
            await stopped.wait()
            raise StoreUnavailable("it does not answer")
        return await submit(store, command)

    def stop(running: RunningTurn) -> None:
        stop_agent(running)
        stopped.set()

    monkeypatch.setattr(SqlStore, "submit", fail)
    monkeypatch.setattr(RunningTurn, "stop_agent", stop)
    talk = await Talk(hansard).begin([{"thinking": {"content": "Hm"}}, {"pause_ms": 60_000}])
    async with asyncio.timeout(TIMEOUT_S):
        source = aiter(talk.stream())
        seen = await take_until(source, "delta")
        await begun.wait()
        assert (await talk.release(seen[0].turn_id)).status == INTERRUPTED
        seen += [response async for response in source]
    check_turn(seen)
    # What was shown is kept.
    assert [content(e) for e in stored(seen) if e.HasField("thinking")] == ["Hm"]


async def test_interrupts_at_once_end_one_turn_however_often_they_come(
    hansard: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    talk = await Talk(hansard).begin()
    running, first_id = await talk.hold()

    async def interrupt(request_id: str) -> list[event_service_pb2.SendEventResponse]:
        request = event_service_pb2.SendEventRequest(
            interrupt=event_service_pb2.Interrupt(), request_id=request_id, **talk.keys
        )
        return [response async for response in hansard.events.SendEvent(request)]

    async with asyncio.timeout(TIMEOUT_S):
        # Both have found the turn before one of them has ended it.
        found = HeldNews(monkeypatch, FindInterrupted)
        interrupting = []
        for count, name in enumerate(("one", "two"), 1):
            interrupting.append(asyncio.create_task(interrupt(name)))
            await found.until_held(count)
        found.tell()
        answers = await asyncio.gather(*interrupting)
        for answer in answers:
            check_turn(answer)
        other, other_id = await talk.hold()
        assert [await interrupt(name) for name in ("one", "two")] == answers
        assert [turn.status for turn in await talk.turns()] == [
            INTERRUPTED,
            turn_pb2.TURN_STATUS_RUNNING,
        ]
        await talk.release(other_id)
    assert answers[0][0].turn_id == first_id
    running.cancel()
    other.cancel()


# Watchers -----------------------------------------------------------------------------------------


async def test_end_of_a_turn_that_somebody_asks_for_again_is_not_told_again(
    hansard: Running,
) -> None:
    talk = await Talk(hansard).begin()
    first = await talk.send("A", request_id="r")
    watch = talk.watch(include_deltas=True)
    source = aiter(watch)
    async with asyncio.timeout(TIMEOUT_S):
        await take_until(source, "caught_up")
        assert stored(await talk.send("A", request_id="r")) == stored(first)
        second = await talk.send("B")
        seen = await take_until(source, "turn_end")
    watch.cancel()
    assert stored(seen) == stored(second)
    assert seen[-1].turn_end == second[-1].turn_end


# Commits that are not heard of --------------------------------------------------------------------


class LostCommit:
    """Has the writer believe that the first commit of such commands failed, which took effect."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, what: Callable[[Any], bool]) -> None:
        write = Writer._write_together
        self.lost = False

        def lose(writer: Writer, connection: Connection, jobs: Sequence[Job]) -> None:
            if self.lost or not any(what(job.work) for job in jobs):
                write(writer, connection, jobs)
                return
            self.lost = True
            publish = writer._publish
            writer._publish = lambda *_: None
            try:
                write(writer, connection, jobs)
            finally:
                writer._publish = publish
            raise OperationalError("COMMIT", None, Exception("the connection was lost"))

        monkeypatch.setattr(Writer, "_write_together", lose)


async def test_text_whose_commit_was_not_heard_of_is_not_void(
    hansard: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown = asyncio.Event()

    async def respond(_: ScriptedModel, __: ModelRequest) -> AsyncIterator[Part]:
        yield TextDelta(TextKind.THINKING, "Hm")
        await shown.wait()
        yield TextEnd()
        yield TextDelta(TextKind.OUTPUT, "Hello")
        shown.clear()
        await shown.wait()
        yield TextEnd()

    talk = await Talk(hansard).begin()
    monkeypatch.setattr(ScriptedModel, "respond", respond)
    commit = LostCommit(monkeypatch, lambda work: isinstance(work, RecordStep))
    seen = []
    async with asyncio.timeout(TIMEOUT_S):
        async for response in talk.stream():
            seen.append(response)
            if response.HasField("delta"):
                shown.set()
    assert commit.lost
    check_turn(seen)
    assert items(seen) == ["event", "delta", "event", "delta", "event", "turn_end"]


async def test_call_whose_commit_was_not_heard_of_is_known_to_the_model(
    hansard: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    scripted = ScriptedModel.respond
    histories = []

    async def respond(model: ScriptedModel, request: ModelRequest) -> AsyncIterator[Part]:
        histories.append([event.WhichOneof("payload") for event in request.history])
        async for part in scripted(model, request):
            yield part

    call = {"tool_call": {"name": "t", "input": {}, "output": {}}}
    talk = await Talk(hansard).begin([call, {"agent_output": {"content": "x"}}])
    monkeypatch.setattr(ScriptedModel, "respond", respond)
    commit = LostCommit(
        monkeypatch,
        lambda work: isinstance(work, RecordStep) and work.drafts[-1].type is EventType.TOOL_OUTPUT,
    )
    async with asyncio.timeout(TIMEOUT_S):
        responses = await talk.send()
    assert commit.lost
    check_turn(responses)
    assert stored(responses) == await talk.events()
    assert histories[-1] == ["input_message", "tool_input", "tool_output"]


async def test_end_of_a_turn_whose_last_commit_was_not_heard_of_comes_after_its_events(
    hansard: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    submit, deliver = SqlStore.submit, SqlStore._deliver

    async def fail(store: SqlStore, command: Command) -> Any:
        result = await submit(store, command)
        if isinstance(command, RecordStep):
            raise StoreUnavailable("it does not answer")
        return result

    def lose(store: SqlStore, written: Any, changes: Any) -> None:
        step = any(isinstance(done.job.work, RecordStep) for done in written)
        deliver(store, written, () if step else changes)

    monkeypatch.setattr(SqlStore, "submit", fail)
    monkeypatch.setattr(SqlStore, "_deliver", lose)
    monkeypatch.setattr(patience, "STORE_PAUSES_S", ())
    talk = await Talk(hansard).begin([{"thinking": {"content": "Hm"}}, {"pause_ms": 60_000}])
    watch = talk.watch(include_deltas=True)
    source = aiter(watch)
    async with asyncio.timeout(TIMEOUT_S):
        await take_until(source, "caught_up")
        responses = await talk.send()
        seen = await take_until(source, "turn_end")
    watch.cancel()
    check_turn(responses)
    assert responses[-1].turn_end.turn.status == turn_pb2.TURN_STATUS_FAILED
    assert stored(seen) == stored(responses) == await talk.events()


# The same request at once -------------------------------------------------------------------------


@pytest.mark.parametrize("what", ["agent", "corpus", "session"])
async def test_same_request_that_is_served_between_two_looks(
    hansard: Running, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    await Talk(hansard).begin()
    name = f"find_{what}_claim"
    find = getattr(SqlReadTx, name)
    looks = 0

    def miss(*arguments: Any) -> Any:
        nonlocal looks
        looks += 1
        # At the first look it was not there yet.
        return find(*arguments) if looks > 1 else None

    def create() -> Any:
        if what == "agent":
            return hansard.agents.CreateAgent(agent_request(key="k", request_id="r"))
        if what == "corpus":
            request = corpus_service_pb2.CreateCorpusRequest(key="k", name="K", request_id="r")
            return hansard.corpora.CreateCorpus(request)
        return hansard.sessions.CreateSession(
            session_service_pb2.CreateSessionRequest(
                agent_key="agent", key="k", name="K", request_id="r"
            )
        )

    made = await create()
    monkeypatch.setattr(SqlReadTx, name, miss)
    assert await create() == made
    assert looks == 2
