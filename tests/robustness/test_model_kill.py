"""A server, or its models' provider, is killed in the middle of each part of a model call.

All turns go on to their end, once, and the provider finds no fault with what it is asked, then and
in the turn that follows.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import signal
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import grpc
import pytest

from hansard.v1 import agent_pb2, agent_service_pb2, event_pb2, turn_pb2
from tests.support.databases import Databases
from tests.support.invariants import check_store
from tests.support.providers.process import (
    PROVIDERS,
    ProviderProcess,
    no_faults,
    provider_process,
)
from tests.support.server import Running, ServeProcess, open_channel, serve_process
from tests.support.talk import Talk, check_turn, content, stored

SECOND = "second_"
PLACES = (
    *("first_byte", "thinking", "text", "call"),
    *(f"{SECOND}first_byte", f"{SECOND}thinking", f"{SECOND}text"),
)
DONE = {"parts": [{"text": "It is done."}]}
MAX_TOKENS = {"anthropic": 4_096}


@pytest.fixture
def providers() -> Iterator[ProviderProcess]:
    with provider_process() as process:
        yield process


def thoughts(provider: str, text: str) -> list[dict[str, Any]]:
    sealed = [{"redacted": "sealed"}] if provider == "anthropic" else []
    return [{"thinking": text}, *sealed]


def first_answer(provider: str) -> dict[str, Any]:
    """Return an answer with a call."""
    call = {"tool": "artifact_create", "input": {"filename": "a.txt", "content": "x"}}
    return {"parts": [*thoughts(provider, "A file, then."), {"text": "I make it."}, call]}


def second_answer(provider: str) -> dict[str, Any]:
    return {"parts": [*thoughts(provider, "It is there."), {"text": "It is done."}]}


def stopped(reply: dict[str, Any], place: str, provider: str) -> dict[str, Any]:
    """Return the answer as one that stops at the place and says nothing more."""
    label, nth = {
        "first_byte": ("thinking" if provider == "google" else "head", 0),
        "thinking": ("thinking", 2),
        "text": ("text", 2),
        "call": ("tool", 0 if provider == "google" else 1),
    }[place.removeprefix(SECOND)]
    return {**reply, "stop": {"label": label, "nth": nth, "how": "hang"}}


def replies(provider: str, place: str) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Return what comes until the kill, and what after it."""
    first, second = first_answer(provider), second_answer(provider)
    if place.startswith(SECOND):
        return [first, stopped(second, place, provider)], [second]
    return [stopped(first, place, provider)], [first, second]


def has_stopped(count: int, asked: list[dict[str, Any]]) -> bool:
    """Tell whether the `count`-th answer has come to where it stops."""
    return len(asked) == count and asked[-1]["end"] == "cut"


@asynccontextmanager
async def serving(
    folder: Path, store_url: str, models: dict[str, Any], **environment: str
) -> AsyncIterator[tuple[ServeProcess, Running]]:
    arguments = ("--listen", "127.0.0.1:0", "--data-dir", str(folder), "--store", store_url)
    environment["HANSARD_MODELS"] = json.dumps(models)
    with serve_process(*arguments, "--set", "lease_s=1", environment=environment) as process:
        address = str(process.wait_for("serving")["address"])
        async with open_channel(address) as channel:
            server: Any = None
            yield process, Running(server, channel)


async def begin(running: Running, provider: str, place: str) -> Talk:
    """Create an agent of its own for a place, and its session."""
    model = agent_pb2.Model(name=place)
    model.retry.max_retries = 10
    model.retry.initial_backoff.nanos = 200_000_000
    if provider in MAX_TOKENS:
        model.parameters.update(
            {
                "anthropic_thinking": {"type": "enabled", "budget_tokens": 1_024},
                "max_tokens": MAX_TOKENS[provider],
            }
        )
    await running.agents.CreateAgent(
        agent_service_pb2.CreateAgentRequest(
            key=place,
            name=place,
            model=model,
            tool_configurations={"artifact_create": {"artifact_create": {}}},
        )
    )
    return await Talk(running, place).open_session()


async def check_done(talk: Talk, place: str) -> None:
    """Join the turn, which ends as if nothing had happened; its tool ran once."""
    seen = await talk.send("Make a file.", request_id="a")
    check_turn(seen)
    turn = seen[-1].turn_end.turn
    assert turn.status == turn_pb2.TURN_STATUS_COMPLETED, (place, turn.error)
    events = stored(seen)
    assert content(events[-1]) == "It is done.", place
    assert sum(event.HasField("artifact_upload") for event in events) == 1, place
    assert_whole(events)


def assert_whole(events: Sequence[event_pb2.Event]) -> None:
    called = [e.tool_input.tool_call_id for e in events if e.HasField("tool_input")]
    assert called == [e.tool_output.tool_call_id for e in events if e.HasField("tool_output")]
    # A crash and a repeated call void what was shown: it is not stored as a part.
    assert not [e for e in events if e.agent_output.partial or e.thinking.partial]


