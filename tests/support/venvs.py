"""Virtual environments for packages that can't share ours: they pin libraries of their own."""

from __future__ import annotations

import fcntl
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

VECTARA = "vectara==0.4.3"
SCHEMATHESIS = "schemathesis==4.32.5"
_FOLDER = Path(__file__).resolve().parents[2] / "build"


def bin_of(package: str) -> Path:
    """Return the folder of programs of the package's environment; its first use makes it.

    Skips the test when the package can't be had.
    """
    folder = _FOLDER / package.replace("==", "-")
    _FOLDER.mkdir(exist_ok=True)
    with folder.with_name(f"{folder.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (folder / "ready").exists():
            shutil.rmtree(folder, ignore_errors=True)
            subprocess.run([sys.executable, "-m", "venv", folder], check=True)
            python = folder / "bin" / "python"
            pip = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
            done = subprocess.run([*pip, package], capture_output=True, text=True, check=False)
            if done.returncode:
                pytest.skip(f"{package} can't be installed: {done.stderr[-200:].strip()}")
            (folder / "ready").touch()
    return folder / "bin"
