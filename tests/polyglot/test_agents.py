"""Agents elsewhere in two languages, processes of their own: a whole conversation with them, and
what becomes of it when one of the processes is killed in the middle of a step.
"""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import pytest

from hansard.v1 import (
    agent_service_pb2,
    agent_service_pb2_grpc,
    event_pb2,
    event_service_pb2,
    event_service_pb2_grpc,
    session_service_pb2,
    session_service_pb2_grpc,
    turn_pb2,
)
from tests.polyglot.languages import AGENTS, build_agent
from tests.polyglot.service import Service
from tests.support.databases import Databases
from tests.support.invariants import check_store
from tests.support.remote import AgentProcess, agent_process

TOKEN = "hush-hush"
TOOLS: dict[str, Any] = {
    "write": {"artifact_create": {}},
    "sign": {"artifact_create": {}, "require_approval": True},
    "confirm": {"client": {}},
}
QUESTION = "Is all well?"
ANSWER = 'Notes: one.txt, two.txt. The report is completed. You said: {"go": true}.'
STEP = ["tool_input", "tool_input"]
KINDS = [
    *("input_message", "thinking", *STEP),
    *("tool_output", "artifact_upload", "tool_output", "artifact_upload"),
    *(*STEP, "tool_output", "tool_output", "artifact_upload", "agent_output"),
]
Response = event_service_pb2.SendEventResponse
Seen = Callable[[Response], bool]


@dataclass
class Place:
    """Hansard and the agent, each a process."""

    service: Service
    agent: AgentProcess

    @contextmanager
    def channel(self) -> Iterator[tuple[grpc.Channel, list[tuple[str, str]]]]:
        key = self.service.environment["HANSARD_API_KEY"]
        with grpc.insecure_channel(self.service.address) as channel:
            yield channel, [("x-api-key", key)]

    def create(self, *session_keys: str) -> None:
        """Create the agent, and these sessions of it."""
        agent = agent_service_pb2.CreateAgentRequest(
            key="elsewhere",
            name="Elsewhere",
            model={
                "name": "hansard/extractive",
                "retry": {"max_retries": 10, "initial_backoff": {"nanos": 50_000_000}},
            },
            remote_runtime={"runtime": "mine"},
            tool_configurations=TOOLS,
        )
        with self.channel() as (channel, key):
            agent_service_pb2_grpc.AgentServiceStub(channel).CreateAgent(agent, metadata=key)
            sessions = session_service_pb2_grpc.SessionServiceStub(channel)
            for session_key in session_keys:
                session = session_service_pb2.CreateSessionRequest(
                    agent_key="elsewhere", key=session_key, name="Session"
                )
                sessions.CreateSession(session, metadata=key)

    def send(
        self,
        session_key: str,
        on_response: Callable[[Response], None] = lambda _: None,
        **given: Any,
    ) -> Response:
        """Send an input until its stream comes to an end, and return the last response."""
        request = event_service_pb2.SendEventRequest(
            agent_key="elsewhere", session_key=session_key, **given
        )
        while True:
            try:
                with self.channel() as (channel, key):
                    events = event_service_pb2_grpc.EventServiceStub(channel)
                    last = None
                    for response in events.SendEvent(
                        request, metadata=key, wait_for_ready=True, timeout=120
                    ):
                        on_response(response)
                        last = response
            except grpc.RpcError as error:
                # The server was killed, and is there again.
                if error.code() is not grpc.StatusCode.UNAVAILABLE:
                    raise
            else:
                assert last is not None
                return last

    def events(self, session_key: str) -> list[event_pb2.Event]:
        """Return what is on record."""
        request = event_service_pb2.ListEventsRequest(
            agent_key="elsewhere", session_key=session_key
        )
        with self.channel() as (channel, key):
            events = event_service_pb2_grpc.EventServiceStub(channel)
            return list(events.ListEvents(request, metadata=key).events)


@contextmanager
def make_place(
    language: str, folder: Path, store_url: str, *, pause_ms: int = 0
) -> Iterator[Place]:
    program = build_agent(language)
    environment = {"AGENT_TOKEN": TOKEN, "AGENT_PAUSE_MS": str(pause_ms), **program.environment}
    with agent_process(program.command, environment) as agent:
        connections = folder / "connections.toml"
        connections.write_text(
            f'[runtimes.mine]\nurl = "{agent.url}"\ntoken = "{TOKEN}"\n', encoding="utf-8"
        )
        settings = ("lease_s=1", "runtime_heartbeat_s=2", f"connections={connections}")
        with Service(store_url, folder / "data", *settings) as service:
            yield Place(service, agent)
    check_store(store_url, folder / "data")


def message(text: str) -> event_pb2.InputMessage:
    return event_pb2.InputMessage(messages=[{"text": {"content": text}}])


