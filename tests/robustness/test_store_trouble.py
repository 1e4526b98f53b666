"""The store is late, fails, or does its work and then fails: no turn is lost or stuck."""

from __future__ import annotations

import asyncio
import os
import random
import time
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import grpc
import pytest
from sqlalchemy import Connection
from sqlalchemy.exc import OperationalError

from hansard.v1 import artifact_service_pb2, event_pb2, turn_pb2
from hansard_server.domain.errors import StoreUnavailable
from hansard_server.repository.api import Change
from hansard_server.repository.commands import Command, FinishTurn, RecordStep
from hansard_server.repository.sql.jobs import Done, Job
from hansard_server.repository.sql.store import SqlStore
from hansard_server.repository.sql.writer import Writer
from hansard_server.turns import keeper, patience
from hansard_server.turns.catch_up import CatchUp
from hansard_server.turns.feeds import TURNS_MAX, Feeds, StoredEvent
from hansard_server.turns.mirrors import Mirrors
from hansard_server.turns.readers import Readers, TurnStopped
from tests.support.commands import accept, finish
from tests.support.invariants import check_store
from tests.support.records import SESSION, TENANT, with_session
from tests.support.server import Running, failure, make_settings, running_server
from tests.support.talk import (
    TWENTY_DELTAS,
    Talk,
    check_turn,
    content,
    items,
    output,
    rating,
    stored,
)

PAUSED = [
    {"thinking": {"content": "abcdefgh", "delta_count": 4, "pause_ms": 20}},
    {"agent_output": {"content": "ijklmnop", "delta_count": 4, "pause_ms": 40}},
]
COMPLETED = turn_pb2.TURN_STATUS_COMPLETED


@pytest.fixture
async def hansard(store_url: str, tmp_path: Path) -> AsyncIterator[Running]:
    """Give a server whose readers look into the store all the time, and whose leases are short."""
    settings = make_settings(tmp_path / "data", store_url, poll_floor_s=0.05, lease_s=1.0)
    async with running_server(settings) as running:
        yield running
    check_store(store_url, tmp_path / "data")


@pytest.fixture
async def patient(
    store_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Running]:
    """Give a server whose leases last longer than any test, so that none mends anything."""
    monkeypatch.setattr(keeper, "RECOVERY_INTERVAL_S", 0.2)
    settings = make_settings(tmp_path / "data", store_url, poll_floor_s=0.1, lease_s=600.0)
    async with running_server(settings) as running:
        yield running
    check_store(store_url, tmp_path / "data")


