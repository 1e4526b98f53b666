"""How calls are made and made again: the seam to gRPC, and the patience above it.

Everything above this seam is written once, as coroutines that await nothing but a transport's
methods. The asynchronous transport lets a loop run them. The blocking transport's methods return
without ever suspending, so one step runs such a coroutine to its end (`blocking.run`).
"""

from __future__ import annotations

import logging
import random
import time
from collections.abc import AsyncGenerator, Callable, Iterator, Sequence
from typing import Final, Generic, Protocol, TypeVar

import grpc
from google.protobuf.message import Message

from hansard_client.errors import (
    ClientClosed,
    HansardError,
    ServerShuttingDown,
    StoreUnavailable,
    Unreachable,
)
from hansard_client.rpcs import Repeat, Reply, Request, Rpc

FIRST_WAIT_S: Final = 0.1
LONGEST_WAIT_S: Final = 2.0
PAGE_MAX_ITEMS: Final = 1_000

# Codes with which a connection may break; with a reason of Hansard's they are answers.
_BREAKS = frozenset(
    {
        grpc.StatusCode.UNAVAILABLE,
        grpc.StatusCode.CANCELLED,
        grpc.StatusCode.UNKNOWN,
        grpc.StatusCode.INTERNAL,
        grpc.StatusCode.DEADLINE_EXCEEDED,
    }
)
# With a time to come back these say that the call was refused and did nothing.
_REFUSALS = frozenset({grpc.StatusCode.RESOURCE_EXHAUSTED, grpc.StatusCode.ABORTED})

_log = logging.getLogger("hansard_client")

Item = TypeVar("Item")
Made = TypeVar("Made")
Read_co = TypeVar("Read_co", covariant=True)


class Reading(Protocol, Generic[Read_co]):
    """The answers of one streaming call."""

    async def next(self) -> Read_co | None:
        """Return the next answer, or None after the last one. Raises HansardError."""
        ...

    def cancel(self) -> None:
        """End the call, whatever has come of it; more than once is well."""
        ...


class Transport(Protocol):
    """Makes calls, each once, at the address that is in use."""

    @property
    def closed(self) -> bool:
        """No more calls are made."""
        ...

    @property
    def addresses(self) -> Sequence[str]:
        """Where servers are, host:port."""
        ...

    async def unary(
        self, rpc: Rpc[Request, Reply], request: Request, *, timeout_s: float, wait: bool
    ) -> Reply:
        """Return the answer. With `wait`, a connection is waited for. Raises HansardError."""
        ...

    def stream(
        self, rpc: Rpc[Request, Reply], request: Request, *, timeout_s: float | None = None
    ) -> Reading[Reply]:
        """Begin a call that answers with a stream. Raises ClientClosed."""
        ...

    async def upload(self, rpc: Rpc[Request, Reply], parts: Iterator[Request]) -> Reply:
        """Return the answer to a stream. Raises HansardError, and what the iterator raises."""
        ...

    async def sleep(self, seconds: float) -> None:
        """Wait so long, or until the transport is closed."""
        ...

    async def run(self, function: Callable[[], Made]) -> Made:
        """Return what the function returns, which may wait for files."""
        ...

    def leave(self, address: str) -> bool:
        """Use another address than this one from now on; tell whether there is another."""
        ...


class Link:
    """Calls that outlast failures, as long as repeating them is safe.

    Attributes:
        transport: makes each attempt.
        timeout_s: how long one attempt of a unary call may take.
        patience_s: how long failures are met by trying again.
        first_contact_s: the same until a server has answered for the first time.
        contacted: a server has answered.
    """

    def __init__(
        self,
        transport: Transport,
        *,
        timeout_s: float,
        patience_s: float,
        first_contact_s: float,
    ) -> None:
        self.transport = transport
        self.timeout_s = timeout_s
        self.patience_s = patience_s
        self.first_contact_s = first_contact_s
        self.contacted = False

    async def call(
        self, rpc: Rpc[Request, Reply], request: Request, *, repeatable: bool | None = None
    ) -> Reply:
        """Return the answer of a unary call.

        `repeatable`: the call may be made again when it is not known whether it took effect;
        by default what the contract says of it. Raises HansardError, whose `repeated` tells
        whether an attempt before may have taken effect.
        """
        if repeatable is None:
            repeatable = rpc.may_repeat(request) is not Repeat.CARE
        patience = Patience(self, repeatable=repeatable)
        while True:
            try:
                # A call that is not repeated waits for a connection instead: then it fails only
                # after it has gone out.
                reply = await self.transport.unary(
                    rpc, request, timeout_s=patience.attempt_s(), wait=not repeatable
                )
            except HansardError as error:
                await patience.wait(error)
            else:
                self.contacted = True
                return reply

    async def pages(
        self,
        rpc: Rpc[Request, Reply],
        request: Request,
        items: Callable[[Reply], Sequence[Item]],
        limit: int | None,
    ) -> AsyncGenerator[Item, None]:
        """Yield the items of all pages, at most `limit` of them. Changes the request."""
        if limit is not None and limit < 1:
            return
        page: Message = request
        given = 0
        while True:
            if limit is not None:
                left = min(PAGE_MAX_ITEMS, limit - given)
                page.page_size = min(page.page_size or left, left)  # type: ignore[attr-defined]
            reply = await self.call(rpc, request)
            for item in items(reply):
                yield item
                given += 1
                if given == limit:
                    return
            token: str = reply.next_page_token  # type: ignore[attr-defined]
            if not token:
                return
            page.page_token = token  # type: ignore[attr-defined]


