"""Two servers on one PostgreSQL: whoever is connected to one follows what runs on the other."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import pytest
from sqlalchemy import create_engine, text

from hansard.internal.v1 import peer_service_pb2, peer_service_pb2_grpc
from hansard.v1 import event_service_pb2, session_service_pb2, turn_pb2
from hansard_server.agents.api import ModelRequest, Part, TextDelta, TextKind
from hansard_server.agents.models.scripted import ScriptedModel
from hansard_server.domain.records import Claim, SessionPulse, TurnStatus
from hansard_server.peers.client import PeerClient
from hansard_server.peers.proof import METADATA_KEY, prove
from hansard_server.repository.sql.store import SqlStore
from hansard_server.repository.sql.wake import PAYLOAD_MAX_BYTES, WakeUps, _groups
from hansard_server.turns.feeds import SessionFeed
from hansard_server.turns.mirrors import PeerNews, PeerUnavailable, TextPiece, _apply
from tests.support.databases import Databases
from tests.support.invariants import check_store
from tests.support.server import Running, failure, make_settings, open_channel, running_server
from tests.support.talk import (
    Talk,
    check_turn,
    items,
    joined_deltas,
    model,
    rating,
    stored,
    take_until,
)

SLOWLY = [
    {"thinking": {"content": "I think, ä 中 🙂.", "delta_count": 6, "pause_ms": 20}},
    {"agent_output": {"content": "An answer, naïve café 🎉.", "delta_count": 12, "pause_ms": 20}},
]
# So long a time that whatever happens before it happens by a hint.
NEVER_S = 600.0


@pytest.fixture
def url(databases: Databases) -> Iterator[str]:
    """Give a PostgreSQL database with the schema."""
    url = databases.migrated("postgresql")
    yield url
    check_store(url)
    databases.drop(url)


@dataclass
class Pair:
    """Two servers of this process, which know of each other by the database alone."""

    one: Running
    two: Running


async def start_pair(stack: AsyncExitStack, url: str, folder: Path, **changes: Any) -> Pair:
    servers = []
    for name in ("one", "two"):
        settings = make_settings(
            folder / name,
            url,
            lease_s=NEVER_S,
            artifacts=str(folder / "a"),
            page_token_secret="the-same-for-all-replicas",
            **{"poll_floor_s": NEVER_S, **changes},
        )
        servers.append(await stack.enter_async_context(running_server(settings)))
    return Pair(*servers)


@pytest.fixture
async def pair(url: str, tmp_path: Path) -> AsyncIterator[Pair]:
    """Give two servers that hear of each other by wake-ups."""
    async with AsyncExitStack() as stack:
        pair = await start_pair(stack, url, tmp_path)
        await until_heard(pair)
        yield pair


async def until_heard(pair: Pair) -> None:
    """Return when each server hears of what the other does."""
    for number, (here, there) in enumerate([(pair.one, pair.two), (pair.two, pair.one)]):
        talk = await Talk(here, f"probe{number}").begin()
        watch = Talk(there, f"probe{number}").watch()
        source = aiter(watch)
        assert items([await anext(source)]) == ["caught_up"]
        seen = asyncio.ensure_future(anext(source))
        async with asyncio.timeout(60):
            while not seen.done():
                await talk.append(rating())
                await asyncio.wait([seen], timeout=0.2)
        watch.cancel()


async def test_watcher_elsewhere_sees_the_turn_as_the_sender_does(pair: Pair) -> None:
    talk = await Talk(pair.one).begin(SLOWLY)
    watch = Talk(pair.two).watch(include_deltas=True)
    source = aiter(watch)
    assert items([await anext(source)]) == ["caught_up"]
    async with asyncio.timeout(30):
        sending = asyncio.create_task(talk.send())
        responses = await take_until(source, "turn_end")
        sent = await sending
    watch.cancel()
    assert stored(responses) == stored(sent)
    assert joined_deltas(responses) == joined_deltas(sent)
    assert "void" not in items(responses)
    assert responses[-1].turn_end == sent[-1].turn_end
    # As it was made, and not each text at once before its event.
    assert items(responses).count("delta") > 4


async def test_sender_elsewhere_joins_the_turn_with_its_texts(pair: Pair) -> None:
    talk = await Talk(pair.one).begin(SLOWLY)
    source = aiter(talk.stream("A", request_id="r"))
    await take_until(source, "delta")
    async with asyncio.timeout(30):
        joined = await Talk(pair.two).send("A", request_id="r")
    check_turn(joined)
    assert joined[-1].turn_end.turn.status == turn_pb2.TURN_STATUS_COMPLETED
    assert items(joined).count("delta") > 4
    assert "void" not in items(joined)
    assert stored(joined) == await talk.events()


async def test_reader_that_comes_in_the_middle_gets_the_open_text_from_its_start(
    pair: Pair,
) -> None:
    talk = await Talk(pair.one).begin(SLOWLY[1:])
    source = aiter(talk.stream("A"))
    for _ in range(5):
        await anext(source)
    async with asyncio.timeout(30):
        watch = Talk(pair.two).watch(include_deltas=True)
        responses = await take_until(aiter(watch), "turn_end")
    watch.cancel()
    assert items(responses)[:3] == ["event", "caught_up", "delta"]
    texts = joined_deltas(responses)
    assert texts == {stored(responses)[-1].id: "An answer, naïve café 🎉.".encode()}


async def test_texts_of_an_owner_that_stops_are_void(url: str, tmp_path: Path) -> None:
    # Far longer than it takes to have one server stop.
    script = [{"agent_output": {"content": "x" * 600, "delta_count": 600, "pause_ms": 50}}]
    async with AsyncExitStack() as stack:
        two = await stack.enter_async_context(
            running_server(make_settings(tmp_path / "two", url, poll_floor_s=NEVER_S))
        )
        one = await stack.enter_async_context(
            running_server(
                make_settings(tmp_path / "one", url, poll_floor_s=NEVER_S, drain_deadline_s=1.0)
            )
        )
        await until_heard(Pair(one, two))
        talk = await Talk(one).begin(script)
        source = aiter(talk.stream("A", request_id="r"))
        await take_until(source, "delta")
        watch = Talk(two).watch(include_deltas=True)
        watching = aiter(watch)
        await take_until(watching, "delta")
        await Talk(two).set_model(model([{"agent_output": {"content": "Another answer."}}]))
        await one.server.stop()
        async with asyncio.timeout(30):
            responses = await take_until(watching, "turn_end")
        watch.cancel()
        (answer,) = stored(responses)
        assert answer.agent_output.content == "Another answer."
        before = items(responses)
        assert before.count("void") == 1
        assert "event" not in before[: before.index("void")]


async def test_texts_of_a_turn_that_waited_where_nobody_watches(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun = asyncio.Event()

    async def respond(_: ScriptedModel, __: ModelRequest) -> AsyncIterator[Part]:
        await begun.wait()
        yield TextDelta(TextKind.OUTPUT, "Hel")
        await asyncio.sleep(NEVER_S)

    monkeypatch.setattr(ScriptedModel, "respond", respond)
    talk = await Talk(pair.one).begin()
    first = await talk.send("A", detach=True)
    await talk.send("B", detach=True)
    await talk.release(first[0].turn_id)
    watch = Talk(pair.two).watch(include_deltas=True)
    source = aiter(watch)
    async with asyncio.timeout(30):
        await take_until(source, "caught_up")
        begun.set()
        shown = await take_until(source, "delta")
    assert shown[-1].delta.text == "Hel"
    watch.cancel()


async def test_turn_elsewhere_that_ends_without_an_event(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    watched = asyncio.Event()
    scripted = ScriptedModel.respond

    async def respond(model: ScriptedModel, request: ModelRequest) -> AsyncIterator[Part]:
        await watched.wait()
        async for part in scripted(model, request):
            yield part

    monkeypatch.setattr(ScriptedModel, "respond", respond)
    talk = await Talk(pair.one).begin([{"fail": "no"}])
    await talk.send("A", detach=True)
    watch = Talk(pair.two).watch(include_deltas=True)
    source = aiter(watch)
    async with asyncio.timeout(30):
        await take_until(source, "caught_up")
        watched.set()
        turn = (await take_until(source, "turn_end"))[-1].turn_end.turn
    assert turn.status == turn_pb2.TURN_STATUS_FAILED
    watch.cancel()


async def test_interrupt_elsewhere_keeps_what_was_shown(pair: Pair) -> None:
    script = [{"agent_output": {"content": "abcdefgh" * 40, "delta_count": 320, "pause_ms": 100}}]
    talk = await Talk(pair.one).begin(script)
    source = aiter(talk.stream("A"))
    shown = (await take_until(source, "delta"))[-1].delta
    request = event_service_pb2.SendEventRequest(
        interrupt=event_service_pb2.Interrupt(), request_id="stop", **talk.keys
    )
    started = time.monotonic()
    answers = [[r async for r in pair.two.events.SendEvent(request)] for _ in range(2)]
    assert time.monotonic() - started < 20
    for responses in answers:
        assert items(responses) == ["event", "turn_end"]
        assert responses[0].event.HasField("session_interrupted")
        assert responses[-1].turn_end.turn.status == turn_pb2.TURN_STATUS_INTERRUPTED
    rest = await take_until(source, "turn_end")
    (partial,) = [e for e in stored(rest) if e.HasField("agent_output")]
    assert partial.id == shown.event_id
    assert partial.agent_output.partial
    assert partial.agent_output.content.startswith(shown.text)


async def test_interrupt_of_an_owner_that_does_not_answer_is_by_force(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def unavailable(*_: Any) -> None:
        raise PeerUnavailable

    monkeypatch.setattr(PeerClient, "interrupt_turn", unavailable)
    talk = await Talk(pair.one).begin([{"agent_output": {"content": "x"}}, {"pause_ms": 60_000}])
    source = aiter(talk.stream("A"))
    turn_id = (await anext(source)).turn_id
    async with asyncio.timeout(30):
        ended = await Talk(pair.two).release(turn_id)
        assert ended.status == turn_pb2.TURN_STATUS_INTERRUPTED
        # Its owner hears of it, and works no more.
        assert (await take_until(source, "turn_end"))[-1].turn_end.turn == ended


async def test_queued_input_elsewhere_starts_at_once(pair: Pair) -> None:
    talk = await Talk(pair.one).begin()
    holding, turn_id = await talk.hold()
    waiting = Talk(pair.two).stream("B")
    source = aiter(waiting)
    queued = await anext(source)
    assert items([queued]) == ["queued"]
    async with asyncio.timeout(30):
        await talk.release(turn_id)
        responses = await take_until(source, "turn_end")
    check_turn([queued, *responses])
    assert stored(responses)[0].HasField("input_message")
    holding.cancel()


async def test_hidden_shown_and_deleted_elsewhere(pair: Pair) -> None:
    talk = await Talk(pair.one).begin()
    await talk.append(*(rating(f"{n}") for n in range(3)))
    events = await talk.events()
    watches = [Talk(server).watch(3) for server in (pair.one, pair.two)]
    sources = [aiter(watch) for watch in watches]
    for source in sources:
        assert items([await anext(source)]) == ["caught_up"]
    for number, server in enumerate((pair.one, pair.two, pair.one, pair.two)):
        event_id = events[number % 2].id
        make: Any = event_service_pb2.HideEventRequest
        call: Any = server.events.HideEvent
        if number >= 2:
            make, call = event_service_pb2.UnhideEventRequest, server.events.UnhideEvent
        altered = await call(make(event_id=event_id, **talk.keys))
        async with asyncio.timeout(30):
            for source in sources:
                # Each once, wherever it was done.
                assert (await anext(source)).changed.event == altered
    for watch in watches:
        watch.cancel()


async def test_deletion_elsewhere_ends_the_watch_and_the_turn(pair: Pair) -> None:
    talk = await Talk(pair.one).begin()
    holding, _ = await talk.hold()
    watch = talk.watch(1)
    other = Talk(pair.two)
    await pair.two.sessions.DeleteSession(session_service_pb2.DeleteSessionRequest(**other.keys))
    async with asyncio.timeout(30):
        for stream in (holding, watch):
            refused = await failure(_all(stream))
            assert refused.reason == "SESSION_NOT_FOUND"


# The peer listener --------------------------------------------------------------------------------


async def test_strangers_get_nothing_from_the_peer_listener(pair: Pair, url: str) -> None:
    talk = await Talk(pair.one).begin()
    holding, turn_id = await talk.hold()
    address, secret = await _lease(talk, url)
    turn = ("default", talk.uid, turn_id)
    request = peer_service_pb2.FollowTurnRequest(
        tenant="default", session_uid=talk.uid, turn_id=turn_id
    )
    stub: peer_service_pb2_grpc.PeerServiceAsyncStub
    async with open_channel(address) as channel:
        stub = peer_service_pb2_grpc.PeerServiceStub(channel)
        for proof in ("", prove(b"another secret", "FollowTurn", turn), "é".encode().hex()):
            metadata = ((METADATA_KEY, proof),) if proof else ()
            refused = await failure(_all(stub.FollowTurn(request, metadata=metadata)))
            assert refused.code == grpc.StatusCode.UNAUTHENTICATED
        interrupt = peer_service_pb2.InterruptTurnRequest(
            tenant="default", session_uid=talk.uid, turn_id=turn_id
        )
        refused = await failure(stub.InterruptTurn(interrupt))
        assert refused.code == grpc.StatusCode.UNAUTHENTICATED
    # One that knows the secret asks for a turn that does not run there: nothing is passed on.
    client = PeerClient(secret)
    with pytest.raises(PeerUnavailable, match="NOT_FOUND"):
        await client.interrupt_turn(address, ("default", talk.uid, "trn_x"), "", None)
    await client.interrupt_turn(address, turn, "a peer", Claim("q", b"f" * 32))
    turns = await Talk(pair.two).turns()
    assert turns[-1].status == turn_pb2.TURN_STATUS_INTERRUPTED
    holding.cancel()


async def _lease(talk: Talk, url: str) -> tuple[str, bytes]:
    """Return where the owner of the session's turn listens, and the secret of the store."""
    store = await SqlStore.open(url)
    session = ("default", talk.uid)
    pulses = await store.read(lambda tx: tx.read_pulses([session]))
    secret = await store.write(lambda tx: tx.ensure_secret("peers", b"another"))
    await store.close()
    assert secret != b"another"
    return pulses[session].owner_address, secret


