"""Commands: appends, claims, turns, fences. The oracle checks the record after each test."""

from __future__ import annotations

import asyncio
import random
from dataclasses import replace

import pytest
from sqlalchemy import Engine

from hansard_server.domain.clock import now_us
from hansard_server.domain.errors import (
    AgentDisabled,
    AgentNotFound,
    DomainError,
    EventAlreadyExists,
    QueueFull,
    QuotaExceeded,
    QuotaUse,
    RequestIdReused,
    SequenceMismatch,
    SessionBusy,
    SessionDisabled,
    SessionNotFound,
    ToolCallNotPending,
)
from hansard_server.domain.records import (
    EventRecord,
    EventType,
    OpenCall,
    SessionStatus,
    TurnRecord,
    TurnStatus,
    Usage,
)
from hansard_server.repository.api import Change, EventScan
from hansard_server.repository.commands import (
    Accepted,
    ArtifactQuota,
    ClaimScope,
    Command,
    LeaseLost,
    SessionName,
    StartNext,
    TakeTurn,
    Upload,
    WhenBusy,
)
from hansard_server.repository.sql.batch import Batch
from hansard_server.repository.sql.store import SqlStore
from tests.support.commands import (
    LEASE,
    NAME,
    accept,
    append,
    claim,
    custom,
    draft,
    finish,
    step,
    tool_input,
    tool_output,
)
from tests.support.records import AGENT, SESSION, TENANT, artifact, session

pytestmark = [
    pytest.mark.usefixtures("whole"),
    pytest.mark.parametrize("run_by", ["sqlalchemy", "driver"]),
]
ALL = EventScan(limit=1_000, max_bytes=1 << 30, max_rows=100_000, include_hidden=True)
SEED = 20261121


async def events_of(store: SqlStore, uid: str = SESSION.uid) -> tuple[EventRecord, ...]:
    return (await store.read(lambda tx: tx.scan_events(TENANT, uid, ALL))).events


async def turn_of(store: SqlStore, turn: TurnRecord) -> TurnRecord:
    return await store.read(lambda tx: tx.get_turn(TENANT, turn.session_uid, turn.id))


async def head_of(store: SqlStore):  # type: ignore[no-untyped-def]  # noqa: ANN201
    view = await store.read(lambda tx: tx.get_session(TENANT, AGENT.key, SESSION.key))
    return view.head


# Appends ------------------------------------------------------------------------------------------


async def test_append_gives_sequences_in_order(store: SqlStore) -> None:
    first = await store.submit(append(draft(b"a"), draft(b"b")))
    second = await store.submit(append(draft(b"c")))
    assert [sequence for _, sequence in first.events + second.events] == [1, 2, 3]
    stored = await events_of(store)
    assert [event.payload for event in stored] == [b"a", b"b", b"c"]
    assert [event.id for event in stored] == [id_ for id_, _ in first.events + second.events]
    assert first.session_uid == SESSION.uid


@pytest.mark.parametrize(
    ("name", "error"),
    [
        (replace(NAME, agent_key="other"), AgentNotFound),
        (replace(NAME, session_key="other"), SessionNotFound),
        (replace(NAME, uid="another-incarnation"), SessionNotFound),
        (replace(NAME, tenant="stranger"), AgentNotFound),
    ],
)
async def test_append_to_what_is_not_there(
    store: SqlStore, name: SessionName, error: type[DomainError]
) -> None:
    for command in (append(session=name), accept(session=name)):
        with pytest.raises(error):
            await store.submit(command)
    assert await events_of(store) == ()


async def test_disabled_agent_and_session_take_nothing(store: SqlStore) -> None:
    await store.write(lambda tx: tx.update_session(replace(SESSION, enabled=False)))
    for command in (append(), accept()):
        with pytest.raises(SessionDisabled):
            await store.submit(command)
    await store.write(lambda tx: tx.update_agent(replace(AGENT, enabled=False)))
    for command in (append(), accept()):
        with pytest.raises(AgentDisabled):
            await store.submit(command)
    assert await events_of(store) == ()


