"""Updates and deletes that may be met by a failure half way: what became of them is looked at."""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Iterable
from typing import Any, TypeVar

from google.protobuf.message import Message

from hansard_client.errors import EtagMismatch, HansardError, NotFound
from hansard_client.link import Link, Patience, may_pass
from hansard_client.operations.values import same_fields
from hansard_client.rpcs import Reply, Request, Rpc

AnyResource = TypeVar("AnyResource", bound=Message)


async def update(
    link: Link,
    rpc: Rpc[Request, AnyResource],
    request: Request,
    get: Callable[[], Coroutine[Any, Any, AnyResource]],
    wanted: tuple[AnyResource, str, Iterable[str]],
) -> AnyResource:
    """Return the resource after an update; `wanted`: its fields, the etag if any, the paths.

    Without an etag it is not repeated once it may have taken effect, since that might undo what
    somebody else has written meanwhile. With one that can't happen, and an etag that no longer
    matches may be our own doing. Raises HansardError.
    """
    fields, etag, paths = wanted
    try:
        return await link.call(rpc, request, repeatable=bool(etag))
    except EtagMismatch as error:
        if not error.repeated:
            raise
        now = await get()
        if not same_fields(now, fields, paths):
            raise
        return now


async def delete(
    link: Link,
    rpc: Rpc[Request, Reply],
    request: Request,
    get: Callable[[], Coroutine[Any, Any, AnyResource]],
    uid: str,
    missing: NotFound,
) -> None:
    """Delete a resource that has a key, in this incarnation alone.

    The key may be given to another one while an attempt's outcome is not known, so it is looked at
    before each. `uid`: the incarnation; empty: the one that has the key now. `missing` is raised
    when another one has it. Raises HansardError.
    """
    first = _uid(await get())
    if uid not in {"", first}:
        raise missing
    patience = Patience(link)
    while True:
        try:
            await link.call(rpc, request, repeatable=False)
        except HansardError as error:
            if not may_pass(error):
                raise
            await patience.wait(error)
        else:
            return
        try:
            if _uid(await get()) != first:
                return
        except NotFound:
            return


def _uid(resource: Message) -> str:
    uid: str = resource.uid  # type: ignore[attr-defined] # agents and sessions have one
    return uid
