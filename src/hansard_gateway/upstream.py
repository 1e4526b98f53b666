"""Calls to the server: by its gRPC port like any client's, with the caller's credentials."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncGenerator, Callable, Iterator
from concurrent.futures import CancelledError
from typing import Any, Final

import grpc
import grpc.aio
from google.protobuf.message import Message
from starlette.requests import Request

from hansard_gateway.contract import Rpc
from hansard_gateway.errors import HttpError, reason_of
from hansard_gateway.settings import MIB, Options

Metadata = tuple[tuple[str, str], ...]

_PASSED_ON: Final = ("x-api-key", "authorization", "traceparent", "tracestate")
_VALUE_MAX_CHARACTERS: Final = 8_192
_FIRST_WAIT_S: Final = 0.05
_LONGEST_WAIT_S: Final = 1.0
_TRANSIENT: Final = frozenset({"", "SERVER_SHUTTING_DOWN", "STREAM_STALLED"})

# A page ends at 3 MiB with at least one event of 1 MiB.
_CHANNEL_OPTIONS: Final = (
    ("grpc.max_receive_message_length", 64 * MIB),
    ("grpc.max_send_message_length", -1),
    ("grpc.keepalive_time_ms", 30_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 1_000),
    ("grpc.use_local_subchannel_pool", 1),
)


def open_channel(
    target: str, credentials: grpc.ChannelCredentials | None = None
) -> grpc.aio.Channel:
    """Return a channel to the server; without credentials it is not encrypted."""
    if credentials is None:
        return grpc.aio.insecure_channel(target, options=_CHANNEL_OPTIONS)
    return grpc.aio.secure_channel(target, credentials, options=_CHANNEL_OPTIONS)


def open_blocking_channel(
    target: str, credentials: grpc.ChannelCredentials | None = None
) -> grpc.Channel:
    """Return a channel as `open_channel` does, for calls that wait in threads."""
    if credentials is None:
        return grpc.insecure_channel(target, options=_CHANNEL_OPTIONS)
    return grpc.secure_channel(target, credentials, options=_CHANNEL_OPTIONS)


def metadata_of(request: Request) -> Metadata:
    """Return what the server is told about the caller. Raises HttpError."""
    pairs = []
    for name in _PASSED_ON:
        for value in request.headers.getlist(name):
            if not value.isascii() or not value.isprintable() or len(value) > _VALUE_MAX_CHARACTERS:
                raise HttpError("unauthorized", [f"the header {name} is not valid"])
            pairs.append((name, value))
    return tuple(pairs)


def new_request_id() -> str:
    """Return an id that no other request has."""
    return f"http_{secrets.token_hex(16)}"


class Stopping:
    """Says that the gateway is stopping, and ends the calls that would keep it."""

    def __init__(self) -> None:
        self.begun = False
        self._calls: set[Any] = set()

    def begin(self) -> None:
        """Begin to stop: streams end now."""
        self.begun = True
        for call in tuple(self._calls):
            call.cancel()

    def watch(self, call: Any) -> None:
        """Have the call cancelled when the gateway stops."""
        self._calls.add(call)
        if self.begun:
            call.cancel()

    def forget(self, call: Any) -> None:
        """Forget a call that has ended."""
        self._calls.discard(call)


class Broken(Exception):  # noqa: N818 - reads as what happened
    """A stream broke, and may be taken up again. `cause` is None when the gateway is stopping."""

    def __init__(self, cause: grpc.aio.AioRpcError | None) -> None:
        super().__init__("the stream broke")
        self.cause = cause


class UploadFailed(Exception):  # noqa: N818 - reads as what happened
    """An upload was refused. Has what an AioRpcError has."""

    def __init__(self, call: Any) -> None:
        super().__init__("the upload was refused")
        self._call = call

    def code(self) -> grpc.StatusCode:
        """Return the status."""
        code: grpc.StatusCode = self._call.code()
        return code

    def details(self) -> str:
        """Return the status in words."""
        return str(self._call.details() or "")

    def trailing_metadata(self) -> Any:
        """Return the metadata that came with the status."""
        return self._call.trailing_metadata()


class Patience:
    """How long, and how often, something is tried again."""

    def __init__(self, seconds: float) -> None:
        """Begin with this much."""
        self._seconds = seconds
        self._loop = asyncio.get_running_loop()
        self.progress()

    def progress(self) -> None:
        """Something went well: begin anew."""
        self._until = self._loop.time() + self._seconds
        self._wait_s = _FIRST_WAIT_S

    async def wait(self) -> bool:
        """Wait a while; False when there is none left."""
        if self._loop.time() + self._wait_s > self._until:
            return False
        await asyncio.sleep(self._wait_s)
        self._wait_s = min(self._wait_s * 2, _LONGEST_WAIT_S)
        return True


class Upstream:
    """The server, as the gateway calls it."""

    def __init__(
        self,
        channel: grpc.aio.Channel,
        connect: Callable[[], grpc.Channel],
        options: Options,
        stopping: Stopping,
    ) -> None:
        """Call through the channel, which the caller closes; uploads by what `connect` makes."""
        self.options = options
        self.stopping = stopping
        self._channel = channel
        self._connect = connect
        self._blocking: grpc.Channel | None = None
        # Each has a thread of grpc's.
        self._uploads = asyncio.Semaphore(options.uploads_max)
        self._methods: dict[str, Any] = {}

    def patience(self) -> Patience:
        """Return as much patience as a broken call gets."""
        return Patience(self.options.patience_s)

    async def call(self, rpc: Rpc, request: Message, metadata: Metadata) -> Any:
        """Return the answer. A call that is safe to repeat is repeated when the server restarts.

        Raises grpc.aio.AioRpcError.
        """
        method = self._method(rpc, self._channel.unary_unary)
        # What has a request_id is done once, however often it is sent.
        safe = rpc.reads or bool(getattr(request, "request_id", ""))
        patience = self.patience() if safe else None
        while True:
            try:
                return await method(request, metadata=metadata, timeout=self.options.call_timeout_s)
            except grpc.aio.AioRpcError as error:
                if (
                    patience is None
                    or self.stopping.begun
                    or not may_pass(error)
                    or not await patience.wait()
                ):
                    raise

    async def stream(
        self, rpc: Rpc, request: Message, metadata: Metadata
    ) -> AsyncGenerator[Any, None]:
        """Yield the answers. Raises Broken when it may be taken up again, else AioRpcError."""
        call = self._method(rpc, self._channel.unary_stream)(request, metadata=metadata)
        self.stopping.watch(call)
        try:
            async for answer in call:
                yield answer
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if self.stopping.begun and not (task and task.cancelling()):
                raise Broken(None) from None
            raise
        except grpc.aio.AioRpcError as error:
            if self.stopping.begun:
                raise Broken(None) from None
            if error.code() is grpc.StatusCode.UNAVAILABLE:
                raise Broken(error) from None
            raise
        finally:
            self.stopping.forget(call)
            call.cancel()

    async def upload(
        self, rpc: Rpc, requests: AsyncGenerator[Message, None], metadata: Metadata
    ) -> Any:
        """Return the answer to a stream of requests, taken as fast as the server takes them.

        Raises UploadFailed, Broken.
        """
        # grpc's asyncio client forgets the status of a call that is answered while it writes, one
        # time in five: "Internal error from Core". The other client does not.
        loop = asyncio.get_running_loop()
        method = self._open_blocking().stream_unary(
            rpc.path,
            request_serializer=rpc.request.SerializeToString,
            response_deserializer=rpc.response.FromString,
        )
        async with self._uploads:
            feed = _Feed(requests, loop)
            call: Any = method.future(feed.messages(), metadata=metadata)
            ended = asyncio.Event()
            call.add_done_callback(lambda _: loop.call_soon_threadsafe(ended.set))
            feed.call = call
            self.stopping.watch(call)
            try:
                await ended.wait()
            finally:
                self.stopping.forget(call)
                call.cancel()
                await feed.stop()
        if call.code() is grpc.StatusCode.OK:
            return call.result()
        if self.stopping.begun:
            raise Broken(None)
        raise UploadFailed(call)

    def close(self) -> None:
        """Close what this opened."""
        if self._blocking is not None:
            self._blocking.close()

    def _open_blocking(self) -> grpc.Channel:
        if self._blocking is None:
            self._blocking = self._connect()
        return self._blocking

    def unary(self, path: str, request: Any, response: Any) -> Any:
        """Return a method that is not of the contract, such as the health service's."""
        return self._channel.unary_unary(
            path,
            request_serializer=request.SerializeToString,
            response_deserializer=response.FromString,
        )

    def _method(self, rpc: Rpc, make: Callable[..., Any]) -> Any:
        method = self._methods.get(rpc.path)
        if method is None:
            method = self._methods[rpc.path] = make(
                rpc.path,
                request_serializer=rpc.request.SerializeToString,
                response_deserializer=rpc.response.FromString,
            )
        return method


