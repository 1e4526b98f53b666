"""What a state machine that calls a server, and a model beside it, is made of."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar, TypeVar

from google.protobuf import json_format
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize

from hansard.v1 import (
    agent_pb2,
    agent_service_pb2,
    event_pb2,
    session_pb2,
    session_service_pb2,
)
from tests.support.model import Refused
from tests.support.service_client import CALL_MAX_S, Client
from tests.support.service_model import (
    SCRIPTS,
    ModelAgent,
    ServedSession,
    ServiceModel,
    keep_claim,
)
from tests.support.talk import message

M = TypeVar("M", bound=Callable[..., None])

WHEN_BUSY = ("QUEUE", "REJECT", "STEER", "INTERRUPT")

agent_keys = st.sampled_from(["a"] * 9 + ["b"])
session_keys = st.sampled_from(["s"] * 5 + ["t"])
scripts = st.sampled_from([*SCRIPTS, "holds", "holds_a_call"])
request_ids = st.sampled_from(["", "r1", "r1", "r2"])
event_ids = st.sampled_from(["", "", "", "aev_1", "aev_2"])
texts = st.sampled_from(["one", "one", "one", "two — ä 🙂"])
places = st.integers(0, 50)
seldom = st.sampled_from([False] * 7 + [True])
expectations = st.sampled_from(["none"] * 6 + ["last", "other"])
often = st.sampled_from([True] * 5 + [False])
metadatas = st.fixed_dictionaries(
    {}, optional={"x": st.sampled_from([1, "ä"]), "y": st.sampled_from([True, None])}
)
draft_kinds = st.sampled_from(
    [
        *("agent_output", "custom", "input_message", "structured_output"),
        *("tool_input", "tool_output", "artifact_upload"),
    ]
)
drafts = st.tuples(draft_kinds, texts, event_ids, st.sampled_from(["c1", "c2"]))


def one_of_several(**strategies: st.SearchStrategy[Any]) -> Callable[[M], M]:
    """Mark a method as one that a rule may choose, with values that are drawn for it.

    Were each a rule, most steps would only look.
    """

    def mark(method: M) -> M:
        method.strategies = strategies  # type: ignore[attr-defined]
        return method

    return mark


def run_one_of(machine: ServiceBase, kind: type, data: st.DataObject) -> None:
    """Run one of the marked methods of a class."""
    marked = [method for method in vars(kind).values() if hasattr(method, "strategies")]
    method = data.draw(st.sampled_from(marked), label="what")
    drawn = {name: data.draw(values, label=name) for name, values in method.strategies.items()}
    method(machine, **drawn)


class ServiceBase(RuleBasedStateMachine):
    """What rules work with.

    `client` is set by a subclass. Each example has agents of its own names, and deletes them.
    """

    client: Client
    count: ClassVar[int] = 0

    @initialize(script=scripts)
    def begin(self, script: str) -> None:
        ServiceBase.count += 1
        self.prefix = f"m{ServiceBase.count}-"
        self.model = ServiceModel()
        self.gone_uids: list[str] = []
        self.create_agent("a", script, "")
        self.create_session("a", "s", "Session", {}, "")

    def create_agent(self, key: str, script: str, request_id: str) -> None:
        request = agent_service_pb2.CreateAgentRequest(
            key=self.prefix + key,
            name="Agent",
            model=scripted(script),
            request_id=request_id and self.prefix + request_id,
        )
        both = self.client.compare(
            lambda: self.model.create_agent(request, script),
            lambda: self.client.agents.CreateAgent(request, timeout=CALL_MAX_S),
        )
        if both is None:
            return
        made, got = both
        if not isinstance(made, ModelAgent):
            assert got == made
            return
        made.uid, made.etag, made.created = got.uid, got.etag, got.created_at.ToNanoseconds()
        keep_claim(self.model.claims, request, got)
        same_agent(got, made)

    def create_session(
        self, agent: str, key: str, name: str, metadata: dict[str, Any], request_id: str
    ) -> None:
        request = session_service_pb2.CreateSessionRequest(
            agent_key=self.prefix + agent, key=key, name=name, request_id=request_id
        )
        json_format.ParseDict(metadata, request.metadata)
        both = self.client.compare(
            lambda: self.model.create_session(request),
            lambda: self.client.sessions.CreateSession(request, timeout=CALL_MAX_S),
        )
        if both is None:
            return
        made, got = both
        if not isinstance(made, ServedSession):
            assert got == made
            return
        made.uid, made.etag, made.created = got.uid, got.etag, got.created_at.ToNanoseconds()
        keep_claim(made.agent.claims, request, got)
        same_session(got, made)

    def keys(self, agent: str, session: str) -> dict[str, str]:
        return {"agent_key": self.prefix + agent, "session_key": session}

    def session(self, agent: str, session: str) -> ServedSession | None:
        try:
            return self.model.session(
                session_service_pb2.GetSessionRequest(**self.keys(agent, session))
            )
        except Refused:
            return None

    def settle(self, agent: str, session: str) -> None:
        found = self.session(agent, session)
        if found is not None:
            same_session(self.client.settle(found), found)

    def expected(self, agent: str, session: str, which: str) -> dict[str, int]:
        found = self.session(agent, session)
        if which == "none" or found is None:
            return {}
        return {"expected_last_sequence": len(found.record.events) + (which == "other")}

    def event_id(self, agent: str, session: str, place: int) -> str:
        found = self.session(agent, session)
        events = found.record.events if found else []
        return events[place % len(events)].id if events and place else "aev_none"

    def turn_id(self, agent: str, session: str, place: int) -> str:
        found = self.session(agent, session)
        turns = found.record.turns if found else []
        return turns[place % len(turns)].id if turns and place else "trn_none"

    def artifact_id(self, agent: str, session: str, place: int) -> str:
        found = self.session(agent, session)
        ids = list(found.files) if found else []
        return ids[place % len(ids)] if ids and place else "art_none"

    def teardown(self) -> None:
        try:
            for agent in self.model.agents.values():
                for session in agent.sessions.values():
                    same_session(self.client.settle(session), session)
        finally:
            for key in self.model.agents:
                request = agent_service_pb2.DeleteAgentRequest(agent_key=key)
                self.client.agents.DeleteAgent(request, timeout=CALL_MAX_S)


def scripted(script: str) -> agent_pb2.Model:
    """Return the model that says what the script says."""
    made = agent_pb2.Model(name="hansard/scripted")
    json_format.ParseDict({"script": SCRIPTS[script]}, made.parameters)
    return made


def draft_of(
    kind: str, text: str, event_id: str, call: str, artifact_id: str
) -> event_pb2.EventDraft:
    """Return the draft of a caller's event."""
    draft = event_pb2.EventDraft(id=event_id)
    match kind:
        case "agent_output":
            draft.agent_output.content = text
        case "custom":
            draft.custom.custom_type, draft.custom.data_json = "com.example.x", f' "{text}"'
        case "input_message":
            draft.input_message.CopyFrom(message(text))
        case "structured_output":
            draft.structured_output.schema_name = "s"
            draft.structured_output.content_json = f'{{"b": "{text}", "a": 1.0}}'
        case "tool_input":
            draft.tool_input.tool_call_id, draft.tool_input.tool_input_json = call, "{}"
        case "tool_output":
            draft.tool_output.tool_call_id, draft.tool_output.tool_output_json = call, "[]"
            draft.tool_output.outcome = event_pb2.TOOL_OUTCOME_COMPLETED
        case _:
            draft.artifact_upload.artifacts.add().artifact_id = artifact_id
    return draft


