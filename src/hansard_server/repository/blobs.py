"""The seam of the store, as far as blobs go: which bytes there are, and who refers to them.

Equal bytes of a tenant are stored once: a new artifact shares the blob of its digest, whose row is
locked meanwhile. One that is marked is not shared: the artifact's own bytes become the blob that
later ones share. A row goes when, under its lock, no artifact refers to it; then the bytes go.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from hansard_server.domain.values import dataclass

BlobName = tuple[str, str]
"""Tenant and key."""


@dataclass(frozen=True, slots=True)
class BlobUse:
    """A blob, and whether an artifact refers to it; since when none does, if it is marked."""

    name: BlobName
    referenced: bool
    unreferenced_since_us: int | None


class BlobReads(Protocol):
    """What a ReadTx reads of blobs."""

    def scan_blobs(self, after: BlobName, limit: int) -> Sequence[BlobUse]:
        """Return at most `limit` blobs of all tenants in the order of their names."""
        ...

    def find_unknown_blobs(self, tenant: str, keys: Sequence[str]) -> set[str]:
        """Return those of the keys that are no blob of the tenant."""
        ...


class BlobWrites(Protocol):
    """What a WriteTx writes of blobs."""

    def settle_blobs(
        self, names: Sequence[BlobName], now_us: int, *, before_us: int
    ) -> Sequence[BlobName]:
        """Look at the blobs again, under their locks; return those whose bytes are to be removed.

        One that no artifact refers to is marked, and nobody shares it any more; one that was marked
        at `before_us` or earlier is removed. A mark on one that is referred to is taken away.
        """
        ...

    def adopt_blobs(self, tenant: str, keys: Sequence[str], now_us: int) -> None:
        """Make marked blobs of bytes that the object store has, as far as there are none.

        What an artifact refers to all the same keeps its bytes, as above.
        """
        ...
