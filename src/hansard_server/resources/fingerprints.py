"""What a request stands for, in 32 bytes, and that it is done once."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import TypeVar

from google.protobuf.message import Message

from hansard_server.domain.errors import DomainError, RequestIdReused
from hansard_server.domain.records import Claim, Claimed

T = TypeVar("T")
M = TypeVar("M", bound=Message)


def fingerprint(request: Message, *without: str) -> bytes:
    """Return the SHA-256 of what the request says, apart from the fields named.

    It is taken from the parsed message, since equal messages may have different bytes on the wire;
    what this server does not know has no effect and does not count.
    """
    content = type(request)()
    content.CopyFrom(request)
    content.DiscardUnknownFields()
    for name in without:
        content.ClearField(name)
    return hashlib.sha256(content.SerializeToString(deterministic=True)).digest()


def claim_of(request_id: str, content: Message) -> Claim | None:
    """Return the claim of a request; None when it has no request_id."""
    if not request_id:
        return None
    return Claim(request_id, fingerprint(content, "request_id"))


def first_answer(claimed: Claimed[T] | None, claim: Claim) -> T | None:
    """Return what the claim made before, if it did. Raises RequestIdReused."""
    if claimed is None:
        return None
    if claimed.fingerprint != claim.fingerprint:
        raise RequestIdReused("the request_id was used for a request with another content")
    return claimed.first_answer


def answer_once(find: Callable[[], T | None], make: Callable[[], T], taken: type[DomainError]) -> T:
    """Return what `find` finds of an earlier run of the request, else what `make` makes.

    Where that is `taken`, the same request may have made it after it was looked for: a transaction
    sees what others commit meanwhile. Raises what `make` raises.
    """
    first = find()
    if first is not None:
        return first
    try:
        return make()
    except taken:
        first = find()
        if first is None:
            raise
        return first
