"""Pages: tokens that only this service can make, and the scan that fills one page."""

from __future__ import annotations

import base64
import binascii
import hmac
import struct
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Generic, TypeVar

from google.protobuf.message import Message

from hansard_server.domain.errors import InvalidPageToken
from hansard_server.domain.limits import (
    MIB,
    PAGE_DEFAULT_ITEMS,
    PAGE_MAX_BYTES,
    PAGE_MAX_ITEMS,
    SCAN_MAX_ROWS,
)
from hansard_server.domain.values import dataclass
from hansard_server.repository.api import CreationScan, Position
from hansard_server.resources.fingerprints import fingerprint

T = TypeVar("T")

_VERSION = b"\x01"
_MAC_BYTES = 16
_CHUNK_FIRST_ROWS = 16
_CHUNK_MAX_ROWS = 512
_CHUNK_AIM_BYTES = 4 * MIB
_MATCHING_MAX_S = 0.1
"""A page ends when its filter has taken so long: a bad pattern on 5,000 texts takes minutes."""


@dataclass(frozen=True, slots=True)
class Query:
    """What a page token is bound to."""

    tenant: str
    method: str
    content: bytes


@dataclass(frozen=True, slots=True)
class Page(Generic[T]):
    """A page of a list; the token is empty on the last one."""

    items: Sequence[T]
    next_token: str


@dataclass(frozen=True, slots=True)
class Scanned(Generic[T]):
    """A page before its token is made: `position` is the last row seen, None at the end."""

    items: tuple[T, ...]
    position: Position | None


class PageTokens:
    """Makes and reads page tokens: opaque, authenticated, bound to their query and tenant."""

    def __init__(self, secret: bytes) -> None:
        """Take the secret that all replicas share."""
        self._secret = secret

    def make(self, query: Query, position: bytes) -> str:
        """Return the token that says where the query's next page begins."""
        token = _VERSION + self._mac(query, position) + position
        return base64.urlsafe_b64encode(token).decode().rstrip("=")

    def read(self, query: Query, token: str) -> bytes | None:
        """Return the position; None for an empty token. Raises InvalidPageToken."""
        if not token:
            return None
        raw = _decode(token)
        mac, position = raw[1 : 1 + _MAC_BYTES], raw[1 + _MAC_BYTES :]
        if raw[:1] != _VERSION or not hmac.compare_digest(mac, self._mac(query, position)):
            raise _invalid_token()
        return position

    def _mac(self, query: Query, position: bytes) -> bytes:
        content = _VERSION
        for part in (query.tenant.encode(), query.method.encode(), query.content, position):
            content += struct.pack(">I", len(part)) + part
        return hmac.digest(self._secret, content, "sha256")[:_MAC_BYTES]


def query_of(tenant: str, request: Message) -> Query:
    """Return what the tokens of a list request are bound to: all of it but token and page size."""
    content = fingerprint(request, "page_token", "page_size")
    return Query(tenant, request.DESCRIPTOR.full_name, content)


def page_limit(page_size: int) -> int:
    """Return how many items a page has at most."""
    return min(page_size, PAGE_MAX_ITEMS) if page_size > 0 else PAGE_DEFAULT_ITEMS


def pack_position(position: Position) -> bytes:
    """Return the position of a list by creation as bytes."""
    return struct.pack(">q", position.created_at_us) + position.uid.encode()


def unpack_position(packed: bytes | None) -> Position | None:
    """Return the position that pack_position packed; None stays None."""
    if packed is None:
        return None
    return Position(struct.unpack(">q", packed[:8])[0], packed[8:].decode())


def scan_page(
    fetch: Callable[[CreationScan], Sequence[T]],
    scan: CreationScan,
    *,
    position: Callable[[T], Position],
    size: Callable[[T], int],
    matches: Callable[[T], bool],
) -> Scanned[T]:
    """Return the page that begins at `scan`, with at most `scan.limit` items.

    The page also ends at 3 MiB with at least one item, after 5,000 rows, and when matching took
    a tenth of a second. Rows are fetched in chunks whose size follows the size of rows, so that
    large ones don't fill memory.
    """
    items: list[T] = []
    page_bytes = rows_seen = bytes_seen = 0
    last: Position | None = scan.after
    matching_s = 0.0
    chunk_rows = _CHUNK_FIRST_ROWS
    while True:
        # One row more than the page takes tells whether there is another page.
        wanted = min(chunk_rows, SCAN_MAX_ROWS - rows_seen, scan.limit - len(items) + 1)
        rows = fetch(replace(scan, after=last, limit=wanted))
        for row in rows:
            row_bytes = size(row)
            bytes_seen += row_bytes
            if len(items) == scan.limit:
                return Scanned(tuple(items), last)
            started = time.perf_counter()
            matched = matches(row)
            matching_s += time.perf_counter() - started
            if matched:
                if items and page_bytes + row_bytes > PAGE_MAX_BYTES:
                    return Scanned(tuple(items), last)
                items.append(row)
                page_bytes += row_bytes
            last = position(row)
            rows_seen += 1
            if matching_s > _MATCHING_MAX_S:
                return Scanned(tuple(items), last)
        if len(rows) < wanted:
            return Scanned(tuple(items), None)
        if rows_seen >= SCAN_MAX_ROWS:
            return Scanned(tuple(items), last)
        fitting = _CHUNK_AIM_BYTES // max(1, bytes_seen // rows_seen)
        chunk_rows = max(1, min(chunk_rows * 4, _CHUNK_MAX_ROWS, fitting))


def _decode(token: str) -> bytes:
    try:
        raw = base64.b64decode(token + "=" * (-len(token) % 4), altchars=b"-_", validate=True)
    except (binascii.Error, ValueError):
        raise _invalid_token() from None
    # One token, one spelling.
    if base64.urlsafe_b64encode(raw).decode().rstrip("=") != token:
        raise _invalid_token()
    return raw


def _invalid_token() -> InvalidPageToken:
    return InvalidPageToken.of_field(
        "page_token", "was not made by this service for this query; begin with the first page"
    )