async def test_expected_last_sequence(store: SqlStore) -> None:
    await store.submit(append(expected_last_sequence=0))
    with pytest.raises(SequenceMismatch) as caught:
        await store.submit(append(expected_last_sequence=0))
    assert caught.value.metadata == {"last_sequence": "1"}
    with pytest.raises(SequenceMismatch):
        await store.submit(accept(expected_last_sequence=2))
    await store.submit(append(expected_last_sequence=1))
    assert len(await events_of(store)) == 2


async def test_claim_gives_the_first_answer_again(store: SqlStore, url: str) -> None:
    command = append(draft(b"a"), draft(b"b"), claim=claim("r"))
    first = await store.submit(command)
    await store.submit(append())
    # Another attempt of the same request has other made ids.
    again = append(draft(b"a"), draft(b"b"), claim=claim("r"), expected_last_sequence=0)
    assert await store.submit(again) == first
    other = await SqlStore.open(url)
    try:
        assert await other.submit(command) == first
    finally:
        await other.close()
    assert len(await events_of(store)) == 3


async def test_claim_of_another_content_is_refused(store: SqlStore) -> None:
    await store.submit(append(claim=claim("r", b"one")))
    with pytest.raises(RequestIdReused):
        await store.submit(append(claim=claim("r", b"two")))
    # Of another call it is another id.
    await store.submit(append(claim=claim("r", b"two"), scope=ClaimScope.UPLOAD_ARTIFACTS))
    await store.submit(accept(claim=claim("r", b"three")))
    assert len(await events_of(store)) == 3


async def test_claim_is_looked_up_before_the_state(store: SqlStore) -> None:
    command = append(claim=claim("r"), expected_last_sequence=0)
    first = await store.submit(command)
    sent = await store.submit(accept(claim=claim("s")))
    await store.write(lambda tx: tx.update_session(replace(SESSION, enabled=False)))
    assert await store.submit(command) == first
    again = await store.submit(accept(claim=claim("s"), expected_last_sequence=1))
    assert (again.claimed, again.turn) == (True, sent.turn)


async def test_refused_append_claims_nothing(store: SqlStore) -> None:
    with pytest.raises(SequenceMismatch):
        await store.submit(append(claim=claim("r"), expected_last_sequence=5))
    await store.submit(append(draft(b"other"), claim=claim("r", b"other")))


async def test_given_ids(store: SqlStore) -> None:
    given = draft(b"a", id="aev_given", given_id=True)
    first = await store.submit(append(given))
    more = await store.submit(append(draft(b"b"), given))
    assert more.events == ((more.events[0][0], 2), first.events[0])
    twice = draft(b"c", id="aev_twice", given_id=True)
    assert [s for _, s in (await store.submit(append(twice, twice))).events] == [3, 3]
    for other in (replace(given, payload=b"z"), replace(given, type=EventType.THINKING)):
        with pytest.raises(EventAlreadyExists) as caught:
            await store.submit(append(draft(b"not stored"), other))
        assert caught.value.violations[0].field == "events[1].id"
    assert [event.payload for event in await events_of(store)] == [b"a", b"b", b"c"]


async def test_tool_calls_of_appends(store: SqlStore) -> None:
    await store.submit(append(tool_input("call-1")))
    with pytest.raises(EventAlreadyExists):
        await store.submit(append(tool_input("call-1")))
    with pytest.raises(ToolCallNotPending) as caught:
        await store.submit(append(draft(), tool_output("call-2")))
    assert caught.value.violations[0].field == "events[1].tool_output.tool_call_id"
    await store.submit(append(tool_output("call-1"), tool_input("call-2"), tool_output("call-2")))
    for call in ("call-1", "call-2"):
        with pytest.raises(ToolCallNotPending):
            await store.submit(append(tool_output(call)))
    assert len(await events_of(store)) == 4


async def test_append_while_a_turn_is_unfinished(store: SqlStore) -> None:
    accepted = await store.submit(accept())
    with pytest.raises(SessionBusy):
        await store.submit(append(custom(), draft()))
    await store.submit(append(custom(b"rating")))
    await store.submit(step(accepted.turn, draft(b"thought")))
    await store.submit(append(draft(b"upload"), while_busy=True))
    stored = await events_of(store)
    assert [event.turn_id for event in stored] == [accepted.turn.id, None, accepted.turn.id, None]