# Wake-ups -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("channel", ["deaf", "stuttering"])
async def test_wake_ups_that_are_lost_or_repeated(
    url: str, tmp_path: Path, channel: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    hear = WakeUps._hear

    def heard(self: WakeUps, payload: str) -> None:
        if channel == "stuttering":
            for _ in range(5):
                hear(self, payload)
            self._on_hint(None)

    monkeypatch.setattr(WakeUps, "_hear", heard)
    floor_s = 0.5
    async with asyncio.timeout(120), AsyncExitStack() as stack:
        pair = await start_pair(stack, url, tmp_path, poll_floor_s=floor_s)
        talk = await Talk(pair.one).begin(SLOWLY)
        watches = [Talk(pair.two).watch(include_deltas=n > 0) for n in range(2)]
        sources = [aiter(watch) for watch in watches]
        for source in sources:
            assert items([await anext(source)]) == ["caught_up"]
        count = 0
        for _ in range(4):
            places = await talk.append(*(rating(f"{n}") for n in range(70)))
            started = time.monotonic()
            for source in sources:
                for place in places:
                    assert (await anext(source)).event.sequence == place
            # The rest is for a machine that is busy.
            assert time.monotonic() - started < floor_s + 5
            count = places[-1]
        sent = await talk.send()
        responses = await take_until(sources[1], "turn_end")
        assert stored(responses) == stored(sent)
        assert joined_deltas(responses).keys() <= {event.id for event in stored(sent)}
        assert [e.sequence for e in stored(responses)] == [count + 1, count + 2, count + 3]
        joined = await Talk(pair.two).send("B", request_id="r")
        again = await Talk(pair.one).send("B", request_id="r")
        assert stored(joined) == stored(again)
        for watch in watches:
            watch.cancel()


async def test_wake_ups_come_back_when_their_connections_break(pair: Pair, url: str) -> None:
    engine = create_engine(url)
    with engine.begin() as connection:
        ended = connection.execute(
            text(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                " WHERE application_name = 'hansard-wake' AND datname = current_database()"
            )
        ).all()
    engine.dispose()
    assert len(ended) == 4
    async with asyncio.timeout(30):
        talk = await Talk(pair.one).begin()
        watch = Talk(pair.two).watch()
        source = aiter(watch)
        assert items([await anext(source)]) == ["caught_up"]
        # What is told while nobody listens is found when somebody does again.
        await talk.append(rating())
        assert (await anext(source)).event.sequence == 1
    watch.cancel()


def test_payloads_of_wake_ups_fit() -> None:
    sessions = [(f"tenant-{n % 7}", f"{n:064}") for n in range(1_000)]
    groups = list(_groups(sessions))
    told = [(tenant, uid) for group in groups for tenant, uids in group.items() for uid in uids]
    assert sorted(told) == sorted(sessions)
    assert len(groups) > 5

    for group in groups:
        assert len(json.dumps(["12345678", "of", group], separators=(",", ":"))) < PAYLOAD_MAX_BYTES


async def _all(stream: Any) -> list[Any]:
    return [response async for response in stream]


async def test_texts_that_their_events_have_overtaken_are_not_shown_again() -> None:
    feed = SessionFeed()
    feed.last_sequence = 4
    text = None

    def hear(sequence: int, event_id: str, offset: int, piece: str) -> None:
        nonlocal text
        news = TextPiece(event_id=event_id, kind=TextKind.OUTPUT, offset=offset, text=piece)
        text = _apply(PeerNews(sequence=sequence, piece=news), "trn_1", feed, text)

    hear(4, "aev_x", 0, "ab")
    assert shown(feed) == ("aev_x", b"ab")
    # A reader finds out that the store has more: it may be this text, and the next one.
    feed.learn(pulse(6))
    assert shown(feed) is None
    # What the owner said before it knew of that.
    hear(4, "aev_x", 2, "c")
    assert shown(feed) is None
    hear(6, "aev_z", 0, "d")
    assert shown(feed) == ("aev_z", b"d")
    # Something else was stored here meanwhile, as the owner comes to know.
    feed.learn(pulse(7))
    hear(6, "aev_z", 1, "e")
    assert shown(feed) is None
    hear(7, "aev_z", 2, "")
    assert shown(feed) == ("aev_z", b"de")


def shown(feed: SessionFeed) -> tuple[str, bytes] | None:
    return None if feed.text is None else (feed.text.event_id, bytes(feed.text.content))


def pulse(last_sequence: int) -> SessionPulse:
    return SessionPulse(
        last_sequence=last_sequence,
        deleted=False,
        alteration_count=0,
        turn_count=1,
        queued_turns=0,
        turn_id="trn_1",
        turn_status=TurnStatus.RUNNING,
        turn_fence=1,
        owner_address="127.0.0.1:1",
    )
