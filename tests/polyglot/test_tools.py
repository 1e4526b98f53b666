"""grpcurl and ghz, as everybody has them: calls by hand, and a load in which no call fails."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf import json_format

from hansard.v1 import (
    agent_service_pb2,
    agent_service_pb2_grpc,
    event_service_pb2,
    event_service_pb2_grpc,
    session_service_pb2,
    session_service_pb2_grpc,
)
from tests.polyglot.languages import IMAGE
from tests.polyglot.service import Service
from tests.support.builds import go_program

SESSIONS = 8
AGENT = {
    "key": "load",
    "name": "Load",
    "model": {
        "name": "hansard/scripted",
        "parameters": {"script": [{"agent_output": {"content": "Yes.", "delta_count": 2}}]},
    },
}
SESSION = f"s{{{{ mod .RequestNumber {SESSIONS} }}}}"
KEYS = {"agent_key": "load", "session_key": SESSION}
# Each of these runs side by side with the others. ghz fills in the number of the call and an id.
CALLS: dict[str, dict[str, Any]] = {
    "EventService.AppendEvents": {
        **KEYS,
        "request_id": "{{ newUUID }}",
        "events": [{"custom": {"custom_type": "com.example.rating", "data_json": "5"}}],
    },
    "SessionService.GetSession": KEYS,
    "EventService.SendEvent": {
        **KEYS,
        "request_id": "{{ newUUID }}",
        "input_message": {"messages": [{"text": {"content": "Are you there?"}}]},
    },
}


@pytest.fixture
def service(store_url: str, tmp_path: Path) -> Iterator[Service]:
    with Service(store_url, tmp_path) as started:
        yield started


class Setup:
    """What the load needs, and what came of it."""

    def __init__(self, service: Service) -> None:
        self._metadata = [("x-api-key", service.environment["HANSARD_API_KEY"])]
        self._channel = grpc.insecure_channel(service.address)
        self._events = event_service_pb2_grpc.EventServiceStub(self._channel)

    def create(self) -> None:
        agents = agent_service_pb2_grpc.AgentServiceStub(self._channel)
        sessions = session_service_pb2_grpc.SessionServiceStub(self._channel)
        agent = json_format.ParseDict(AGENT, agent_service_pb2.CreateAgentRequest())
        agents.CreateAgent(agent, metadata=self._metadata)
        for number in range(SESSIONS):
            session = session_service_pb2.CreateSessionRequest(
                agent_key="load", key=f"s{number}", name="Load"
            )
            sessions.CreateSession(session, metadata=self._metadata)

    def count(self, kind: str) -> int:
        """Return how many events of a type are on record in all sessions."""
        events = 0
        for number in range(SESSIONS):
            request = event_service_pb2.ListEventsRequest(
                agent_key="load", session_key=f"s{number}", page_size=1_000, types=[kind]
            )
            while True:
                page = self._events.ListEvents(request, metadata=self._metadata)
                events += len(page.events)
                request.page_token = page.next_page_token
                if not request.page_token:
                    break
        return events

    def close(self) -> None:
        self._channel.close()


def load(service: Service, folder: Path, seconds: int) -> dict[str, dict[str, Any]]:
    """Return what ghz reports of each call, all made side by side for so long."""
    ghz = str(go_program("ghz"))
    key = json.dumps({"authorization": f"Bearer {service.environment['HANSARD_API_KEY']}"})
    with ExitStack() as stack:
        running = {
            call: stack.enter_context(
                subprocess.Popen(
                    [
                        *(ghz, "--insecure", "--protoset", str(IMAGE), "--metadata", key),
                        *("--call", f"hansard.v1.{call}", "--data", json.dumps(data)),
                        *("--duration", f"{seconds}s", "--duration-stop", "wait"),
                        *("--concurrency", "4", "--connections", "2", "--timeout", "60s"),
                        *("--format", "json", "--output", str(folder / f"{call}.json")),
                        service.address,
                    ],
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.STDOUT,
                    text=True,
                )
            )
            for call, data in CALLS.items()
        }
        for process in running.values():
            said, _ = process.communicate(timeout=seconds + 120)
            assert process.returncode == 0, said
    return {call: json.loads((folder / f"{call}.json").read_bytes()) for call in CALLS}


def check_load(service: Service, folder: Path, seconds: int) -> None:
    setup = Setup(service)
    try:
        setup.create()
        reports = load(service, folder, seconds)
        counts = {}
        for call, report in reports.items():
            assert report["errorDistribution"] in (None, {}), (call, report["errorDistribution"])
            assert set(report["statusCodeDistribution"]) == {"OK"}
            counts[call] = report["statusCodeDistribution"]["OK"]
            assert counts[call] == report["count"] > seconds
        print({call: f"{count} calls" for call, count in counts.items()})  # noqa: T201
        # Every call that was answered is on record, once.
        assert setup.count("custom") == counts["EventService.AppendEvents"]
        assert setup.count("input_message") == counts["EventService.SendEvent"]
        assert setup.count("agent_output") == counts["EventService.SendEvent"]
    finally:
        setup.close()


def test_ghz_meets_no_failure(service: Service, tmp_path: Path) -> None:
    check_load(service, tmp_path, seconds=3)


@pytest.mark.soak
def test_ghz_meets_no_failure_in_a_minute(service: Service, tmp_path: Path) -> None:
    check_load(service, tmp_path, seconds=60)


@pytest.mark.parametrize("source", ["reflection", "image"])
def test_grpcurl_reads_the_details_of_an_error(service: Service, source: str) -> None:
    key = service.environment["HANSARD_API_KEY"]
    done = subprocess.run(
        [
            *(str(go_program("grpcurl")), "-plaintext", "-H", f"authorization: Bearer {key}"),
            *(("-protoset", str(IMAGE)) if source == "image" else ()),
            *("-format-error", "-d", '{"agent_key": "no spaces"}', service.address),
            "hansard.v1.SessionService/CreateSession",
        ],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode != 0
    status = json.loads(done.stderr)
    details = {detail["@type"].rpartition(".")[2]: detail for detail in status["details"]}
    assert details["ErrorInfo"]["reason"] == "INVALID_REQUEST"
    # Its own name for the list depends on where it has the type from.
    [violations] = [member for name, member in details["BadRequest"].items() if name != "@type"]
    assert [violation["field"] for violation in violations] == ["agent_key", "name"]
