"""A blocking client that compares what a server says with what a ServiceModel says."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import grpc
from google.rpc import error_details_pb2, status_pb2

from hansard.v1 import (
    agent_service_pb2_grpc,
    artifact_service_pb2_grpc,
    event_pb2,
    event_service_pb2,
    event_service_pb2_grpc,
    session_pb2,
    session_service_pb2,
    session_service_pb2_grpc,
    turn_pb2,
    turn_service_pb2,
    turn_service_pb2_grpc,
)
from hansard_server.domain.records import TurnStatus
from tests.support.model import ModelEvent, ModelTurn, Refused, Sent
from tests.support.server import DETAILS_KEY
from tests.support.service_model import ServedSession, expected_payload
from tests.support.talk import content, items, joined_deltas, stored

CALL_MAX_S = 60.0
ORDERS = {False: 1, True: 2}
"""Descending, and the SortOrder."""
_ENVELOPE = (
    "id",
    "agent_key",
    "session_key",
    "sequence",
    "turn_id",
    "created_at",
    "hide_reason",
    "deleted_at",
)


class Client:
    """The stubs of a server, and comparisons of what they answer."""

    def __init__(self, channel: grpc.Channel) -> None:
        """Call over the channel."""
        self.agents = agent_service_pb2_grpc.AgentServiceStub(channel)
        self.sessions = session_service_pb2_grpc.SessionServiceStub(channel)
        self.events = event_service_pb2_grpc.EventServiceStub(channel)
        self.turns = turn_service_pb2_grpc.TurnServiceStub(channel)
        self.artifacts = artifact_service_pb2_grpc.ArtifactServiceStub(channel)

    def compare(
        self, predict: Callable[[], Any], call: Callable[[], Any]
    ) -> tuple[Any, Any] | None:
        """Make the call; return (what the model says, the reply), None when both refuse it.

        Raises AssertionError when one refuses and the other does not, or for another reason.
        """
        try:
            want = predict()
        except Refused as refused:
            want = refused
        try:
            got = call()
        except grpc.RpcError as error:
            _check_refusal(error, want)
            return None
        assert not isinstance(want, Refused), f"not refused: {want} {got}"
        return want, got

    # Whole sessions -------------------------------------------------------------------------------

    def settle(self, session: ServedSession) -> session_pb2.Session:
        """Return the session as soon as it has come to where the model is, and compare it all."""
        record = session.record
        status = (
            session_pb2.SESSION_STATUS_RUNNING
            if record.running
            else session_pb2.SESSION_STATUS_IDLE
        )
        request = session_service_pb2.GetSessionRequest(
            agent_key=session.agent.key, session_key=session.key
        )
        deadline = time.monotonic() + CALL_MAX_S
        while True:
            found = self.sessions.GetSession(request, timeout=CALL_MAX_S)
            if (found.last_sequence, found.status) == (len(record.events), status):
                break
            assert time.monotonic() < deadline, f"{found} is not {len(record.events)} {status}"
            time.sleep(0.002)
        used = found.usage
        assert record.usage == (used.input_tokens, used.output_tokens, used.reasoning_tokens)
        # By pages of every size, in both orders.
        count = len(record.events)
        descending, page_size = count % 2 == 1, 1 + count % 5
        places = {"page_size": page_size, "order": ORDERS[descending]}
        turns = list(self.walk_turns(session, **places))
        self.same_turns(turns, record.turns[::-1] if descending else record.turns)
        events = list(self.walk_events(session, include_hidden=True, **places))
        self.same_events(events, record.events[::-1] if descending else record.events)
        events = events[::-1] if descending else events
        times = [(event.created_at.seconds, event.created_at.nanos) for event in events]
        assert times == sorted(times)
        return found

    def walk_events(
        self, session: ServedSession, page_size: int = 0, **conditions: Any
    ) -> Iterator[event_pb2.Event]:
        """Yield what ListEvents has, page by page."""
        request = event_service_pb2.ListEventsRequest(
            agent_key=session.agent.key,
            session_key=session.key,
            page_size=page_size,
            **conditions,
        )
        yield from walk(self.events.ListEvents, request, "events")

    def walk_turns(
        self, session: ServedSession, page_size: int = 0, **conditions: Any
    ) -> Iterator[turn_pb2.Turn]:
        """Yield what ListTurns has, page by page."""
        request = turn_service_pb2.ListTurnsRequest(
            agent_key=session.agent.key,
            session_key=session.key,
            page_size=page_size,
            **conditions,
        )
        yield from walk(self.turns.ListTurns, request, "turns")

    # Streams --------------------------------------------------------------------------------------

    def same_stream(
        self,
        call: Any,
        sent: Sent,
        session: ServedSession,
        *,
        detached: bool,
        may_wait: bool,
    ) -> None:
        """Read a SendEvent as far as the model says it goes, and compare it.

        `may_wait`: the input may have waited for a moment, which is told too.
        """
        turn, first = sent.turn, sent.first
        want = [e for e in turn.events if first is not None and e.sequence >= first.sequence]
        waits = turn.status is TurnStatus.QUEUED
        got: list[event_service_pb2.SendEventResponse] = []
        if waits or want or turn.status.ended:
            got = self._read(call, 0 if waits else len(want), whole=turn.status.ended or detached)
        call.cancel()
        turn.id = turn.id or got[0].turn_id
        assert {response.turn_id for response in got} == {turn.id}
        assert [bool(r.session_uid) for r in got] == [True] + [False] * (len(got) - 1)
        assert got[0].session_uid == session.uid
        kinds = items(got)
        if waits or (may_wait and kinds[0] == "queued"):
            assert kinds[0] == "queued"
            if waits:
                assert got[0].queued.position == session.record.waiting.index(turn) + 1
            got, kinds = got[1:], kinds[1:]
        elif detached and want:
            assert kinds == ["event"]
        if detached:
            self.same_events(stored(got), want[: len(stored(got))])
            return
        assert "queued" not in kinds
        self.same_events(stored(got), want)
        texts = joined_deltas(got)
        for event in stored(got):
            if event.id in texts:
                assert texts[event.id] == content(event).encode()
        if turn.status.ended:
            assert kinds[-1] == "turn_end"
            self.same_turns([got[-1].turn_end.turn], [turn])

    @staticmethod
    def _read(call: Any, events: int, *, whole: bool) -> list[Any]:
        """Return the stream, or what it has up to so many events, and one message at least."""
        got: list[Any] = []
        for response in call:
            got.append(response)
            if not whole and len(stored(got)) == events:
                break
        return got

    # Comparisons ----------------------------------------------------------------------------------

    def same_events(self, got: Sequence[event_pb2.Event], want: Sequence[ModelEvent]) -> None:
        """Assert that these are the model's events; what the service made up is learned."""
        assert [event.sequence for event in got] == [event.sequence for event in want]
        for event, wanted in zip(got, want, strict=True):
            same_event(event, wanted)

    def same_turns(self, got: Sequence[turn_pb2.Turn], want: Sequence[ModelTurn]) -> None:
        """Assert that these are the model's turns; their ids are learned."""
        assert len(got) == len(want)
        for turn, wanted in zip(got, want, strict=True):
            wanted.id = wanted.id or turn.id
            assert turn.id == wanted.id
            assert turn.status == int(wanted.status), (turn, wanted.status)
            ends = [event.sequence for event in wanted.events]
            assert (turn.first_sequence, turn.last_sequence) == (
                (ends[0], ends[-1]) if ends else (0, 0)
            )
            said = event_pb2.Event() if wanted.input.deleted else wanted.input.payload
            assert turn.input.input_message == said.input_message
            assert turn.attempt == wanted.attempt
            used = turn.usage
            assert wanted.usage == (used.input_tokens, used.output_tokens, used.reasoning_tokens)
            assert _reason(turn.error) == wanted.error


