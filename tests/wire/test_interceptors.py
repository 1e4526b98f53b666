"""What every call goes through, held to the same for all four kinds of call."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, cast
from unittest.mock import Mock

import grpc
import grpc.aio
import pytest
from grpc_health.v1 import health_pb2_grpc
from structlog.testing import capture_logs

from hansard.v1 import agent_service_pb2
from hansard_server.access.authorization import Authorizer
from hansard_server.access.rates import LocalPermits, RateLimiter
from hansard_server.access.rules import Need, Rule
from hansard_server.domain.errors import QuotaExceeded, SessionBusy, StoreUnavailable
from hansard_server.lifecycle import Calls, Drain
from hansard_server.repository.api import Store
from hansard_server.servicers.admission import Admission, RequestReader
from hansard_server.servicers.arrivals import CHANNELZ_OPTION, count_arrivals
from hansard_server.servicers.entrance import Authentication, Authorization
from hansard_server.servicers.health import Health, HealthServicer
from hansard_server.servicers.interceptors import (
    AccessLog,
    DrainGate,
    Errors,
    Interceptor,
    Pipeline,
    wrap,
)
from hansard_server.servicers.rate_limits import AgentRates, KeyLimits
from hansard_server.servicers.stalls import Stalls
from hansard_server.servicers.validation import Validation
from tests.support.server import failure, open_channel, to_failure

Message = agent_service_pb2.GetAgentRequest
SERVICE = "hansard.v1.Kinds"
KINDS = ("unary_unary", "unary_stream", "stream_unary", "stream_stream")
SECRET = "what-the-user-said"
# What the rules allow is not what is tested here: there is no store behind them.
AUTHORIZER = Authorizer(
    cast("Store", None), rules={f"/{SERVICE}/{kind}": Rule(Need.KEY) for kind in KINDS}
)


class Kinds:
    """A method of each kind that does what the request's key names."""

    def __init__(self) -> None:
        self.parked = asyncio.Event()
        self.go_on = asyncio.Event()
        self.ended: list[str] = []

    async def do(self, key: str) -> Message:
        match key:
            case "slow":
                await self.go_on.wait()
            case "busy":
                raise SessionBusy("a turn runs", metadata={"turn": "trn_1"}, retry_after_s=2.5)
            case "quota":
                raise QuotaExceeded("all is used")
            case "store":
                raise StoreUnavailable("no answer")
            case "bug":
                raise ValueError(f"/etc/secret: no such table: {SECRET}")
            case "hang":
                self.parked.set()
                try:
                    await asyncio.Event().wait()
                finally:
                    self.ended.append("hang")
        return Message(agent_key=key)

    async def unary_unary(self, request: Message, _context: Any) -> Any:
        # Servicers may answer bytes.
        return (await self.do(request.agent_key)).SerializeToString()

    async def unary_stream(self, request: Message, _context: Any) -> AsyncIterator[Message]:
        try:
            yield Message(agent_key="first")
            while request.agent_key == "flood":
                yield Message(agent_key="x" * 10_000)
            yield await self.do(request.agent_key)
        finally:
            self.ended.append("unary_stream")

    async def stream_unary(self, requests: AsyncIterator[Message], _context: Any) -> Message:
        answer = Message()
        async for request in requests:
            answer = await self.do(request.agent_key)
        return answer

    async def stream_stream(
        self, requests: AsyncIterator[Message], _context: Any
    ) -> AsyncIterator[bytes]:
        yield Message(agent_key="first").SerializeToString()
        async for request in requests:
            yield (await self.do(request.agent_key)).SerializeToString()


@dataclass
class Bench:
    """A server of the four kinds."""

    channel: grpc.aio.Channel
    kinds: Kinds
    drain: Drain
    calls: Calls
    chain: list[Interceptor]
    address: str

    def start(self, kind: str, *requests: bytes, **options: Any) -> Any:
        """Start a call of the kind."""
        make = getattr(self.channel, kind)(f"/{SERVICE}/{kind}")
        argument = list_of(requests) if kind.startswith("stream") else requests[-1]
        return make(argument, **options)

    def call(self, kind: str, *requests: bytes, **options: Any) -> Awaitable[list[Message]]:
        """Make a call of the kind; the answers, as messages."""
        call = self.start(kind, *requests, **options)
        return collect(call, streaming=kind.endswith("_stream"))


