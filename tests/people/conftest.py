"""A server as people have it, a process of its own, and the commands that talk to it."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from hansard_server.cli import main
from tests.support.builds import go_program
from tests.support.server import serve_process

PATHS = os.pathsep.join(path for path in sys.path if path)
SECONDS = 60.0


@dataclass(frozen=True)
class Done:
    """A command that has ended."""

    code: int
    out: str
    err: str

    @property
    def objects(self) -> list[dict[str, Any]]:
        """What it printed, an object a line."""
        return [json.loads(line) for line in self.out.splitlines()]


@dataclass(frozen=True)
class Hansard:
    """The command `hansard`, at one server.

    Attributes:
        target: where the server is.
    """

    target: str

    def __call__(self, *arguments: str, typed: str | bytes = "") -> Done:
        """Run a command in this process; what it does not catch is raised here."""
        result = CliRunner().invoke(
            main, arguments, input=typed, env={"HANSARD_TARGET": self.target, "COLUMNS": "120"}
        )
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        return Done(result.exit_code, result.stdout, result.stderr)

    def ok(self, *arguments: str, typed: str | bytes = "") -> Done:
        """Run a command that succeeds."""
        done = self(*arguments, typed=typed)
        assert done.code == 0, done
        return done

    def start(self, *arguments: str, **more: Any) -> subprocess.Popen[bytes]:
        """Start a command as a process."""
        return start(*arguments, environment={"HANSARD_TARGET": self.target}, **more)

    def scripted(self, folder: Path, key: str, script: list[dict[str, Any]]) -> None:
        """Make an agent that says what the script says."""
        file = folder / f"{key}.json"
        model = {"name": "hansard/scripted", "parameters": {"script": script}}
        file.write_text(json.dumps({"key": key, "name": key, "model": model}))
        self.ok("agents", "create", "--file", str(file))


def start(
    *arguments: str, environment: Mapping[str, str] | None = None, **more: Any
) -> subprocess.Popen[bytes]:
    """Start `hansard` with these arguments as a process; what serves has no HTTP door."""
    own = {"PYTHONPATH": PATHS, "PYTHONUNBUFFERED": "1", "HANSARD_HTTP_LISTEN": "off"}
    return subprocess.Popen(
        [sys.executable, "-m", "hansard_server", *arguments],
        env={**os.environ, **own, **(environment or {})},
        **more,
    )


@pytest.fixture(scope="session")
def hansard(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hansard]:
    """Give the command at a server that all tests here share."""
    folder = tmp_path_factory.mktemp("server")
    with serve_process("--listen", "127.0.0.1:0", "--data-dir", str(folder)) as process:
        yield Hansard(process.wait_for("serving")["address"])
        process.send(signal.SIGTERM)
        process.wait()


@pytest.fixture(scope="session")
def agent(hansard: Hansard) -> str:
    """Give the key of an agent that quotes files."""
    tools = ("--tool", "artifact_grep", "--tool", "artifact_read")
    hansard.ok("agents", "create", "--key", "quoter", "--name", "Quoter", *tools)
    return "quoter"


@pytest.fixture
def session(hansard: Hansard, agent: str) -> str:
    """Give the key of a new session of the agent."""
    made = hansard.ok("sessions", "create", agent, "--name", "For a test", "--json")
    return str(made.objects[0]["key"])


@pytest.fixture
def grpcurl(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have grpcurl on PATH: the one that is there, else one that is built."""
    if shutil.which("grpcurl") is None:
        monkeypatch.setenv("PATH", str(go_program("grpcurl").parent), prepend=os.pathsep)
