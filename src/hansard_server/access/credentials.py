"""Keys and tokens as text: how they are made, read and compared. Nothing here knows the store.

A key is `hsk_<id>_<secret>`, a token `hst_<id>_<expiry>_<mac>`. What does not look like one to the
letter is refused before anything is computed or looked up.
"""

from __future__ import annotations

import hashlib
import hmac
import re

from hansard_server.domain.keys import API_KEY_ID_CHARACTERS, random_tail
from hansard_server.domain.values import dataclass

# 52 characters of 32 are 260 bits: nobody tries them out, so that a fast hash is enough. A slow one
# would hold up every call, and give strangers a way to keep the server busy.
_SECRET_CHARACTERS = 52
_ID = rf"[a-z2-7]{{{API_KEY_ID_CHARACTERS}}}"
_KEY = re.compile(rf"hsk_({_ID})_[a-z2-7]{{{_SECRET_CHARACTERS}}}\Z")
_TOKEN = re.compile(rf"(hst_({_ID})_([1-9][0-9]{{9,11}}))_([0-9a-f]{{64}})\Z")
_ID_PREFIX = "key_"
_MAC_OF_TOKENS = b"hansard token 1\n"


@dataclass(frozen=True, slots=True)
class Presented:
    """What a caller presents: the id of its key, and what proves that it has the key or a token."""

    key_id: str
    secret_sha256: bytes


def make_secret(key_id: str) -> str:
    """Return a new secret for the key with this id."""
    return f"hsk_{key_id.removeprefix(_ID_PREFIX)}_{random_tail(_SECRET_CHARACTERS)}"


def hash_secret(secret: str) -> bytes:
    """Return what is kept of a secret."""
    return hashlib.sha256(secret.encode()).digest()


def read_key(text: str) -> Presented | None:
    """Return what the text presents; None when it does not look like a key."""
    match = _KEY.match(text)
    return None if match is None else Presented(_ID_PREFIX + match[1], hash_secret(text))


class Tokens:
    """Signs tokens and reads them, with a secret that all servers of a database share."""

    def __init__(self, secret: bytes) -> None:
        self._secret = secret

    def sign(self, key_id: str, expires_at_s: int) -> str:
        """Return a token for the key, valid until that second."""
        signed = f"hst_{key_id.removeprefix(_ID_PREFIX)}_{expires_at_s}"
        return f"{signed}_{self._mac(signed)}"

    def read(self, text: str, now_s: float) -> str | None:
        """Return the id of the key that the token was issued for; None when it is not valid."""
        match = _TOKEN.match(text)
        if match is None:
            return None
        signed, key_id, expires_at_s, mac = match.groups()
        # In this order, and in constant time: nothing is told of a token that nobody signed.
        if not hmac.compare_digest(mac, self._mac(signed)) or int(expires_at_s) <= now_s:
            return None
        return _ID_PREFIX + key_id

    def _mac(self, signed: str) -> str:
        return hmac.digest(self._secret, _MAC_OF_TOKENS + signed.encode(), "sha256").hex()
