"""From the metadata of a call to who makes it."""

from __future__ import annotations

import hmac
from collections.abc import Iterable

from hansard_server.access.credentials import Presented, Tokens, read_key
from hansard_server.access.key_cache import KeyCache, Known, unauthorized
from hansard_server.domain.access import Caller
from hansard_server.domain.clock import MICROSECONDS_PER_SECOND, Clock
from hansard_server.domain.values import dataclass

AUTHORIZATION_KEY = "authorization"
API_KEY_KEY = "x-api-key"
_SCHEME = "bearer "


@dataclass(frozen=True, slots=True)
class Identity:
    """Who calls, and the key that says so."""

    caller: Caller
    known: Known


class Authenticator:
    """Knows callers by their keys and tokens."""

    def __init__(self, keys: KeyCache, tokens: Tokens, *, clock: Clock) -> None:
        """Look keys up in `keys`; tokens are those of `tokens`."""
        self.keys = keys
        self._tokens = tokens
        self._clock = clock

    async def identify(self, metadata: Iterable[tuple[str, str | bytes]]) -> Identity:
        """Return who calls; of a key that is in use nothing is awaited.

        Raises Unauthorized, in the same words whatever is wrong; StoreUnavailable when a key that
        is not in use can't be looked up.
        """
        text = read_credential(metadata)
        presented = read_key(text)
        if presented is not None:
            key_id, by_token = presented.key_id, False
        else:
            found = self._tokens.read(text, self._clock() / MICROSECONDS_PER_SECOND)
            if found is None:
                raise unauthorized()
            key_id, by_token = found, True
        known = self.keys.recall(key_id)
        if known is None:
            known = await self.keys.look_up(key_id)
        if presented is not None and not _proves(presented, known):
            raise unauthorized()
        self.keys.note(known)
        return Identity(known.by_token if by_token else known.by_key, known)


def read_credential(metadata: Iterable[tuple[str, str | bytes]]) -> str:
    """Return the one key or token that a call's metadata holds.

    Raises Unauthorized when there is none, or more than one, or two that differ.
    """
    bearer: str | bytes | None = None
    api_key: str | bytes | None = None
    for name, value in metadata:
        if name == AUTHORIZATION_KEY:
            if bearer is not None:
                raise unauthorized()
            bearer = value
        elif name == API_KEY_KEY:
            if api_key is not None:
                raise unauthorized()
            api_key = value
    text = api_key
    if bearer is not None:
        if not isinstance(bearer, str) or bearer[: len(_SCHEME)].lower() != _SCHEME:
            raise unauthorized()
        text = bearer[len(_SCHEME) :]
        if api_key is not None and api_key != text:
            raise unauthorized()
    if not isinstance(text, str):
        raise unauthorized()
    return text


def _proves(presented: Presented, known: Known) -> bool:
    return hmac.compare_digest(presented.secret_sha256, known.key.secret_sha256)
