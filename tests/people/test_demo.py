"""`hansard demo`: what `make run` starts."""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import subprocess
from pathlib import Path

import pytest

from tests.people.conftest import PATHS, SECONDS, free_port, start


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


def test_a_conversation_is_held_and_the_server_goes_on(tmp_path: Path) -> None:
    port = free_port()
    process, said = demo(tmp_path, port)
    [artifact_id] = set(re.findall(r"Artifact (art_\w+)", said))
    assert said.count("you> ") == 3
    assert f"hansard-handbook.md ({artifact_id}), lines" in said
    assert "> A turn belongs to the server" in said
    assert "> Networks lose answers." in said
    assert "Nothing in the one file that I searched fits the question" in said
    assert f"Serving at 127.0.0.1:{port}." in said
    lines = [line for line in said.splitlines() if line.startswith(("  grpcurl ", "  hansard "))]
    assert len(lines) == 4
    for line in lines:
        try_line(line, tmp_path)
    stop(process, signal.SIGTERM)
    assert (tmp_path / "hansard-data" / "hansard.db").exists()
    # Again: it uses what is there. And not on a port that somebody has.
    with socket.socket() as other:
        other.bind(("127.0.0.1", port))
        other.listen()
        process, said = demo(tmp_path, port)
        assert f"Port {port} is taken; {port + 1} is" in said or "is the next free one." in said
        assert "Agent librarian: is there already." in said
        stop(process, signal.SIGINT)


def try_line(line: str, folder: Path) -> None:
    """Run a line that the demo printed, where the tools for it are."""
    if line.startswith("  grpcurl") and shutil.which("grpcurl") is None:
        return
    # What stands on PATH may be another installation's.
    line = line.replace("hansard ", "python -m hansard_server ", 1) if "chat" in line else line
    done = subprocess.run(
        ["bash", "-c", line],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": PATHS},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        check=False,
        timeout=SECONDS,
    )
    assert done.returncode == 0, done
    assert done.stdout


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


@pytest.mark.skipif(shutil.which("grpcurl") is None, reason="grpcurl is not on PATH")
def test_the_printed_grpcurl_lines_were_run() -> None:
    """Stands for the lines that the first test leaves out where grpcurl is missing."""
