"""Virtual environments for packages that can't share ours: they pin libraries of their own."""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

VECTARA = "vectara==0.4.3"
SCHEMATHESIS = "schemathesis==4.32.5"
ADAPTERS = (
    *("google-adk==2.13.0", "openai-agents==0.24.0"),
    # What hansard_client itself needs.
    *("googleapis-common-protos>=1.72", "grpcio>=1.85.1", "protobuf>=7.36"),
)
S3_SERVER = ("moto[s3]==5.2.5", "flask>=3", "flask-cors>=6")
_FOLDER = Path(__file__).resolve().parents[2] / "build"


def bin_of(package: str) -> Path:
    """Return the folder of programs of the package's environment; its first use makes it.

    Skips the test when the package can't be had.
    """
    return _environment(package.replace("==", "-"), package)


def python_with(name: str, *packages: str) -> Path:
    """Return the Python of an environment with these packages; as `bin_of`."""
    digest = hashlib.sha256(" ".join(packages).encode()).hexdigest()[:8]
    return _environment(f"{name}-{digest}", *packages) / "python"


def own_sources() -> dict[str, str]:
    """Return the environment variables with which such a Python imports our own code."""
    paths = os.pathsep.join(str(_FOLDER.parent / folder) for folder in ("src", "generated"))
    return {**os.environ, "PYTHONPATH": paths}


def _environment(name: str, *packages: str) -> Path:
    folder = _FOLDER / name
    _FOLDER.mkdir(exist_ok=True)
    with folder.with_name(f"{folder.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (folder / "ready").exists():
            shutil.rmtree(folder, ignore_errors=True)
            subprocess.run([sys.executable, "-m", "venv", folder], check=True)
            python = folder / "bin" / "python"
            pip = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
            done = subprocess.run([*pip, *packages], capture_output=True, text=True, check=False)
            if done.returncode:
                pytest.skip(f"{packages[0]} can't be installed: {done.stderr[-200:].strip()}")
            (folder / "ready").touch()
    return folder / "bin"
