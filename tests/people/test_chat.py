"""`hansard chat`: a conversation at a terminal, through pipes, interruptions and restarts."""

from __future__ import annotations

import os
import pty
import select
import signal
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.people.conftest import SECONDS, Hansard, start
from tests.support.ports import free_port
from tests.support.server import ServeProcess, serve_process

THOUGHT = "I think slowly about it."
ANSWER = "One two three four five six seven eight nine ten. Über."
SLOW = [
    {"thinking": {"content": THOUGHT, "delta_count": 4, "pause_ms": 50}},
    {"agent_output": {"content": ANSWER, "delta_count": 20, "pause_ms": 100}},
]


@pytest.fixture(scope="session")
def slow(hansard: Hansard, tmp_path_factory: pytest.TempPathFactory) -> str:
    """Give the key of an agent that takes two seconds to answer."""
    hansard.scripted(tmp_path_factory.mktemp("slow"), "slow", SLOW)
    return "slow"


def new_session(err: str) -> str:
    [line] = [line for line in err.splitlines() if line.startswith("New session: ")]
    return line.removeprefix("New session: ")


def read_until(process: subprocess.Popen[bytes], words: str) -> str:
    """Return what the process printed up to these words."""
    assert process.stdout is not None
    said = b""
    while words.encode() not in said:
        more = os.read(process.stdout.fileno(), 4096)
        assert more, said
        said += more
    return said.decode()


def test_a_question_is_answered_once(hansard: Hansard, agent: str, tmp_path: Path) -> None:
    file = tmp_path / "returns.md"
    file.write_text("Goods come back within 30 days.\n\nSoftware is exchanged only.\n")
    made = hansard.ok("sessions", "create", agent, "--name", "Returns", "--json").objects[0]["key"]
    hansard.ok("artifacts", "upload", agent, made, str(file))
    done = hansard.ok("chat", agent, made, "--once", "Is software exchanged?")
    assert "→ artifact_grep pattern=" in done.out
    assert "← artifact_grep {" in done.out
    assert done.out.count("> Software is exchanged only.") == 1
    assert "art_returns" in done.out


def test_lines_of_stdin_are_inputs(hansard: Hansard, tmp_path: Path) -> None:
    hansard.scripted(tmp_path, "quick", [{"agent_output": {"content": "Yes: [red]\x1b[31m"}}])
    done = hansard.ok("chat", "quick", typed=b"First\r\n\n  \nSecond \xff \x1b[2J\n")
    session = new_session(done.err)
    assert "you> First\n" in done.out
    assert "you> Second \ufffd ␛[2J\n" in done.out
    assert done.out.count("Yes: [red]␛[31m\n") == 2
    [shown] = hansard.ok("sessions", "get", "quick", session, "--json").objects
    assert shown["name"] == "First"
    named = hansard.ok("chat", "quick", "--name", "Mine", "--once", "Hello")
    [shown] = hansard.ok("sessions", "get", "quick", new_session(named.err), "--json").objects
    assert shown["name"] == "Mine"


def test_who_comes_back_sees_the_last_turn(hansard: Hansard, slow: str) -> None:
    session = new_session(hansard.ok("chat", slow, "--once", "Tell me").err)
    done = hansard.ok("chat", slow, session, typed="")
    assert "you> Tell me" in done.out
    assert done.out.count(ANSWER) == 1


def test_a_failed_turn_is_a_failure(hansard: Hansard, tmp_path: Path) -> None:
    hansard.scripted(
        tmp_path, "broken", [{"agent_output": {"content": "So far"}}, {"fail": "out of order"}]
    )
    done = hansard("chat", "broken", "--once", "Hello")
    assert done.code == 1
    assert "So far" in done.out
    assert "The turn failed" in done.out
    assert "Traceback" not in done.out + done.err


def test_ctrl_c_leaves_the_turn_to_the_server(hansard: Hansard, slow: str) -> None:
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    process = hansard.start("chat", slow, "--once", "Tell me", **pipes)
    read_until(process, "One two")
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=SECONDS)
    assert process.returncode == 130
    assert b"Traceback" not in err
    session = new_session(err.decode())
    assert f"hansard chat {slow} {session}" in err.decode()
    # Coming back while it runs tells it from its start, once.
    assert hansard.ok("chat", slow, session, typed="").out.count(ANSWER) == 1


def test_at_a_terminal_thinking_is_dim_and_the_end_of_input_ends_it(
    hansard: Hansard, slow: str
) -> None:
    leader, follower = pty.openpty()
    terminal: dict[str, Any] = {"stdin": follower, "stdout": follower, "stderr": follower}
    process = start(
        *("chat", slow, "--target", hansard.target),
        environment={"TERM": "xterm-256color", "NO_COLOR": ""},
        start_new_session=True,
        **terminal,
    )
    os.close(follower)
    said = _read_terminal(leader, b"you> ")
    os.write(leader, b"Tell me\n")
    said += _read_terminal(leader, b"ten. \xc3\x9cber.\r\nyou> ")
    os.write(leader, b"\x04")
    assert process.wait(SECONDS) == 0
    os.close(leader)
    # The attributes of dim and italic.
    assert b"\x1b[2;3mI " in said
    assert said.count(b"Tell me") == 1


def _read_terminal(leader: int, words: bytes) -> bytes:
    said = b""
    while words not in said:
        assert select.select([leader], [], [], SECONDS)[0], said
        said += os.read(leader, 4096)
    return said


@pytest.fixture
def port() -> int:
    return free_port()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_restart_of_the_server_shows_nothing_twice(
    tmp_path: Path, port: int, number: signal.Signals
) -> None:
    hansard = Hansard(f"127.0.0.1:{port}")
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with _serve(tmp_path, port) as server:
        hansard.scripted(tmp_path, "slow", SLOW)
        process = hansard.start("chat", "slow", "--once", "Tell me", **pipes)
        said = read_until(process, "One two")
        server.send(number)
        server.wait()
    # It has come back while nobody serves.
    with socket.create_server(("127.0.0.1", port)) as nobody:
        nobody.settimeout(SECONDS)
        nobody.accept()[0].close()
    with _serve(tmp_path, port) as server:
        out, err = process.communicate(timeout=SECONDS)
        said += out.decode()
        session = new_session(err.decode())
        events = hansard.ok("events", "list", "slow", session, "--json").objects
        assert b"Traceback" not in err
        assert said.count(THOUGHT) == 1, said
        texts = [event["agent_output"]["content"] for event in events if "agent_output" in event]
        for text in texts:
            assert said.count(text) == 1, said
        server.send(signal.SIGTERM)
        server.wait()


@contextmanager
def _serve(folder: Path, port: int) -> Iterator[ServeProcess]:
    arguments = ("--listen", f"127.0.0.1:{port}", "--data-dir", str(folder / "data"))
    with serve_process(*arguments) as process:
        process.wait_for("serving")
        yield process