async def list_of(requests: tuple[bytes, ...]) -> AsyncIterator[bytes]:
    for request in requests:
        yield request


async def collect(call: Any, *, streaming: bool) -> list[Message]:
    if not streaming:
        return [Message.FromString(await call)]
    return [Message.FromString(raw) async for raw in call]


def interceptors(
    drain: Drain,
    calls: Calls,
    *,
    max_calls: int = 100,
    patience_s: float = 60,
    request_max_bytes: int = 1000,
    key_max_calls: int = 100,
) -> list[Interceptor]:
    return [
        Admission(max_calls=max_calls, max_streams=3, max_uploads=3),
        AccessLog(calls),
        Errors(),
        DrainGate(drain),
        Authentication(None, AUTHORIZER),
        KeyLimits(RateLimiter(LocalPermits()), max_calls=key_max_calls, max_streams=100, rate=None),
        RequestReader(large_requests=2, patience_s=patience_s),
        Validation(drain, request_max_bytes=request_max_bytes, metadata_max_bytes=1000),
        Authorization(AUTHORIZER),
        AgentRates(RateLimiter(LocalPermits()), {}),
    ]


@asynccontextmanager
async def running_bench(**limits: Any) -> AsyncIterator[Bench]:
    kinds, drain, calls = Kinds(), Drain(), Calls()
    chain = interceptors(drain, calls, **limits)
    options = [("grpc.http2.bdp_probe", 0), CHANNELZ_OPTION]
    server, arrivals = count_arrivals(lambda: grpc.aio.server(options=options))
    admission = chain[0]
    assert isinstance(admission, Admission)
    admission.count(arrivals)
    handlers = {
        kind: getattr(grpc, f"{kind}_rpc_method_handler")(
            getattr(kinds, kind), Message.FromString, Message.SerializeToString
        )
        for kind in KINDS
    }
    pipeline = Pipeline(chain, Stalls(0))
    pipeline.add_registered_method_handlers(SERVICE, handlers)
    pipeline.serve(server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        async with open_channel(address := f"127.0.0.1:{port}") as channel:
            yield Bench(channel, kinds, drain, calls, chain, address)
    finally:
        await server.stop(0)


@pytest.fixture
async def bench() -> AsyncIterator[Bench]:
    async with running_bench() as bench:
        yield bench


def request(key: str) -> bytes:
    return Message(agent_key=key).SerializeToString()


async def logged(logs: list[Any]) -> dict[str, Any]:
    """Return the line of the one call; it is written after the client has its answer."""
    async with asyncio.timeout(20):
        while not (lines := [line for line in logs if line["event"] == "call"]):  # noqa: ASYNC110
            await asyncio.sleep(0.005)
    assert len(lines) == 1
    return dict(lines[0])


@pytest.mark.parametrize("kind", KINDS)
async def test_call_that_works(bench: Bench, kind: str) -> None:
    with capture_logs() as logs:
        answers = await bench.call(kind, request("ok"), metadata=(("x-request-id", "r-1"),))
        line = await logged(logs)
    assert [answer.agent_key for answer in answers][-1] == "ok"
    assert (line["method"], line["code"], line["reason"]) == (f"/{SERVICE}/{kind}", "OK", None)
    assert line["request_id"] == "r-1"
    assert line["duration_ms"] >= 0
    assert line["peer"].startswith("ipv4:127.0.0.1:")
    assert bench.calls.running == 0


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("key", "code", "reason"),
    [
        ("busy", grpc.StatusCode.ABORTED, "SESSION_BUSY"),
        ("quota", grpc.StatusCode.RESOURCE_EXHAUSTED, "QUOTA_EXCEEDED"),
        ("store", grpc.StatusCode.UNAVAILABLE, "STORE_UNAVAILABLE"),
        ("bug", grpc.StatusCode.INTERNAL, "INTERNAL"),
    ],
)
async def test_error_has_its_status(
    bench: Bench, kind: str, key: str, code: grpc.StatusCode, reason: str
) -> None:
    with capture_logs() as logs:
        refused = await failure(bench.call(kind, request("ok"), request(key)))
        line = await logged(logs)
    assert (refused.code, refused.reason) == (code, reason)
    assert (line["code"], line["reason"]) == (code.name, reason)
    assert refused.retry_s == {"busy": 2.5, "store": 1.0}.get(key)
    if key == "busy":
        assert refused.metadata == {"turn": "trn_1"}
    if key == "bug":
        [unexpected] = [entry for entry in logs if entry["event"] == "unexpected error"]
        assert unexpected["error_id"] == refused.metadata["id"]
        assert unexpected["error_id"] in refused.message
        assert unexpected["request_id"] == line["request_id"]
        assert unexpected["exc_info"]
        assert SECRET not in refused.message
        assert "/etc" not in refused.message


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("raw", "reason"),
    [
        (b"\xff", "INVALID_REQUEST"),
        (request("no key"), "INVALID_REQUEST"),
        (b"\x0a\xe8\x07" + b"k" * 1000, "PAYLOAD_TOO_LARGE"),
    ],
    ids=["unparsable", "against a rule", "too large"],
)
async def test_bad_message_is_refused_wherever_it_comes(
    bench: Bench, kind: str, raw: bytes, reason: str
) -> None:
    refused = await failure(bench.call(kind, request("ok"), raw))
    assert refused.reason == reason
    if raw == request("no key"):
        assert refused.fields == ("agent_key",)