async def test_upload_counts_against_the_quota(store: SqlStore) -> None:
    def upload(*numbers: int) -> Upload:
        files = tuple(artifact(n) for n in numbers)
        return Upload(artifacts=files, quota=ArtifactQuota(max_files=3, max_bytes=250))

    await store.submit(append(upload=upload(1, 2)))
    with pytest.raises(QuotaExceeded) as caught:
        await store.submit(append(upload=upload(3), while_busy=True))
    assert caught.value.quota == QuotaUse.of_session(
        SESSION.uid, "session_artifacts_max_bytes", limit=250, used=200
    )
    with pytest.raises(QuotaExceeded) as caught:
        await store.submit(append(upload=upload(3, 4)))
    assert caught.value.quota == QuotaUse.of_session(
        SESSION.uid, "session_artifacts_max_files", limit=3, used=2
    )
    totals = await store.read(lambda tx: tx.total_artifacts(TENANT, SESSION.uid))
    assert (totals.files, totals.size_bytes) == (2, 200)
    await store.write(lambda tx: tx.delete_artifact(TENANT, SESSION.uid, "art_1"))
    await store.submit(append(upload=upload(3), while_busy=True))


async def test_event_times_never_decrease(url: str, store: SqlStore, database: str) -> None:
    if database == "postgresql":
        times: list[int] = [1]
    else:
        times = [2_000_000, 1_000_000, 3_000_000]
    other = await SqlStore.open(url, clock=lambda: times.pop(0) if times else 4_000_000)
    try:
        for _ in range(4):
            await other.submit(append())
    finally:
        await other.close()
    stored = [event.created_at_us for event in await events_of(store)]
    assert stored == sorted(stored)
    if database == "sqlite":
        assert stored == [2_000_000, 2_000_000, 3_000_000, 4_000_000]


# Turns --------------------------------------------------------------------------------------------


async def test_input_to_an_idle_session_starts_its_turn(store: SqlStore) -> None:
    accepted = await store.submit(accept())
    turn = accepted.turn
    assert (turn.status, turn.number, turn.attempt) == (TurnStatus.RUNNING, 1, 1)
    assert (turn.first_sequence, turn.last_sequence, accepted.last_sequence) == (1, 1, 1)
    assert (await events_of(store)) == (accepted.input_event,)
    head = await head_of(store)
    assert (head.status, head.unfinished_turn_id) == (SessionStatus.RUNNING, turn.id)
    assert await turn_of(store, turn) == turn


async def test_queue_runs_in_order(store: SqlStore) -> None:
    running: TurnRecord | None = (await store.submit(accept())).turn
    assert running is not None
    waiting = [await store.submit(accept()) for _ in range(3)]
    assert [a.position for a in waiting] == [1, 2, 3]
    assert len(await events_of(store)) == 1
    order = [running.id]
    while running is not None:
        finished = await store.submit(finish(running, draft(b"answer")))
        running = finished.next_turn
        if running is not None:
            order.append(running.id)
            assert finished.last_sequence == running.first_sequence
    assert order[1:] == [a.turn.id for a in waiting]
    stored = await events_of(store)
    assert [event.turn_id for event in stored] == [id_ for id_ in order for _ in range(2)]
    assert (await head_of(store)).status is SessionStatus.IDLE


async def test_busy_session_refuses(store: SqlStore) -> None:
    await store.submit(accept())
    with pytest.raises(SessionBusy):
        await store.submit(accept(when_busy=WhenBusy.REJECT))
    with pytest.raises(SessionBusy):
        await store.submit(accept(expected_last_sequence=1))
    for _ in range(2):
        await store.submit(accept(queue_max_inputs=2))
    with pytest.raises(QueueFull):
        await store.submit(accept(queue_max_inputs=2))
    assert (await head_of(store)).queued_turns == 2


async def test_claimed_input_is_the_same_turn(store: SqlStore) -> None:
    first = await store.submit(accept(claim=claim("r")))
    again = await store.submit(accept(claim=claim("r"), when_busy=WhenBusy.REJECT))
    assert (again.claimed, again.turn) == (True, first.turn)
    assert again.input_event is None
    await store.submit(finish(first.turn))
    done = await store.submit(accept(claim=claim("r")))
    assert (done.claimed, done.turn.status) == (True, TurnStatus.COMPLETED)
    with pytest.raises(RequestIdReused):
        await store.submit(accept(claim=claim("r", b"other")))
    assert len(await events_of(store)) == 1


