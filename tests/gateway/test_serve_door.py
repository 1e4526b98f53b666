"""The HTTP door of `hansard serve`, and `hansard gateway`, as processes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.support.gateway import parse_frames
from tests.support.server import ServeProcess, serve_process

SECONDS = 30.0
AGENT = {"key": "a", "name": "A", "model": {"name": "hansard/extractive"}}


def serve(
    folder: Path, http: str = "127.0.0.1:0", environment: dict[str, str] | None = None
) -> Any:
    listen = ("--listen", "127.0.0.1:0", "--http-listen", http, "--insecure")
    return serve_process(*listen, "--data-dir", str(folder / "data"), environment=environment)


def wait_for(check: Callable[[], bool]) -> None:
    deadline = time.monotonic() + SECONDS
    while not check():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def is_ready(url: str) -> bool:
    try:
        return httpx.get(f"{url}/readyz", timeout=SECONDS).status_code == 200
    except httpx.HTTPError:
        return False


def children(served: ServeProcess) -> list[int]:
    tasks = Path(f"/proc/{served.process.pid}/task").glob("*/children")
    return [int(pid) for task in tasks for pid in task.read_text().split()]


def door_pid(served: ServeProcess) -> int:
    """Return the process of the door, the only child that the server has."""
    (pid,) = children(served)
    return pid


def test_streams_end_with_the_place_to_resume_and_nothing_is_left(tmp_path: Path) -> None:
    # Short, since the path of a Unix socket must be.
    with (
        tempfile.TemporaryDirectory() as temporary,
        serve(tmp_path, environment={"TMPDIR": temporary}) as served,
    ):
        url = f"http://{served.wait_for('serving')['http']}"
        wait_for(lambda: is_ready(url))
        pid = door_pid(served)
        (folder,) = Path(temporary).glob("hansard-*")
        assert folder.stat().st_mode & 0o077 == 0
        with httpx.Client(base_url=url, timeout=SECONDS) as http:
            assert http.post("/v2/agents", json=AGENT).status_code == 201
            session = http.post("/v2/agents/a/sessions", json={"name": "s", "key": "s"}).json()
            with http.stream("GET", "/v2/agents/a/sessions/s/events:watch") as watching:
                pieces = watching.iter_text()
                text = next(pieces)
                served.send(signal.SIGTERM)
                text += "".join(pieces)
        assert served.wait() == 0
        frames = parse_frames(text)
        assert frames.types == ["caught_up", "error"]
        error = frames.frames[-1].data
        assert error["code"] == "server_shutting_down"
        assert (error["session_uid"], error["sequence"]) == (session["uid"], 0)
        assert not Path(f"/proc/{pid}").exists()
        assert not folder.exists()
        assert "Traceback" not in served.log


def test_a_door_that_dies_is_started_again(tmp_path: Path) -> None:
    with serve(tmp_path) as served:
        url = f"http://{served.wait_for('serving')['http']}"
        wait_for(lambda: is_ready(url))
        os.kill(door_pid(served), signal.SIGKILL)
        served.wait_for("the HTTP door ended; it is started again")
        wait_for(lambda: is_ready(url))
        served.send(signal.SIGTERM)
        assert served.wait() == 0


def test_the_door_goes_with_a_server_that_is_killed(tmp_path: Path) -> None:
    with serve(tmp_path) as served:
        address = served.wait_for("serving")["http"]
        wait_for(lambda: is_ready(f"http://{address}"))
        pid = door_pid(served)
        served.send(signal.SIGKILL)
        served.wait()
    # The port, though named, is there again for the next server.
    with serve(tmp_path, address) as served:
        assert served.wait_for("serving")["http"] == address
        wait_for(lambda: not Path(f"/proc/{pid}").exists())
        wait_for(lambda: is_ready(f"http://{address}"))


def test_a_port_that_is_taken(tmp_path: Path) -> None:
    with serve(tmp_path / "first") as first:
        address = first.wait_for("serving")["http"]
        with serve(tmp_path / "second", address) as second:
            assert second.wait() == 3
            assert f"http_listen: can't listen on {address}" in second.log
        # The default one is left alone.
        program = (
            "import sys; from hansard_server import config, cli\n"
            f"field = config.Settings.model_fields['http_listen']; field.default = {address!r}\n"
            "config.Settings.model_rebuild(force=True); cli.main()"
        )
        listen = ["serve", "--listen", "127.0.0.1:0", "--data-dir", str(tmp_path / "third")]
        with subprocess.Popen(
            [sys.executable, "-c", program, *listen], stderr=subprocess.PIPE, text=True
        ) as third:
            assert third.stderr is not None
            logged = []
            for line in third.stderr:
                logged.append(json.loads(line))
                if logged[-1]["event"] == "serving":
                    break
            third.send_signal(signal.SIGTERM)
            assert logged[-1]["http"] == ""
            assert any("default port is taken" in line["event"] for line in logged)


@pytest.mark.parametrize("http", ["off", ""])
def test_it_can_be_switched_off(tmp_path: Path, http: str) -> None:
    with serve(tmp_path, http) as served:
        assert served.wait_for("serving")["http"] == ""
        assert children(served) == []


def test_what_is_open_beyond_this_machine_is_told(tmp_path: Path) -> None:
    with serve(tmp_path, "0.0.0.0:0") as served:
        served.wait_for("serving")
        assert "http_listen: 0.0.0.0:0 is open to other machines without authentication" in (
            served.log
        )


def test_a_gateway_on_its_own(tmp_path: Path) -> None:
    with serve(tmp_path, "off") as served:
        target = served.wait_for("serving")["address"]
        command = [sys.executable, "-m", "hansard_server", "gateway", "--listen", "127.0.0.1:0"]
        with subprocess.Popen(
            [*command, "--target", target], stdout=subprocess.PIPE, text=True
        ) as gateway:
            assert gateway.stdout is not None
            said = gateway.stdout.readline()
            url = f"http://{said.split()[3]}"
            wait_for(lambda: is_ready(url))
            assert httpx.post(f"{url}/v2/agents", json=AGENT).status_code == 201
            served.send(signal.SIGTERM)
            assert served.wait() == 0
            assert httpx.get(f"{url}/readyz").status_code == 503
            gateway.send_signal(signal.SIGTERM)
            assert gateway.wait(SECONDS) == 0
