"""Writing one blob, in pieces and with bounded memory: on this machine's disk, or in a cloud."""

from __future__ import annotations

import asyncio
import hashlib
from abc import ABC, abstractmethod
from collections.abc import Coroutine
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, Self, TypeVar

import obstore
import structlog
from obstore.store import ObjectStore

from hansard_server.artifacts.local_disk import StagedFile
from hansard_server.artifacts.store_errors import BlobMissing, disk_errors, store_errors
from hansard_server.domain.errors import StoreUnavailable
from hansard_server.domain.keys import random_tail
from hansard_server.domain.limits import KIB, MIB
from hansard_server.domain.values import dataclass

SPOOL_BYTES = 5 * MIB
"""In a cloud a file up to this size is written by one put; a larger one in parts of this size."""
BATCH_BYTES = MIB
"""On disk so much goes to a thread at once."""
WAITING_MAX_BYTES = 4 * MIB
"""And at most so much waits, when it comes faster than it is written."""
_PARTS_AT_ONCE = 2
_HASH_ASIDE_BYTES = 64 * KIB
_SUFFIX_CHARACTERS = 12
_TEMPORARY = "tmp"

_aside: set[asyncio.Task[Any]] = set()
"""What goes on after its caller has gone."""

_log = structlog.get_logger(__name__)

T = TypeVar("T")
Chunk = bytes | memoryview


@dataclass(frozen=True, slots=True)
class Blob:
    """Bytes that are whole: their key within the tenant, size and SHA-256."""

    key: str
    size_bytes: int
    sha256: bytes


class BlobWriter(ABC):
    """Writes one file with bounded memory; nothing is visible until `finish`.

    Left without `finish`, it leaves nothing. Methods raise StoreUnavailable.
    """

    def __init__(self, store: ObjectStore, prefix: str) -> None:
        """Blobs.write makes one."""
        self._store = store
        self._prefix = prefix
        self._size = 0
        self._finishing: asyncio.Task[Blob] | None = None

    @property
    def size_bytes(self) -> int:
        """How many bytes were taken."""
        return self._size

    @abstractmethod
    async def write(self, chunk: Chunk) -> None:
        """Take the next bytes, which stay as they are."""

    @abstractmethod
    async def digest(self) -> bytes:
        """Return the SHA-256 of what was taken so far."""

    @abstractmethod
    async def _make_visible(self) -> Blob:
        """Make the file visible, synced on local disk."""

    @abstractmethod
    async def _abandon(self, error: BaseException | None) -> None:
        """Remove what was not finished; do nothing if all was."""

    async def finish(self) -> Blob:
        """Make the file visible, synced on local disk, and return what it is."""
        # The object store goes on with what it was told when its caller is cancelled: a client that
        # goes away often does so here, since its leaving looks like the end of its stream.
        self._finishing = asyncio.create_task(self._make_visible())
        return await asyncio.shield(self._finishing)

    async def __aenter__(self) -> Self:
        """Begin."""
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Abort what was not finished; take back what was, if it comes to nothing all the same."""
        if error is not None and self._finishing is not None:
            await _to_its_end(self._undo(self._finishing))
        await self._abandon(error)

    async def _undo(self, finishing: asyncio.Task[Blob]) -> None:
        try:
            blob = await finishing
            with store_errors(missing_is_fine=True):
                await obstore.delete_async(self._store, self._prefix + blob.key)
        except (StoreUnavailable, BlobMissing):
            _log.warning("bytes of a broken upload stay until the next sweep")


class DiskWriter(BlobWriter):
    """On this machine's disk: a thread hashes and writes what has come, while more comes."""

    def __init__(self, store: ObjectStore, prefix: str, root: Path) -> None:
        """`root` is the folder of the object store."""
        super().__init__(store, prefix)
        self._root = root
        self._file = StagedFile(root / prefix / temporary_key())
        self._waiting: list[Chunk] = []
        self._waiting_bytes = 0
        self._work: asyncio.Future[None] | None = None

    async def write(self, chunk: Chunk) -> None:
        """Take the next bytes, which stay as they are."""
        self._size += len(chunk)
        self._waiting.append(chunk)
        self._waiting_bytes += len(chunk)
        working = self._work is not None and not self._work.done()
        if self._waiting_bytes >= (WAITING_MAX_BYTES if working else BATCH_BYTES):
            await self._hand_over()

    async def digest(self) -> bytes:
        """Return the SHA-256 of what was taken so far."""
        # An empty file has to be made, too.
        if self._waiting or self._work is None:
            await self._hand_over()
        await self._end_work()
        return self._file.digest()

    async def _make_visible(self) -> Blob:
        digest = await self.digest()
        key = key_of(digest)
        with disk_errors():
            await asyncio.to_thread(self._file.publish, self._root, self._prefix + key)
        return Blob(key, self._size, digest)

    async def _abandon(self, error: BaseException | None) -> None:  # noqa: ARG002 - the same for all
        self._waiting.clear()
        if not self._file.published:
            await _to_its_end(self._discard())

    async def _discard(self) -> None:
        if self._work is not None:
            await asyncio.wait((self._work,))
        try:
            with disk_errors():
                await asyncio.to_thread(self._file.discard)
        except StoreUnavailable:
            _log.warning("bytes of a broken upload stay until the next sweep")

    async def _hand_over(self) -> None:
        """Have the thread write what waits, as soon as it has done what it does."""
        await self._end_work()
        chunks, self._waiting, self._waiting_bytes = self._waiting, [], 0
        loop = asyncio.get_running_loop()
        self._work = loop.run_in_executor(None, self._file.write, chunks)

    async def _end_work(self) -> None:
        if self._work is not None:
            # Not awaited itself: a caller that is cancelled must not lose sight of the thread.
            await asyncio.wait((self._work,))
            with disk_errors():
                self._work.result()


