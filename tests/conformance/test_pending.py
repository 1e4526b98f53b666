"""Commands on turns that wait for somebody. The oracle checks the record after each test."""

from __future__ import annotations

import asyncio

import pytest

from hansard_server.domain.clock import now_us
from hansard_server.domain.errors import (
    DomainError,
    InvalidRequest,
    RequestIdReused,
    SequenceMismatch,
    SessionBusy,
    ToolCallNotPending,
)
from hansard_server.domain.records import (
    EventType,
    PendingKind,
    PendingState,
    SessionStatus,
    TurnRecord,
    TurnStatus,
    Usage,
)
from hansard_server.repository.api import EventScan
from hansard_server.repository.commands import (
    AnswerCalls,
    FindInterrupted,
    LeaseLost,
    TakeTurn,
    WhenBusy,
)
from hansard_server.repository.sql.store import SqlStore
from tests.support.commands import (
    LEASE,
    NAME,
    accept,
    answers,
    append,
    approve,
    await_calls,
    awaited,
    claim,
    custom,
    draft,
    expire,
    finish,
    given,
    reject,
    step,
    tool_input,
    tool_output,
)
from tests.support.records import AGENT, SESSION, TENANT

pytestmark = [
    pytest.mark.usefixtures("whole"),
    pytest.mark.parametrize("run_by", ["sqlalchemy", "driver"]),
]
CLIENT = PendingKind.CLIENT_TOOL
OUTPUTS = EventScan(
    limit=100, max_bytes=1 << 20, max_rows=1_000, types=frozenset({EventType.TOOL_OUTPUT})
)


async def running(store: SqlStore, *call_ids: str) -> TurnRecord:
    """Return a running turn with these open calls."""
    turn = (await store.submit(accept(claim=claim("input")))).turn
    await store.submit(step(turn, *map(tool_input, call_ids)))
    return await turn_of(store, turn)


async def waiting(store: SqlStore, timeout_s: float = 60.0) -> TurnRecord:
    """Return a turn that waits for an approval, `a`, and a client, `c`."""
    turn = await running(store, "a", "c")
    waits: TurnRecord = await store.submit(
        await_calls(
            turn,
            awaited("a", timeout_s=timeout_s, override_json='{"x":1}'),
            awaited("c", CLIENT, timeout_s=timeout_s),
        )
    )
    return waits


async def turn_of(store: SqlStore, turn: TurnRecord) -> TurnRecord:
    return await store.read(lambda tx: tx.get_turn(TENANT, turn.session_uid, turn.id))


async def head_of(store: SqlStore):  # type: ignore[no-untyped-def]  # noqa: ANN201
    view = await store.read(lambda tx: tx.get_session(TENANT, AGENT.key, SESSION.key))
    return view.head


async def outputs_of(store: SqlStore) -> list[str | None]:
    page = await store.read(lambda tx: tx.scan_events(TENANT, SESSION.uid, OUTPUTS))
    return [event.tool_call_id for event in page.events]


async def test_turn_that_waits_has_no_owner_and_keeps_its_session_busy(store: SqlStore) -> None:
    turn = await running(store, "a", "b")
    before = now_us()
    waits = await store.submit(
        await_calls(
            turn,
            awaited("a", timeout_s=5.0, override_json='{"x":1}'),
            drafts=(tool_output("b"),),
            usage=Usage(1, 2, 3),
        )
    )
    assert waits == await turn_of(store, turn)
    (call,) = waits.pending_calls
    assert (call.tool_call_id, call.kind, call.override_json, call.state) == (
        *("a", PendingKind.APPROVAL, '{"x":1}'),
        PendingState.AWAITED,
    )
    assert before + 4_000_000 < call.expire_at_us < before + 60_000_000
    assert (waits.status, waits.usage) == (TurnStatus.REQUIRES_ACTION, Usage(1, 2, 3))
    head = await head_of(store)
    assert (head.status, head.expire_at_us) == (SessionStatus.REQUIRES_ACTION, None)
    assert head.usage == Usage(1, 2, 3)
    assert await store.read(lambda tx: tx.find_unfinished_turns(9, expired_only=False)) == []

    # Whoever ran it has nothing to say any more, and nobody may take it.
    for command in (
        step(turn),
        finish(turn),
        await_calls(turn, awaited("a")),
        TakeTurn(tenant=TENANT, session_uid=SESSION.uid, turn_id=turn.id, lease=LEASE, force=True),
    ):
        with pytest.raises(LeaseLost):
            await store.submit(command)
    with pytest.raises(SessionBusy):
        await store.submit(accept(when_busy=WhenBusy.REJECT))
    with pytest.raises(SessionBusy):
        await store.submit(append(draft()))
    await store.submit(append(custom()))
    assert (await store.submit(accept())).position == 1


