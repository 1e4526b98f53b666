"""What a state machine that runs a store, and a model beside it, is made of."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    rule,
)

from hansard_server.domain.errors import DomainError
from hansard_server.domain.keys import make_event_id
from hansard_server.domain.records import (
    EventRecord,
    EventType,
    SessionRecord,
    TurnStatus,
)
from hansard_server.repository.api import EventPage, EventScan, TurnPage, TurnScan
from hansard_server.repository.commands import (
    Command,
    Draft,
    LeaseLost,
    TurnRef,
)
from hansard_server.repository.sql.store import SqlStore
from tests.support import commands as make
from tests.support.model import (
    ModelEvent,
    ModelSession,
    ModelTurn,
    Refused,
)
from tests.support.records import SESSION, TENANT

LOST = "LEASE_LOST"
QUEUE_MAX = 3
MAX_BYTES = 1_000_000

request_ids = st.sampled_from(["", "r1", "r1", "r2"])
contents = st.sampled_from([b"one", b"one", b"one", b"two"])
event_ids = st.sampled_from(["", "", "aev_1", "aev_2", "aev_3"])
call_ids = st.sampled_from(["c1", "c2", "c3"])
kinds = st.sampled_from(
    [EventType.AGENT_OUTPUT, EventType.CUSTOM, EventType.TOOL_INPUT, EventType.TOOL_OUTPUT]
)
places = st.integers(0, 40)
seldom = st.sampled_from([False] * 7 + [True])
expectations = st.sampled_from([None, None, None, "last", "other"])


@dataclass(slots=True)
class Held:
    """A turn as its owner knows it."""

    fence: int = 1
    taken_sequence: int = 0
    handed_on: bool = False


@dataclass(slots=True)
class World:
    """The store, the one session in it, and its model.

    `replicas` are stores of the same database as in other processes; commands are given to any.
    """

    store: SqlStore
    runner: asyncio.Runner
    replicas: tuple[SqlStore, ...] = ()
    count: int = 0
    record: SessionRecord = SESSION
    model: ModelSession = field(default_factory=lambda: ModelSession(lambda _: None))

    def scan_events(self, scan: EventScan) -> EventPage:
        """Return a page of the session's events."""
        uid = self.record.uid
        return self.runner.run(self.store.read(lambda tx: tx.scan_events(TENANT, uid, scan)))

    def scan_turns(self, scan: TurnScan) -> TurnPage:
        """Return a page of the session's turns."""
        uid = self.record.uid
        return self.runner.run(self.store.read(lambda tx: tx.scan_turns(TENANT, uid, scan)))

    def renew(self) -> None:
        """Begin with an empty session under a key of its own."""
        self.count += 1
        self.record = replace(SESSION, uid=f"uid-{self.count}", key=f"key-{self.count}")
        self.runner.run(self.store.write(lambda tx: tx.insert_session(self.record, None)))


@dataclass(frozen=True, slots=True)
class Step:
    """A command, what the model says of it, and how its result is compared."""

    command: Command
    predict: Callable[[], Any]
    compare: Callable[[Any, Any], None]


