"""The proof that a caller knows the store's secret, which itself never leaves a process."""

from __future__ import annotations

import hashlib
import hmac

from hansard_server.turns.mirrors import TurnKey

METADATA_KEY = "hansard-peer"


def prove(secret: bytes, method: str, turn: TurnKey) -> str:
    """Return the proof for one method and one turn: HMAC-SHA256, as hexadecimal digits."""
    message = "\0".join((method, *turn)).encode()
    return hmac.new(secret, message, hashlib.sha256).hexdigest()


def is_proven(secret: bytes, method: str, turn: TurnKey, proof: str) -> bool:
    """Tell, in a time that says nothing about it, whether the proof is right."""
    return hmac.compare_digest(prove(secret, method, turn).encode(), proof.encode())