@pytest.mark.parametrize("kind", KINDS)
async def test_client_that_goes_away_is_no_fault(bench: Bench, kind: str) -> None:
    with capture_logs() as logs:
        call = bench.start(kind, request("hang"))
        await bench.kinds.parked.wait()
        call.cancel()
        line = await logged(logs)
    assert (line["code"], line["reason"]) == ("CANCELLED", None)
    assert "hang" in bench.kinds.ended
    assert not [entry for entry in logs if entry["log_level"] in {"error", "warning"}]
    assert bench.calls.running == 0


@pytest.mark.parametrize("kind", KINDS)
async def test_deadline_of_the_client_ends_the_call(bench: Bench, kind: str) -> None:
    with capture_logs() as logs:
        refused = await failure(bench.call(kind, request("hang"), timeout=1))
        line = await logged(logs)
    assert refused.code is grpc.StatusCode.DEADLINE_EXCEEDED
    assert line["code"] == "CANCELLED"


async def test_client_that_leaves_a_parked_stream_is_no_fault(bench: Bench) -> None:
    with capture_logs() as logs:
        call: Any = bench.channel.unary_stream(f"/{SERVICE}/unary_stream")(request("flood"))
        await call.read()
        # Long enough for the window to fill; the writer then waits in the middle of a write.
        await asyncio.sleep(0.5)
        assert bench.calls.running == 1
        call.cancel()
        line = await logged(logs)
    assert line["code"] == "CANCELLED"
    assert bench.kinds.ended == ["unary_stream"]
    assert not [entry for entry in logs if entry["log_level"] in {"error", "warning"}]


@pytest.mark.parametrize("kind", KINDS)
async def test_draining_server_refuses_new_calls(bench: Bench, kind: str) -> None:
    bench.drain.begin(5)
    refused = await failure(bench.call(kind, request("ok")))
    assert refused.reason == "SERVER_SHUTTING_DOWN"
    assert refused.code is grpc.StatusCode.UNAVAILABLE
    assert refused.retry_s == 1.0


@pytest.mark.parametrize("kind", ["stream_unary", "stream_stream"])
async def test_drain_ends_a_stream_of_requests(bench: Bench, kind: str) -> None:
    async def endless() -> AsyncIterator[bytes]:
        yield request("ok")
        await asyncio.Event().wait()

    call = getattr(bench.channel, kind)(f"/{SERVICE}/{kind}")(endless())
    while not bench.drain._waits:  # noqa: ASYNC110 - nobody says when a call waits
        await asyncio.sleep(0.005)
    bench.drain.begin(5)
    refused = await failure(collect(call, streaming=kind == "stream_stream"))
    assert refused.reason == "SERVER_SHUTTING_DOWN"
    assert not bench.drain._waits


@pytest.mark.parametrize("given", ["", "a" * 129, "with space"])
async def test_request_id_that_is_not_sane_is_replaced(bench: Bench, given: str) -> None:
    call: Any = bench.channel.unary_unary(f"/{SERVICE}/unary_unary")(
        request("ok"), metadata=(("x-request-id", given),)
    )
    await call
    trailing = dict(await call.trailing_metadata())
    assert trailing["x-request-id"] != given
    assert len(trailing["x-request-id"]) == 16