class StoreBase(RuleBasedStateMachine):
    """What rules work with: commands wait, and are then submitted at once.

    `world` is set by a subclass.
    """

    world: World

    @initialize()
    def begin(self) -> None:
        self.world.renew()
        self.held: dict[ModelTurn, Held] = {}
        self.waiting: list[Step] = []
        self.deleted: list[str] = []
        self.model = ModelSession(self.started, queue_max=QUEUE_MAX)

    def started(self, turn: ModelTurn) -> None:
        self.held[turn] = Held(taken_sequence=turn.events[0].sequence)

    def add(
        self, command: Command, predict: Callable[[], Any], compare: Callable[..., None]
    ) -> None:
        self.waiting.append(Step(command, predict, compare))

    @rule(replica=st.sampled_from([None, 0]))
    def flush(self, replica: int | None = None) -> None:
        """Submit all commands that wait at once: the store may do them in one transaction."""
        steps, self.waiting = self.waiting, []
        if not steps:
            return
        world = self.world
        elsewhere = replica is not None and world.replicas
        store = world.replicas[replica or 0] if elsewhere else world.store

        async def submit() -> list[Any]:
            return await asyncio.gather(
                *(store.submit(step.command) for step in steps), return_exceptions=True
            )

        for step, got in zip(steps, self.world.runner.run(submit()), strict=True):
            try:
                want = step.predict()
            except Refused as refused:
                same(reason_of(got), refused.reason)
            else:
                assert not isinstance(got, BaseException), f"refused: {step.command}: {got!r}"
                step.compare(got, want)

    def flush_before(self, expect: Any) -> None:
        # What the last sequence will be is known when nothing waits.
        if expect is not None:
            self.flush()

    def name(self, *, stale: bool = False) -> Any:
        uid = self.deleted[-1] if stale and self.deleted else None
        return replace(make.NAME, session_key=self.world.record.key, uid=uid)

    def of_session(self, predict: Callable[[], Any], *, stale: bool) -> Callable[[], Any]:
        if not (stale and self.deleted):
            return predict

        def gone() -> Any:
            raise Refused("SESSION_NOT_FOUND")

        return gone

    def owned(
        self,
        turn: ModelTurn,
        ref: TurnRef,
        predict: Callable[[], Any],
        *,
        waiting: bool = False,
    ) -> Callable[[], Any]:
        status = TurnStatus.REQUIRES_ACTION if waiting else TurnStatus.RUNNING

        def held() -> Any:
            if turn.status is not status or ref.fence != self.held[turn].fence:
                raise Refused(LOST)
            return predict()

        return held

    def expected(self, expect: str | None) -> int | None:
        if expect is None:
            return None
        return len(self.model.events) + (expect == "other")

    def pick(self, place: int) -> ModelTurn:
        # Mostly the one that runs; else one that has been running.
        self.flush()
        turns = list(self.held)
        running = self.model.running
        return running if running and place % 4 else turns[place % len(turns)]

    def ref(self, turn: ModelTurn, behind: int) -> TurnRef:
        return TurnRef(
            tenant=TENANT,
            session_uid=self.world.record.uid,
            turn_id=turn.id,
            fence=self.held[turn].fence - behind,
        )

    def some_event_id(self, place: int) -> str:
        events = self.model.events
        return events[place % len(events)].id if place else "aev_none"

    def attempt(self, call: Any) -> Any:
        async def result() -> Any:
            return await call

        try:
            return self.world.runner.run(result())
        except (DomainError, LeaseLost) as error:
            return error


def caller_draft(kind: EventType, content: bytes, event_id: str, call: str) -> Draft:
    """Return a draft as a caller gives it, under an id of its own or a new one."""
    if kind is EventType.TOOL_INPUT:
        draft = make.tool_input(call)
    elif kind is EventType.TOOL_OUTPUT:
        draft = make.tool_output(call)
    else:
        draft = make.draft(content, type=kind)
    return replace(draft, id=event_id or make_event_id(), given_id=bool(event_id))


def tool_drafts() -> tuple[Draft, ...]:
    """Return the drafts of a call that stays open, and of one that is answered."""
    first, second = (make_event_id() for _ in range(2))
    return (make.tool_input(first), make.tool_input(second), make.tool_output(second))


def model_event(draft: Draft) -> ModelEvent:
    return ModelEvent(draft.type, draft.payload, draft.id, draft.tool_call_id)


def same(got: object, want: object) -> None:
    assert got == want


def same_event(got: EventRecord, want: ModelEvent) -> None:
    """Assert that the record is the model's event; what the store made up is learned."""
    assert got.type is want.kind
    assert got.sequence == want.sequence
    assert got.turn_id == (want.turn.id if want.turn else None)
    assert bool(got.hide_reason) == want.hidden
    assert (got.deleted_at_us is not None) == want.deleted
    if want.id:
        assert got.id == want.id
    want.id = got.id
    if want.deleted:
        assert got.payload == b""
        return
    if want.payload is None:
        want.payload = got.payload
    assert got.payload == want.payload
    assert want.seen in {None, got.created_at_us}
    want.seen = got.created_at_us


def reason_of(outcome: object) -> str:
    if isinstance(outcome, LeaseLost):
        return LOST
    if isinstance(outcome, DomainError):
        return outcome.reason
    return f"none: {outcome!r}"