def same_event(got: event_pb2.Event, want: ModelEvent) -> None:
    """Assert that this is the model's event; its id and time are learned, and may not change."""
    want.id = want.id or got.id
    assert got.id == want.id
    assert got.sequence == want.sequence
    assert got.turn_id == (want.turn.id if want.turn else ""), (got, want)
    assert bool(got.hide_reason) == want.hidden
    assert got.HasField("deleted_at") == want.deleted
    if want.deleted:
        assert got.WhichOneof("payload") is None
        return
    payload = event_pb2.Event()
    payload.CopyFrom(got)
    for name in _ENVELOPE:
        payload.ClearField(name)
    seen = (got.created_at.ToNanoseconds(), payload.SerializeToString(deterministic=True))
    assert want.seen in {None, seen}, "a stored event has changed"
    want.seen = seen
    if want.turn is not None:
        for half in ("tool_input", "tool_output"):
            if payload.WhichOneof("payload") == half:
                getattr(payload, half).tool_call_id = ""
    assert payload == expected_payload(want)


def walk(method: Any, request: Any, field: str, *, filtered: bool = False) -> Iterator[Any]:
    """Yield the items of all pages of a list."""
    while True:
        page = method(request, timeout=CALL_MAX_S)
        found = getattr(page, field)
        assert not request.page_size or len(found) <= request.page_size
        yield from found
        if not page.next_page_token:
            return
        assert found or filtered, "a page is empty, though nothing was filtered out"
        request.page_token = page.next_page_token


def _check_refusal(error: Any, want: object) -> None:
    """Assert that the call was refused for the reason that the model has."""
    reason = str(error.code())
    for key, value in error.trailing_metadata() or ():
        if key == DETAILS_KEY:
            reason = _reason(status_pb2.Status.FromString(value))
    assert isinstance(want, Refused), f"refused: {reason} {error.details()}"
    assert reason == want.reason, error.details()


def _reason(status: status_pb2.Status) -> str:
    info = error_details_pb2.ErrorInfo()
    for detail in status.details:
        if detail.Unpack(info):
            return info.reason
    return ""
