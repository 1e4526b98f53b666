"""`hansard demo`: what `make run` starts."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.people.conftest import PATHS, SECONDS, start
from tests.support.ports import free_port


def demo(folder: Path, port: int) -> tuple[subprocess.Popen[bytes], str]:
    """Start the demo, and return it with what it said until it served on."""
    process = start(
        "demo",
        environment={"HANSARD_LISTEN": f"127.0.0.1:{port}"},
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    assert process.stdout is not None
    said = b""
    while b"Ctrl-C stops." not in said:
        more = os.read(process.stdout.fileno(), 65_536)
        assert more, said.decode()
        said += more
    return process, said.decode()


def stop(process: subprocess.Popen[bytes], number: signal.Signals) -> None:
    process.send_signal(number)
    out, _ = process.communicate(timeout=SECONDS)
    assert (process.returncode, out) == (0, b"")


@dataclass(frozen=True)
class Told:
    """A demo that serves on, and what it said."""

    said: str
    port: int
    folder: Path

    def lines(self, tool: str) -> list[str]:
        """Return the lines with this tool that it said to try."""
        return [line for line in self.said.splitlines() if line.startswith(f"  {tool} ")]

    def try_line(self, line: str) -> None:
        """Run a line in a shell, where what stands on PATH may be another installation's."""
        if line.startswith("  hansard"):
            line = line.replace("hansard", f"{sys.executable} -m hansard_server", 1)
        done = subprocess.run(
            ["bash", "-c", line],
            cwd=self.folder,
            env={**os.environ, "PYTHONPATH": PATHS},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            check=False,
            timeout=SECONDS,
        )
        assert done.returncode == 0, done
        assert done.stdout


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Told]:
    """Give a demo that serves on; at its end SIGTERM stops it as it should."""
    folder = tmp_path_factory.mktemp("demo")
    port = free_port()
    process, said = demo(folder, port)
    yield Told(said, port, folder)
    stop(process, signal.SIGTERM)


def test_a_conversation_is_held(told: Told) -> None:
    [artifact_id] = set(re.findall(r"Artifact (art_\w+)", told.said))
    assert told.said.count("you> ") == 3
    assert f"hansard-handbook.md ({artifact_id}), lines" in told.said
    assert "> A turn belongs to the server" in told.said
    assert "> Networks lose answers." in told.said
    assert "Nothing in the one file that I searched fits the question" in told.said
    assert f"Serving at 127.0.0.1:{told.port}." in told.said
    assert (told.folder / "hansard-data" / "hansard.db").exists()


def test_its_hansard_lines_work(told: Told) -> None:
    [line] = told.lines("hansard")
    told.try_line(line)


def test_its_grpcurl_lines_work(grpcurl: None, told: Told) -> None:
    lines = told.lines("grpcurl")
    assert len(lines) == 3
    for line in lines:
        told.try_line(line)


def test_a_second_time_it_uses_what_is_there(tmp_path: Path) -> None:
    process, _ = demo(tmp_path, free_port())
    stop(process, signal.SIGTERM)
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        process, said = demo(tmp_path, port)
    assert f"Port {port} is taken" in said
    assert "Agent librarian: is there already." in said
    stop(process, signal.SIGINT)


def test_it_stops_in_the_middle_of_the_conversation(tmp_path: Path) -> None:
    process = start(
        "demo",
        environment={"HANSARD_LISTEN": f"127.0.0.1:{free_port()}"},
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    assert process.stdout is not None
    assert process.stdout.readline().startswith(b"Serving at")
    process.send_signal(signal.SIGTERM)
    out, _ = process.communicate(timeout=SECONDS)
    assert process.returncode == 0, out
    assert b"Traceback" not in out


def test_a_folder_that_is_in_use_is_said(tmp_path: Path) -> None:
    process, _ = demo(tmp_path, free_port())
    second = start("demo", cwd=tmp_path, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL)
    _, err = second.communicate(timeout=SECONDS)
    assert second.returncode == 3
    assert b"another hansard" in err
    stop(process, signal.SIGTERM)
