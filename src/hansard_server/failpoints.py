"""Failpoints: named places where tests have the process killed.

Armed by the environment variable HANSARD_FAILPOINTS, `name` or `name@n` for the n-th time, several
separated by commas. Not armed they cost a look at an empty dict.
"""

from __future__ import annotations

import os
import signal

VARIABLE = "HANSARD_FAILPOINTS"
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
        "artifact.stored",
        "artifact.recorded",
    }
)


def _parse(text: str) -> dict[str, int]:
    armed: dict[str, int] = {}
    for part in filter(None, text.split(",")):
        name, _, count = part.partition("@")
        if name not in NAMES:
            msg = f"{VARIABLE}: there is no failpoint {name!r}"
            raise ValueError(msg)
        armed[name] = int(count or 1)
    return armed


_armed = _parse(os.environ.get(VARIABLE, ""))


def hit(name: str) -> None:
    """Die here, by SIGKILL, if the failpoint is armed and this is the time."""
    if not _armed or name not in _armed:
        return
    _armed[name] -= 1
    if _armed[name] == 0:
        os.kill(os.getpid(), signal.SIGKILL)
