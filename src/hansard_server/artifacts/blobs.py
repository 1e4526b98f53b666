"""Blobs: the bytes of artifacts in an object store, local disk or cloud behind one interface."""

from __future__ import annotations

import asyncio
import hashlib
import re
from collections.abc import AsyncGenerator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from types import TracebackType
from typing import Protocol, Self

import obstore
import structlog
from obstore.exceptions import BaseError
from obstore.store import ObjectStore

from hansard_server.artifacts import local_disk
from hansard_server.artifacts.object_stores import CloudOptions, open_place
from hansard_server.domain.errors import StoreUnavailable
from hansard_server.domain.keys import random_tail
from hansard_server.domain.limits import DOWNLOAD_CHUNK_BYTES, KIB, MIB

SPOOL_BYTES = 5 * MIB
"""A file up to this size is written by one put; a larger one in parts of this size."""
_PARTS_AT_ONCE = 2
_WINDOW_BYTES = 2 * MIB
_HASH_ASIDE_BYTES = 64 * KIB
_SUFFIX_CHARACTERS = 12
_TENANT = re.compile(r"[0-9A-Za-z_-]{1,64}")
_TEMPORARY = "tmp"
_RETRY_AFTER_S = 5.0

_undoing: set[asyncio.Task[None]] = set()
"""What goes on after its caller has gone."""

_log = structlog.get_logger(__name__)


class BlobMissing(Exception):  # noqa: N818 - reads as what it is
    """The object store has no such bytes."""


@dataclass(frozen=True, slots=True)
class Blob:
    """Bytes that are whole: their key within the tenant, size and SHA-256."""

    key: str
    size_bytes: int
    sha256: bytes


@dataclass(frozen=True, slots=True)
class StoredObject:
    """An object as the store lists it; `key` as Blob.key, or of bytes that never became whole."""

    key: str
    modified_at: datetime


class Blobs:
    """The bytes of every tenant, each under a prefix of its own.

    Methods raise StoreUnavailable when the object store does not do what it is asked.
    """

    def __init__(self, store: ObjectStore, root: Path | None = None) -> None:
        """Use `store`; `root` is its folder when it is on this machine's disk."""
        self._store = store
        self._root = root

    @classmethod
    def open(cls, location: str | Path, options: CloudOptions | None = None) -> Self:
        """Return the blobs at a location; see open_place, which raises BadLocation, OSError."""
        place = open_place(location, options)
        return cls(place.store, place.root)

    def write(self, tenant: str, expected_sha256: bytes | None = None) -> BlobWriter:
        """Return a writer for one file, to be used with `async with`.

        A large file whose digest is known before goes under its name at once; else it is renamed,
        which on a cloud store means that the store copies it.
        """
        return BlobWriter(self._store, self._root, _prefix(tenant), expected_sha256)

    async def read(self, tenant: str, key: str, offset: int, length: int) -> AsyncGenerator[bytes]:
        """Yield `length` bytes from `offset`, which must exist, in chunks of 256 KiB.

        Holds at most 2 MiB, and nothing of the object store while the reader takes its time.
        Raises BlobMissing.
        """
        path = _prefix(tenant) + key
        end = offset + length
        while offset < end:
            window = min(_WINDOW_BYTES, end - offset)
            with _store_errors():
                data = memoryview(
                    await obstore.get_range_async(self._store, path, start=offset, length=window)
                )
            for start in range(0, len(data), DOWNLOAD_CHUNK_BYTES):
                yield bytes(data[start : start + DOWNLOAD_CHUNK_BYTES])
            if len(data) < window:
                raise BlobMissing(path)
            offset += window

    async def delete(self, tenant: str, keys: Sequence[str]) -> None:
        """Remove the bytes; those that are not there are fine."""
        paths = [_prefix(tenant) + key for key in keys]
        if self._root is None and len(paths) > 1:
            try:
                with _store_errors():
                    await obstore.delete_async(self._store, paths)
            except BlobMissing:
                pass  # not every cloud goes on after one that is missing
            else:
                return
        for path in paths:
            with _store_errors(missing_is_fine=True):
                await obstore.delete_async(self._store, path)

    async def tenants(self) -> list[str]:
        """Return the tenants that have bytes."""
        with _store_errors():
            listed = await obstore.list_with_delimiter_async(self._store)
        names = (prefix.rstrip("/") for prefix in listed["common_prefixes"])
        return [name for name in names if _TENANT.fullmatch(name)]

    async def scan(self, tenant: str) -> AsyncGenerator[list[StoredObject]]:
        """Yield all objects of the tenant, in batches; what is being written may be missing."""
        prefix = _prefix(tenant)
        with _store_errors():
            async for batch in obstore.list(self._store, prefix, chunk_size=500):
                yield [
                    StoredObject(item["path"].removeprefix(prefix), item["last_modified"])
                    for item in batch
                ]

    async def remove_leftovers(self, older_than_s: float) -> int:
        """Remove what crashes in the middle of a write have left on local disk; return how many.

        Cloud stores do this by a lifecycle rule for multipart uploads that were never completed.
        """
        if self._root is None:
            return 0
        return await asyncio.to_thread(local_disk.remove_leftovers, self._root, older_than_s)