async def test_same_claim_at_once_runs_once(store: SqlStore) -> None:
    answers = await asyncio.gather(*(store.submit(accept(claim=claim("r"))) for _ in range(20)))
    assert {answer.turn.id for answer in answers} == {answers[0].turn.id}
    assert sum(not answer.claimed for answer in answers) == 1
    assert len(await events_of(store)) == 1


async def test_steps_and_end(store: SqlStore) -> None:
    turn = (await store.submit(accept())).turn
    usage = Usage(3, 2, 1)
    recorded = await store.submit(step(turn, tool_input("c1"), tool_input("c2"), usage=usage))
    assert [event.sequence for event in recorded.events] == [2, 3]
    await store.submit(step(turn, tool_output("c1"), usage=usage))
    assert (await turn_of(store, turn)).open_calls == (OpenCall("c2", "lookup", "client"),)
    finished = await store.submit(
        finish(turn, draft(b"end"), status=TurnStatus.FAILED, error=b"why", usage=usage)
    )
    assert [event.type for event in finished.events] == [
        EventType.AGENT_OUTPUT,
        EventType.TOOL_OUTPUT,
    ]
    ended = await turn_of(store, turn)
    assert ended == finished.turn
    assert (ended.status, ended.error, ended.open_calls) == (TurnStatus.FAILED, b"why", ())
    assert ended.usage == Usage(9, 6, 3) == (await head_of(store)).usage
    assert (ended.last_sequence, finished.last_sequence) == (6, 6)


async def test_old_fence_is_refused(store: SqlStore) -> None:
    turn = (await store.submit(accept())).turn
    taken = await store.submit(take(turn, force=True))
    assert taken.fence > turn.fence
    for command in (step(turn), finish(turn)):
        with pytest.raises(LeaseLost):
            await store.submit(command)
    await store.submit(finish(taken))
    for late in (step(taken), finish(taken), take(turn, force=True)):
        with pytest.raises(LeaseLost):
            await store.submit(late)
    assert len(await events_of(store)) == 1


async def test_lease_that_holds_is_not_taken(store: SqlStore) -> None:
    turn = (await store.submit(accept())).turn
    with pytest.raises(LeaseLost):
        await store.submit(take(turn))
    await store.write(
        lambda tx: tx.renew_leases(LEASE.owner, [(TENANT, SESSION.uid, turn.id)], -10.0)
    )
    expired = await store.read(lambda tx: tx.find_unfinished_turns(10, expired_only=True))
    assert [found.id for found in expired] == [turn.id]
    await store.submit(take(turn))
    assert not await store.read(lambda tx: tx.find_unfinished_turns(10, expired_only=True))
    assert len(await store.read(lambda tx: tx.find_unfinished_turns(10, expired_only=False))) == 1


async def test_waiting_turns_outlast_a_drain(store: SqlStore) -> None:
    turn = (await store.submit(accept())).turn
    waiting = (await store.submit(accept())).turn
    finished = await store.submit(finish(turn, start_next=False))
    assert finished.next_turn is None
    # What comes meanwhile does not overtake it.
    later = await store.submit(accept())
    assert later.position == 2
    with pytest.raises(SessionBusy):
        await store.submit(accept(when_busy=WhenBusy.REJECT))
    queues = await store.read(lambda tx: tx.find_idle_queues(10))
    assert list(queues) == [(TENANT, SESSION.uid)]
    start = StartNext(tenant=TENANT, session_uid=SESSION.uid, lease=LEASE)
    started = await store.submit(start)
    assert started is not None
    assert started.id == waiting.id
    assert await store.submit(start) is None
    assert not await store.read(lambda tx: tx.find_idle_queues(10))


async def test_deletion_takes_the_turn_from_its_owner(store: SqlStore) -> None:
    turn = (await store.submit(accept())).turn
    await store.write(lambda tx: tx.delete_session(TENANT, SESSION.uid, now_us()))
    for command in (step(turn), finish(turn), take(turn, force=True)):
        with pytest.raises(LeaseLost):
            await store.submit(command)
    for by_name in (append(), accept()):
        with pytest.raises(SessionNotFound):
            await store.submit(by_name)
    assert (
        await store.submit(StartNext(tenant=TENANT, session_uid=SESSION.uid, lease=LEASE)) is None
    )


