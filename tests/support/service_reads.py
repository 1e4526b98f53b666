"""Random calls on agents and sessions, and reads: each reply is compared with the model's."""

from __future__ import annotations

import re
from typing import Any

from google.protobuf import json_format
from hypothesis import strategies as st
from hypothesis.stateful import rule

from hansard.v1 import (
    agent_pb2,
    agent_service_pb2,
    artifact_pb2,
    artifact_service_pb2,
    event_pb2,
    event_service_pb2,
    session_pb2,
    session_service_pb2,
    turn_service_pb2,
)
from hansard_server.domain.records import TurnStatus
from tests.support.model import ModelEvent, Refused
from tests.support.service_client import CALL_MAX_S, ORDERS, same_event, walk
from tests.support.service_machine import (
    ServiceBase,
    agent_keys,
    metadatas,
    often,
    one_of_several,
    places,
    raise_,
    request_ids,
    run_one_of,
    same_agent,
    same_session,
    scripted,
    scripts,
    seldom,
    session_keys,
    texts,
)
from tests.support.service_model import (
    ModelAgent,
    ServedSession,
    kind_of,
)
from tests.support.service_writes import WriteRules

DRAFT = ("custom", "one", "", "")
EVENT_KINDS = ("agent_output", "input_message", "tool_input", "tool_output", "custom", "thinking")