@pytest.mark.parametrize("key", ["ok", "busy"])
async def test_request_id_comes_back(bench: Bench, key: str) -> None:
    call: Any = bench.channel.unary_unary(f"/{SERVICE}/unary_unary")(
        request(key), metadata=(("x-request-id", "mine"),)
    )
    await call.code()
    assert dict(await call.trailing_metadata())["x-request-id"] == "mine"


async def test_log_has_no_payloads(bench: Bench) -> None:
    with capture_logs() as logs:
        for kind in KINDS:
            await bench.call(kind, request(SECRET))
            await failure(bench.call(kind, request(f"{SECRET} not a key")))
            await failure(bench.call(kind, request(SECRET) + b"\xff"))
    assert SECRET not in json.dumps(logs, default=repr)


async def test_unknown_method_is_left_to_grpc(bench: Bench) -> None:
    refused = await failure(bench.channel.unary_unary(f"/{SERVICE}/nothing")(b""))
    assert refused.code is grpc.StatusCode.UNIMPLEMENTED


async def test_calls_are_a_crowd_while_they_run(bench: Bench) -> None:
    admission = bench.chain[0]
    assert isinstance(admission, Admission)
    assert admission.crowd() == 0
    calls = [bench.start("unary_unary", request("slow")) for _ in range(20)]
    while admission.calls < len(calls):  # noqa: ASYNC110 - nobody says when a call is let in
        await asyncio.sleep(0.005)
    assert admission.crowd() >= len(calls)
    bench.kinds.go_on.set()
    await asyncio.gather(*calls)


def test_only_probes_are_known_to_grpc_by_name() -> None:
    pipeline = Pipeline(interceptors(Drain(), Calls()), Stalls(0))
    handler: Any = grpc.unary_unary_rpc_method_handler(Kinds().unary_unary)
    pipeline.add_registered_method_handlers(SERVICE, {"unary_unary": handler})
    health = HealthServicer(Health((), Drain()), Drain())
    health_pb2_grpc.add_HealthServicer_to_server(health, pipeline)
    server = Mock()
    pipeline.serve(server)
    server.add_generic_rpc_handlers.assert_called_once_with((pipeline,))
    [named] = server.add_registered_method_handlers.call_args_list
    assert named.args[0] == "grpc.health.v1.Health"
    assert set(named.args[1]) == {"Check", "List", "Watch"}


@pytest.mark.parametrize(
    "change", [lambda chain: chain[::-1], lambda chain: chain[:-1], lambda chain: chain + chain[:1]]
)
async def test_order_is_asserted(change: Callable[[list[Interceptor]], list[Interceptor]]) -> None:
    chain = interceptors(Drain(), Calls())
    Pipeline(chain, Stalls(0))
    with pytest.raises(RuntimeError, match="interceptors must be"):
        Pipeline(change(chain), Stalls(0))


def test_blocking_behaviour_is_refused() -> None:
    def blocking(_request: Message, _context: object) -> Message:
        return Message()

    handler: Any = grpc.unary_unary_rpc_method_handler(blocking)
    with pytest.raises(TypeError, match="not asynchronous"):
        wrap("/x/y", handler, [], Stalls(0))


async def test_abort_by_a_servicer_keeps_its_status() -> None:
    async def aborts(_request: Message, context: grpc.aio.ServicerContext[Any, Any]) -> Message:
        await context.abort(grpc.StatusCode.DATA_LOSS, "as I say")
        raise AssertionError

    server = grpc.aio.server()
    pipeline = Pipeline(interceptors(Drain(), Calls()), Stalls(0))
    handler: Any = grpc.unary_unary_rpc_method_handler(
        aborts, Message.FromString, Message.SerializeToString
    )
    pipeline.add_registered_method_handlers(SERVICE, {"unary_unary": handler})
    pipeline.serve(server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    async with open_channel(f"127.0.0.1:{port}") as channel:
        with pytest.raises(grpc.aio.AioRpcError) as raised:
            await channel.unary_unary(f"/{SERVICE}/unary_unary")(request("a"))
    answer = to_failure(raised.value)
    assert (answer.code, answer.message) == (grpc.StatusCode.DATA_LOSS, "as I say")
    await server.stop(0)
