"""gRPC for callers that wait: each method returns when it is done, and suspends nobody."""

from __future__ import annotations

import threading
from collections.abc import AsyncGenerator, Callable, Coroutine, Generator, Iterator, Sequence
from typing import Any, Generic, TypeVar

import grpc

from hansard_client.channels import Endpoints
from hansard_client.errors import ClientClosed, HansardError, from_call
from hansard_client.rpcs import Reply, Request, Rpc

Made = TypeVar("Made")
Item = TypeVar("Item")


def run(coroutine: Coroutine[Any, Any, Made]) -> Made:
    """Return what a coroutine returns that awaits nothing but the methods of this transport."""
    try:
        coroutine.send(None)
    except StopIteration as done:
        made: Made = done.value
        return made
    coroutine.close()
    raise RuntimeError("the coroutine awaits something else than its transport")


def iterate(items: AsyncGenerator[Item, None]) -> Generator[Item, None, None]:
    """Yield what such an asynchronous generator yields."""
    ended = object()

    async def following() -> Item | object:
        return await anext(items, ended)

    try:
        while (item := run(following())) is not ended:
            yield item  # type: ignore[misc] # not `ended`
    finally:
        # Not left to the garbage collector: that would hand it to a loop, if there is one.
        run(_close(items))


async def _close(items: AsyncGenerator[Item, None]) -> None:
    await items.aclose()


class BlockingTransport:
    """See `link.Transport`."""

    def __init__(self, endpoints: Endpoints) -> None:
        self._endpoints = endpoints
        self._lock = threading.Lock()
        self._channels: dict[str, grpc.Channel] = {}
        self._methods: dict[tuple[str, str], Any] = {}
        self._closing = threading.Event()

    @property
    def closed(self) -> bool:
        """See `link.Transport`."""
        return self._closing.is_set()

    @property
    def addresses(self) -> Sequence[str]:
        """See `link.Transport`."""
        return self._endpoints.addresses

    def close(self) -> None:
        """End all calls, from whichever thread."""
        with self._lock:
            self._closing.set()
            channels, self._channels, self._methods = self._channels, {}, {}
        for channel in channels.values():
            channel.close()

    async def unary(
        self, rpc: Rpc[Request, Reply], request: Request, *, timeout_s: float, wait: bool
    ) -> Reply:
        """See `link.Transport`."""
        address, method = self._method(rpc)
        try:
            reply: Reply = method(
                request,
                timeout=timeout_s,
                metadata=self._endpoints.metadata,
                wait_for_ready=wait,
            )
        except grpc.RpcError as error:
            raise self._failure(error, address) from None
        except ValueError:
            raise self._unless_closed() from None
        return reply

    def stream(
        self, rpc: Rpc[Request, Reply], request: Request, *, timeout_s: float | None = None
    ) -> BlockingReading[Reply]:
        """See `link.Transport`."""
        address, method = self._method(rpc)
        try:
            call = method(request, timeout=timeout_s, metadata=self._endpoints.metadata)
        except ValueError:
            raise self._unless_closed() from None
        return BlockingReading(call, lambda error: self._failure(error, address))

    async def upload(self, rpc: Rpc[Request, Reply], parts: Iterator[Request]) -> Reply:
        """See `link.Transport`."""
        address, method = self._method(rpc)
        begun = threading.Event()
        failures: list[BaseException] = []
        call: Any = None

        def told() -> Iterator[Request]:
            # grpc takes the parts in a thread of its own.
            try:
                yield from parts
            except Exception as error:  # noqa: BLE001 - it is raised again below
                failures.append(error)
                begun.wait()
                # Ended, not finished: the server must not take what came for the whole.
                call.cancel()

        try:
            call = method.future(told(), metadata=self._endpoints.metadata)
        except ValueError:
            raise self._unless_closed() from None
        begun.set()
        try:
            reply: Reply = call.result()
        except (grpc.RpcError, grpc.FutureCancelledError) as error:
            if failures:
                raise failures[0] from None
            raise self._failure(
                call if isinstance(error, grpc.FutureCancelledError) else error, address
            ) from None
        except BaseException:
            call.cancel()
            raise
        return reply

    async def sleep(self, seconds: float) -> None:
        """See `link.Transport`."""
        self._closing.wait(seconds)

    async def run(self, function: Callable[[], Made]) -> Made:
        """See `link.Transport`."""
        return function()

    def leave(self, address: str) -> bool:
        """See `link.Transport`."""
        return self._endpoints.leave(address)

    def _method(self, rpc: Rpc[Request, Reply]) -> tuple[str, Any]:
        """Return what makes the call at the address in use, and the address."""
        address = self._endpoints.current
        with self._lock:
            if self.closed:
                raise ClientClosed("the client is closed")
            method = self._methods.get((address, rpc.path))
            if method is None:
                method = rpc.on(self._channel(address))
                self._methods[address, rpc.path] = method
        return address, method

    def _channel(self, address: str) -> grpc.Channel:
        channel = self._channels.get(address)
        if channel is None:
            options = self._endpoints.options(address)
            credentials = self._endpoints.credentials
            channel = self._channels[address] = (
                grpc.secure_channel(address, credentials, options)
                if credentials
                else grpc.insecure_channel(address, options)
            )
        return channel

    def _failure(self, error: Any, address: str) -> HansardError:
        if self.closed:
            return ClientClosed("the client was closed before the call was complete")
        failure = from_call(error, str(self._endpoints))
        failure.address = address
        return failure

    def _unless_closed(self) -> Exception:
        """Return what a channel that takes no call means; to be called while that is handled."""
        if self.closed:
            return ClientClosed("the client is closed")
        return RuntimeError("the channel takes no call")


class BlockingReading(Generic[Item]):
    """See `link.Reading`."""

    def __init__(self, call: Any, failure: Callable[[Any], HansardError]) -> None:
        self._call = call
        self._failure = failure

    async def next(self) -> Item | None:
        """See `link.Reading`."""
        try:
            item: Item = next(self._call)
        except StopIteration:
            return None
        except grpc.RpcError as error:
            raise self._failure(error) from None
        return item

    def cancel(self) -> None:
        """See `link.Reading`."""
        self._call.cancel()
