"""gRPC for callers on an event loop."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from typing import Any, Generic, TypeVar

import grpc
import grpc.aio

from hansard_client.channels import Endpoints
from hansard_client.errors import ClientClosed, HansardError, from_call
from hansard_client.rpcs import Reply, Request, Rpc

Made = TypeVar("Made")
Item = TypeVar("Item")


class AsyncTransport:
    """See `link.Transport`. Its channels belong to the loop of the first call."""

    def __init__(self, endpoints: Endpoints) -> None:
        self._endpoints = endpoints
        self._channels: dict[str, grpc.aio.Channel] = {}
        self._methods: dict[tuple[str, str], Any] = {}
        self._closing = asyncio.Event()

    @property
    def closed(self) -> bool:
        """See `link.Transport`."""
        return self._closing.is_set()

    @property
    def addresses(self) -> Sequence[str]:
        """See `link.Transport`."""
        return self._endpoints.addresses

    async def close(self) -> None:
        """End all calls."""
        self._closing.set()
        channels, self._channels, self._methods = self._channels, {}, {}
        for channel in channels.values():
            await channel.close()

    async def unary(
        self, rpc: Rpc[Request, Reply], request: Request, *, timeout_s: float, wait: bool
    ) -> Reply:
        """See `link.Transport`."""
        address, method = self._method(rpc)
        try:
            reply: Reply = await method(
                request,
                timeout=timeout_s,
                metadata=self._endpoints.metadata,
                wait_for_ready=wait,
            )
        except grpc.aio.AioRpcError as error:
            raise self._failure(error, address) from None
        except (asyncio.CancelledError, grpc.aio.UsageError):
            self._check_open()
            raise
        return reply

    def stream(
        self, rpc: Rpc[Request, Reply], request: Request, *, timeout_s: float | None = None
    ) -> AsyncReading[Reply]:
        """See `link.Transport`."""
        address, method = self._method(rpc)
        call = method(request, timeout=timeout_s, metadata=self._endpoints.metadata)
        return AsyncReading(call, lambda error: self._failure(error, address), self._check_open)

    async def upload(self, rpc: Rpc[Request, Reply], parts: Iterator[Request]) -> Reply:
        """See `link.Transport`."""
        address, method = self._method(rpc)
        failures: list[BaseException] = []

        async def told() -> AsyncIterator[Request]:
            try:
                while (part := await asyncio.to_thread(next, parts, None)) is not None:
                    yield part
            except Exception as error:
                failures.append(error)
                # grpc ends the call then, and does not finish it: the server must not take what
                # came for the whole.
                raise

        call = method(told(), metadata=self._endpoints.metadata)
        try:
            reply: Reply = await call
        except grpc.aio.AioRpcError as error:
            if failures:
                raise failures[0] from None
            raise self._failure(error, address) from None
        except (asyncio.CancelledError, grpc.aio.UsageError):
            if failures and not _cancelling():
                raise failures[0] from None
            self._check_open()
            raise
        finally:
            call.cancel()
        return reply

    async def sleep(self, seconds: float) -> None:
        """See `link.Transport`."""
        try:
            async with asyncio.timeout(seconds):
                await self._closing.wait()
        except TimeoutError:
            pass

    async def run(self, function: Callable[[], Made]) -> Made:
        """See `link.Transport`."""
        return await asyncio.to_thread(function)

    def leave(self, address: str) -> bool:
        """See `link.Transport`."""
        return self._endpoints.leave(address)

    def _method(self, rpc: Rpc[Request, Reply]) -> tuple[str, Any]:
        """Return what makes the call at the address in use, and the address."""
        if self.closed:
            raise ClientClosed("the client is closed")
        address = self._endpoints.current
        method = self._methods.get((address, rpc.path))
        if method is None:
            method = self._methods[address, rpc.path] = rpc.on(self._channel(address))
        return address, method

    def _channel(self, address: str) -> grpc.aio.Channel:
        channel = self._channels.get(address)
        if channel is None:
            options = self._endpoints.options(address)
            credentials = self._endpoints.credentials
            channel = self._channels[address] = (
                grpc.aio.secure_channel(address, credentials, options)
                if credentials
                else grpc.aio.insecure_channel(address, options)
            )
        return channel

    def _failure(self, error: Any, address: str) -> HansardError:
        if self.closed:
            return ClientClosed("the client was closed before the call was complete")
        failure = from_call(error, str(self._endpoints))
        failure.address = address
        return failure

    def _check_open(self) -> None:
        """Raise ClientClosed when that is why a call was cancelled."""
        if self.closed and not _cancelling():
            raise ClientClosed("the client was closed before the call was complete") from None


class AsyncReading(Generic[Item]):
    """See `link.Reading`."""

    def __init__(
        self, call: Any, failure: Callable[[Any], HansardError], check_open: Callable[[], None]
    ) -> None:
        self._call = call
        self._failure = failure
        self._check_open = check_open

    async def next(self) -> Item | None:
        """See `link.Reading`."""
        try:
            item = await self._call.read()
        except grpc.aio.AioRpcError as error:
            raise self._failure(error) from None
        except (asyncio.CancelledError, grpc.aio.UsageError):
            self._check_open()
            raise
        if item is grpc.aio.EOF:
            return None
        made: Item = item
        return made

    def cancel(self) -> None:
        """See `link.Reading`."""
        self._call.cancel()


def _cancelling() -> bool:
    """Tell whether the task itself is being cancelled, not only a call in it."""
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0
