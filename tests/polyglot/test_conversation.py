"""Clients in four languages, made from the contract's image alone, hold one whole conversation.

Each prints what it saw, step by step: the same in every language, and what is on record.
"""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import grpc
import pytest

from hansard.v1 import event_pb2, event_service_pb2, event_service_pb2_grpc
from tests.polyglot.languages import LANGUAGES, SOURCES, build
from tests.polyglot.service import Service

SCRIPTS = SOURCES / "scripts.json"
FILE = bytes(index * 31 % 256 for index in range(600_000))
CLIENT_SECONDS = 300
SETTINGS = ("lease_s=1", "session_artifacts_max_files=1")

# What the contract's rules say of five requests: in the client's own words, and in the server's.
RULES = {
    "patterns": [["agent_key", "string.pattern"], ["name", "string.min_len"]],
    "oneof": [["input", "required"]],
    "cel of a field": [["header.filename", "filename.plain"]],
    "cel of a message": [["", "session.name"]],
    "nested": [["events[1].custom.custom_type", "string.pattern"]],
}
ERRORS = {
    "absent": ("NOT_FOUND", "SESSION_NOT_FOUND"),
    "exists": ("ALREADY_EXISTS", "SESSION_ALREADY_EXISTS"),
    "sequence": ("ABORTED", "SEQUENCE_MISMATCH"),
    "reused": ("ABORTED", "REQUEST_ID_REUSED"),
    "configuration": ("FAILED_PRECONDITION", "INVALID_AGENT_CONFIGURATION"),
    "range": ("OUT_OF_RANGE", "CURSOR_OUT_OF_RANGE"),
    "quota": ("RESOURCE_EXHAUSTED", "QUOTA_EXCEEDED"),
    "nobody": ("UNAUTHENTICATED", "UNAUTHORIZED"),
    "reader": ("PERMISSION_DENIED", "FORBIDDEN"),
    "checksum": ("INVALID_ARGUMENT", "CHECKSUM_MISMATCH"),
    "turn": ("INTERNAL", "AGENT_PROCESSING_FAILED"),
}
STEPS = [
    "created",
    *["rule"] * len(RULES),
    "uploaded",
    "cut",
    "watched",
    "replayed",
    "kill",
    "killed",
    "joined",
    "watched again",
    "drain",
    "drained",
    "back",
    *["error"] * len(ERRORS),
    "listed",
    "done",
]
TYPES = [
    "artifact_upload",
    *("input_message", "thinking", "tool_input", "tool_output", "agent_output"),
    *("input_message", "thinking", "agent_output"),
    "input_message",
]


def converse(language: str, service: Service) -> Iterator[dict[str, Any]]:
    """Yield what the client prints; the server is killed and stopped where the client asks."""
    program = build(language)
    with (
        subprocess.Popen(
            [*program.command, language, str(SCRIPTS)],
            env={**os.environ, **program.environment, **service.environment},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        ) as process,
        ExitStack() as stack,
    ):
        stack.callback(process.kill)
        assert process.stdout is not None
        assert process.stderr is not None
        for line in process.stdout:
            step: dict[str, Any] = json.loads(line)
            if step["step"] == "kill":
                service.restart(signal.SIGKILL)
            if step["step"] == "drain":
                service.restart(signal.SIGTERM)
            yield step
        said = process.stderr.read()
        assert process.wait(CLIENT_SECONDS) == 0, said


def read_record(service: Service, agent_key: str) -> list[event_pb2.Event]:
    """Return the events of the conversation, as the server has them."""
    request = event_service_pb2.ListEventsRequest(agent_key=agent_key, session_key="conversation")
    key = service.environment["HANSARD_API_KEY"]
    with grpc.insecure_channel(service.address) as channel:
        events = event_service_pb2_grpc.EventServiceStub(channel)
        return list(events.ListEvents(request, metadata=[("x-api-key", key)]).events)


@pytest.mark.parametrize("language", LANGUAGES)
def test_conversation(language: str, store_url: str, tmp_path: Path) -> None:
    build(language)  # before a server waits for it
    with Service(store_url, tmp_path, *SETTINGS) as service:
        steps = list(converse(language, service))
        record = read_record(service, language)
    assert [step["step"] for step in steps] == STEPS
    said = {step["step"]: step for step in steps}
    check_identity(said)
    check_rules(steps)
    check_file(said["uploaded"], record)
    check_cut(said, record)
    check_kill(said, record)
    check_drain(said)
    check_errors(steps)
    check_list(said["listed"], record)