class ResourceRules(WriteRules):
    """A rule for agents and sessions themselves."""

    @rule(data=st.data())
    def resources(self, data: st.DataObject) -> None:
        run_one_of(self, ResourceRules, data)

    @rule(
        agent=agent_keys,
        session=session_keys,
        text=texts,
        request_id=request_ids,
        of_agent=st.booleans(),
    )
    def say_while_disabled(
        self, agent: str, session: str, text: str, request_id: str, *, of_agent: bool
    ) -> None:
        # What is new is refused, what is repeated is not.
        for enabled in (False, True):
            if of_agent:
                self.update_agent(agent, "answer", ["enabled"], "", enabled=enabled)
            else:
                self.update_session(agent, session, "", {}, ["enabled"], "", enabled=enabled)
            if not enabled:
                self.say(agent, session, text, request_id)
                self.append(agent, session, [DRAFT], request_id, "none", 0, stale=False)

    @one_of_several(agent=agent_keys, script=scripts, request_id=request_ids)
    def create_another_agent(self, agent: str, script: str, request_id: str) -> None:
        self.create_agent(agent, script, request_id)

    @one_of_several(
        agent=agent_keys,
        session=session_keys,
        name=st.sampled_from(["Session", "Order 7"]),
        metadata=metadatas,
        request_id=request_ids,
    )
    def create_another_session(
        self, agent: str, session: str, name: str, metadata: dict[str, Any], request_id: str
    ) -> None:
        self.create_session(agent, session, name, metadata, request_id)

    @one_of_several(
        agent=agent_keys,
        script=scripts,
        enabled=often,
        paths=st.sampled_from([["model"], ["model"], ["enabled"], ["model", "enabled"]]),
        etag=st.sampled_from(["", "right", "wrong"]),
    )
    def update_agent(
        self, agent: str, script: str, paths: list[str], etag: str, *, enabled: bool
    ) -> None:
        key = self.prefix + agent
        known = self.model.agents.get(key)
        request = agent_service_pb2.UpdateAgentRequest(
            agent=agent_pb2.Agent(
                key=key,
                model=scripted(script),
                enabled=enabled,
                etag=known.etag if known and etag == "right" else etag,
            ),
            update_mask={"paths": paths},
        )

        def update() -> ModelAgent:
            changed = self.model.agent(key)
            if etag == "wrong":
                raise Refused("ETAG_MISMATCH")
            changed.script = script if "model" in paths else changed.script
            changed.enabled = enabled if "enabled" in paths else changed.enabled
            return changed

        both = self.client.compare(
            update, lambda: self.client.agents.UpdateAgent(request, timeout=CALL_MAX_S)
        )
        if both is not None:
            changed, got = both
            assert got.etag != changed.etag
            changed.etag = got.etag
            same_agent(got, changed)

    @one_of_several(
        agent=agent_keys,
        session=session_keys,
        name=st.sampled_from(["Session", "Order 8"]),
        metadata=metadatas,
        enabled=often,
        paths=st.lists(
            st.sampled_from(["name", "metadata", "enabled"]), min_size=1, max_size=2, unique=True
        ),
        etag=st.sampled_from(["", "right", "wrong"]),
    )
    def update_session(
        self,
        agent: str,
        session: str,
        name: str,
        metadata: dict[str, Any],
        paths: list[str],
        etag: str,
        *,
        enabled: bool,
    ) -> None:
        known = self.session(agent, session)
        body = session_pb2.Session(
            agent_key=self.prefix + agent,
            key=session,
            name=name,
            enabled=enabled,
            etag=known.etag if known and etag == "right" else etag,
        )
        json_format.ParseDict(metadata, body.metadata)
        request = session_service_pb2.UpdateSessionRequest(
            session=body, update_mask={"paths": paths}
        )

        def update() -> ServedSession:
            changed = self.model.session(
                session_service_pb2.GetSessionRequest(**self.keys(agent, session))
            )
            if etag == "wrong":
                raise Refused("ETAG_MISMATCH")
            changed.name = name if "name" in paths else changed.name
            changed.metadata = metadata if "metadata" in paths else changed.metadata
            changed.enabled = enabled if "enabled" in paths else changed.enabled
            return changed

        both = self.client.compare(
            update, lambda: self.client.sessions.UpdateSession(request, timeout=CALL_MAX_S)
        )
        if both is not None:
            changed, got = both
            assert got.etag != changed.etag
            changed.etag = got.etag
            same_session(got, changed)

    @one_of_several(agent=agent_keys, session=session_keys, really=seldom, again=often)
    def delete_session(self, agent: str, session: str, *, really: bool, again: bool) -> None:
        if not really:
            return
        request = session_service_pb2.DeleteSessionRequest(**self.keys(agent, session))

        def delete() -> None:
            gone = self.model.session(request)
            self.gone_uids.append(gone.uid)
            del gone.agent.sessions[gone.key]

        self.client.compare(
            delete, lambda: self.client.sessions.DeleteSession(request, timeout=CALL_MAX_S)
        )
        if again:
            self.create_session(agent, session, "Session", {}, "")

    @one_of_several(agent=agent_keys, script=scripts, really=seldom, again=often)
    def delete_agent(self, agent: str, script: str, *, really: bool, again: bool) -> None:
        if not really:
            return
        request = agent_service_pb2.DeleteAgentRequest(agent_key=self.prefix + agent)

        def delete() -> None:
            gone = self.model.agent(request.agent_key)
            self.gone_uids += [session.uid for session in gone.sessions.values()]
            del self.model.agents[gone.key]

        self.client.compare(
            delete, lambda: self.client.agents.DeleteAgent(request, timeout=CALL_MAX_S)
        )
        if again:
            self.create_agent(agent, script, "")
            self.create_session(agent, "s", "Session", {}, "")

    @one_of_several(descending=st.booleans(), page_size=st.integers(1, 2))
    def list_agents(self, page_size: int, *, descending: bool) -> None:
        request = agent_service_pb2.ListAgentsRequest(
            page_size=page_size, order=ORDERS[descending], filter="^Agent$"
        )
        got = list(walk(self.client.agents.ListAgents, request, "agents", filtered=True))
        want = sorted(
            self.model.agents.values(), key=lambda a: (a.created, a.uid), reverse=descending
        )
        assert [agent.key for agent in got] == [agent.key for agent in want]
        for agent, wanted in zip(got, want, strict=True):
            same_agent(agent, wanted)

    @one_of_several(
        agent=agent_keys,
        descending=st.booleans(),
        page_size=st.integers(1, 2),
        pattern=st.sampled_from(["", "", "^Order", "[0-7]$"]),
        metadata=metadatas,
        enabled=st.sampled_from([None, None, True, False]),
    )
    def list_sessions(
        self,
        agent: str,
        page_size: int,
        pattern: str,
        metadata: dict[str, Any],
        enabled: bool | None,  # noqa: FBT001 - Hypothesis names them all
        *,
        descending: bool,
    ) -> None:
        request = session_service_pb2.ListSessionsRequest(
            agent_key=self.prefix + agent,
            page_size=page_size,
            order=ORDERS[descending],
            filter=pattern,
            enabled=enabled,
        )
        json_format.ParseDict(metadata, request.metadata)

        def found() -> list[ServedSession]:
            kept = [
                session
                for session in self.model.agent(request.agent_key).sessions.values()
                if re.search(pattern, session.name)
                and (enabled is None or session.enabled == enabled)
                and metadata.items() <= session.metadata.items()
            ]
            return sorted(kept, key=lambda s: (s.created, s.uid), reverse=descending)

        both = self.client.compare(
            found,
            lambda: list(
                walk(self.client.sessions.ListSessions, request, "sessions", filtered=True)
            ),
        )
        if both is not None:
            want, got = both
            assert [session.key for session in got] == [session.key for session in want]
            for session, wanted in zip(got, want, strict=True):
                same_session(session, wanted)