async def check_follow_up(talk: Talk, providers: ProviderProcess, provider: str) -> None:
    lane = f"-{talk.agent_key}"
    providers.reply(provider, {"parts": [{"text": "A second."}]}, lane=lane)
    again = await talk.send("And again?")
    assert content(stored(again)[-1]) == "A second."
    no_faults(providers.asked(provider, lane))


async def stop_at_all_places(
    running: Running, providers: ProviderProcess, provider: str
) -> dict[str, Talk]:
    """Begin a turn for each place, and return when every one has come to it."""
    talks = {place: await begin(running, provider, place) for place in PLACES}
    for place, talk in talks.items():
        until_then, _ = replies(provider, place)
        providers.reply(provider, *until_then, lane=f"-{place}")
        await talk.send("Make a file.", request_id="a", detach=True)
    for place in PLACES:
        ready = partial(has_stopped, len(replies(provider, place)[0]))
        asked = await asyncio.to_thread(providers.wait, provider, ready, f"-{place}")
        no_faults(asked)
    return talks


@pytest.fixture(params=[*((p, "sqlite") for p in PROVIDERS), ("anthropic", "postgresql")])
def case(request: pytest.FixtureRequest, databases: Databases) -> Iterator[tuple[str, str]]:
    """Give a provider and the URL of a database."""
    provider, kind = request.param
    url = databases.migrated(kind)
    yield provider, url
    databases.drop(url)


async def test_the_server_is_killed_in_the_middle_of_each_part(
    case: tuple[str, str], tmp_path: Path, providers: ProviderProcess
) -> None:
    provider, url = case
    models = {place: providers.settings(provider, f"-{place}") for place in PLACES}
    async with serving(tmp_path, url, models) as (process, running):
        await stop_at_all_places(running, providers, provider)
        for place in PLACES:
            providers.reply(provider, *replies(provider, place)[1], lane=f"-{place}")
        process.send(signal.SIGKILL)
        process.wait()
    async with serving(tmp_path, url, models) as (process, running):
        talks = [Talk(running, place) for place in PLACES]
        for talk in talks:
            await check_done(talk, talk.agent_key)
        for talk in talks:
            await check_follow_up(talk, providers, provider)
        process.send(signal.SIGTERM)
        process.wait()
    check_store(url, tmp_path)


async def test_the_provider_is_killed_in_the_middle_of_each_part(
    case: tuple[str, str], tmp_path: Path, providers: ProviderProcess
) -> None:
    provider, url = case
    models = {place: providers.settings(provider, f"-{place}") for place in PLACES}
    async with serving(tmp_path, url, models) as (process, running):
        talks = await stop_at_all_places(running, providers, provider)
        providers.kill()
        providers.start()
        for place in PLACES:
            providers.reply(provider, *replies(provider, place)[1], lane=f"-{place}")
        for place, talk in talks.items():
            await check_done(talk, place)
        for talk in talks.values():
            await check_follow_up(talk, providers, provider)
        assert "Traceback" not in process.log
        process.send(signal.SIGTERM)
        process.wait()
    check_store(url, tmp_path)


async def kill_after_commit(
    url: str, folder: Path, providers: ProviderProcess, provider: str, number: int
) -> bool:
    """Kill the server after its `number`-th commit, and see the turn end on another; return whether
    it came so far.
    """
    lane = f"m{number}"
    models = {lane: providers.settings(provider, f"-{lane}")}
    answers = [first_answer(provider), second_answer(provider)]
    providers.reply(provider, *answers, *answers, lane=f"-{lane}")
    point = f"write.committed@{number}"
    died = True
    async with serving(folder, url, models, HANSARD_FAILPOINTS_SERVING=point) as (_, running):
        with contextlib.suppress(grpc.aio.AioRpcError):
            talk = await begin(running, provider, lane)
            await talk.send("Make a file.", request_id="a")
            died = False
    async with serving(folder, url, models) as (_, running):
        talk = Talk(running, lane)
        seen = await talk.send("Make a file.", request_id="a")
        assert seen[-1].turn_end.turn.status == turn_pb2.TURN_STATUS_COMPLETED, number
        assert_whole(stored(seen))
        no_faults(providers.asked(provider, f"-{lane}"))
    check_store(url, folder)
    return died


# The first commits make the agent and the session; then come the input, what the model says before
# its calls, the calls, and their outputs.
@pytest.mark.parametrize("number", [5, 6, 7])
async def test_the_server_is_killed_between_calls_and_outputs(
    databases: Databases, tmp_path: Path, providers: ProviderProcess, number: int
) -> None:
    url = databases.migrated("sqlite")
    assert await kill_after_commit(url, tmp_path, providers, "anthropic", number)


@pytest.mark.soak
@pytest.mark.parametrize("provider", PROVIDERS)
async def test_the_server_is_killed_after_each_of_its_commits(
    databases: Databases, tmp_path: Path, providers: ProviderProcess, provider: str
) -> None:
    number = 3
    while True:
        url, folder = databases.migrated("sqlite"), tmp_path / str(number)
        if not await kill_after_commit(url, folder, providers, provider, number):
            break
        number += 1
    assert number >= 8, "a turn with a tool has more commits"
