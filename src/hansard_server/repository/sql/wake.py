"""Wake-ups between the processes of one PostgreSQL: LISTEN and NOTIFY, on connections of their own.

They are hints. What is not told, or told twice, harms nobody: the record is read again anyway.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import secrets
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator
from typing import Any

import psycopg
import structlog

from hansard_server.repository.sql.engine import make_engine

_log = structlog.get_logger("hansard.wake")

CHANNEL = "hansard_wake"
PAYLOAD_MAX_BYTES = 7_900
"""PostgreSQL takes less than 8,000."""
_WAITING_MAX = 20_000
"""Sessions that wait to be told of; beyond it everybody is told to look at everything."""
_PAUSE_S = 0.005
"""From one telling to the next: what comes meanwhile goes together."""
_CONNECT_TIMEOUT_S = 5
_RETRY_FIRST_S = 0.1
_RETRY_MAX_S = 5.0
_TELL_TIMEOUT_S = 5.0
# A connection whose other end is gone without a word is noticed after a minute.
_KEEPALIVES = {"keepalives_idle": 30, "keepalives_interval": 10, "keepalives_count": 3}

Session = tuple[str, str]
"""(tenant, session uid)."""
OnHint = Callable[[Collection[Session] | None], None]
"""Told which sessions have changed; None: perhaps any."""

Connection = psycopg.AsyncConnection[Any]


class WakeUps:
    """Tells other processes of changed sessions, and hears of theirs.

    `run` does both until it is cancelled, and connects again whenever a connection breaks.
    """

    def __init__(self, url: str, on_hint: OnHint, on_free: Callable[[], None]) -> None:
        """Use the PostgreSQL database of `url`.

        `on_hint` hears of sessions, `on_free` of turns and queues that somebody has given up.
        """
        self._parameters = _parameters(url)
        self._on_hint = on_hint
        self._on_free = on_free
        # Of this process: what it has told itself comes back to it, and is passed over.
        self._sender = secrets.token_hex(4)
        self._waiting: dict[Session, None] = {}
        self._everything = False
        self._free = False
        self._news = asyncio.Event()
        self._told = asyncio.Event()
        self._told.set()

    def tell(self, session: Session) -> None:
        """Have the other processes look at the session soon."""
        if len(self._waiting) >= _WAITING_MAX:
            self._waiting.clear()
            self._everything = True
        self._waiting[session] = None
        self._wake()

    def tell_free(self) -> None:
        """Have the other processes look for turns and queues that nobody serves."""
        self._free = True
        self._wake()

    async def run(self) -> None:
        """Listen and tell, for ever."""
        await asyncio.gather(
            self._reconnecting("listener", self._listen), self._reconnecting("teller", self._tell)
        )

    async def flush(self, timeout_s: float) -> None:
        """Return when what waits has been told, or when the time is over."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                await self._told.wait()

    def _wake(self) -> None:
        self._news.set()
        self._told.clear()

    async def _reconnecting(self, name: str, work: Callable[[Connection], Any]) -> None:
        retry_s = _RETRY_FIRST_S
        while True:
            try:
                connection = await psycopg.AsyncConnection.connect(
                    **self._parameters, autocommit=True
                )
                async with connection:
                    retry_s = _RETRY_FIRST_S
                    await work(connection)
            except (psycopg.Error, OSError, TimeoutError) as error:
                # Until then the poll floor finds what there is.
                _log.warning("wake_ups_interrupted", part=name, error=type(error).__name__)
            # What was to be told is not known to have been heard.
            self._everything = True
            self._wake()
            await asyncio.sleep(retry_s)
            retry_s = min(retry_s * 2, _RETRY_MAX_S)

    async def _listen(self, connection: Connection) -> None:
        await connection.execute(f"LISTEN {CHANNEL}")
        _log.debug("wake_ups_heard")
        # Whatever was told before this moment was not heard.
        self._on_hint(None)
        self._on_free()
        async for notification in connection.notifies():
            self._hear(notification.payload)

    async def _tell(self, connection: Connection) -> None:
        while True:
            await self._news.wait()
            self._news.clear()
            payloads = self._take()
            async with asyncio.timeout(_TELL_TIMEOUT_S):
                await connection.execute(
                    "SELECT pg_notify(%s, payload) FROM unnest(%s::text[]) AS payload",
                    (CHANNEL, payloads),
                )
            if not self._news.is_set():
                self._told.set()
            await asyncio.sleep(_PAUSE_S)

    def _take(self) -> list[str]:
        payloads = []
        if self._free:
            payloads.append(self._encode("free", None))
        if self._everything:
            payloads.append(self._encode("any", None))
        payloads += [self._encode("of", group) for group in _groups(self._waiting)]
        self._waiting.clear()
        self._free = self._everything = False
        return payloads

    def _encode(self, kind: str, content: Any) -> str:
        return json.dumps([self._sender, kind, content], separators=(",", ":"))

    def _hear(self, payload: str) -> None:
        try:
            sender, kind, content = json.loads(payload)
            if sender == self._sender:
                return
            if kind == "free":
                self._on_free()
            elif kind == "of":
                self._on_hint([(tenant, uid) for tenant, uids in content.items() for uid in uids])
            else:
                self._on_hint(None)
        except (ValueError, TypeError, AttributeError):
            # Of a later version, or by a stranger: something has happened.
            self._on_hint(None)


def _groups(sessions: Iterable[Session]) -> Iterator[dict[str, list[str]]]:
    """Yield the sessions by tenant, in groups that fit into a payload."""
    group: dict[str, list[str]] = defaultdict(list)
    size = 0
    for tenant, uid in sessions:
        # As JSON writes it: quotes, brackets and commas around, six letters for one at worst.
        needed = len(json.dumps(uid)) + 1
        needed += 0 if tenant in group else len(json.dumps(tenant)) + 4
        if group and size + needed > PAYLOAD_MAX_BYTES - 64:
            yield group
            group = defaultdict(list)
            size = 0
            needed = len(json.dumps(uid)) + len(json.dumps(tenant)) + 5
        group[tenant].append(uid)
        size += needed
    if group:
        yield group


def _parameters(url: str) -> dict[str, Any]:
    """Return what psycopg connects by, as SQLAlchemy would have it connect."""
    engine = make_engine(url)
    _, parameters = engine.dialect.create_connect_args(engine.url)
    engine.dispose()
    # Types are SQLAlchemy's own business.
    parameters.pop("context", None)
    return {
        **parameters,
        **_KEEPALIVES,
        "connect_timeout": _CONNECT_TIMEOUT_S,
        "application_name": "hansard-wake",
    }