class ReadRules(ServiceBase):
    """A rule that reads what is in sessions."""

    @rule(data=st.data())
    def look(self, data: st.DataObject) -> None:
        run_one_of(self, ReadRules, data)

    @one_of_several(
        agent=agent_keys,
        session=session_keys,
        page_size=st.integers(1, 4),
        descending=st.booleans(),
        types=st.lists(st.sampled_from(EVENT_KINDS), max_size=2, unique=True),
        after=st.integers(0, 8),
        before=st.integers(0, 12),
        place=st.one_of(st.just(0), places),
        hidden_too=st.booleans(),
    )
    def list_events(  # noqa: PLR0913 - all that a request may say
        self,
        agent: str,
        session: str,
        page_size: int,
        types: list[str],
        after: int,
        before: int,
        place: int,
        *,
        descending: bool,
        hidden_too: bool,
    ) -> None:
        found = self.session(agent, session)
        if found is None:
            return
        turn_id = self.turn_id(agent, session, place) if place else ""
        got = list(
            self.client.walk_events(
                found,
                page_size,
                order=ORDERS[descending],
                types=types,
                after_sequence=after,
                before_sequence=before,
                turn_id=turn_id,
                include_hidden=hidden_too,
            )
        )
        want = found.record.scan(
            descending=descending,
            types=[kind_of(name) for name in types],
            after=after,
            before=before,
            turn_id=turn_id,
            hidden_too=hidden_too,
        )
        self.client.same_events(got, want)

    @one_of_several(
        agent=agent_keys,
        session=session_keys,
        page_size=st.integers(1, 3),
        descending=st.booleans(),
        statuses=st.lists(st.sampled_from(list(TurnStatus)), max_size=3, unique=True),
    )
    def list_turns(
        self,
        agent: str,
        session: str,
        page_size: int,
        statuses: list[TurnStatus],
        *,
        descending: bool,
    ) -> None:
        found = self.session(agent, session)
        if found is None:
            return
        got = list(
            self.client.walk_turns(
                found, page_size, order=ORDERS[descending], statuses=[int(s) for s in statuses]
            )
        )
        want = [t for t in found.record.turns if not statuses or t.status in statuses]
        self.client.same_turns(got, want[::-1] if descending else want)

    @one_of_several(agent=agent_keys, session=session_keys, place=places)
    def get_event(self, agent: str, session: str, place: int) -> None:
        request = event_service_pb2.GetEventRequest(
            event_id=self.event_id(agent, session, place), **self.keys(agent, session)
        )
        both = self.client.compare(
            lambda: self.model.session(request).record.find(request.event_id),
            lambda: self.client.events.GetEvent(request, timeout=CALL_MAX_S),
        )
        if both is not None:
            same_event(both[1], both[0])

    @one_of_several(agent=agent_keys, session=session_keys, place=places)
    def get_turn(self, agent: str, session: str, place: int) -> None:
        request = turn_service_pb2.GetTurnRequest(
            turn_id=self.turn_id(agent, session, place), **self.keys(agent, session)
        )
        both = self.client.compare(
            lambda: self.model.session(request).record.turn(request.turn_id),
            lambda: self.client.turns.GetTurn(request, timeout=CALL_MAX_S),
        )
        if both is not None:
            self.client.same_turns([both[1]], [both[0]])

    @one_of_several(agent=agent_keys, session=session_keys, after=st.integers(0, 12), stale=seldom)
    def watch(self, agent: str, session: str, after: int, *, stale: bool) -> None:
        request = event_service_pb2.WatchEventsRequest(
            after_sequence=after,
            session_uid=self.gone_uids[-1] if stale and self.gone_uids else "",
            **self.keys(agent, session),
        )

        def watched() -> list[ModelEvent]:
            events = self.model.session(request).record.events
            if after > len(events):
                raise Refused("CURSOR_OUT_OF_RANGE")
            return events[after:]

        both = self.client.compare(watched, lambda: self.read_watch(request))
        if both is not None:
            self.client.same_events(both[1], both[0])

    def read_watch(self, request: event_service_pb2.WatchEventsRequest) -> list[event_pb2.Event]:
        call = self.client.events.WatchEvents(request, timeout=CALL_MAX_S)
        seen = []
        for response in call:
            if response.HasField("caught_up"):
                break
            seen.append(response.event)
        call.cancel()
        return seen

    @one_of_several(
        agent=agent_keys,
        session=session_keys,
        page_size=st.integers(1, 2),
        descending=st.booleans(),
    )
    def list_artifacts(self, agent: str, session: str, page_size: int, *, descending: bool) -> None:
        request = artifact_service_pb2.ListArtifactsRequest(
            page_size=page_size, order=ORDERS[descending], **self.keys(agent, session)
        )

        def found() -> list[artifact_pb2.Artifact]:
            files = [artifact for artifact, _ in self.model.session(request).files.values()]
            return sorted(
                files,
                key=lambda a: (a.created_at.ToNanoseconds(), a.artifact_id),
                reverse=descending,
            )

        both = self.client.compare(
            found,
            lambda: list(walk(self.client.artifacts.ListArtifacts, request, "artifacts")),
        )
        if both is not None:
            assert both[0] == both[1]

    @one_of_several(
        agent=agent_keys,
        session=session_keys,
        place=places,
        offset=st.integers(0, 31),
        length=st.one_of(st.none(), st.integers(0, 31)),
    )
    def download(
        self, agent: str, session: str, place: int, offset: int, length: int | None
    ) -> None:
        request = artifact_service_pb2.DownloadArtifactRequest(
            artifact_id=self.artifact_id(agent, session, place),
            offset=offset,
            length=length,
            **self.keys(agent, session),
        )

        def read() -> tuple[artifact_pb2.Artifact, bytes]:
            artifact, data = self.model.file(request)
            if offset > len(data):
                raise Refused("INVALID_REQUEST")
            return artifact, data[offset:][:length]

        both = self.client.compare(
            read,
            lambda: list(self.client.artifacts.DownloadArtifact(request, timeout=CALL_MAX_S)),
        )
        if both is not None:
            (artifact, data), got = both
            assert got[0].artifact == artifact
            assert b"".join(part.chunk for part in got[1:]) == data

    @one_of_several(agent=agent_keys, session=session_keys)
    def token_of_another_query(self, agent: str, session: str) -> None:
        found = self.session(agent, session)
        if found is None or len(found.record.scan()) < 2:
            return
        request = event_service_pb2.ListEventsRequest(page_size=1, **self.keys(agent, session))
        page = self.client.events.ListEvents(request, timeout=CALL_MAX_S)
        request = event_service_pb2.ListEventsRequest(
            page_token=page.next_page_token, order=ORDERS[True], **self.keys(agent, session)
        )
        self.client.compare(
            lambda: raise_(Refused("INVALID_PAGE_TOKEN")),
            lambda: self.client.events.ListEvents(request, timeout=CALL_MAX_S),
        )
