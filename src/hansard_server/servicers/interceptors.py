"""What every call goes through, whatever it streams: the log line, errors, the drain, (in
`entrance`) who calls and whether that is allowed, and (in `validation`) parsing and rules. All four
kinds of call are wrapped by one function.
"""

from __future__ import annotations

import asyncio
import inspect
import re
import secrets
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any, Protocol, TypeAlias

import grpc
import grpc.aio
import structlog

from hansard_server.domain.access import Caller
from hansard_server.domain.errors import DomainError, Internal
from hansard_server.domain.values import dataclass
from hansard_server.lifecycle import Calls, Drain
from hansard_server.servicers.stalls import Stalls
from hansard_server.servicers.status import DETAILS_KEY, to_wire
from hansard_server.telemetry import EndedCall, log_call

_log = structlog.get_logger("hansard.calls")

REQUEST_ID_KEY = "x-request-id"
ABORT_TIMEOUT_S = 2.0
"""A call that ends with an error waits so long until its client has been told."""
_SANE_REQUEST_ID = re.compile(r"[!-~]{1,128}\Z")
ORDER = (
    *("admission", "access_log", "errors", "drain", "authentication"),
    *("key_limits", "request", "validation", "authorization", "agent_rates"),
)
"""The names of the interceptors, from the outside in."""
# What probes ask all the time; its lines say nothing as long as it works.
_PROBES = "/grpc.health.v1.Health/"


@dataclass(frozen=True, slots=True, kw_only=True)
class Method:
    """A method of a service, as its generated code describes it."""

    name: str
    request_streaming: bool
    response_streaming: bool
    behavior: Callable[..., Any]
    parse: Callable[[bytes], Any]
    probe: bool
    yields: bool


@dataclass(slots=True)
class Call:
    """One call.

    `request` is a stream of bytes; `admission.RequestReader` makes it bytes where the method has
    one request, and validation makes bytes messages. `caller` is known from authentication on, and
    never of calls that anybody may make.
    """

    method: Method
    context: grpc.aio.ServicerContext[Any, Any]
    request: Any
    request_id: str = ""
    caller: Caller | None = None
    code: str = "OK"
    reason: str | None = None
    metadata: Any = ()
    """As the client sent it; grpc makes it anew whenever it is asked."""
    _when_answered: list[Callable[[], None]] | None = None

    def when_answered(self, do: Callable[[], None]) -> None:
        """Have `do` called after the first response of a stream."""
        if self._when_answered is None:
            self._when_answered = []
        self._when_answered.append(do)

    def answered(self) -> None:
        """Say that a response of a stream was written."""
        if self._when_answered is not None:
            for do in self._when_answered:
                do()
            self._when_answered = None


Proceed = Callable[[Call], Awaitable[Any]]
Handler: TypeAlias = "grpc.RpcMethodHandler[Any, Any]"


class Interceptor(Protocol):
    """A layer around calls of every kind: a stream's responses are written further inside, so that
    what is returned matters for unary responses only.
    """

    @property
    def name(self) -> str:
        """Its name in ORDER."""
        ...

    async def __call__(self, call: Call, proceed: Proceed) -> Any:
        """Serve the call by `proceed`, and answer what that answers."""
        ...


class AccessLog:
    """Counts the calls, gives each an id, and writes one line for each; never what it carried."""

    name = "access_log"

    def __init__(self, calls: Calls) -> None:
        self._calls = calls

    async def __call__(self, call: Call, proceed: Proceed) -> Any:
        """Serve the call and log how it went."""
        started = time.perf_counter()
        call.metadata = call.context.invocation_metadata() or ()
        call.request_id = _request_id(call.metadata)
        call.context.set_trailing_metadata(((REQUEST_ID_KEY, call.request_id),))
        # Streams last; who sends one message and waits for one is in a hurry.
        unanswered = not (call.method.request_streaming or call.method.response_streaming)
        with self._calls:
            self._calls.unanswered += unanswered
            try:
                return await proceed(call)
            except BaseException:
                # Errors that have a code were noted where they were made; all else is a client that
                # went away, or a call that the stopping server cut off.
                if call.code == "OK":
                    call.code = "CANCELLED"
                raise
            finally:
                self._calls.unanswered -= unanswered
                self._write(call, time.perf_counter() - started)

    def _write(self, call: Call, seconds: float) -> None:
        caller = call.caller
        ended = EndedCall(
            method=call.method.name,
            code=call.code,
            reason=call.reason,
            duration_ms=round(seconds * 1_000, 2),
            request_id=call.request_id,
            peer=call.context.peer(),
            tenant=caller.tenant if caller else None,
            key_id=(caller.key_id or None) if caller else None,
        )
        log_call(ended, quiet=call.code == "OK" and call.method.probe)


class Errors:
    """Turns exceptions into statuses with details; what nobody foresaw is INTERNAL with an id."""

    name = "errors"

    async def __call__(self, call: Call, proceed: Proceed) -> Any:
        """Serve the call, or end it with a status."""
        try:
            return await proceed(call)
        except DomainError as error:
            failure = error
        except (grpc.aio.AbortError, grpc.aio.InternalError):
            # A status was sent already; or the client has gone, and writing to it failed.
            raise
        except Exception:  # noqa: BLE001 - logged with its traceback
            error_id = secrets.token_hex(8)
            _log.exception(
                "unexpected error",
                error_id=error_id,
                method=call.method.name,
                request_id=call.request_id,
            )
            failure = Internal(
                f"internal error {error_id}; the server's log has more", metadata={"id": error_id}
            )
        return await _abort(call, failure)


