"""Random calls that write into sessions: each reply is compared with the model's."""

from __future__ import annotations

from collections.abc import Iterator

from hypothesis import strategies as st
from hypothesis.stateful import precondition, rule

from hansard.v1 import (
    artifact_service_pb2,
    event_pb2,
    event_service_pb2,
    turn_service_pb2,
)
from tests.support.artifacts import sha256
from tests.support.model import ModelEvent, Refused, Sent
from tests.support.service_client import CALL_MAX_S, same_event
from tests.support.service_machine import (
    WHEN_BUSY,
    ServiceBase,
    agent_keys,
    any_events,
    any_files,
    any_turns,
    draft_of,
    drafts,
    expectations,
    places,
    raise_,
    request_ids,
    seldom,
    session_keys,
    texts,
)
from tests.support.service_model import (
    ServedSession,
)
from tests.support.talk import message


class WriteRules(ServiceBase):
    """Rules that change something in sessions."""

    @rule(agent=agent_keys, session=session_keys, text=texts, request_id=request_ids)
    def say(self, agent: str, session: str, text: str, request_id: str) -> None:
        request = event_service_pb2.SendEventRequest(
            input_message=message(text),
            when_busy=event_service_pb2.WHEN_BUSY_QUEUE,
            request_id=request_id,
            **self.keys(agent, session),
        )
        self.run_send(request, agent, session, may_wait=False)

    @rule(
        agent=agent_keys,
        session=session_keys,
        text=texts,
        when_busy=st.sampled_from(WHEN_BUSY),
        request_id=request_ids,
        expect=expectations,
        no_deltas=seldom,
        detach=seldom,
        stale=seldom,
        mention=seldom,
        place=places,
    )
    def send(  # noqa: PLR0913 - all that a request may say
        self,
        agent: str,
        session: str,
        text: str,
        when_busy: str,
        request_id: str,
        expect: str,
        place: int,
        *,
        no_deltas: bool,
        detach: bool,
        stale: bool,
        mention: bool,
    ) -> None:
        request = event_service_pb2.SendEventRequest(
            input_message=message(text),
            when_busy=event_service_pb2.WhenBusy.Value(f"WHEN_BUSY_{when_busy}"),
            request_id=request_id,
            deltas=2 if no_deltas else 1,
            detach=detach,
            session_uid=self.gone_uids[-1] if stale and self.gone_uids else "",
            **self.keys(agent, session),
            **self.expected(agent, session, expect),
        )
        if mention:
            part = request.input_message.messages.add()
            part.artifact.artifact_id = self.artifact_id(agent, session, place)
        found = self.session(agent, session)
        busy = found is not None and found.record.busy
        self.run_send(request, agent, session, may_wait=busy and when_busy == "INTERRUPT")

    @precondition(any_turns)
    @rule(
        agent=agent_keys,
        session=session_keys,
        request_id=request_ids,
        place=places,
        whichever=st.booleans(),
    )
    def interrupt(
        self, agent: str, session: str, request_id: str, place: int, *, whichever: bool
    ) -> None:
        turn_id = "" if whichever else self.turn_id(agent, session, place)
        request = event_service_pb2.SendEventRequest(
            interrupt=event_service_pb2.Interrupt(turn_id=turn_id),
            request_id=request_id,
            **self.keys(agent, session),
        )
        self.run_send(request, agent, session, may_wait=False)

    def run_send(
        self,
        request: event_service_pb2.SendEventRequest,
        agent: str,
        session: str,
        *,
        may_wait: bool,
    ) -> None:
        want: Sent | Refused | None
        try:
            want = self.model.send(request)
        except Refused as reason:
            want = reason
        call = self.client.events.SendEvent(request, timeout=CALL_MAX_S)
        if isinstance(want, Sent):
            found = self.model.session(request)
            self.client.same_stream(
                call,
                want,
                found,
                detached=request.detach,
                may_wait=may_wait and not want.claimed,
            )
        else:
            refused = want
            self.client.compare(lambda: raise_(refused), lambda: list(call))
        self.settle(agent, session)

    @precondition(any_turns)
    @rule(agent=agent_keys, session=session_keys, place=places)
    def cancel(self, agent: str, session: str, place: int) -> None:
        request = turn_service_pb2.CancelTurnRequest(
            turn_id=self.turn_id(agent, session, place), **self.keys(agent, session)
        )
        both = self.client.compare(
            lambda: self.model.session(request).record.cancel(request.turn_id),
            lambda: self.client.turns.CancelTurn(request, timeout=CALL_MAX_S),
        )
        if both is not None:
            self.client.same_turns([both[1]], [both[0]])
        self.settle(agent, session)

    @rule(
        agent=agent_keys,
        session=session_keys,
        made=st.lists(drafts, min_size=1, max_size=3),
        request_id=request_ids,
        expect=expectations,
        stale=seldom,
        place=places,
    )
    def append(
        self,
        agent: str,
        session: str,
        made: list[tuple[str, str, str, str]],
        request_id: str,
        expect: str,
        place: int,
        *,
        stale: bool,
    ) -> None:
        artifact_id = self.artifact_id(agent, session, place)
        request = event_service_pb2.AppendEventsRequest(
            events=[draft_of(*one, artifact_id) for one in made],
            request_id=request_id,
            session_uid=self.gone_uids[-1] if stale and self.gone_uids else "",
            **self.keys(agent, session),
            **self.expected(agent, session, expect),
        )
        both = self.client.compare(
            lambda: self.model.append(request),
            lambda: self.client.events.AppendEvents(request, timeout=CALL_MAX_S),
        )
        if both is not None:
            want, got = both
            assert got.session_uid == self.model.session(request).uid
            for appended, event in zip(got.events, want, strict=True):
                event.id = event.id or appended.event_id
                assert (appended.event_id, appended.sequence) == (event.id, event.sequence)
        self.settle(agent, session)

    @precondition(any_events)
    @rule(
        agent=agent_keys,
        session=session_keys,
        place=places,
        how=st.sampled_from(["Hide", "Unhide", "Delete"]),
    )
    def alter(self, agent: str, session: str, place: int, how: str) -> None:
        make = getattr(event_service_pb2, f"{how}EventRequest")
        request = make(event_id=self.event_id(agent, session, place), **self.keys(agent, session))
        method = getattr(self.client.events, f"{how}Event")
        both = self.client.compare(
            lambda: self.model.session(request).record.alter(request.event_id, how.upper()),
            lambda: method(request, timeout=CALL_MAX_S),
        )
        if both is not None and how != "Delete":
            same_event(both[1], both[0])
        self.settle(agent, session)

    @rule(
        agent=agent_keys,
        session=session_keys,
        files=st.lists(
            st.tuples(st.sampled_from(["a.txt", "b.bin"]), st.binary(max_size=30)),
            min_size=1,
            max_size=2,
        ),
        request_id=request_ids,
    )
    def upload(
        self, agent: str, session: str, files: list[tuple[str, bytes]], request_id: str
    ) -> None:
        part = artifact_service_pb2.UploadArtifactsRequest
        start = artifact_service_pb2.UploadStart(request_id=request_id, **self.keys(agent, session))
        headers = [
            artifact_service_pb2.UploadHeader(
                filename=name, mime_type="text/plain", checksum_sha256=sha256(data)
            )
            for name, data in files
        ]

        def parts() -> Iterator[artifact_service_pb2.UploadArtifactsRequest]:
            yield part(start=start)
            for header, (_, data) in zip(headers, files, strict=True):
                yield part(header=header)
                yield part(chunk=data)

        both = self.client.compare(
            lambda: self.model.upload(start, headers),
            lambda: self.client.artifacts.UploadArtifacts(parts(), timeout=CALL_MAX_S),
        )
        if both is not None:
            (event, fresh), got = both
            if fresh:
                self.learn_files(self.model.session(start), event, got, files)
            same_event(got, event)
        self.settle(agent, session)

    def learn_files(
        self,
        session: ServedSession,
        event: ModelEvent,
        got: event_pb2.Event,
        files: list[tuple[str, bytes]],
    ) -> None:
        event.payload = event_pb2.Event(artifact_upload=got.artifact_upload)
        for reference, (name, data) in zip(got.artifact_upload.artifacts, files, strict=True):
            assert (reference.filename, reference.size_bytes) == (name, len(data))
            artifact = self.client.artifacts.GetArtifact(
                artifact_service_pb2.GetArtifactRequest(
                    agent_key=session.agent.key,
                    session_key=session.key,
                    artifact_id=reference.artifact_id,
                ),
                timeout=CALL_MAX_S,
            )
            assert artifact.checksum_sha256 == sha256(data)
            session.files[reference.artifact_id] = (artifact, data)

    @precondition(any_files)
    @rule(agent=agent_keys, session=session_keys, place=places)
    def delete_artifact(self, agent: str, session: str, place: int) -> None:
        request = artifact_service_pb2.DeleteArtifactRequest(
            artifact_id=self.artifact_id(agent, session, place), **self.keys(agent, session)
        )

        def delete() -> None:
            self.model.file(request)
            del self.model.session(request).files[request.artifact_id]

        self.client.compare(
            delete, lambda: self.client.artifacts.DeleteArtifact(request, timeout=CALL_MAX_S)
        )