def same_agent(got: agent_pb2.Agent, want: ModelAgent) -> None:
    """Assert that the agent is the model's."""
    assert (got.key, got.uid, got.etag) == (want.key, want.uid, want.etag)
    assert (got.name, got.enabled) == (want.name, want.enabled)
    assert got.model == scripted(want.script)
    assert got.created_at.ToNanoseconds() == want.created


def same_session(got: session_pb2.Session, want: ServedSession) -> None:
    """Assert that the session is the model's, but for its record."""
    assert (got.agent_key, got.key) == (want.agent.key, want.key)
    assert (got.uid, got.etag) == (want.uid, want.etag)
    assert (got.name, got.enabled) == (want.name, want.enabled)
    assert json_format.MessageToDict(got.metadata) == want.metadata
    assert got.created_at.ToNanoseconds() == want.created


def raise_(refused: Refused | None) -> list[Any]:
    """Raise what was raised before; without it there is an empty stream."""
    if refused is not None:
        raise refused
    return []


def any_turns(machine: ServiceBase) -> bool:
    """Tell whether some session has a turn."""
    agents = machine.model.agents.values()
    return any(s.record.turns for a in agents for s in a.sessions.values())


def any_files(machine: ServiceBase) -> bool:
    """Tell whether some session has a file."""
    agents = machine.model.agents.values()
    return any(s.files for a in agents for s in a.sessions.values())


def any_events(machine: ServiceBase) -> bool:
    """Tell whether some session has an event."""
    agents = machine.model.agents.values()
    return any(s.record.events for a in agents for s in a.sessions.values())
