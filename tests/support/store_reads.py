"""Random decisions and reads on a store: each result is compared with the model's."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import strategies as st
from hypothesis.stateful import (
    precondition,
    rule,
)

from hansard_server.domain.records import (
    EventRecord,
    EventType,
    SessionStatus,
    TurnRecord,
    Usage,
)
from hansard_server.repository.api import Alteration, EventScan, TurnScan
from hansard_server.repository.commands import (
    LeaseLost,
)
from tests.support import commands as make
from tests.support.model import (
    ModelSession,
    ModelTurn,
    Refused,
)
from tests.support.records import AGENT, SESSION, TENANT
from tests.support.store_machine import (
    MAX_BYTES,
    QUEUE_MAX,
    StoreBase,
    kinds,
    places,
    reason_of,
    same,
    same_event,
    seldom,
)


class ReadRules(StoreBase):
    """Rules for alterations, deletion and reads."""

    @precondition(lambda self: self.model.events)
    @rule(place=places, how=st.sampled_from(list(Alteration)))
    def alter(self, place: int, how: Alteration) -> None:
        self.flush()
        event_id = self.some_event_id(place)
        uid = self.world.record.uid
        got = self.attempt(
            self.world.store.write(lambda tx: tx.alter_event(TENANT, uid, event_id, how, 1))
        )
        try:
            want = self.model.alter(event_id, how.name)
        except Refused as refused:
            same(reason_of(got), refused.reason)
        else:
            same_event(got, want)

    @rule(really=seldom)
    def delete_session(self, *, really: bool) -> None:
        if not really:
            return
        self.flush()
        uid = self.world.record.uid
        assert self.world.runner.run(
            self.world.store.write(lambda tx: tx.delete_session(TENANT, uid, 10_000))
        )
        self.deleted.append(uid)
        key = self.world.record.key
        # Whoever still works on its turn is told so.
        for turn in (self.model.running, *self.model.waiting):
            if turn is not None and turn in self.held:
                got = self.attempt(self.world.store.submit(make.step_of(self.ref(turn, 0))))
                assert isinstance(got, LeaseLost)
        self.world.count += 1
        self.world.record = replace(SESSION, uid=f"uid-{self.world.count}", key=key)
        self.world.runner.run(
            self.world.store.write(lambda tx: tx.insert_session(self.world.record, None))
        )
        self.held = {}
        self.model = ModelSession(self.started, queue_max=QUEUE_MAX)

    @rule(
        limit=st.integers(1, 4),
        descending=st.booleans(),
        types=st.frozensets(kinds, max_size=2),
        after=st.integers(0, 6),
        before=st.one_of(st.none(), st.integers(1, 12)),
        of_turn=st.one_of(st.none(), places),
        hidden_too=st.booleans(),
    )
    def scan_events(
        self,
        limit: int,
        types: frozenset[EventType],
        after: int,
        before: int | None,
        of_turn: int | None,
        *,
        descending: bool,
        hidden_too: bool,
    ) -> None:
        self.flush()
        turns = self.model.turns
        turn_id = turns[of_turn % len(turns)].id if turns and of_turn is not None else None
        scan = EventScan(
            limit=limit,
            max_bytes=MAX_BYTES,
            max_rows=100,
            after_sequence=after,
            before_sequence=before,
            descending=descending,
            types=types,
            turn_id=turn_id,
            include_hidden=hidden_too,
        )
        got: list[EventRecord] = []
        while True:
            page = self.world.scan_events(scan)
            assert len(page.events) <= limit
            got += page.events
            if page.resume_at is None:
                break
            assert page.events
            at = {"before_sequence" if descending else "after_sequence": page.resume_at}
            scan = replace(scan, **at)
        want = self.model.scan(
            descending=descending,
            types=tuple(types),
            after=after,
            before=before or 0,
            turn_id=turn_id or "",
            hidden_too=hidden_too,
        )
        assert [event.id for event in got] == [event.id for event in want]
        for event, wanted in zip(got, want, strict=True):
            same_event(event, wanted)

    @rule(limit=st.integers(1, 3), descending=st.booleans())
    def scan_turns(self, limit: int, *, descending: bool) -> None:
        self.flush()
        scan = TurnScan(limit=limit, max_bytes=MAX_BYTES, max_rows=100, descending=descending)
        got: list[TurnRecord] = []
        while True:
            page = self.world.scan_turns(scan)
            got += page.turns
            if page.resume_at is None:
                break
            scan = replace(scan, after_number=page.resume_at)
        want = self.model.turns[::-1] if descending else self.model.turns
        assert [turn.id for turn in got] == [turn.id for turn in want]
        for turn, wanted in zip(got, want, strict=True):
            self.same_turn(turn, wanted)

    def same_turn(self, got: TurnRecord, want: ModelTurn) -> None:
        ends = [event.sequence for event in want.events]
        assert (got.number, got.status) == (want.number, want.status)
        assert (got.first_sequence, got.last_sequence) == ((ends[0], ends[-1]) if ends else (0, 0))
        assert got.usage == Usage(*want.usage)
        assert got.attempt == want.attempt
        assert [call.tool_call_id for call in got.open_calls] == (
            [] if got.status.ended else [event.call for event in want.open_calls]
        )
        if want in self.held and not got.status.ended:
            assert got.fence == self.held[want].fence

    def teardown(self) -> None:
        self.flush()
        self.scan_events(4, frozenset(), 0, None, None, descending=False, hidden_too=True)
        self.scan_turns(3, descending=False)
        view = self.world.runner.run(
            self.world.store.read(
                lambda tx: tx.get_session(TENANT, AGENT.key, self.world.record.key)
            )
        )
        assert view.head.last_sequence == len(self.model.events)
        assert view.head.usage == Usage(*self.model.usage)
        assert (view.head.status is SessionStatus.IDLE) == (self.model.running is None)
