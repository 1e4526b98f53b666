"""`hansard chat` asks whoever sits at the terminal what a turn waits for."""

from __future__ import annotations

import json
import os
import pty
from pathlib import Path
from typing import Any

import pytest

from tests.people.conftest import SECONDS, Hansard, start
from tests.people.test_chat import _read_terminal, new_session

TOOLS = {
    "ask": {"client": {}},
    "make": {"artifact_create": {}, "require_approval": True},
}
SCRIPT = [
    {"tool_call": {"name": "make", "input": {"filename": "a.txt", "content": "x"}}},
    {"tool_call": {"name": "make", "input": {"filename": "b.txt", "content": "x"}}},
    {"tool_call": {"name": "ask", "input": {"question": "How many?"}}},
    {"agent_output": {"content": "All done."}},
]


@pytest.fixture(scope="session")
def asking(hansard: Hansard, tmp_path_factory: pytest.TempPathFactory) -> str:
    """Give the key of an agent that asks for two approvals and a result."""
    file = tmp_path_factory.mktemp("asking") / "asking.json"
    model = {"name": "hansard/scripted", "parameters": {"script": SCRIPT}}
    agent = {"key": "asking", "name": "Asking", "model": model, "tool_configurations": TOOLS}
    file.write_text(json.dumps(agent))
    hansard.ok("agents", "create", "--file", str(file))
    return "asking"


def test_approvals_and_results_are_asked_for(hansard: Hansard, asking: str) -> None:
    leader, follower = pty.openpty()
    terminal: dict[str, Any] = {"stdin": follower, "stdout": follower, "stderr": follower}
    process = start(
        *("chat", asking, "--target", hansard.target),
        environment={"TERM": "xterm-256color"},
        start_new_session=True,
        **terminal,
    )
    os.close(follower)
    said = _read_terminal(leader, b"you> ")
    os.write(leader, b"Go\n")
    said += _read_terminal(leader, b"why not] ")
    os.write(leader, b"y\n")
    said += _read_terminal(leader, b"why not] ")
    os.write(leader, b"not on a Sunday\n")
    said += _read_terminal(leader, b"reject): ")
    os.write(leader, b"{oops\n")
    said += _read_terminal(leader, b"reject): ")
    os.write(leader, b'{"eggs": 12}\n')
    said += _read_terminal(leader, b"All done.\r\nyou> ")
    os.write(leader, b"\x04")
    assert process.wait(SECONDS) == 0
    os.close(leader)
    assert b"not JSON" in said
    session = new_session(said.decode().replace("\r", ""))
    listed = hansard.ok("events", "list", asking, session, "--json").objects
    outputs = [event["tool_output"] for event in listed if "tool_output" in event]
    outcomes = sorted(output["outcome"].removeprefix("TOOL_OUTCOME_") for output in outputs)
    assert outcomes == ["COMPLETED", "COMPLETED", "REJECTED"]
    assert any("not on a Sunday" in output["tool_output_json"] for output in outputs)
    assert any(output["tool_output_json"] == '{"eggs": 12}' for output in outputs)


def test_without_a_terminal_nobody_is_asked(hansard: Hansard, asking: str, tmp_path: Path) -> None:
    done = hansard("chat", asking, "--once", "Go")
    assert done.code == 1
    assert "waits for somebody" in done.err
    assert not list(tmp_path.iterdir())
