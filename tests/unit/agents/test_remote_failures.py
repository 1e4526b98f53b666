"""How a call to an agent elsewhere has ended, and whether another one may go on."""

from __future__ import annotations

from typing import Any

import grpc
import grpc.aio
import pytest

from hansard_server.agents.api import ModelInterrupted
from hansard_server.agents.remote.conversation import _failure
from hansard_server.domain.errors import AgentProcessingFailed

ENDS = {
    "gone": (grpc.StatusCode.UNAVAILABLE, "Socket closed", ModelInterrupted),
    "left": (grpc.StatusCode.OK, "", AgentProcessingFailed),
    "failed": (grpc.StatusCode.INTERNAL, "a fault of its own", AgentProcessingFailed),
}


@pytest.mark.parametrize("end", ENDS)
def test_what_the_other_side_ended_with(end: str) -> None:
    code, details, kind = ENDS[end]
    failure = _failure(code, details)
    assert type(failure) is kind
    assert "fault of its own" not in str(failure)


async def test_connection_that_breaks_in_a_write_is_no_word_of_the_other_side() -> None:
    async def echo(messages: Any, _context: Any) -> Any:
        async for message in messages:
            yield message

    server = grpc.aio.server()
    method: Any = grpc.stream_stream_rpc_method_handler(echo)
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("a", {"b": method}),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        call: Any = channel.stream_stream("/a/b")()
        await call.write(b"message")
        await call.read()
        # As grpc's own write does it when its core can't send.
        call._cython_call.set_internal_error("ExecuteBatchError")
        assert await call.code() is grpc.StatusCode.INTERNAL
        assert isinstance(_failure(await call.code(), await call.details()), ModelInterrupted)
        call.cancel()
    await server.stop(None)
