"""Agents that run elsewhere, for tests: processes that are killed and started again."""

from __future__ import annotations

import os
import socket
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

from tests.support.ports import free_port

READY_S = 60.0


@dataclass
class AgentProcess:
    """An agent's server at `address`."""

    command: Sequence[str]
    environment: Mapping[str, str]
    port: int
    process: subprocess.Popen[bytes] | None = field(default=None, repr=False)

    @property
    def address(self) -> str:
        """Where it listens."""
        return f"127.0.0.1:{self.port}"

    @property
    def url(self) -> str:
        """As an agent names it."""
        return f"grpc://{self.address}"

    def start(self) -> None:
        """Return when it takes connections."""
        self.process = subprocess.Popen(
            [*self.command, self.address], env={**os.environ, **self.environment}
        )
        until = time.monotonic() + READY_S
        while time.monotonic() < until:
            assert self.process.poll() is None, "the agent has ended"
            with socket.socket() as probe:
                probe.settimeout(1)
                if probe.connect_ex(("127.0.0.1", self.port)) == 0:
                    return
            time.sleep(0.02)
        raise AssertionError("the agent does not listen")

    def kill(self) -> None:
        """Kill it."""
        if self.process is not None:
            self.process.kill()
            self.process.wait(READY_S)


@contextmanager
def agent_process(
    command: Sequence[str], environment: Mapping[str, str] | None = None
) -> Iterator[AgentProcess]:
    """Give a running agent."""
    agent = AgentProcess(command, environment or {}, free_port())
    agent.start()
    try:
        yield agent
    finally:
        agent.kill()
