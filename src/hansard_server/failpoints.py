"""Failpoints: named places where tests have the process killed, or something else done.

Armed by the environment variable HANSARD_FAILPOINTS, `name` or `name@n` for the n-th time, several
separated by commas; by HANSARD_FAILPOINTS_SERVING from when the server takes calls. Not armed they
cost a look at an empty dict.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager

VARIABLE = "HANSARD_FAILPOINTS"
SERVING_VARIABLE = "HANSARD_FAILPOINTS_SERVING"
NAMES = frozenset(
    {
        "migration.step",
        "write.begun",
        "batch.locked",
        "batch.decided",
        "batch.written",
        "decision.made",
        "write.committed",
        "turn.taken",
        "turn.ended",
        "fork.begun",
        "fork.piece",
        "fork.copied",
        "artifact.stored",
        "artifact.recorded",
        "blobs.settled",
    }
)


def hit(name: str) -> None:
    """Do here what the failpoint is armed with, if anything."""
    if not _armed:
        return
    act = _armed.get(name)
    if act is not None:
        act()


def begin_serving() -> None:
    """Arm what is to be armed when the server takes calls. Raises ValueError."""
    _armed.update(_parse(os.environ.get(SERVING_VARIABLE, "")))


@contextmanager
def armed(name: str, act: Callable[[], None]) -> Iterator[None]:
    """Have `act` called, in whatever thread comes by, at each passing of the place until exit."""
    if name not in NAMES:
        msg = f"there is no failpoint {name!r}"
        raise ValueError(msg)
    _armed[name] = act
    try:
        yield
    finally:
        del _armed[name]


def _parse(text: str) -> dict[str, Callable[[], None]]:
    armed: dict[str, Callable[[], None]] = {}
    for part in filter(None, text.split(",")):
        name, _, count = part.partition("@")
        if name not in NAMES:
            msg = f"there is no failpoint {name!r}"
            raise ValueError(msg)
        armed[name] = _Kill(int(count or 1))
    return armed


class _Kill:
    """Dies by SIGKILL when it is called for the n-th time."""

    def __init__(self, nth: int) -> None:
        self._left = nth

    def __call__(self) -> None:
        self._left -= 1
        if self._left == 0:
            os.kill(os.getpid(), signal.SIGKILL)


_armed = _parse(os.environ.get(VARIABLE, ""))
