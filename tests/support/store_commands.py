"""Random commands on a store: each result is compared with the model's."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from hypothesis import strategies as st
from hypothesis.stateful import (
    precondition,
    rule,
)

from hansard_server.domain.keys import make_turn_id
from hansard_server.domain.records import (
    EventType,
    TurnRecord,
    TurnStatus,
    Usage,
)
from hansard_server.repository.commands import (
    Accepted,
    Appended,
    CancelQueued,
    FindInterrupted,
    Finished,
    HandOn,
    Interruptible,
    Recorded,
    StartNext,
    TakeTurn,
    WhenBusy,
)
from tests.support import commands as make
from tests.support.model import (
    ModelClaim,
    ModelEvent,
    ModelTurn,
    Refused,
)
from tests.support.records import TENANT
from tests.support.store_machine import (
    LOST,
    QUEUE_MAX,
    Held,
    StoreBase,
    call_ids,
    caller_draft,
    contents,
    event_ids,
    expectations,
    kinds,
    model_event,
    places,
    request_ids,
    same,
    same_event,
    seldom,
    tool_drafts,
)


class CommandRules(StoreBase):
    """Rules for the commands."""

    @rule(
        text=contents,
        request_id=request_ids,
        when_busy=st.sampled_from(list(WhenBusy)),
        expect=expectations,
        stale=seldom,
    )
    def accept(
        self, text: bytes, request_id: str, when_busy: WhenBusy, expect: Any, *, stale: bool
    ) -> None:
        self.flush_before(expect)
        turn_id, expected = make_turn_id(), self.expected(expect)
        draft = make.draft(text, type=EventType.INPUT_MESSAGE)
        command = make.accept(
            session=self.name(stale=stale),
            turn_id=turn_id,
            input=draft,
            when_busy=when_busy,
            queue_max_inputs=QUEUE_MAX,
            claim=make.claim(request_id, text) if request_id else None,
            expected_last_sequence=expected,
        )
        given = model_event(draft)
        self.add(
            command,
            self.of_session(
                partial(
                    self.accepted,
                    given,
                    turn_id,
                    when_busy=when_busy.name,
                    claim=ModelClaim(request_id, text) if request_id else None,
                    expected=expected,
                ),
                stale=stale,
            ),
            self.compare_accepted,
        )

    def accepted(self, given: ModelEvent, turn_id: str, **conditions: Any) -> Any:
        sent = self.model.accept(given, **conditions)
        sent.turn.id = sent.turn.id or turn_id
        wrote = not sent.claimed and sent.first is not None
        waiting = self.model.waiting
        return {
            "turn": sent.turn,
            "status": sent.turn.status,
            "claimed": sent.claimed,
            "event": sent.first if wrote else None,
            "position": len(waiting)
            if not sent.claimed and sent.turn.status is TurnStatus.QUEUED
            else None,
            "last_sequence": len(self.model.events),
        }

    def compare_accepted(self, got: Accepted, want: dict[str, Any]) -> None:
        assert got.turn.id == want["turn"].id
        assert got.turn.status is want["status"]
        assert got.claimed == want["claimed"]
        assert got.position == want["position"]
        assert got.last_sequence == want["last_sequence"]
        assert (got.input_event is None) == (want["event"] is None)
        if got.input_event is not None:
            same_event(got.input_event, want["event"])

    @rule(
        drafts=st.lists(st.tuples(kinds, contents, event_ids, call_ids), min_size=1, max_size=3),
        request_id=request_ids,
        expect=expectations,
        while_busy=seldom,
        stale=seldom,
    )
    def append(
        self, drafts: Any, request_id: str, expect: Any, *, while_busy: bool, stale: bool
    ) -> None:
        self.flush_before(expect)
        made = [caller_draft(*draft) for draft in drafts]
        expected = self.expected(expect)
        command = make.append(
            *made,
            session=self.name(stale=stale),
            claim=make.claim(request_id, repr(drafts).encode()[-31:]) if request_id else None,
            expected_last_sequence=expected,
            while_busy=while_busy,
        )
        self.add(
            command,
            self.of_session(
                lambda: self.model.append(
                    [model_event(draft) for draft in made],
                    claim=ModelClaim(request_id, repr(drafts)[-31:]) if request_id else None,
                    expected=expected,
                    while_busy=while_busy,
                ),
                stale=stale,
            ),
            self.compare_appended,
        )

    @precondition(lambda self: any(e.kind is EventType.TOOL_INPUT for e in self.model.events))
    @rule(place=places, event_id=event_ids)
    def answer(self, place: int, event_id: str) -> None:
        self.flush()
        calls = [e for e in self.model.events if e.kind is EventType.TOOL_INPUT]
        call = calls[place % len(calls)].call
        made = caller_draft(EventType.TOOL_OUTPUT, b"", event_id, call)
        self.add(
            make.append(made, session=self.name()),
            lambda: self.model.append([model_event(made)]),
            self.compare_appended,
        )

    def compare_appended(self, got: Appended, want: list[ModelEvent]) -> None:
        assert got.session_uid == self.world.record.uid
        assert list(got.events) == [(event.id, event.sequence) for event in want]

    @precondition(lambda self: self.held)
    @rule(
        place=places,
        behind=st.sampled_from([0, 0, 0, 1]),
        tools=st.booleans(),
        tokens=st.integers(0, 5),
    )
    def step(self, place: int, behind: int, tokens: int, *, tools: bool) -> None:
        turn = self.pick(place)
        drafts = tool_drafts() if tools else (make.draft(b"a step"),)
        used = (tokens, 1, 0)
        command = make.step_of(self.ref(turn, behind), *drafts, usage=Usage(*used))
        self.add(
            command,
            self.owned(turn, command.turn, lambda: self.stepped(turn, drafts, used)),
            self.compare_recorded,
        )

    def stepped(self, turn: ModelTurn, drafts: Any, used: Any) -> list[ModelEvent]:
        events = [model_event(draft) for draft in drafts]
        self.model.step(turn, events, used)
        return events

    def compare_recorded(self, got: Recorded, want: list[ModelEvent]) -> None:
        assert len(got.events) == len(want)
        for event, wanted in zip(got.events, want, strict=True):
            same_event(event, wanted)

    @precondition(lambda self: self.held)
    @rule(
        place=places,
        behind=st.sampled_from([0, 0, 0, 1]),
        status=st.sampled_from([TurnStatus.COMPLETED, TurnStatus.FAILED]),
        start_next=st.booleans(),
    )
    def finish(self, place: int, behind: int, status: TurnStatus, *, start_next: bool) -> None:
        turn = self.pick(place)
        draft = make.draft(b"the end")
        command = make.finish_of(
            self.ref(turn, behind), draft, status=status, start_next=start_next
        )
        self.add(
            command,
            self.owned(
                turn,
                command.turn,
                lambda: self.finished(
                    turn,
                    lambda: self.model.finish(
                        turn, status, [model_event(draft)], start_next=start_next
                    ),
                ),
            ),
            self.compare_finished,
        )

    @precondition(lambda self: self.held)
    @rule(place=places, request_id=request_ids, text=contents)
    def interrupt(self, place: int, request_id: str, text: bytes) -> None:
        turn = self.pick(place)
        # Whoever interrupts has asked for the claim before, and does so in a call of its own.
        self.flush()
        if ("SEND", request_id) in self.model.claims:
            return
        draft = make.draft(b"interrupted", type=EventType.SESSION_INTERRUPTED)
        command = make.finish_of(
            self.ref(turn, 0),
            draft,
            status=TurnStatus.INTERRUPTED,
            claim=make.claim(request_id, text) if request_id else None,
            waiting=turn.status is TurnStatus.REQUIRES_ACTION,
        )

        def interrupted() -> None:
            said = self.model.interrupt(
                turn, "", ModelClaim(request_id, text) if request_id else None
            )
            said.id, said.payload = draft.id, draft.payload

        self.add(
            command,
            self.owned(
                turn,
                command.turn,
                lambda: self.finished(turn, interrupted),
                waiting=command.waiting,
            ),
            self.compare_finished,
        )

    def finished(self, turn: ModelTurn, end: Callable[[], None]) -> dict[str, Any]:
        before = len(turn.events)
        end()
        running = self.model.running
        return {
            "turn": turn,
            "events": turn.events[before:],
            "next": running,
            "last_sequence": len(self.model.events),
        }

    def compare_finished(self, got: Finished, want: dict[str, Any]) -> None:
        assert got.turn.id == want["turn"].id
        assert got.last_sequence == want["last_sequence"]
        assert len(got.events) == len(want["events"])
        for event, wanted in zip(got.events, want["events"], strict=True):
            same_event(event, wanted)
        assert (got.next_turn.id if got.next_turn else None) == (
            want["next"].id if want["next"] else None
        )

    @precondition(lambda self: self.held)
    @rule(place=places, force=st.booleans())
    def take(self, place: int, *, force: bool) -> None:
        turn = self.pick(place)
        command = TakeTurn(
            tenant=TENANT,
            session_uid=self.world.record.uid,
            turn_id=turn.id,
            lease=make.LEASE,
            force=force,
        )

        def taken() -> ModelTurn:
            held = self.held[turn]
            if turn.status is not TurnStatus.RUNNING or not (force or held.handed_on):
                raise Refused(LOST)
            last = turn.events[-1].sequence
            if not held.handed_on:
                turn.attempt = turn.attempt + 1 if last == held.taken_sequence else 1
            self.held[turn] = Held(held.fence + 1, last)
            return turn

        self.add(command, taken, self.compare_taken)

    def compare_taken(self, got: TurnRecord, want: ModelTurn) -> None:
        assert got.id == want.id

    @precondition(lambda self: self.held)
    @rule(place=places, behind=st.sampled_from([0, 0, 1]))
    def hand_on(self, place: int, behind: int) -> None:
        turn = self.pick(place)
        draft = make.draft(b"half done")
        command = HandOn(turn=self.ref(turn, behind), drafts=(draft,), usage=Usage(1, 2, 3))

        def handed_on() -> None:
            self.stepped(turn, (draft,), (1, 2, 3))
            held = self.held[turn]
            self.held[turn] = Held(held.fence + 1, held.taken_sequence, handed_on=True)

        self.add(command, self.owned(turn, command.turn, handed_on), lambda *_: None)

    @precondition(lambda self: self.model.turns)
    @rule(place=places)
    def cancel_queued(self, place: int) -> None:
        self.flush()
        turns = self.model.turns
        turn_id = turns[place % len(turns)].id if place else "trn_none"

        def cancelled() -> tuple[str, TurnStatus]:
            turn = self.model.turn(turn_id)
            if turn.status is TurnStatus.QUEUED:
                self.model.cancel(turn_id)
            return turn.id, turn.status

        self.add(
            CancelQueued(session=self.name(), turn_id=turn_id),
            cancelled,
            lambda got, want: same((got.id, got.status), want),
        )

    @precondition(lambda self: self.model.turns)
    @rule(request_id=request_ids, text=contents)
    def find_interrupted(self, request_id: str, text: bytes) -> None:
        command = FindInterrupted(
            session=self.name(),
            claim=make.claim(request_id, text) if request_id else None,
        )

        def found() -> tuple[str | None, bool]:
            found = self.model.find_interrupted(
                claim=ModelClaim(request_id, text) if request_id else None
            )
            running = self.model.running
            claimed = found is not None and not isinstance(found, ModelTurn)
            return running.id if running else None, claimed

        def compare(got: Interruptible, want: tuple[str | None, bool]) -> None:
            assert (got.turn.id if got.turn else None, got.claimed is not None) == want

        self.add(command, found, compare)

    @precondition(lambda self: self.model.turns)
    @rule()
    def start_next(self) -> None:
        def started() -> str | None:
            turn = self.model.start_next()
            return turn.id if turn else None

        self.add(
            StartNext(tenant=TENANT, session_uid=self.world.record.uid, lease=make.LEASE),
            started,
            lambda got, want: same(got.id if got else None, want),
        )
