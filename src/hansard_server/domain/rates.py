"""Rates: how many permits a bucket gives, which fills as time goes by."""

from __future__ import annotations

import math

from hansard_server.domain.clock import MICROSECONDS_PER_SECOND
from hansard_server.domain.values import dataclass


@dataclass(frozen=True, slots=True)
class Rate:
    """So many a second on the long run, and after a rest as many at once as in one second.

    Attributes:
        per_s: how many a second, more than 0; less than 1 is possible.
    """

    per_s: float

    @property
    def burst(self) -> int:
        """What a full bucket gives at once: one second's, and 1 at least."""
        return max(1, math.ceil(self.per_s))

    @property
    def interval_us(self) -> int:
        """From one permit to the next, rounded up: never more than `per_s` are given."""
        return math.ceil(MICROSECONDS_PER_SECOND / self.per_s)


@dataclass(frozen=True, slots=True)
class Lease:
    """What a bucket gave.

    Attributes:
        permits: how many, at most as many as were asked for.
        wait_us: after this time the bucket has one more, if nobody else comes first; 0: it has.
        full_at_us: what is to be remembered of the bucket: when it will be full.
    """

    permits: int
    wait_us: int
    full_at_us: int


def lease(rate: Rate, full_at_us: int, now_us: int, wanted: int) -> Lease:
    """Take up to `wanted` permits from a bucket that will be full at `full_at_us`. Pure.

    This is the generic cell rate algorithm, which needs one number for a bucket (ITU-T I.371).
    """
    interval_us, burst = rate.interval_us, rate.burst
    full_at_us = max(full_at_us, now_us)
    # Rounded up: a permit that is not whole yet is missing.
    missing = -((now_us - full_at_us) // interval_us)
    permits = max(0, min(wanted, burst - missing))
    full_at_us += permits * interval_us
    wait_us = max(0, full_at_us - (burst - 1) * interval_us - now_us)
    return Lease(permits, wait_us, full_at_us)
