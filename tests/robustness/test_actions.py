"""Turns that wait for somebody outlast what kills servers, and are answered at any replica."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest

from hansard.v1 import session_pb2, session_service_pb2, turn_pb2
from hansard_server import failpoints
from tests.support.actions import (
    DONE,
    TOOLS,
    answer,
    approve,
    ask,
    begin,
    calls_of,
    kinds_of,
    make,
    output,
    pending,
    reject,
)
from tests.support.databases import Databases
from tests.support.invariants import check_store
from tests.support.server import Running, ServeProcess, failure, open_channel, serve_process
from tests.support.talk import Talk, check_turn

COMPLETED = turn_pb2.TURN_STATUS_COMPLETED
WAITS = turn_pb2.TURN_STATUS_REQUIRES_ACTION


def serve(folder: Path, url: str, *more: str, **fields: Any) -> Any:
    return serve_process(
        *("--listen", "127.0.0.1:0", "--data-dir", str(folder), "--store", url),
        *("--set", "lease_s=1", "--set", "poll_floor_s=0.2"),
        *more,
        **fields,
    )


@asynccontextmanager
async def talking(process: ServeProcess) -> AsyncIterator[Talk]:
    address = str((await asyncio.to_thread(process.wait_for, "serving"))["address"])
    server: Any = None
    async with open_channel(address) as channel:
        yield Talk(Running(server, channel))


async def kill(process: ServeProcess, number: signal.Signals = signal.SIGKILL) -> None:
    process.send(number)
    await asyncio.to_thread(process.wait)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
async def test_waiting_turn_outlasts_its_server(
    store_url: str, tmp_path: Path, number: signal.Signals
) -> None:
    with serve(tmp_path, store_url) as process:
        async with talking(process) as talk:
            await begin(talk, [make(), ask(), DONE])
            waiting = await talk.send(request_id="in")
            made, asked = calls_of(waiting)
            partial = await answer(talk, approve(made), request_id="one")
        await kill(process, number)
    with serve(tmp_path, store_url) as process:
        async with talking(process) as talk:
            assert pending(await talk.send(request_id="in")) == pending(partial)
            assert await answer(talk, approve(made), request_id="one") == partial
        await kill(process, number)
    with serve(tmp_path, store_url) as process:
        async with talking(process) as talk:
            responses = await answer(talk, output(asked), request_id="two")
            check_turn(responses)
            assert kinds_of(responses) == [
                *("tool_output COMPLETED", "tool_output COMPLETED", "artifact_upload"),
                "agent_output",
            ]
            assert responses[-1].turn_end.turn.attempt == 1
    check_store(store_url, tmp_path)


@pytest.mark.parametrize(("commits", "rerun_safe"), [(1, False), (2, False), (2, True)])
async def test_killed_after_an_approval(
    store_url: str, tmp_path: Path, commits: int, *, rerun_safe: bool
) -> None:
    """The first commit is the approval, the second says that the tool begins."""
    tools = {"make": {**TOOLS["make"], "rerun_safe": rerun_safe}}
    with serve(tmp_path, store_url) as process:
        async with talking(process) as talk:
            await begin(talk, [make(), DONE], tools)
            (call_id,) = calls_of(await talk.send())
        await kill(process)
    armed = {failpoints.SERVING_VARIABLE: f"write.committed@{commits}"}
    with serve(tmp_path, store_url, environment=armed) as process:
        async with talking(process) as talk:
            with pytest.raises(grpc.aio.AioRpcError):
                await answer(talk, approve(call_id), request_id="r")
        assert await asyncio.to_thread(process.wait) == -signal.SIGKILL
    with serve(tmp_path, store_url) as process:
        async with talking(process) as talk:
            async with asyncio.timeout(60):
                responses = await answer(talk, approve(call_id), request_id="r")
            runs = commits == 1 or rerun_safe
            outcome = "tool_output COMPLETED" if runs else "tool_output INTERRUPTED"
            upload = ["artifact_upload"] if runs else []
            assert kinds_of(responses) == [outcome, *upload, "agent_output"]
            assert responses[-1].turn_end.turn.status == COMPLETED
    check_store(store_url, tmp_path)


@pytest.mark.parametrize("rerun_safe", [False, pytest.param(True, marks=pytest.mark.soak)])
async def test_unapproved_call_is_never_run_by_a_takeover(
    store_url: str, tmp_path: Path, *, rerun_safe: bool
) -> None:
    """Killed before the turn waits: the call is asked for, rerun_safe or not."""
    tools = {"make": {**TOOLS["make"], "rerun_safe": rerun_safe}}
    with serve(tmp_path, store_url) as process:
        async with talking(process) as talk:
            await begin(talk, [make(), DONE], tools)
        await kill(process)
    # The input is the first commit, the call the second; the third would have the turn wait.
    armed = {failpoints.SERVING_VARIABLE: "write.begun@3"}
    with serve(tmp_path, store_url, environment=armed) as process:
        async with talking(process) as talk:
            with pytest.raises(grpc.aio.AioRpcError):
                await talk.send(request_id="in")
        assert await asyncio.to_thread(process.wait) == -signal.SIGKILL
    with serve(tmp_path, store_url) as process:
        async with talking(process) as talk:
            async with asyncio.timeout(60):
                waiting = await talk.send(request_id="in")
            (call_id,) = pending(waiting)
            assert kinds_of(waiting) == ["input_message", "tool_input"]
            responses = await answer(talk, reject(call_id))
            assert kinds_of(responses) == ["tool_output REJECTED", "agent_output"]
    check_store(store_url, tmp_path)


@pytest.fixture
def url(databases: Databases) -> Iterator[str]:
    """Give a PostgreSQL database with the schema."""
    url = databases.migrated("postgresql")
    yield url
    databases.drop(url)


async def test_replicas_answer_each_others_waiting_turns(url: str, tmp_path: Path) -> None:
    shared = ("--set", f"artifacts={tmp_path / 'artifacts'}")
    with (
        serve(tmp_path / "one", url, *shared) as one,
        serve(tmp_path / "two", url, *shared) as two,
    ):
        async with talking(one) as here, talking(two) as there:
            await begin(here, [make(), {"pause_ms": 0}, ask(), DONE])
            watching = there.watch(include_deltas=True)
            for _ in range(3):
                (call_id,) = pending(await here.send())
                # Whoever comes second is told so, wherever.
                results = await asyncio.gather(
                    answer(there, approve(call_id)),
                    answer(here, approve(call_id)),
                    return_exceptions=True,
                )
                (waiting,) = [each for each in results if isinstance(each, list)]
                (call_id,) = pending(waiting)
                # The other end of an answer follows from elsewhere.
                first, second = await asyncio.gather(
                    answer(here, output(call_id), request_id=call_id),
                    answer(there, output(call_id), request_id=call_id),
                )
                assert (
                    kinds_of(first)
                    == kinds_of(second)
                    == [*("tool_output COMPLETED", "agent_output")]
                )
                assert first[-1].turn_end.turn == second[-1].turn_end.turn
            waiting = await here.send()
            turn = await there.release(waiting[0].turn_id)
            assert turn.status == turn_pb2.TURN_STATUS_INTERRUPTED
            refused = await failure(answer(here, approve(next(iter(pending(waiting))))))
            assert refused.reason == "TOOL_CALL_NOT_PENDING"
            stops = []
            async with asyncio.timeout(60):
                async for response in watching:
                    if response.HasField("turn_end"):
                        # A stop that is answered at once may be over before it is heard of here.
                        if response.turn_end.turn.status != WAITS:
                            stops.append(response.turn_end.turn.status)
                        if len(stops) == 4:
                            break
            assert stops == [COMPLETED] * 3 + [turn.status]
    check_store(url)


async def test_call_of_a_sub_agent_is_joined_after_a_crash(store_url: str, tmp_path: Path) -> None:
    slow = [{"thinking": {"content": "hm"}}, {"pause_ms": 2_000}, DONE]
    tools = {"helper": {"sub_agent": {"sub_agent_configuration": {"agent_key": "helper"}}}}
    call = {"tool_call": {"name": "helper", "input": {"message": "Count."}}}
    with serve(tmp_path, store_url) as process:
        async with talking(process) as talk:
            await begin(Talk(talk.server, "helper"), slow)
            await begin(talk, [call, DONE], tools)
            sending = asyncio.ensure_future(failure(talk.send(request_id="in")))
            async with asyncio.timeout(60):
                await until_child_speaks(talk)
            process.send(signal.SIGKILL)
            assert (await sending).code is grpc.StatusCode.UNAVAILABLE
        await asyncio.to_thread(process.wait)
    with serve(tmp_path, store_url) as process:
        async with talking(process) as talk, asyncio.timeout(60):
            responses = await talk.send(request_id="in")
            check_turn(responses)
            assert kinds_of(responses)[2:] == ["tool_output COMPLETED", "agent_output"]
            (child,) = [s for s in await sessions_of(talk) if s.HasField("parent")]
            below = Talk(talk.server, "helper", child.key)
            (turn,) = await below.turns()
            assert turn.status == COMPLETED
            assert len(await below.events(types=["thinking"])) == 1
    check_store(store_url, tmp_path)


async def sessions_of(talk: Talk) -> list[session_pb2.Session]:
    page = await talk.server.sessions.ListSessions(
        session_service_pb2.ListSessionsRequest(agent_key="helper")
    )
    return list(page.sessions)


async def until_child_speaks(talk: Talk) -> None:
    while True:
        for session in await sessions_of(talk):
            if session.HasField("parent") and session.last_sequence > 1:
                return
        await asyncio.sleep(0.02)


async def test_time_runs_out_while_no_server_is_there(store_url: str, tmp_path: Path) -> None:
    tools = {"ask": {**TOOLS["ask"], "action_timeout": "0.2s"}}
    with serve(tmp_path, store_url, "--set", "lease_s=600") as process:
        async with talking(process) as talk:
            await begin(talk, [ask(), DONE], tools)
            await talk.send(request_id="in")
        await kill(process)
    with serve(tmp_path, store_url) as process:
        async with talking(process) as talk, asyncio.timeout(60):
            responses: list[Any] = []
            async for response in talk.watch():
                if response.HasField("event"):
                    responses.append(response)
                    if response.event.HasField("agent_output"):
                        break
            assert kinds_of(responses)[2:] == ["tool_output TIMED_OUT", "agent_output"]
    check_store(store_url, tmp_path)