class Patience:
    """Decides after each failure of one call: wait and try again, or give up.

    What counts is the time without a sign of life: the waits, and attempts of which nothing came.

    Attributes:
        heard: the attempt under way has had an answer.
    """

    def __init__(self, link: Link, *, repeatable: bool = True, conflicts: bool = True) -> None:
        """Be patient for one call.

        `repeatable`: it may be made again when its outcome is not known. `conflicts`: ABORTED is
        waited out, when the server says for how long.
        """
        self._link = link
        self._repeatable = repeatable
        self._conflicts = conflicts
        self._doubtful = False
        self._tries = 0
        self.progress()
        self.begin()

    def begin(self) -> None:
        """Note that an attempt begins."""
        self._began = time.monotonic()
        self.heard = False

    def hear(self) -> None:
        """Note that the attempt has an answer, perhaps one that has been told before."""
        self.heard = True
        self._link.contacted = True

    def progress(self) -> None:
        """Note that something new came."""
        self._spent_s = 0.0
        self._wait_s = FIRST_WAIT_S

    def attempt_s(self) -> float:
        """Return how long the next attempt of a unary call may take."""
        left = max(self._limit_s() - self._spent_s, FIRST_WAIT_S)
        return min(self._link.timeout_s, left) if self._tries else self._link.timeout_s

    async def wait(self, error: HansardError) -> None:
        """Wait before the next attempt; raise the error when there is to be none."""
        link = self._link
        if error.reason:
            link.contacted = True
        self._tries += 1
        if not self.heard:
            self._spent_s += time.monotonic() - self._began
        refused = is_refusal(error)
        error.repeated = self._doubtful
        self._doubtful |= not refused and may_pass(error)
        if link.transport.closed:
            raise ClientClosed("the client was closed before the call was complete") from error
        conflict = error.code is grpc.StatusCode.ABORTED
        if not (refused and (self._conflicts or not conflict)) and not (
            self._repeatable and may_pass(error)
        ):
            raise error
        elsewhere = bool(error.address) and is_of_server(error)
        elsewhere = elsewhere and link.transport.leave(error.address)
        wait_s = self._wait_s * random.uniform(0.5, 1)  # noqa: S311 - no secret
        if error.retry_after_s is not None and not elsewhere:
            wait_s = max(wait_s, error.retry_after_s * random.uniform(1, 1.2))  # noqa: S311
        untried = not link.contacted and self._tries < len(link.transport.addresses)
        if self._spent_s + wait_s > self._limit_s() and not untried:
            raise error
        _log.info("try %d failed, the next one in %.1f s: %s", self._tries, wait_s, error)
        await link.transport.sleep(wait_s)
        if link.transport.closed:
            raise ClientClosed("the client was closed before the call was complete") from error
        self._spent_s += wait_s
        self._wait_s = min(2 * self._wait_s, LONGEST_WAIT_S)
        self.begin()

    def _limit_s(self) -> float:
        link = self._link
        return link.patience_s if link.contacted else link.first_contact_s


def may_pass(error: HansardError) -> bool:
    """Tell whether the same call may succeed later, though it may have taken effect already."""
    if isinstance(error, ClientClosed):
        return False
    return error.code is grpc.StatusCode.UNAVAILABLE or (error.code in _BREAKS and not error.reason)


def is_refusal(error: HansardError) -> bool:
    """Tell whether the server did nothing, and says that the same call may succeed later."""
    return isinstance(error, ServerShuttingDown) or (
        error.code in _REFUSALS and error.retry_after_s is not None
    )


def is_of_server(error: HansardError) -> bool:
    """Tell whether another server may do better."""
    return (
        isinstance(error, (ServerShuttingDown, StoreUnavailable, Unreachable)) or not error.reason
    )
