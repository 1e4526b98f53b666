"""A virtual environment with the unmodified `vectara` package; it pins libraries of its own."""

from __future__ import annotations

import fcntl
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

VERSION = "0.4.3"
FOLDER = Path(__file__).resolve().parents[2] / "build" / f"vectara-{VERSION}"


def vectara_python() -> Path:
    """Return the environment's Python; the first use makes it. Skips when that can't be done."""
    python = FOLDER / "bin" / "python"
    FOLDER.parent.mkdir(exist_ok=True)
    with FOLDER.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if (FOLDER / "ready").exists():
            return python
        shutil.rmtree(FOLDER, ignore_errors=True)
        subprocess.run([sys.executable, "-m", "venv", FOLDER], check=True)
        pip = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        done = subprocess.run(
            [*pip, f"vectara=={VERSION}"], capture_output=True, text=True, check=False
        )
        if done.returncode:
            pytest.skip(f"vectara {VERSION} can't be installed: {done.stderr[-200:].strip()}")
        (FOLDER / "ready").touch()
    return python