class _Part(Protocol):
    async def write(self, buffer: Chunk, /) -> int: ...
    async def __aenter__(self) -> Self: ...
    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None: ...


class CloudWriter(BlobWriter):
    """Elsewhere: a small file by one put, a large one in parts."""

    def __init__(self, store: ObjectStore, prefix: str, expected_sha256: bytes | None) -> None:
        """A large file whose digest is not as expected is renamed in the end."""
        super().__init__(store, prefix)
        self._expected = expected_sha256
        self._hash = hashlib.sha256()
        self._spool: list[Chunk] = []
        self._parts: _Part | None = None
        self._parts_key = ""

    async def digest(self) -> bytes:
        """Return the SHA-256 of what was taken so far."""
        return self._hash.digest()

    async def _abandon(self, error: BaseException | None) -> None:
        self._spool.clear()
        parts, self._parts = self._parts, None
        if parts is not None:
            abandoned = error or _Abandoned()
            # Left with an error, the multipart upload is aborted.
            await parts.__aexit__(type(abandoned), abandoned, abandoned.__traceback__)

    async def write(self, chunk: Chunk) -> None:
        """Take the next bytes, which stay as they are."""
        if len(chunk) >= _HASH_ASIDE_BYTES:
            await asyncio.to_thread(self._hash.update, chunk)
        else:
            self._hash.update(chunk)
        self._size += len(chunk)
        if self._parts is None and self._size <= SPOOL_BYTES:
            self._spool.append(chunk)
            return
        with store_errors():
            if self._parts is None:
                await self._open_parts()
            await self._parts_of().write(chunk)

    async def _make_visible(self) -> Blob:
        digest = self._hash.digest()
        key = self._parts_key
        with store_errors():
            if self._parts is None:
                key = key_of(digest)
                await obstore.put_async(self._store, self._prefix + key, b"".join(self._spool))
                self._spool.clear()
            else:
                parts, self._parts = self._parts, None
                await parts.__aexit__(None, None, None)
                if digest != self._expected:
                    key = key_of(digest)
                    await obstore.rename_async(
                        self._store, self._prefix + self._parts_key, self._prefix + key
                    )
        return Blob(key, self._size, digest)

    async def _open_parts(self) -> None:
        self._parts_key = key_of(self._expected) if self._expected else temporary_key()
        self._parts = obstore.open_writer_async(
            self._store,
            self._prefix + self._parts_key,
            buffer_size=SPOOL_BYTES,
            max_concurrency=_PARTS_AT_ONCE,
        )
        await self._parts.__aenter__()
        spool, self._spool = self._spool, []
        for chunk in spool:
            await self._parts.write(chunk)

    def _parts_of(self) -> _Part:
        assert self._parts is not None  # noqa: S101 - opened before
        return self._parts


class _Abandoned(Exception):  # noqa: N818 - never leaves this module
    """A file was left unfinished without an error."""


def key_of(digest: bytes) -> str:
    """Return a new key for bytes with this SHA-256."""
    # The suffix tells apart equal bytes that were uploaded twice: each has a life of its own.
    name = digest.hex()
    return f"{name[:2]}/{name[2:4]}/{name}-{random_tail(_SUFFIX_CHARACTERS)}"


def temporary_key() -> str:
    """Return a new key for bytes whose SHA-256 is not known yet."""
    return f"{_TEMPORARY}/{random_tail(2 * _SUFFIX_CHARACTERS)}"


async def _to_its_end(work: Coroutine[Any, Any, None]) -> None:
    """Return when the work is done; it goes on when its caller is cancelled."""
    task = asyncio.create_task(work)
    _aside.add(task)
    task.add_done_callback(_aside.discard)
    await asyncio.shield(task)
