"""The seam of the store, as far as rates go that processes share."""

from __future__ import annotations

from typing import Protocol

from hansard_server.domain.rates import Lease, Rate


class RateWrites(Protocol):
    """What a WriteTx writes of rates."""

    def lease_permits(self, tenant: str, subject: str, rate: Rate, wanted: int) -> Lease:
        """Take up to `wanted` permits of the subject's bucket, by the database's clock.

        A bucket that was never asked for, or was forgotten, is full.
        """
        ...

    def forget_full_buckets(self) -> None:
        """Remove what is known of full buckets, of every tenant: it says nothing."""
        ...
