"""Programs in other languages that tests need, built under build/ and kept there.

What a build needs that is not there is a skip with its name: a toolchain that is not installed, a
registry that can't be reached. Anything else that goes wrong is a failure.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
import sysconfig
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
BUILD = ROOT / "build" / "polyglot"
BUILD_SECONDS = 900

# What the tools say when they reach nobody.
UNREACHED = (
    "no such host",
    "dial tcp",
    "i/o timeout",
    "ENOTFOUND",
    "EAI_AGAIN",
    "ECONNREFUSED",
    "ETIMEDOUT",
    "Unknown host",
    "Could not transfer artifact",
    "Network is unreachable",
    "Temporary failure in name resolution",
    "Failed to establish a new connection",
)
GO_PROGRAMS = {
    "grpcurl": "github.com/fullstorydev/grpcurl/cmd/grpcurl@v1.9.4",
    "ghz": "github.com/bojand/ghz/cmd/ghz@v0.121.0",
}


def tool(name: str) -> str:
    """Return where a program is; skips the test when it is not on PATH."""
    found = shutil.which(name, path=tool_path())
    if found is None:
        pytest.skip(f"{name} not found")
    return found


def tool_path() -> str:
    """Return PATH, with the tools of this environment (buf) before the rest."""
    return os.pathsep.join([sysconfig.get_path("scripts"), os.environ["PATH"]])


def run(
    *command: str, folder: Path, fetches: bool = False, environment: Mapping[str, str] | None = None
) -> str:
    """Return what a step of a build printed; a failure names its output.

    A step that fetches from a registry skips the test when it reaches none.
    """
    done = subprocess.run(
        command,
        cwd=folder,
        env={**os.environ, "PATH": tool_path(), **(environment or {})},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
        timeout=BUILD_SECONDS,
    )
    if done.returncode and fetches:
        for words in UNREACHED:
            if words in done.stdout:
                pytest.skip(f"{Path(command[0]).name}: registry not reached ({words})")
    assert done.returncode == 0, f"{' '.join(command)}\n{done.stdout}"
    return done.stdout


@contextmanager
def only_one(name: str) -> Iterator[None]:
    """Let one process at a time build what has this name."""
    BUILD.mkdir(parents=True, exist_ok=True)
    with (BUILD / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def go_program(name: str) -> Path:
    """Return one of GO_PROGRAMS; it is built when there is none of that version."""
    package = GO_PROGRAMS[name]
    folder = BUILD / "bin" / package.rpartition("@")[2]
    with only_one(name):
        if not (folder / name).exists():
            tool("go")
            folder.mkdir(parents=True, exist_ok=True)
            # Outside of any module, whose settings would count.
            environment = {"GOBIN": str(folder), "GOWORK": "off"}
            run("go", "install", package, folder=BUILD, fetches=True, environment=environment)
    return folder / name