async def test_readers_ahead_of_the_wake_ups_tell_each_text_once(
    hansard: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = Writer._write_together

    def write_and_tell_late(writer: Writer, connection: Connection, jobs: Sequence[Job]) -> None:
        publish = writer._publish

        def publish_late(written: Sequence[Done], changes: Sequence[Change]) -> None:
            time.sleep(0.2)  # between the commit and its news
            publish(written, changes)

        writer._publish = publish_late
        try:
            write(writer, connection, jobs)
        finally:
            writer._publish = publish

    talk = await Talk(hansard).begin(PAUSED)
    monkeypatch.setattr(Writer, "_write_together", write_and_tell_late)
    responses = await talk.send()
    check_turn(responses)
    assert "void" not in items(responses)
    assert [content(event) for event in stored(responses)[1:]] == ["abcdefgh", "ijklmnop"]


@pytest.mark.parametrize("which", [1, 2])
async def test_id_of_an_open_text_that_somebody_takes(patient: Running, which: int) -> None:
    # The first is written by a step, the last by the turn's end.
    talk = await Talk(patient).begin(PAUSED)
    seen = []
    texts: list[str] = []
    async with asyncio.timeout(20):
        async for response in talk.stream():
            seen.append(response)
            if response.HasField("delta") and response.delta.event_id not in texts:
                texts.append(response.delta.event_id)
                if len(texts) == which:
                    await talk.append(rating(id=texts[-1]))
    assert seen[-1].turn_end.turn.status == COMPLETED
    assert [content(e) for e in stored(seen)[1:]] == ["abcdefgh", "ijklmnop"]
    assert len(await talk.events()) == 4


class Failing:
    """Has commands of one kind fail, so many times, before or after they were done."""

    def __init__(
        self, monkeypatch: pytest.MonkeyPatch, kind: type, *, after: bool, times: int
    ) -> None:
        submit = SqlStore.submit
        self.left = times

        async def fail(store: SqlStore, command: Command) -> Any:
            failing = isinstance(command, kind) and self.left > 0
            if failing:
                self.left -= 1
            if failing and not after:
                raise StoreUnavailable("it does not answer")
            result = await submit(store, command)
            if failing:
                raise StoreUnavailable("it does not answer")
            return result

        monkeypatch.setattr(SqlStore, "submit", fail)


@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize("kind", [RecordStep, FinishTurn])
async def test_turn_outlasts_a_store_that_fails_for_a_while(
    hansard: Running, monkeypatch: pytest.MonkeyPatch, kind: type, *, after: bool
) -> None:
    call = {"tool_call": {"name": "t", "input": {}, "output": {}}}
    talk = await Talk(hansard).begin([PAUSED[0], call, PAUSED[1]])
    failing = Failing(monkeypatch, kind, after=after, times=2)
    responses = await talk.send()
    # An end that took effect is not tried again.
    assert failing.left == (kind is FinishTurn and after)
    check_turn(responses)
    assert responses[-1].turn_end.turn.status == COMPLETED
    events = await talk.events()
    assert stored(responses) == events
    assert [e.WhichOneof("payload") for e in events] == [
        "input_message",
        "thinking",
        "tool_input",
        "tool_output",
        "agent_output",
    ]


async def test_text_that_was_shown_is_kept_when_the_store_fails_for_long(
    hansard: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    talk = await Talk(hansard).begin(PAUSED)
    monkeypatch.setattr(patience, "STORE_PAUSES_S", (0.05, 0.1))
    Failing(monkeypatch, RecordStep, after=False, times=3)
    responses = await talk.send()
    check_turn(responses)
    assert responses[-1].turn_end.turn.status == turn_pb2.TURN_STATUS_FAILED
    assert content(stored(responses)[1]) == "abcdefgh"


@pytest.mark.parametrize("after", [False, True])
async def test_interrupt_of_a_turn_that_waits_for_the_store_keeps_what_was_shown(
    hansard: Running, monkeypatch: pytest.MonkeyPatch, *, after: bool
) -> None:
    talk = await Talk(hansard).begin(PAUSED)
    monkeypatch.setattr(patience, "STORE_PAUSES_S", (60.0,))
    failing = Failing(monkeypatch, RecordStep, after=after, times=1)
    await talk.send(detach=True)
    await until_failed(failing, left=0)
    (turn,) = await talk.turns()
    ended = await talk.release(turn.id)
    assert ended.status == turn_pb2.TURN_STATUS_INTERRUPTED
    events = await talk.events()
    assert [e.WhichOneof("payload") for e in events] == [
        "input_message",
        "thinking",
        "session_interrupted",
    ]
    assert content(events[1]) == "abcdefgh"


async def until_failed(failing: Failing, *, left: int) -> None:
    """Return when so few commands are left to fail."""
    async with asyncio.timeout(30):
        while failing.left > left:  # noqa: ASYNC110 - nobody says when
            await asyncio.sleep(0.005)
    # By now its caller has heard of it.
    for _ in range(10):
        await asyncio.sleep(0.005)


@pytest.mark.parametrize("after", [False, True])
async def test_a_turn_that_waits_for_the_store_is_handed_on_when_the_server_stops(
    store_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, after: bool
) -> None:
    settings = make_settings(
        tmp_path / "data", store_url, lease_s=600.0, drain_deadline_s=60, poll_floor_s=0.1
    )
    async with running_server(settings) as running:
        talk = await Talk(running).begin(PAUSED)
        with monkeypatch.context() as patched:
            patched.setattr(patience, "STORE_PAUSES_S", (3_600.0,))
            failing = Failing(patched, RecordStep, after=after, times=1)
            await talk.send(detach=True)
            await until_failed(failing, left=0)
            started = time.monotonic()
            await running.server.stop()
            # Cut off, it would have had some 40 s to come to its end.
            assert time.monotonic() - started < 20
    async with running_server(settings) as running:
        talk = Talk(running)
        (turn,) = await talk.turns()
        seen = []
        async with asyncio.timeout(30):
            async for response in talk.watch():
                seen.append(response)
                if response.event.HasField("agent_output"):
                    break
        assert [content(e) for e in stored(seen)[1:]] == ["abcdefgh", "ijklmnop"]
        assert {event.turn_id for event in stored(seen)} == {turn.id}
    check_store(store_url, tmp_path / "data")


# Commits that are not heard of --------------------------------------------------------------------


class LostCommits:
    """Has the writer believe, so many times, that a commit failed which took effect."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, times: int = 1) -> None:
        write = Writer._write_together
        self.left = times

        def lose(writer: Writer, connection: Connection, jobs: Sequence[Job]) -> None:
            if self.left == 0 or all(callable(job.work) for job in jobs):
                write(writer, connection, jobs)
                return
            self.left -= 1
            publish = writer._publish
            writer._publish = lambda *_: None
            try:
                write(writer, connection, jobs)
            finally:
                writer._publish = publish
            raise OperationalError("COMMIT", None, Exception("the connection was lost"))

        monkeypatch.setattr(Writer, "_write_together", lose)


async def test_lost_commit_of_an_append(hansard: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    talk = await Talk(hansard).begin()
    LostCommits(monkeypatch)
    refused = await failure(talk.append(rating()))
    assert (refused.code, refused.reason) == (
        grpc.StatusCode.UNAVAILABLE,
        "STORE_UNAVAILABLE",
    )
    LostCommits(monkeypatch)
    assert await talk.append(output("a"), rating(), request_id="r") == [2, 3]
    assert len(await talk.events()) == 3


async def test_lost_commit_of_an_input(patient: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    talk = await Talk(patient).begin(TWENTY_DELTAS)
    LostCommits(monkeypatch)
    async with asyncio.timeout(20):
        responses = await talk.send(request_id="r")
    check_turn(responses)
    assert responses[-1].turn_end.turn.status == COMPLETED
    assert len(await talk.turns()) == 1


async def test_lost_commit_of_a_turns_end(
    patient: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    talk = await Talk(patient).begin([{"agent_output": {"content": "a"}}])
    running, turn_id = await talk.hold()
    waiting = asyncio.create_task(talk.send("B"))
    await talk.until_turns(2)
    LostCommits(monkeypatch)
    await talk.release(turn_id)
    async with asyncio.timeout(20):
        responses = await waiting
    check_turn(responses)
    assert responses[-1].turn_end.turn.status == COMPLETED
    running.cancel()


# Readers that fall behind -------------------------------------------------------------------------


async def test_reader_whose_turn_was_forgotten_hears_of_its_end(store_url: str) -> None:
    store = await SqlStore.open(store_url)
    await with_session(store)
    feeds = Feeds()
    # Nobody looks into the store: only news wakes the reader.
    catch_up = CatchUp(
        store,
        feeds,
        poll_floor_s=600,
        on_change=feeds.on_change,
        on_pulse=lambda *_: None,
    )
    readers = Readers(store, feeds, Mirrors(None, own_address="", catch_up=catch_up.now))
    with store.listen(feeds.on_change), feeds.use(TENANT, SESSION.uid) as feed:
        accepted = await store.submit(accept())
        following = readers.follow_turn(feed, accepted.turn, fresh=True, deltas=True)
        assert accepted.input_event is not None
        assert await anext(following) == StoredEvent(accepted.input_event)
        turn = accepted.turn
        for _ in range(TURNS_MAX + 2):
            await store.submit(finish(turn))
            turn = (await store.submit(accept())).turn
        async with asyncio.timeout(10):
            rest = [item async for item in following]
    assert [type(item) for item in rest] == [TurnStopped]
    await store.close()


# Repeats of a success -----------------------------------------------------------------------------


async def test_repeat_of_a_success_is_one_when_its_artifact_is_gone(hansard: Running) -> None:
    talk = await Talk(hansard).begin()

    async def parts() -> AsyncIterator[artifact_service_pb2.UploadArtifactsRequest]:
        make = artifact_service_pb2.UploadArtifactsRequest
        yield make(start=artifact_service_pb2.UploadStart(**talk.keys))
        yield make(header=artifact_service_pb2.UploadHeader(filename="a.txt"))
        yield make(chunk=b"hello")

    uploaded = await hansard.artifacts.UploadArtifacts(parts())
    (reference,) = uploaded.artifact_upload.artifacts
    mention = event_pb2.EventDraft(artifact_upload={"artifacts": [reference]})
    first = await talk.append(mention, request_id="r")
    await hansard.artifacts.DeleteArtifact(
        artifact_service_pb2.DeleteArtifactRequest(artifact_id=reference.artifact_id, **talk.keys)
    )
    assert await talk.append(mention, request_id="r") == first
    assert (await failure(talk.append(mention))).reason == "ARTIFACT_NOT_FOUND"


async def test_default_written_out_is_the_same_content(hansard: Running) -> None:
    talk = await Talk(hansard).begin()

    def drafts(outcome: int) -> list[event_pb2.EventDraft]:
        call = event_pb2.ToolInput(tool_call_id="c", tool_input_json="{}")
        answer = event_pb2.ToolOutput(tool_call_id="c", tool_output_json="{}", outcome=outcome)
        return [
            event_pb2.EventDraft(tool_input=call),
            event_pb2.EventDraft(tool_output=answer),
        ]

    first = await talk.append(*drafts(event_pb2.TOOL_OUTCOME_UNSPECIFIED), request_id="r")
    again = await talk.append(*drafts(event_pb2.TOOL_OUTCOME_COMPLETED), request_id="r")
    assert again == first == [1, 2]


# Faults at random ---------------------------------------------------------------------------------


class Faults:
    """Has a part of all commands fail, before or after they were done, by chance."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, rng: random.Random) -> None:
        submit = SqlStore.submit
        self.count = 0

        async def fail(store: SqlStore, command: Command) -> Any:
            fate = rng.random()
            if fate < 0.1:
                self.count += 1
                raise StoreUnavailable("it does not answer", retry_after_s=0.01)
            result = await submit(store, command)
            if fate > 0.9:
                self.count += 1
                raise StoreUnavailable("it does not answer", retry_after_s=0.01)
            return result

        monkeypatch.setattr(SqlStore, "submit", fail)


async def test_faults_at_random_change_no_answer(
    hansard: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    seed = int(os.environ.get("HANSARD_SEED", time.time_ns() % 1_000_000))
    print(f"HANSARD_SEED={seed}")  # noqa: T201 - to replay it
    talk = await Talk(hansard).begin(PAUSED)
    faults = Faults(monkeypatch, random.Random(seed))

    async def append(number: int) -> list[int]:
        while True:
            try:
                return await talk.append(rating(f'"{number}"'), request_id=f"a{number}")
            except grpc.aio.AioRpcError as error:
                if error.code() is not grpc.StatusCode.UNAVAILABLE:
                    raise

    async def send(number: int) -> str:
        while True:
            try:
                return (await talk.send(f"{number}", request_id=f"s{number}"))[-1].turn_id
            except grpc.aio.AioRpcError as error:
                if error.code() is not grpc.StatusCode.UNAVAILABLE:
                    raise

    async with asyncio.timeout(120):
        appends = asyncio.gather(*(append(number) for number in range(60)))
        sends = asyncio.gather(*(send(number) for number in range(8)))
        places, turns = await appends, await sends
    assert faults.count > 0
    assert len({place for (place,) in places}) == 60
    events = await talk.events()
    by_place = {event.sequence: event.custom.data_json for event in events}
    assert [by_place[place] for (place,) in places] == [f'"{number}"' for number in range(60)]
    assert len(set(turns)) == 8
    assert len(await talk.turns()) == 8