class _Part(Protocol):
    async def write(self, buffer: bytes, /) -> int: ...
    async def __aenter__(self) -> Self: ...
    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None: ...


class BlobWriter:
    """Writes one file with bounded memory; nothing is visible until `finish`.

    Left without `finish`, it leaves nothing.
    """

    def __init__(
        self, store: ObjectStore, root: Path | None, prefix: str, expected_sha256: bytes | None
    ) -> None:
        """Blobs.write makes one."""
        self._store = store
        self._root = root
        self._prefix = prefix
        self._expected = expected_sha256
        self._hash = hashlib.sha256()
        self._size = 0
        self._spool: list[bytes] = []
        self._parts: _Part | None = None
        self._parts_key = ""
        self._finishing: asyncio.Task[Blob] | None = None

    @property
    def size_bytes(self) -> int:
        """How many bytes were written."""
        return self._size

    @property
    def digest(self) -> bytes:
        """The SHA-256 of what was written so far."""
        return self._hash.digest()

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
            undoing = asyncio.ensure_future(self._undo(self._finishing))
            _undoing.add(undoing)
            undoing.add_done_callback(_undoing.discard)
            await asyncio.shield(undoing)
        self._spool.clear()
        parts, self._parts = self._parts, None
        if parts is not None:
            abandoned = error or _Abandoned()
            # Left with an error, the multipart upload is aborted.
            await parts.__aexit__(type(abandoned), abandoned, traceback)

    async def write(self, chunk: bytes) -> None:
        """Take the next bytes."""
        if len(chunk) >= _HASH_ASIDE_BYTES:
            await asyncio.to_thread(self._hash.update, chunk)
        else:
            self._hash.update(chunk)
        self._size += len(chunk)
        if self._parts is None and self._size <= SPOOL_BYTES:
            self._spool.append(chunk)
            return
        with _store_errors():
            if self._parts is None:
                await self._open_parts()
            await self._parts_of().write(chunk)

    async def finish(self) -> Blob:
        """Make the file visible, synced on local disk, and return what it is."""
        # The object store goes on with what it was told when its caller is cancelled: a client that
        # goes away often does so here, since its leaving looks like the end of its stream.
        self._finishing = asyncio.ensure_future(self._make_visible())
        return await asyncio.shield(self._finishing)

    async def _make_visible(self) -> Blob:
        digest = self._hash.digest()
        key = self._parts_key
        with _store_errors():
            if self._parts is None:
                key = _key_of(digest)
                await obstore.put_async(self._store, self._prefix + key, b"".join(self._spool))
                self._spool.clear()
            else:
                parts, self._parts = self._parts, None
                await parts.__aexit__(None, None, None)
                if digest != self._expected:
                    key = _key_of(digest)
                    await obstore.rename_async(
                        self._store, self._prefix + self._parts_key, self._prefix + key
                    )
        if self._root is not None:
            await asyncio.to_thread(local_disk.sync, self._root, self._prefix + key)
        return Blob(key, self._size, digest)

    async def _undo(self, finishing: asyncio.Task[Blob]) -> None:
        try:
            blob = await finishing
            with _store_errors(missing_is_fine=True):
                await obstore.delete_async(self._store, self._prefix + blob.key)
        except (StoreUnavailable, BlobMissing):
            _log.warning("bytes of a broken upload stay until the next sweep")

    async def _open_parts(self) -> None:
        self._parts_key = _key_of(self._expected) if self._expected else _temporary_key()
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


def _prefix(tenant: str) -> str:
    # A tenant's name is no user's to choose freely, and even so it must not leave its folder.
    if not _TENANT.fullmatch(tenant):
        raise ValueError("the tenant's name can't be part of a path")
    return f"{tenant}/"


def _key_of(digest: bytes) -> str:
    # The suffix tells apart equal bytes that were uploaded twice: each has a life of its own.
    name = digest.hex()
    return f"{name[:2]}/{name[2:4]}/{name}-{random_tail(_SUFFIX_CHARACTERS)}"


def _temporary_key() -> str:
    return f"{_TEMPORARY}/{random_tail(2 * _SUFFIX_CHARACTERS)}"


@contextmanager
def _store_errors(*, missing_is_fine: bool = False) -> Iterator[None]:
    try:
        yield
    except FileNotFoundError as error:
        if not missing_is_fine:
            raise BlobMissing from error
    except (BaseError, OSError) as error:
        # Its words name paths and hosts: they are for the log alone.
        _log.error("object store failed", exc_info=error)
        raise StoreUnavailable(
            "The artifact store does not answer.", retry_after_s=_RETRY_AFTER_S
        ) from error
