"""`hansard serve` as a process: how it starts, refuses to, and stops."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import stat
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from hansard.v1 import agent_service_pb2, agent_service_pb2_grpc
from hansard_server import __version__
from tests.support.databases import Databases
from tests.support.server import open_channel, serve_process
from tests.wire.conftest import agent_request

Reflect = reflection_pb2.ServerReflectionRequest


def hansard(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a command of `hansard` to its end."""
    paths = os.pathsep.join(path for path in sys.path if path)
    return subprocess.run(
        [sys.executable, "-m", "hansard_server", *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env={**os.environ, "PYTHONPATH": paths, **environment},
    )


async def test_serve_starts_from_nothing_and_stops_clean(tmp_path: Path) -> None:
    data = tmp_path / "new" / "data"
    with serve_process("--listen", "127.0.0.1:0", "--data-dir", str(data)) as served:
        address = served.wait_for("serving")["address"]
        async with open_channel(address) as channel:
            health: Any = health_pb2_grpc.HealthStub(channel)
            checked = await health.Check(
                health_pb2.HealthCheckRequest(service="hansard.v1.AgentService")
            )
            assert checked.status == health_pb2.HealthCheckResponse.SERVING
            stub: Any = reflection_pb2_grpc.ServerReflectionStub(channel)
            info = stub.ServerReflectionInfo(
                iter(
                    [Reflect(list_services=""), Reflect(file_containing_symbol="hansard.v1.Agent")]
                )
            )
            listed, described = [answer async for answer in info]
            names = {service.name for service in listed.list_services_response.service}
            assert {"hansard.v1.AgentService", "hansard.v1.SessionService"} <= names
            assert described.file_descriptor_response.file_descriptor_proto
            agents = agent_service_pb2_grpc.AgentServiceStub(channel)
            made = await agents.CreateAgent(agent_request(key="a"))

            second = hansard("serve", "--listen", "127.0.0.1:0", "--data-dir", str(data))
            assert second.returncode == 3
            assert "another hansard serves from here" in second.stderr
            assert len(second.stderr.splitlines()) == 1
        started = time.monotonic()
        served.send(signal.SIGTERM)
        assert served.wait() == 0
        assert time.monotonic() - started < 10
        assert "Traceback" not in served.log
    assert stat.S_IMODE((data / "page-token.key").stat().st_mode) == 0o600
    with serve_process("--listen", "127.0.0.1:0", "--data-dir", str(data)) as served:
        async with open_channel(served.wait_for("serving")["address"]) as channel:
            agents = agent_service_pb2_grpc.AgentServiceStub(channel)
            got = await agents.GetAgent(agent_service_pb2.GetAgentRequest(agent_key="a"))
            assert got == made
        served.send(signal.SIGINT)
        assert served.wait() == 0


async def test_second_signal_forces_the_exit(tmp_path: Path) -> None:
    environment = {"HANSARD_DRAIN_NOTICE_S": "30", "HANSARD_DRAIN_DEADLINE_S": "60"}
    arguments = ("--listen", "127.0.0.1:0", "--data-dir", str(tmp_path))
    with serve_process(*arguments, environment=environment) as served:
        served.wait_for("serving")
        # Sent to the process and to its group, as `timeout` does, it is one signal. Another kind
        # comes beside the first; of one kind the second would be lost while the first is pending.
        served.send(signal.SIGTERM)
        served.send(signal.SIGINT)
        served.wait_for("stopping")
        await asyncio.sleep(0.8)
        assert served.process.poll() is None
        served.send(signal.SIGTERM)
        assert served.wait(10) == 128 + signal.SIGTERM


def test_database_that_needs_migrating_is_refused_and_migrated(
    databases: Databases, tmp_path: Path
) -> None:
    url = databases.empty("postgresql")
    arguments = ("--listen", "127.0.0.1:0", "--data-dir", str(tmp_path), "--store", url)
    refused = hansard("serve", *arguments)
    assert refused.returncode == 3
    assert "hansard migrate --store" in refused.stderr
    assert len(refused.stderr.splitlines()) == 1
    migrated = hansard("migrate", "--store", url)
    assert migrated.returncode == 0, migrated.stderr
    with serve_process(*arguments) as served, serve_process(*arguments) as replica:
        served.wait_for("serving")
        replica.wait_for("serving")
        for process in (served, replica):
            process.send(signal.SIGTERM)
            assert process.wait() == 0
    databases.drop(url)


@pytest.mark.parametrize(
    ("arguments", "environment", "code", "words"),
    [
        (["--listen", "nonsense"], {}, 2, "listen: must be host:port"),
        (["--store", "mysql://u:secret@h/d"], {}, 2, "store: The database URL must look like"),
        (["--set", "metadata_max_depth=x"], {}, 2, "metadata_max_depth: "),
        (["--set", "nothing=1"], {}, 2, "nothing: there is no such setting"),
        (["--set", "nothing"], {}, 2, "must be NAME=VALUE"),
        (["--config", "/does/not/exist.toml"], {}, 2, "config: /does/not/exist.toml"),
        ([], {"HANSARD_DRAIN_DEADLINE_S": "-1"}, 2, "drain_deadline_s: "),
        (["--data-dir", "/dev/null/x"], {}, 3, "data_dir: "),
        (["--store", "sqlite:////proc/hansard.db"], {}, 3, "hansard.db"),
        (["--store", "postgresql://u:secret@127.0.0.1:1/d"], {}, 3, "does not answer"),
    ],
)
def test_mistake_is_one_line(
    tmp_path: Path, arguments: list[str], environment: dict[str, str], code: int, words: str
) -> None:
    usual = ["--listen", "127.0.0.1:0", "--data-dir", str(tmp_path)]
    refused = hansard("serve", *usual, *arguments, **environment)
    assert refused.returncode == code, refused.stderr
    assert words in refused.stderr
    assert "secret" not in refused.stderr
    assert len([line for line in refused.stderr.splitlines() if line]) == 1


def test_port_that_is_taken_is_said(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        listen = f"127.0.0.1:{taken.getsockname()[1]}"
        refused = hansard("serve", "--listen", listen, "--data-dir", str(tmp_path))
    assert refused.returncode == 3
    assert f"can't listen on {listen}" in refused.stderr
    assert "Traceback" not in refused.stderr


def test_commands_of_clients_do_not_load_the_server() -> None:
    listed = (
        "import sys, hansard_server.cli;"
        "print([name in sys.modules for name in ('sqlalchemy', 'hansard_server.app')])"
    )
    shown = subprocess.run(
        [sys.executable, "-c", listed],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)},
    )
    assert shown.stdout == "[False, False]\n"


def test_version_is_shown() -> None:
    assert hansard("--version").stdout == f"hansard {__version__}\n"
