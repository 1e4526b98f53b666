"""Ports for servers that are told theirs, because they come back to it."""

from __future__ import annotations

import random
import socket

# Below those that Linux gives to connections and to whoever asks for any: such a one may be given
# away again in the moment between, or while its server is being restarted.
_FIRST, _LAST = 16_000, 30_000


def free_port() -> int:
    """Return a port that nobody has taken, and that nobody gets who did not ask for it."""
    while True:
        port = random.SystemRandom().randint(_FIRST, _LAST)
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
        return port