def answers(waiting: Response) -> event_service_pb2.ToolResults:
    """Return an approval of what is to be approved, and what the client says."""
    assert waiting.HasField("requires_action"), waiting
    results = []
    for call in waiting.requires_action.turn.pending_calls:
        if call.kind == turn_pb2.PENDING_CALL_KIND_APPROVAL:
            results.append({"tool_call_id": call.tool_call_id, "approve": {}})
        else:
            said = {"tool_output_json": '{"go":true}'}
            results.append({"tool_call_id": call.tool_call_id, "output": said})
    assert len(results) == 2
    return event_service_pb2.ToolResults(results=results)


def kinds(events: list[event_pb2.Event]) -> list[str]:
    return [str(event.WhichOneof("payload")) for event in events]


def said(events: list[event_pb2.Event]) -> str:
    [answer] = [event.agent_output.content for event in events if event.HasField("agent_output")]
    # As JSON is written in one language or another.
    return str(answer).replace('{"go":true}', '{"go": true}')


@pytest.mark.parametrize("language", AGENTS)
def test_conversation_with_an_agent_elsewhere(
    language: str, store_url: str, tmp_path: Path
) -> None:
    with make_place(language, tmp_path, store_url) as place:
        place.create("s")
        waiting = place.send("s", input_message=message(QUESTION))
        # Nobody remembers anything while it waits.
        place.agent.kill()
        place.service.restart(signal.SIGKILL)
        place.agent.start()
        last = place.send("s", tool_results=answers(waiting))
        assert last.turn_end.turn.status == turn_pb2.TURN_STATUS_COMPLETED
        assert last.turn_end.turn.usage.output_tokens == 1
        events = place.events("s")
        assert sorted(kinds(events)) == sorted(KINDS)
        assert said(events) == ANSWER
        # The two notes are calls of one step, and so are the signature and the question.
        assert kinds(events)[2:4] == STEP
        place.service.restart(signal.SIGTERM)
        last = place.send("s", input_message=message("What did you say?"))
        assert last.turn_end.turn.status == turn_pb2.TURN_STATUS_COMPLETED
        assert said(place.events("s")[len(events) :]) == f"I said: {ANSWER}"


def shows(kind: str) -> Seen:
    number = event_service_pb2.DeltaKind.Value(f"DELTA_KIND_{kind.upper()}")
    return lambda response: response.HasField("delta") and response.delta.kind == number


def stores(kind: str) -> Seen:
    return lambda response: response.event.WhichOneof("payload") == kind


STEPS: dict[str, Seen] = {
    "thinks": shows("thinking"),
    "has-thought": stores("thinking"),
    "calls": stores("tool_input"),
    "has-results": stores("tool_output"),
    "answers": shows("agent_output"),
}


@pytest.mark.parametrize(
    ("language", "victim"),
    [
        *(("python", "hansard"), ("typescript", "hansard"), ("python", "agent")),
        *(("typescript", "agent"), ("python", "hansard, stopped")),
    ],
)
def test_killing_in_the_middle_of_each_step(
    language: str, victim: str, databases: Databases, tmp_path: Path
) -> None:
    store_url = databases.migrated("sqlite")
    with make_place(language, tmp_path, store_url, pause_ms=300) as place:
        place.create(*STEPS)
        for step, seen in STEPS.items():
            events = converse_and_kill(place, step, seen, victim)
            inputs = [e.tool_input.tool_call_id for e in events if e.HasField("tool_input")]
            outputs = [e.tool_output for e in events if e.HasField("tool_output")]
            assert sorted(inputs) == sorted(output.tool_call_id for output in outputs)
            assert len(inputs) == 4, step
            if victim == "agent":
                # What Hansard runs goes on, and what was shown and not stored is said again.
                assert said(events) == ANSWER
                assert sorted(kinds(events)) == sorted(KINDS)
            else:
                assert "You said" in said(events)


def converse_and_kill(
    place: Place, session_key: str, seen: Seen, victim: str
) -> list[event_pb2.Event]:
    killed = False

    def kill_once(response: Response) -> None:
        nonlocal killed
        if killed or not seen(response):
            return
        killed = True
        if victim == "agent":
            place.agent.kill()
            place.agent.start()
        else:
            place.service.restart(signal.SIGKILL if victim == "hansard" else signal.SIGTERM)

    waiting = place.send(
        session_key, kill_once, input_message=message(QUESTION), request_id=f"ask-{session_key}"
    )
    last = place.send(
        session_key, kill_once, tool_results=answers(waiting), request_id=f"answer-{session_key}"
    )
    assert killed
    assert last.turn_end.turn.status == turn_pb2.TURN_STATUS_COMPLETED
    return place.events(session_key)