async def test_last_answer_has_the_turn_go_on(store: SqlStore) -> None:
    waits = await waiting(store)
    first = await store.submit(answers(approve("a"), claim=claim("one")))
    assert first.turn.status is TurnStatus.REQUIRES_ACTION
    assert [call.tool_call_id for call in first.turn.awaited_calls] == ["c"]
    assert first.turn.fence > waits.fence
    last = (await head_of(store)).last_sequence
    assert (first.from_sequence, first.last_sequence) == (last + 1, last)

    second = await store.submit(answers(given("c"), claim=claim("two")))
    turn = second.turn
    assert turn == await turn_of(store, turn)
    assert (turn.status, turn.attempt) == (TurnStatus.RUNNING, 1)
    assert turn.fence > first.turn.fence
    assert turn.taken_sequence == turn.last_sequence == second.from_sequence == last + 1
    (call,) = turn.pending_calls
    assert (call.tool_call_id, call.state, call.override_json) == (
        *("a", PendingState.APPROVED),
        '{"x":1}',
    )
    assert (await head_of(store)).status is SessionStatus.RUNNING
    owned = await store.read(lambda tx: tx.find_owned_turns(LEASE.owner, 9))
    assert owned == [turn]

    # The owner begins to run what was approved; taken over then, it is still known.
    await store.submit(step(turn, begun=("a",)))
    taken = await store.submit(
        TakeTurn(tenant=TENANT, session_uid=SESSION.uid, turn_id=turn.id, lease=LEASE, force=True)
    )
    assert taken.pending_calls[0].state is PendingState.BEGUN
    await store.submit(step(taken, tool_output("a")))
    assert (await turn_of(store, turn)).pending_calls == ()
    await store.submit(finish(taken))
    assert await outputs_of(store) == ["c", "a"]


async def test_answers_are_repeated_under_their_request_id(store: SqlStore) -> None:
    await waiting(store)
    commands = [
        answers(approve("a"), claim=claim("one")),
        answers(reject("c"), claim=claim("two")),
    ]
    for command in commands:
        first = await store.submit(command)
        again = await store.submit(command)
        assert (again.claimed, again.from_sequence) == (True, first.from_sequence)
        assert again.turn == first.turn
    with pytest.raises(RequestIdReused):
        await store.submit(answers(reject("a"), claim=claim("one", b"other")))
    assert await outputs_of(store) == ["c"]


@pytest.mark.parametrize(
    ("command", "error"),
    [
        (answers(given("a")), InvalidRequest),
        (answers(approve("c")), InvalidRequest),
        (answers(given("c"), approve("other")), ToolCallNotPending),
        (answers(given("c"), approve("d")), ToolCallNotPending),
        (answers(given("c"), expected_last_sequence=1), SequenceMismatch),
    ],
)
async def test_answer_that_does_not_fit_changes_nothing(
    store: SqlStore, command: AnswerCalls, error: type[DomainError]
) -> None:
    turn = await running(store, "a", "c", "d")
    with pytest.raises(ToolCallNotPending):
        await store.submit(answers(given("c")))
    waits = await store.submit(await_calls(turn, awaited("a"), awaited("c", CLIENT)))
    with pytest.raises(error):
        await store.submit(command)
    assert await turn_of(store, turn) == waits


async def test_of_two_answers_at_once_one_wins(store: SqlStore) -> None:
    await waiting(store)
    results = await asyncio.gather(
        *(store.submit(answers(each)) for each in (approve("a"), reject("a")) * 4),
        return_exceptions=True,
    )
    losers = [each for each in results if isinstance(each, ToolCallNotPending)]
    assert len(losers) == len(results) - 1


async def test_time_runs_out(store: SqlStore) -> None:
    turn = await running(store, "a", "c")
    soon = awaited("a", timeout_s=0.0)
    waits = await store.submit(await_calls(turn, soon, awaited("c", CLIENT)))
    with pytest.raises(ToolCallNotPending, match="too long"):
        await store.submit(answers(approve("a")))
    assert await store.submit(expire(waits)) is None
    assert await outputs_of(store) == ["a"]
    assert await store.submit(expire(waits)) is None
    assert await outputs_of(store) == ["a"]
    went_on = await store.submit(answers(reject("c")))
    assert went_on.turn.status is TurnStatus.RUNNING
    assert await store.submit(expire(waits)) is None


async def test_all_times_run_out_and_one_of_many_goes_on(store: SqlStore) -> None:
    waits = await waiting(store, timeout_s=0.0)
    results = await asyncio.gather(*(store.submit(expire(waits)) for _ in range(5)))
    (turn,) = [each for each in results if each is not None]
    assert turn == await turn_of(store, turn)
    assert turn.status is TurnStatus.RUNNING
    assert await outputs_of(store) == ["a", "c"]


async def test_waiting_turn_is_ended_at_once(store: SqlStore) -> None:
    waits = await waiting(store)
    found = await store.submit(FindInterrupted(session=NAME))
    assert found.turn == waits
    partly = (await store.submit(answers(approve("a")))).turn
    queued = (await store.submit(accept())).turn
    ending = {"status": TurnStatus.INTERRUPTED, "waiting": True}
    with pytest.raises(LeaseLost):
        await store.submit(finish(waits, **ending))
    finished = await store.submit(finish(partly, **ending))
    assert (finished.turn.status, finished.turn.pending_calls) == (TurnStatus.INTERRUPTED, ())
    assert finished.next_turn is not None
    assert finished.next_turn.id == queued.id
    assert await outputs_of(store) == ["a", "c"]
    with pytest.raises(LeaseLost):
        await store.submit(finish(finished.turn, **ending))


async def test_input_steered_into_a_waiting_turn_stays_in_it(store: SqlStore) -> None:
    waits = await waiting(store)
    steered = await store.submit(accept(when_busy=WhenBusy.STEER))
    assert (steered.turn.id, steered.turn.status) == (waits.id, TurnStatus.REQUIRES_ACTION)
    assert steered.turn.steered_sequence == steered.from_sequence
    turn = (await store.submit(answers(approve("a"), given("c")))).turn
    assert turn.steered_sequence == steered.from_sequence
