"""What local disk needs beyond an object store: files that are hashed while they are written, and
put in their place when they are on disk; and removing what crashes have left. All of it blocks.
"""

from __future__ import annotations

import hashlib
import os
import re
import time
from collections.abc import Sequence
from pathlib import Path

# An object that is being written lies beside its place, under its name and a number.
_STAGED = re.compile(r".*#\d+")
_STAGED_SUFFIX = "#1"


class StagedFile:
    """A file that is being written where nobody looks, hashed on the way; one call at a time."""

    def __init__(self, path: Path) -> None:
        """Nothing is made before the first bytes; the path must be new."""
        self._path = path.with_name(path.name + _STAGED_SUFFIX)
        self._hash = hashlib.sha256()
        self._descriptor = -1
        self._written = 0
        self.published = False

    def digest(self) -> bytes:
        """Return the SHA-256 of what was written."""
        return self._hash.digest()

    def write(self, chunks: Sequence[bytes | memoryview]) -> None:
        """Append the chunks. Raises OSError."""
        if self._descriptor < 0:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
            self._descriptor = os.open(self._path, flags, 0o666)
        for chunk in chunks:
            self._hash.update(chunk)
            rest = memoryview(chunk)
            while rest:
                rest = rest[os.write(self._descriptor, rest) :]
        size_bytes = sum(map(len, chunks))
        _begin_to_sync(self._descriptor, self._written, size_bytes)
        self._written += size_bytes

    def publish(self, root: Path, path: str) -> None:
        """Put it in its place in the folder; return when it is on disk. Raises OSError."""
        place = root / path
        place.parent.mkdir(parents=True, exist_ok=True)
        self._path.rename(place)
        self.published = True
        try:
            os.fsync(self._descriptor)
        finally:
            self._close()
        _sync_folders(root, place)

    def discard(self) -> None:
        """Remove it, if there is any. Raises OSError."""
        if self._descriptor >= 0:
            self._close()
            self._path.unlink(missing_ok=True)

    def _close(self) -> None:
        descriptor, self._descriptor = self._descriptor, -1
        os.close(descriptor)


def _begin_to_sync(descriptor: int, offset: int, size_bytes: int) -> None:
    """Have the disk begin with it, so that the sync at the end has little left to wait for."""
    if size_bytes and hasattr(os, "posix_fadvise"):
        # What is not on disk yet is not dropped: Linux begins to write it.
        os.posix_fadvise(descriptor, offset, size_bytes, os.POSIX_FADV_DONTNEED)


def _sync_folders(root: Path, file: Path) -> None:
    for folder in file.parents:
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        if folder == root:
            break


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