class _Feed:
    """Requests that are made on the loop, for a thread of grpc's that sends them.

    Attributes:
        call: what is cancelled when the requests fail, so that nobody takes them for complete.
    """

    def __init__(
        self, requests: AsyncGenerator[Message, None], loop: asyncio.AbstractEventLoop
    ) -> None:
        self.call: Any = None
        self._requests = requests
        self._loop = loop
        self._task: asyncio.Task[Any] | None = None
        self._stopped = False

    def messages(self) -> Iterator[Message]:
        """Yield the requests, each when it can be sent; in grpc's thread."""
        while not self._stopped:
            taking = asyncio.run_coroutine_threadsafe(self._take(), self._loop)
            try:
                request = taking.result()
            except CancelledError:
                return
            if request is None:
                return
            yield request

    async def stop(self) -> None:
        """Take no more, and wait until nothing is being taken; on the loop."""
        self._stopped = True
        if self._task is not None and not self._task.done():
            self._task.cancel()
            await asyncio.wait([self._task])

    async def _take(self) -> Message | None:
        self._task = asyncio.current_task()
        if self._stopped:
            return None
        try:
            return await anext(self._requests, None)
        except Exception:  # noqa: BLE001 - whoever made the requests keeps it
            self.call.cancel()
            return None


def may_pass(error: grpc.aio.AioRpcError) -> bool:
    """Tell whether the server was gone for a moment, so that the same call may succeed."""
    return error.code() is grpc.StatusCode.UNAVAILABLE and reason_of(error) in _TRANSIENT
