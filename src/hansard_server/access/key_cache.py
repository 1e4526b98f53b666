"""The keys that are in use, in memory, so that a call costs no look into the database.

What is in it is looked up again before it is `ttl_s` old: so long a key that was revoked elsewhere
is still taken at most. When the database does not answer, nobody is let in for longer either.
"""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import field

import structlog

from hansard_server.domain.access import ApiKeyRecord, Caller, caller_of
from hansard_server.domain.clock import Clock
from hansard_server.domain.errors import DomainError, StoreUnavailable, Unauthorized
from hansard_server.domain.values import dataclass
from hansard_server.repository.api import Store

_log = structlog.get_logger("hansard.access")

_BATCH_KEYS = 256
_KEYS_MAX = 50_000
_UNKNOWN_MAX = 10_000
_UNUSED_TTLS = 10
"""A key that was not used for so many times `ttl_s` is forgotten."""
USE_NOTED_S = 60.0
"""How often it is written down when keys were used last."""


@dataclass(slots=True)
class Known:
    """A key that exists, as it was when it was looked up last.

    Attributes:
        by_key: who calls with the key itself.
        by_token: who calls with a token for it.
        until: when this is too old to be believed, by the monotonic clock.
        used: when the key was used last, by the monotonic clock.
        used_at_us: when the key was used last; 0: not since this was written down.
        streams: ends a call that may last, by its scope.
    """

    key: ApiKeyRecord
    by_key: Caller
    by_token: Caller
    until: float
    used: float
    used_at_us: int = 0
    streams: set[asyncio.Timeout] = field(default_factory=set)


