"""What local disk needs beyond an object store: syncing, and removing what crashes have left."""

from __future__ import annotations

import os
import re
import time
from pathlib import Path

# An object that is being written lies beside its place, under its name and a number.
_STAGED = re.compile(r".*#\d+")


def sync(root: Path, path: str) -> None:
    """Return when the file and the folders on its way are on disk."""
    file = root / path
    _sync(file)
    for folder in file.parents:
        _sync(folder)
        if folder == root:
            break


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def remove_leftovers(root: Path, older_than_s: float) -> int:
    """Remove files of writes that nobody has touched for so long; return how many."""
    before = time.time() - older_than_s
    removed = 0
    for folder, _, names in os.walk(root):
        for name in filter(_STAGED.fullmatch, names):
            path = Path(folder, name)
            try:
                if path.stat().st_mtime < before:
                    path.unlink()
                    removed += 1
            except FileNotFoundError:
                continue  # finished, or removed, meanwhile
    return removed