async def test_expiry_follows_activity(store: SqlStore) -> None:
    await store.write(lambda tx: tx.update_session(replace(SESSION, tti_minutes=1)))
    await store.submit(append())
    before = (await head_of(store)).expire_at_us
    assert before is not None
    turn = (await store.submit(accept())).turn
    assert (await head_of(store)).expire_at_us is None
    await store.submit(finish(turn))
    after = (await head_of(store)).expire_at_us
    assert after is not None
    assert after > before


async def test_listeners_hear_of_commits(store: SqlStore) -> None:
    changes: list[Change] = []
    with store.listen(changes.append):
        accepted = await store.submit(accept())
        assert [change.events for change in changes] == [(accepted.input_event,)]
        assert [change.turns for change in changes] == [(accepted.turn,)]
        waiting = (await store.submit(accept())).turn
        finished = await store.submit(finish(accepted.turn, draft(b"end")))
    assert finished.next_turn is not None
    assert finished.next_turn.id == waiting.id
    assert [event.payload for event in changes[-1].events] == [b"end", b"an input"]
    assert changes[-1].turns == (finished.turn, finished.next_turn)
    await store.submit(finish(finished.next_turn))
    assert len(changes) == 3


# Batches ------------------------------------------------------------------------------------------


def take(turn: TurnRecord, *, force: bool = False) -> TakeTurn:
    return TakeTurn(
        tenant=TENANT, session_uid=turn.session_uid, turn_id=turn.id, lease=LEASE, force=force
    )


def run_batch(engine: Engine, *commands: Command) -> list[object]:
    with engine.begin() as connection:
        return Batch(connection, now_us).run(commands)


async def test_refused_commands_of_a_batch_harm_no_other(engine: Engine, store: SqlStore) -> None:
    outcomes = run_batch(
        engine,
        append(draft(b"1")),
        append(session=replace(NAME, session_key="nobody")),
        append(draft(b"x"), expected_last_sequence=7),
        append(draft(b"2"), claim=claim("r")),
        append(draft(b"2"), claim=claim("r")),
        append(draft(b"x"), claim=claim("r", b"other")),
        append(tool_input("c"), tool_output("c"), expected_last_sequence=2),
        append(tool_output("c")),
    )
    kinds = [type(outcome).__name__ for outcome in outcomes]
    assert kinds == [
        "Appended",
        "SessionNotFound",
        "SequenceMismatch",
        "Appended",
        "Appended",
        "RequestIdReused",
        "Appended",
        "ToolCallNotPending",
    ]
    assert outcomes[3] == outcomes[4]
    assert [event.sequence for event in await events_of(store)] == [1, 2, 3, 4]


async def test_a_turn_is_sent_and_queued_and_ended_in_one_batch(
    engine: Engine, store: SqlStore
) -> None:
    turn = (await store.submit(accept())).turn
    first, second, ended = run_batch(
        engine, accept(claim=claim("r")), accept(claim=claim("r")), finish(turn)
    )
    assert isinstance(first, Accepted)
    assert isinstance(second, Accepted)
    assert (first.claimed, second.claimed) == (False, True)
    assert first.turn.id == second.turn.id == ended.next_turn.id  # type: ignore[attr-defined]


async def test_a_session_is_made_anew_under_its_name(store: SqlStore) -> None:
    await store.submit(append(draft(b"1")))
    await store.write(lambda tx: tx.delete_session(TENANT, SESSION.uid, now_us()))
    with pytest.raises(SessionNotFound):
        await store.submit(append(draft(b"2")))
    anew = replace(SESSION, uid="anew")
    await store.write(lambda tx: tx.insert_session(anew, None))
    appended = await store.submit(append(draft(b"3"), claim=claim("r")))
    assert appended.session_uid == "anew"
    assert [event.payload for event in await events_of(store, "anew")] == [b"3"]
    with pytest.raises(SessionNotFound):
        await store.submit(append(session=replace(NAME, uid=SESSION.uid)))
    assert await store.submit(append(draft(b"4"), claim=claim("r"))) == appended