def check_identity(said: dict[str, Any]) -> None:
    """A request_id that comes again creates nothing."""
    for uids in (said["created"]["agent_uids"], said["created"]["session_uids"]):
        assert len(uids) == 2
        assert len(set(uids)) == 1
        assert uids[0]


def check_rules(steps: list[dict[str, Any]]) -> None:
    """The rules say the same in the client as on the server."""
    rules = {step["name"]: step for step in steps if step["step"] == "rule"}
    assert {name: rule["local"] for name, rule in rules.items()} == RULES
    for rule in rules.values():
        assert rule["server"]["code"] == "INVALID_ARGUMENT"
        assert rule["server"]["reason"] == "INVALID_REQUEST"
        assert rule["server"]["domain"] == "hansard"
        # A rule of a whole message says by its id which field it is about.
        assert rule["server"]["fields"] == [field or name for field, name in rule["local"]]


def check_file(step: dict[str, Any], record: list[event_pb2.Event]) -> None:
    """The file came back as it went, stored once."""
    assert step["sha256"] == hashlib.sha256(FILE).hexdigest()
    assert step["events"] == [record[0].id] * 2


def check_cut(said: dict[str, Any], record: list[event_pb2.Event]) -> None:
    """The turn went on without its reader, who missed nothing."""
    cut, watched, replayed = said["cut"], said["watched"], said["replayed"]
    turn = [event for event in record if event.turn_id == cut["turn_id"]]
    ids = [event.id for event in turn]
    assert cut["code"] == "CANCELLED"
    assert cut["events"] == ids[:1]
    assert cut["sequence"] == turn[0].sequence
    assert watched["events"] == ids[1:]
    assert watched["sequences"] == [event.sequence for event in turn[1:]]
    assert watched["verbatim"]
    assert replayed["turn_id"] == cut["turn_id"]
    assert replayed["status"] == "TURN_STATUS_COMPLETED"
    assert replayed["events"] == ids
    assert replayed["verbatim"]


def check_kill(said: dict[str, Any], record: list[event_pb2.Event]) -> None:
    """The server's death cost nothing that had been stored, and the input ran once."""
    kill, joined, watched = said["kill"], said["joined"], said["watched again"]
    turn = [event for event in record if event.turn_id == kill["turn_id"]]
    ids = [event.id for event in turn]
    assert said["killed"]["code"] == "UNAVAILABLE"
    assert kill["events"] == ids[:1]
    assert joined["turn_id"] == kill["turn_id"]
    assert joined["status"] == "TURN_STATUS_COMPLETED"
    assert joined["events"] == ids
    assert joined["verbatim"]
    assert watched["events"] == ids[1:]


def check_drain(said: dict[str, Any]) -> None:
    """A stopping server says where to go on, and that one may come again."""
    drained = said["drained"]
    assert drained["code"] == "UNAVAILABLE"
    assert drained["reason"] == "SERVER_SHUTTING_DOWN"
    assert drained["domain"] == "hansard"
    assert drained["retry_s"] > 0
    assert said["back"]["caught_up"]
    assert said["back"]["sequence"] == int(drained["metadata"]["sequence"])


def check_errors(steps: list[dict[str, Any]]) -> None:
    """Each error bears its reason."""
    errors = {step["name"]: step for step in steps if step["step"] == "error"}
    assert {name: (e["code"], e["reason"]) for name, e in errors.items()} == ERRORS
    assert {error["domain"] for error in errors.values()} == {"hansard"}
    assert errors["quota"]["quota"]
    assert int(errors["sequence"]["metadata"]["last_sequence"]) > 1


def check_list(step: dict[str, Any], record: list[event_pb2.Event]) -> None:
    """The pages make the record: in order, whole, numbers of any size as they were."""
    assert step["events"] == [event.id for event in record]
    assert step["sequences"] == list(range(1, len(record) + 1))
    assert step["types"] == TYPES
    assert step["pages"] == -(-len(record) // 3)
    assert step["tool_inputs"] == ['{"z": 9007199254740993, "a": 1.0}']
    assert step["turns"] == list(Counter(e.turn_id for e in record if e.turn_id))