class KeyCache:
    """Keys by id, as the store had them at most `ttl_s` ago."""

    def __init__(self, store: Store, *, ttl_s: float, clock: Clock) -> None:
        self._store = store
        self._ttl_s = ttl_s
        self._clock = clock
        self._known: dict[str, Known] = {}
        # id → until when; the oldest goes first, so that made-up ids fill no memory.
        self._unknown: OrderedDict[str, float] = OrderedDict()
        # What was revoked here: a look-up that began before the commit may come back after it.
        self._revoked: OrderedDict[str, None] = OrderedDict()
        self._wanted: dict[str, asyncio.Future[Known | None]] = {}
        self._loading: asyncio.Task[None] | None = None

    def recall(self, key_id: str) -> Known | None:
        """Return the key if it is known and may be believed. Nothing is awaited.

        Raises Unauthorized for a key of which is known that it is not valid.
        """
        now = time.monotonic()
        known = self._known.get(key_id)
        if known is None:
            if self._unknown.get(key_id, 0.0) > now:
                raise unauthorized()
            return None
        if known.until <= now:
            return None
        if not known.key.valid_at(self._clock()):
            raise unauthorized()
        return known

    async def look_up(self, key_id: str) -> Known:
        """Return the key as the store has it. Raises Unauthorized, StoreUnavailable."""
        waiting = self._wanted.get(key_id)
        if waiting is None:
            waiting = self._wanted[key_id] = asyncio.get_running_loop().create_future()
            if self._loading is None:
                # One at a time, whatever comes: strangers never hold more than one reader.
                self._loading = asyncio.create_task(self._load_wanted(), name="keys")
        known = await asyncio.shield(waiting)
        if known is None or not known.key.valid_at(self._clock()):
            raise unauthorized()
        return known

    def note(self, known: Known) -> None:
        """Note that the key let somebody in."""
        known.used, known.used_at_us = time.monotonic(), self._clock()

    @contextmanager
    def hold(self, known: Known, scope: asyncio.Timeout) -> Iterator[None]:
        """Have the scope end as soon as the key is known to be valid no more."""
        known.streams.add(scope)
        try:
            yield
        finally:
            known.streams.discard(scope)

    def revoke(self, key_id: str) -> None:
        """Refuse the key from now on."""
        self._revoked[key_id] = None
        if len(self._revoked) > _UNKNOWN_MAX:
            self._revoked.popitem(last=False)
        self._install(key_id, None, time.monotonic())

    async def run(self) -> None:
        """Keep what is in use up to date, and write down when it was used, until cancelled."""
        noted = time.monotonic()
        while True:
            await asyncio.sleep(self._ttl_s / 2)
            self._forget_unused()
            try:
                await self._reload(tuple(self._known))
                if time.monotonic() - noted >= USE_NOTED_S:
                    await self.note_use()
                    noted = time.monotonic()
            except DomainError as error:
                # Calls are let in as long as what is known may be believed. Streams stay: while
                # the store does not answer, it has nothing for them.
                _log.warning("keys can't be read", reason=error.reason)

    async def note_use(self) -> None:
        """Write down when keys were used last. Raises StoreUnavailable."""
        used = {
            (known.key.tenant, known.key.id): known.used_at_us
            for known in self._known.values()
            if known.used_at_us
        }
        if used:
            await self._store.write(lambda tx: tx.note_api_key_use(used))
        for known in self._known.values():
            if known.used_at_us == used.get((known.key.tenant, known.key.id)):
                known.used_at_us = 0

    async def _load_wanted(self) -> None:
        try:
            while self._wanted:
                ids = tuple(self._wanted)[:_BATCH_KEYS]
                try:
                    await self._reload(ids)
                except Exception as error:  # noqa: BLE001 - whoever waits must be told
                    for key_id in ids:
                        _fail(self._wanted.pop(key_id), error)
                else:
                    for key_id in ids:
                        _succeed(self._wanted.pop(key_id), self._known.get(key_id))
        finally:
            self._loading = None

    async def _reload(self, key_ids: Collection[str]) -> None:
        ids = tuple(key_ids)
        for start in range(0, len(ids), _BATCH_KEYS):
            some = ids[start : start + _BATCH_KEYS]
            # What is read is as old as the question.
            asked = time.monotonic()
            found = await self._store.read(lambda tx, some=some: tx.find_api_keys(some))  # type: ignore[misc]
            for key_id in some:
                self._install(key_id, found.get(key_id), asked)

    def _install(self, key_id: str, key: ApiKeyRecord | None, asked: float) -> None:
        known = self._known.get(key_id)
        if key is None or key.revoked_at_us is not None or key_id in self._revoked:
            if known is not None:
                del self._known[key_id]
                _end(known)
            self._unknown[key_id] = asked + self._ttl_s
            self._unknown.move_to_end(key_id)
            if len(self._unknown) > _UNKNOWN_MAX:
                self._unknown.popitem(last=False)
            return
        self._unknown.pop(key_id, None)
        until = asked + self._ttl_s
        if known is None:
            self._known[key_id] = Known(
                key, caller_of(key), caller_of(key, by_token=True), until, time.monotonic()
            )
            return
        known.until = max(known.until, until)
        if key.grants != known.key.grants:
            known.by_key, known.by_token = caller_of(key), caller_of(key, by_token=True)
        known.key = key
        if not key.valid_at(self._clock()):
            _end(known)

    def _forget_unused(self) -> None:
        now = time.monotonic()
        used_until = now - _UNUSED_TTLS * self._ttl_s
        # Those that rest longest go first.
        idle = sorted(
            (known for known in self._known.values() if not known.streams and not known.used_at_us),
            key=lambda known: known.used,
        )
        surplus = len(self._known) - _KEYS_MAX
        for place, known in enumerate(idle):
            if known.used < used_until or place < surplus:
                del self._known[known.key.id]


def unauthorized() -> Unauthorized:
    """Return the error of whoever has no valid credentials, whatever is wrong with them."""
    return Unauthorized("There are no valid credentials; send a key or a token that is valid.")


def _end(known: Known) -> None:
    now = asyncio.get_running_loop().time()
    while known.streams:
        known.streams.pop().reschedule(now)


def _fail(waiting: asyncio.Future[Known | None], error: Exception) -> None:
    if waiting.cancelled():
        return
    unavailable = error
    if not isinstance(error, DomainError):
        unavailable = StoreUnavailable("keys can't be looked up", retry_after_s=1.0)
        unavailable.__cause__ = error
    waiting.set_exception(unavailable)
    # Whoever asked may be gone.
    waiting.exception()


def _succeed(waiting: asyncio.Future[Known | None], known: Known | None) -> None:
    if not waiting.cancelled():
        waiting.set_result(known)
