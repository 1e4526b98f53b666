"""Files on their way to a session and back: sources that can be read again, files made whole."""

from __future__ import annotations

import hashlib
import io
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, TypeAlias

from google.protobuf.struct_pb2 import Struct

from hansard.v1.artifact_service_pb2 import UploadHeader

CHUNK_BYTES = 256 * 1024
_MODE = 0o666
_COPIED = ("description", "mime_type", "metadata", "ttl_days")


@dataclass(frozen=True, slots=True, kw_only=True)
class File:
    """A file to upload.

    Attributes:
        source: its bytes, its path, or an open binary file, which is read from where it stands.
            One that can't be rewound is sent without its checksum, and only once.
        filename: its name, without a path; for a path by default that of the file.
        mime_type: by default made out from the bytes.
        description: what it is.
        metadata: anything to keep with it.
        ttl_days: it is deleted after so many days.
    """

    source: bytes | Path | BinaryIO
    filename: str = ""
    mime_type: str = ""
    description: str = ""
    metadata: Struct | None = None
    ttl_days: int | None = None


Uploadable: TypeAlias = str | Path | File
"""A path, or a File."""


class Source:
    """A file as an upload reads it, once for each attempt.

    Attributes:
        again: it can be read again.
    """

    def __init__(self, given: Uploadable) -> None:
        """Raises ValueError for a file without a name."""
        self._file = given if isinstance(given, File) else File(source=Path(given))
        source = self._file.source
        self._start = 0
        self.again = True
        if not isinstance(source, bytes | Path):
            self.again = source.seekable()
            self._start = source.tell() if self.again else 0
        self._name = self._file.filename
        if not self._name and isinstance(source, Path):
            self._name = source.name.encode("utf-8", "replace").decode()
        if not self._name:
            raise ValueError("filename: must be given for what is no path")

    def header(self) -> UploadHeader:
        """Return the header; size and checksum of what can be read again. Raises OSError."""
        given = {name: getattr(self._file, name) for name in _COPIED}
        header = UploadHeader(
            filename=self._name, **{name: value for name, value in given.items() if value}
        )
        if self.again:
            digest, size = hashlib.sha256(), 0
            for chunk in self.chunks():
                digest.update(chunk)
                size += len(chunk)
            header.size_bytes, header.checksum_sha256 = size, digest.hexdigest()
        return header

    def chunks(self) -> Iterator[bytes]:
        """Yield the bytes from the start. Raises OSError."""
        with self._open() as file:
            while chunk := file.read(CHUNK_BYTES):
                yield chunk

    @contextmanager
    def _open(self) -> Iterator[BinaryIO]:
        source = self._file.source
        if isinstance(source, bytes):
            yield io.BytesIO(source)
        elif isinstance(source, Path):
            with source.open("rb") as file:
                yield file
        else:
            if self.again:
                source.seek(self._start)
            yield source


class PartFile:
    """A file that has its name only when it is whole."""

    def __init__(self, path: Path, *, replace: bool) -> None:
        """Begin it in the folder of the path. Raises OSError."""
        self._path = path
        self._replace = replace
        number, name = tempfile.mkstemp(dir=path.parent, prefix=".hansard-", suffix=".part")
        self._part = Path(name)
        self._file = os.fdopen(number, "wb")

    def write(self, chunk: bytes) -> None:
        """Write the next bytes. Raises OSError."""
        self._file.write(chunk)

    def finish(self) -> None:
        """Give it its name. Raises OSError; FileExistsError when another file has it."""
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()
        mask = os.umask(0)
        os.umask(mask)
        self._part.chmod(_MODE & ~mask)
        if self._replace:
            self._part.replace(self._path)
        else:
            _name_new(self._part, self._path)

    def discard(self) -> None:
        """Leave nothing behind, unless it has its name."""
        self._file.close()
        with suppress(FileNotFoundError):
            self._part.unlink()


def _name_new(file: Path, path: Path) -> None:
    try:
        path.hardlink_to(file)
    except FileExistsError:
        raise
    except OSError:
        # A file system without hard links; between look and rename somebody may be quicker.
        if path.exists():
            raise FileExistsError(17, "File exists", str(path)) from None
        file.replace(path)