class DrainGate:
    """Answers new calls of a stopping server with SERVER_SHUTTING_DOWN; probes pass."""

    name = "drain"

    def __init__(self, drain: Drain) -> None:
        self._drain = drain

    async def __call__(self, call: Call, proceed: Proceed) -> Any:
        """Serve the call. Raises ServerShuttingDown."""
        if not call.method.probe:
            self._drain.check()
        return await proceed(call)


class Pipeline(grpc.GenericRpcHandler):
    """Has the handler of every method, wrapped once; unknown methods are left to grpc.

    The generated functions that add a servicer to a server take it for one. grpc itself hears of
    one handler for all: it keeps a place for the next call of each method that it knows by name,
    and goes through all of them for every call that comes. Probes alone have places of their own,
    so that they don't wait behind others.
    """

    def __init__(self, interceptors: Sequence[Interceptor], stalls: Stalls) -> None:
        """Take the interceptors from the outside in; `stalls` writes streams.

        Raises RuntimeError if they are not ORDER.
        """
        names = tuple(interceptor.name for interceptor in interceptors)
        if names != ORDER:
            message = f"interceptors must be {ORDER}, not {names}"
            raise RuntimeError(message)
        self._interceptors = tuple(interceptors)
        self._stalls = stalls
        self._handlers: dict[str, Handler] = {}
        self._probes: dict[str, dict[str, Handler]] = {}

    def add_generic_rpc_handlers(self, handlers: Iterable[grpc.GenericRpcHandler]) -> None:
        """Do nothing: the generated functions hand over the same handlers by name, too."""

    def add_registered_method_handlers(self, service: str, handlers: Mapping[str, Handler]) -> None:
        """Take the methods of a service. Raises TypeError as `wrap` does."""
        wrapped = {
            method: wrap(f"/{service}/{method}", handler, self._interceptors, self._stalls)
            for method, handler in handlers.items()
        }
        if f"/{service}/" == _PROBES:
            self._probes[service] = wrapped
        self._handlers |= {f"/{service}/{method}": wrapped[method] for method in wrapped}

    def serve(self, server: grpc.aio.Server) -> None:
        """Have the server, which has not started, serve the methods that were taken."""
        server.add_generic_rpc_handlers((self,))
        for service, handlers in self._probes.items():
            server.add_registered_method_handlers(service, handlers)

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> Handler | None:
        """Return the handler to use; grpc calls this for every call."""
        return self._handlers.get(handler_call_details.method)


def wrap(
    name: str,
    handler: Handler,
    interceptors: Sequence[Interceptor],
    stalls: Stalls,
) -> Handler:
    """Return a handler that takes bytes and passes every interceptor.

    For grpc every method takes a stream of requests, so that the one of a unary method is read
    only when the interceptors have let the call in; on the wire nothing differs. Responses may be
    messages or their bytes. Raises TypeError for a behaviour that would block.
    """
    method = describe(name, handler)
    chain: Proceed = partial(_serve, stalls)
    for interceptor in reversed(interceptors):
        chain = partial(interceptor, proceed=chain)

    async def behavior(request: Any, context: grpc.aio.ServicerContext[Any, Any]) -> Any:
        return await chain(Call(method, context, request))

    make = (
        grpc.stream_stream_rpc_method_handler
        if method.response_streaming
        else grpc.stream_unary_rpc_method_handler
    )
    # No deserializer: parsing in grpc answers what can't be parsed with UNKNOWN.
    return make(behavior, None, _serializer(handler.response_serializer))


def describe(name: str, handler: Handler) -> Method:
    """Return what there is to know of a method. Raises TypeError as `wrap` does."""
    behavior = getattr(
        handler,
        f"{'stream' if handler.request_streaming else 'unary'}_"
        f"{'stream' if handler.response_streaming else 'unary'}",
    )
    asynchronous = inspect.iscoroutinefunction(behavior) or (
        handler.response_streaming and inspect.isasyncgenfunction(behavior)
    )
    if not asynchronous:
        message = f"{name} has a behaviour that is not asynchronous"
        raise TypeError(message)
    return Method(
        name=name,
        request_streaming=handler.request_streaming,
        response_streaming=handler.response_streaming,
        behavior=behavior,
        parse=handler.request_deserializer or bytes,
        probe=name.startswith(_PROBES),
        yields=inspect.isasyncgenfunction(behavior),
    )


async def _serve(stalls: Stalls, call: Call) -> Any:
    """Run the servicer's method; a stream of responses is written from here, so that whatever ends
    it, a gone client too, is raised in this one task.
    """
    method = call.method
    if not method.yields:
        return await method.behavior(call.request, call.context)

    async def write(response: Any) -> None:
        await call.context.write(response)
        call.answered()

    await stalls.write_all(method.behavior(call.request, call.context), write)
    return None


async def _abort(call: Call, error: DomainError) -> Any:
    wire = to_wire(error)
    call.code, call.reason = wire.code.name, error.reason
    metadata = ((DETAILS_KEY, wire.details), (REQUEST_ID_KEY, call.request_id))
    try:
        async with asyncio.timeout(ABORT_TIMEOUT_S):
            await call.context.abort(wire.code, wire.message, metadata)
    except TimeoutError:
        # It comes after what a client that does not read has still to take.
        raise grpc.aio.AbortError from None


def _request_id(metadata: Iterable[tuple[str, str | bytes]]) -> str:
    for key, value in metadata:
        if key == REQUEST_ID_KEY and isinstance(value, str) and _SANE_REQUEST_ID.match(value):
            return value
    return secrets.token_hex(8)


def _serializer(serialize: Callable[[Any], bytes] | None) -> Callable[[Any], bytes]:
    if serialize is None:
        return bytes

    def to_bytes(response: Any) -> bytes:
        return response if type(response) is bytes else serialize(response)

    return to_bytes