async def test_deciding_and_commands_keep_their_order(store: SqlStore) -> None:
    made = session(7)
    created = asyncio.create_task(store.write(lambda tx: tx.insert_session(made, None)))
    await created
    name = replace(NAME, session_key=made.key)
    appends = [store.submit(append(session=name)) for _ in range(5)]
    answers = await asyncio.gather(*appends)
    assert [a.events[0][1] for a in answers] == [1, 2, 3, 4, 5]


async def test_sixteen_writers_on_one_session_and_on_sixteen(store: SqlStore) -> None:
    sessions = [session(number) for number in range(16)]
    for record in sessions:
        await store.write(lambda tx, record=record: tx.insert_session(record, None))  # type: ignore[misc]
    names = [replace(NAME, session_key=record.key) for record in sessions]

    async def write(name: SessionName, writer: int) -> list[int]:
        # Acknowledged before the next begins: so the sequences of one writer must grow.
        places = []
        for number in range(20):
            wish = append(
                draft(b"%d/%d" % (writer, number)),
                draft(b"second"),
                session=name,
                claim=claim(f"{writer}/{number}"),
            )
            appended, again = await asyncio.gather(store.submit(wish), store.submit(wish))
            assert appended == again
            (_, one), (_, two) = appended.events
            assert two == one + 1
            places.append(one)
        return places

    ours = [write(NAME, writer) for writer in range(16)]
    each = [write(name, 100 + number) for number, name in enumerate(names)]
    places = await asyncio.gather(*ours, *each)
    for one in places:
        assert one == sorted(one)
    assert sorted(place for one in places[:16] for place in one) == list(range(1, 640, 2))
    for one in places[16:]:
        assert one == list(range(1, 40, 2))


async def test_writers_of_two_stores_wait_for_each_other(
    store: SqlStore, url: str, database: str
) -> None:
    # A SQLite database has one process; there the stores take turns all the same.
    other = await SqlStore.open(url)

    async def write(through: SqlStore, writer: str) -> None:
        for number in range(20 if database == "postgresql" else 3):
            wish = append(draft(b"a"), draft(b"b"), claim=claim(f"{writer}/{number}"))
            await through.submit(wish)

    try:
        writers = [write(s, f"{n}/{w}") for n, s in enumerate((store, other)) for w in range(8)]
        await asyncio.gather(*writers)
    finally:
        await other.close()


async def test_conditional_appends_succeed_only_on_the_true_tail(store: SqlStore) -> None:
    async def write() -> int:
        successes = 0
        known = 0
        while successes < 5:
            try:
                answer = await store.submit(append(expected_last_sequence=known))
            except SequenceMismatch as error:
                known = int(error.metadata["last_sequence"])
            else:
                assert answer.events[0][1] == known + 1
                known += 1
                successes += 1
        return successes

    await asyncio.gather(*(write() for _ in range(16)))
    assert len(await events_of(store)) == 80


async def test_random_commands_leave_a_whole_record(store: SqlStore) -> None:  # noqa: C901
    rng = random.Random(SEED)
    running: list[TurnRecord] = []

    async def one(number: int) -> None:
        kind = rng.randrange(6)
        call = f"c{rng.randrange(8)}"
        try:
            if kind == 0:
                accepted = await store.submit(accept(claim=claim(f"s{rng.randrange(10)}")))
                if accepted.input_event is not None:
                    running.append(accepted.turn)
            elif kind == 1 and running:
                done = await store.submit(finish(rng.choice(running)))
                if done.next_turn is not None:
                    running.append(done.next_turn)
            elif kind == 2 and running:
                await store.submit(step(rng.choice(running), tool_input(f"t{number}")))
            elif kind == 3:
                await store.submit(append(tool_input(call), while_busy=True))
            elif kind == 4:
                await store.submit(append(tool_output(call), while_busy=True))
            else:
                await store.submit(append(custom(), claim=claim(f"a{rng.randrange(10)}")))
        except (DomainError, LeaseLost):
            pass

    for start in range(0, 200, 10):
        await asyncio.gather(*(one(number) for number in range(start, start + 10)))
