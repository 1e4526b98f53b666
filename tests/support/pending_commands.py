"""Random commands on turns that wait for somebody, beside those of every turn."""

from __future__ import annotations

from functools import partial
from typing import Any

from hypothesis import strategies as st
from hypothesis.stateful import precondition, rule

from hansard_server.domain.keys import make_event_id
from hansard_server.domain.records import EventType, PendingKind, TurnRecord, TurnStatus
from hansard_server.repository.commands import Accepted, CallAnswer, WhenBusy
from tests.support import commands as make
from tests.support.model import Awaited, ModelClaim, ModelTurn, Sent
from tests.support.store_commands import CommandRules
from tests.support.store_machine import (
    Held,
    contents,
    expectations,
    model_event,
    places,
    request_ids,
    same,
)

_KINDS = {"APPROVAL": PendingKind.APPROVAL, "OUTPUT": PendingKind.CLIENT_TOOL}
_ANSWERS = {"OUTPUT": make.given, "APPROVE": make.approve, "REJECT": make.reject}
how_answered = st.sampled_from(["fitting", "fitting", "fitting", *_ANSWERS])
_FITTING = {"APPROVAL": "APPROVE", "OUTPUT": "OUTPUT"}


class PendingRules(CommandRules):
    """Rules for waiting, answers, and time that runs out."""

    @rule(
        behind=st.sampled_from([0, 0, 0, 0, 0, 1]),
        then=st.lists(
            st.tuples(
                st.lists(places, min_size=1, max_size=3), how_answered, request_ids, contents
            ),
            max_size=4,
        ),
        asked=st.lists(
            st.tuples(st.sampled_from(list(_KINDS)), st.sampled_from([False, False, True])),
            min_size=1,
            max_size=3,
        ),
    )
    def wait(self, behind: int, then: list[Any], asked: list[tuple[str, bool]]) -> None:
        self.flush()
        if self.model.running is None:
            self.accept(
                text=b"ask me",
                request_id="",
                when_busy=WhenBusy.QUEUE,
                expect=None,
                stale=False,
            )
            self.flush()
        turn = self.model.running
        if turn is None:
            return
        drafts = [make.tool_input(make_event_id()) for _ in asked]
        calls = {
            draft.tool_call_id: Awaited(*each) for draft, each in zip(drafts, asked, strict=True)
        }
        command = make.await_calls_of(
            self.ref(turn, behind),
            *(
                make.awaited(str(call), _KINDS[each.kind], timeout_s=0.0 if each.late else 600.0)
                for call, each in calls.items()
            ),
            drafts=tuple(drafts),
        )

        def waits() -> ModelTurn:
            self.model.step(turn, [model_event(draft) for draft in drafts])
            self.model.wait(turn, calls)
            return turn

        self.add(command, self.owned(turn, command.turn, waits), self.compare_turn)
        for some, how, request_id, text in then:
            self.answer_calls(places=some, how=how, request_id=request_id, text=text, expect=None)

    @precondition(lambda self: self.model.running is not None)
    @rule(
        places=st.lists(places, min_size=1, max_size=3),
        how=how_answered,
        request_id=request_ids,
        text=contents,
        expect=expectations,
    )
    def answer_calls(
        self, places: list[int], how: str, request_id: str, text: bytes, expect: Any
    ) -> None:
        self.flush()
        turn = self.model.running
        awaited = dict(turn.awaited) if turn else {}
        # Mostly calls that are awaited; else any that is open.
        known = [*list(awaited) * 4, *(c.call for c in turn.open_calls)] if turn else []
        answers: dict[Any, str] = {}
        for place in places:
            call = known[place % len(known)] if known else "c1"
            each = awaited.get(call)
            answers[call] = _FITTING[each.kind] if how == "fitting" and each else how.upper()
        answers = {c: a if a in _ANSWERS else "REJECT" for c, a in answers.items()}
        expected = self.expected(expect)
        content = text + repr(sorted(answers.items())).encode()[-20:]
        given: list[CallAnswer] = [_ANSWERS[answer](call) for call, answer in answers.items()]
        command = make.answers(
            *given,
            session=self.name(),
            claim=make.claim(request_id, content) if request_id else None,
            expected_last_sequence=expected,
        )
        self.add(
            command,
            partial(
                self.answered,
                tuple(answers.items()),
                claim=ModelClaim(request_id, content) if request_id else None,
                expected=expected,
            ),
            self.compare_answered,
        )
        self.flush()

    def answered(self, answers: Any, **conditions: Any) -> tuple[Sent, TurnStatus]:
        sent = self.model.answer(answers, **conditions)
        if not sent.claimed:
            self.changed(sent.turn)
        return sent, sent.turn.status

    def changed(self, turn: ModelTurn) -> None:
        for event in turn.events:
            if event.kind is EventType.TOOL_OUTPUT and not event.id:
                event.id = make.closing_id(event.call)
        held = self.held[turn]
        running = turn.status is TurnStatus.RUNNING
        last = turn.events[-1].sequence
        self.held[turn] = Held(held.fence + 1, last if running else held.taken_sequence)

    def compare_answered(self, got: Accepted, want: tuple[Sent, TurnStatus]) -> None:
        sent, status = want
        assert got.turn.id == sent.turn.id
        assert got.claimed == sent.claimed
        assert got.turn.status is status
        assert got.input_event is None
        if sent.first is not None and not sent.claimed:
            assert got.from_sequence == sent.first.sequence
        awaited = [call.tool_call_id for call in got.turn.awaited_calls]
        assert sorted(awaited) == sorted(sent.turn.awaited)

    @precondition(lambda self: self.held)
    @rule(place=places)
    def expire(self, place: int) -> None:
        turn = self.pick(place)
        command = make.expire_of(self.world.record.uid, turn.id)

        def expired() -> str | None:
            late = any(awaited.late for awaited in turn.awaited.values())
            waits = turn.status is TurnStatus.REQUIRES_ACTION
            went_on = self.model.expire(turn)
            if late and waits:
                self.changed(turn)
            return went_on.id if went_on else None

        self.add(command, expired, lambda got, want: same(got.id if got else None, want))

    def compare_turn(self, got: TurnRecord, want: ModelTurn) -> None:
        assert (got.id, got.status) == (want.id, TurnStatus.REQUIRES_ACTION)
        assert {call.tool_call_id for call in got.awaited_calls} == want.awaited.keys()
