"""Blobs: the bytes of artifacts in an object store, local disk or cloud behind one interface."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncGenerator, Sequence
from datetime import datetime
from pathlib import Path
from typing import Self

import obstore
from obstore.store import ObjectStore

from hansard_server.artifacts import local_disk
from hansard_server.artifacts.object_stores import CloudOptions, open_place
from hansard_server.artifacts.store_errors import BlobMissing, store_errors
from hansard_server.artifacts.writers import BlobWriter, CloudWriter, DiskWriter
from hansard_server.domain.limits import DOWNLOAD_CHUNK_BYTES, MIB
from hansard_server.domain.values import dataclass

_WINDOW_BYTES = 2 * MIB
_TENANT = re.compile(r"[0-9A-Za-z_-]{1,64}")


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

        In a cloud a large file whose digest is known before goes under its name at once; else it is
        renamed, which means that the store copies it.
        """
        prefix = _prefix(tenant)
        if self._root is not None:
            return DiskWriter(self._store, prefix, self._root)
        return CloudWriter(self._store, prefix, expected_sha256)

    async def read(self, tenant: str, key: str, offset: int, length: int) -> AsyncGenerator[bytes]:
        """Yield `length` bytes from `offset`, which must exist, in chunks of 256 KiB.

        Holds at most 2 MiB, and nothing of the object store while the reader takes its time.
        Raises BlobMissing.
        """
        path = _prefix(tenant) + key
        end = offset + length
        while offset < end:
            window = min(_WINDOW_BYTES, end - offset)
            with store_errors():
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
                with store_errors():
                    await obstore.delete_async(self._store, paths)
            except BlobMissing:
                pass  # not every cloud goes on after one that is missing
            else:
                return
        for path in paths:
            with store_errors(missing_is_fine=True):
                await obstore.delete_async(self._store, path)

    async def tenants(self) -> list[str]:
        """Return the tenants that have bytes."""
        with store_errors():
            listed = await obstore.list_with_delimiter_async(self._store)
        names = (prefix.rstrip("/") for prefix in listed["common_prefixes"])
        return [name for name in names if _TENANT.fullmatch(name)]

    async def scan(self, tenant: str) -> AsyncGenerator[list[StoredObject]]:
        """Yield all objects of the tenant, in batches; what is being written may be missing."""
        prefix = _prefix(tenant)
        with store_errors():
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


def _prefix(tenant: str) -> str:
    # A tenant's name is no user's to choose freely, and even so it must not leave its folder.
    if not _TENANT.fullmatch(tenant):
        raise ValueError("the tenant's name can't be part of a path")
    return f"{tenant}/"
