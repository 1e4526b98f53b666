"""Agents elsewhere: what they say is checked and stored like everything else, whatever they do."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest

from hansard.runtime.v1 import agent_runtime_service_pb2 as runtime
from hansard.runtime.v1 import agent_runtime_service_pb2_grpc as runtime_grpc
from hansard.v1 import agent_pb2, agent_service_pb2, event_pb2, turn_pb2
from hansard_server.agents.remote.conversation import MISSED_HEARTBEATS
from tests.support.certificates import Authority
from tests.support.databases import Databases
from tests.support.invariants import check_store
from tests.support.server import Running, failure, make_settings, running_server
from tests.support.talk import Talk, check_turn, joined_deltas, model, output, stored

OUTPUT = runtime.TEXT_KIND_AGENT_OUTPUT
THINKING = runtime.TEXT_KIND_THINKING
QUICK = {"max_retries": 2, "initial_backoff": {"nanos": 1_000_000}}


class Exchange:
    """One call of RunTurn, as a test answers it."""

    def __init__(self, requests: AsyncIterator[runtime.RunTurnRequest], context: Any) -> None:
        self.requests = requests
        self.context = context
        self.told: list[runtime.RunTurnRequest] = []

    async def listen(self) -> None:
        """Read all that comes before `begin`."""
        async for request in self.requests:
            if request.HasField("begin"):
                return
            self.told.append(request)

    async def say(self, **said: Any) -> None:
        """Send a message."""
        await self.context.write(runtime.RunTurnResponse(**said))

    async def next(self, name: str) -> Any:
        """Return the next message of this name."""
        async for request in self.requests:
            if request.HasField(name):
                return getattr(request, name)
        raise AssertionError(f"no {name}")

    @property
    def start(self) -> runtime.Start:
        return self.told[0].start

    @property
    def history(self) -> list[event_pb2.Event]:
        return [event for request in self.told for event in request.history.events]


Answer = Callable[[Exchange], Awaitable[None]]


@dataclass
class Runtime(runtime_grpc.AgentRuntimeServiceServicer):
    """A server of agents: each call is answered as the test says, the last way again and again."""

    answers: list[Answer]
    calls: list[Exchange] = field(default_factory=list)
    metadata: list[dict[str, Any]] = field(default_factory=list)
    ended: list[str] = field(default_factory=list)
    port: int = 0

    async def RunTurn(  # type: ignore[override]  # noqa: N802 - the contract's name
        self, request_iterator: Any, context: Any
    ) -> None:
        exchange = Exchange(request_iterator, context)
        self.calls.append(exchange)
        self.metadata.append(dict(context.invocation_metadata() or ()))
        answer = self.answers[min(len(self.calls), len(self.answers)) - 1]
        try:
            await exchange.listen()
            await answer(exchange)
            self.ended.append("answered")
        except asyncio.CancelledError:
            self.ended.append("cancelled")
            raise

    @property
    def url(self) -> str:
        return f"grpc://127.0.0.1:{self.port}"


@asynccontextmanager
async def serving(
    *answers: Answer, credentials: grpc.ServerCredentials | None = None
) -> AsyncIterator[Runtime]:
    server = grpc.aio.server()
    served = Runtime(list(answers))
    runtime_grpc.add_AgentRuntimeServiceServicer_to_server(served, server)
    if credentials is None:
        served.port = server.add_insecure_port("127.0.0.1:0")
    else:
        served.port = server.add_secure_port("127.0.0.1:0", credentials)
    await server.start()
    try:
        yield served
    finally:
        await server.stop(0)


@asynccontextmanager
async def place(
    folder: Path, store_url: str, *answers: Answer, **settings: object
) -> AsyncIterator[tuple[Runtime, Talk]]:
    """Give a runtime, and a session with an agent that it answers for."""
    async with serving(*answers) as served:
        made = make_settings(
            folder / "data", store_url, outgoing_allow=f"127.0.0.1:{served.port}", **settings
        )
        async with running_server(made) as hansard:
            yield served, await talk_with(hansard, served.url)
    check_store(store_url, folder / "data")


async def talk_with(hansard: Running, url: str, **fields: Any) -> Talk:
    given: dict[str, Any] = {"model": model(), "remote_runtime": {"runtime": url}, **fields}
    given["model"].retry.MergeFrom(agent_pb2.RetryPolicy(**QUICK))
    await hansard.agents.CreateAgent(
        agent_service_pb2.CreateAgentRequest(key="agent", name="Agent", **given)
    )
    return await Talk(hansard).open_session()


@pytest.fixture
def sqlite_url(databases: Databases) -> str:
    return databases.migrated("sqlite")


async def answer_well(exchange: Exchange) -> None:
    for part in ("All ", "is ", "wéll 🙂."):
        await exchange.say(delta={"kind": OUTPUT, "text": part})
    await exchange.say(event={"agent_output": {"content": "All is wéll 🙂."}})
    await exchange.say(end={})


def last_turn(responses: list[Any]) -> turn_pb2.Turn:
    turn: turn_pb2.Turn = responses[-1].turn_end.turn
    return turn


async def test_what_an_agent_elsewhere_says_is_shown_and_stored(
    store_url: str, tmp_path: Path
) -> None:
    async def answer(exchange: Exchange) -> None:
        await exchange.say(delta={"kind": THINKING, "text": "Let me "})
        await exchange.say(delta={"kind": THINKING, "text": "see."})
        await exchange.say(text_end={"provider_data": b"signed"})
        await exchange.say(event={"thinking": {"content": "Not shown before."}})
        await exchange.say(usage={"input_tokens": 3, "output_tokens": 2, "reasoning_tokens": 1})
        await answer_well(exchange)

    async with place(tmp_path, store_url, answer) as (_, talk):
        responses = await talk.send()
        check_turn(responses)
        _, first, second, said = stored(responses)
        assert first.thinking.content == "Let me see."
        assert first.thinking.provider_data == b"signed"
        assert second.thinking.content == "Not shown before."
        assert said.agent_output.content == "All is wéll 🙂."
        assert joined_deltas(responses)[said.id].decode() == "All is wéll 🙂."
        turn = last_turn(responses)
        assert turn.status == turn_pb2.TURN_STATUS_COMPLETED
        assert (turn.usage.input_tokens, turn.usage.output_tokens) == (3, 2)


async def test_agent_is_told_who_asks_and_what_was_said(sqlite_url: str, tmp_path: Path) -> None:
    async with place(tmp_path, sqlite_url, answer_well) as (served, talk):
        await talk.server.agents.UpdateAgent(
            agent_service_pb2.UpdateAgentRequest(
                agent=agent_pb2.Agent(
                    key="agent",
                    first_step={
                        "instructions": [{"inline": {"name": "i", "template": "Be $session.key."}}]
                    },
                    tool_configurations={"note": {"artifact_create": {}}},
                ),
                update_mask={"paths": ["first_step", "tool_configurations"]},
            )
        )
        await talk.send("One?")
        await talk.send("Two?")
        first, second = served.calls
        assert list(first.start.instructions) == ["Be s."]
        assert first.start.agent.key == "agent"
        assert not first.start.agent.tool_configurations
        assert not first.start.agent.HasField("remote_runtime")
        assert first.start.session.uid == talk.uid
        [tool] = first.told[1].tools.tools
        assert tool.name == "note"
        assert json.loads(tool.input_schema_json)["required"] == ["filename", "content"]
        kinds = [event.WhichOneof("payload") for event in second.history]
        assert kinds == ["input_message", "agent_output", "input_message"]
        assert second.start.turn_id == second.history[-1].turn_id != first.start.turn_id


async def test_history_that_is_larger_than_a_message_comes_in_pages(
    sqlite_url: str, tmp_path: Path
) -> None:
    async with place(tmp_path, sqlite_url, answer_well) as (served, talk):
        for _ in range(5):
            await talk.append(output("x" * 900_000))
        responses = await talk.send()
        assert last_turn(responses).status == turn_pb2.TURN_STATUS_COMPLETED
        [call] = served.calls
        pages = [request for request in call.told if request.HasField("history")]
        assert len(pages) > 3
        assert sum(page.ByteSize() for page in pages) > 3_000_000
        assert max(page.ByteSize() for page in pages) < 2_000_000


async def test_hansards_tools_run_side_by_side_for_the_agent(
    sqlite_url: str, tmp_path: Path
) -> None:
    results: list[runtime.ToolResults] = []

    async def answer(exchange: Exchange) -> None:
        note = {"filename": "a.txt", "content": "A"}
        calls = [
            {"name": "note", "arguments_json": json.dumps(note), "provider_data": b"p"},
            {"name": "note", "arguments_json": '{"filename": 1}'},
            {"name": "nothing", "arguments_json": "{}"},
        ]
        await exchange.say(tool_calls={"calls": calls})
        results.append(await exchange.next("tool_results"))
        await answer_well(exchange)

    async with serving(answer) as served:
        made = make_settings(
            tmp_path / "data", sqlite_url, outgoing_allow=f"127.0.0.1:{served.port}"
        )
        async with running_server(made) as hansard:
            tools: dict[str, Any] = {"note": {"artifact_create": {}}}
            talk = await talk_with(hansard, served.url, tool_configurations=tools)
            responses = await talk.send()
    check_turn(responses)
    events = stored(responses)
    inputs = [e.tool_input for e in events if e.HasField("tool_input")]
    outputs = [e.tool_output for e in events if e.HasField("tool_output")]
    assert [call.tool_call_id for call in inputs] == [o.tool_call_id for o in outputs]
    assert [o.error for o in outputs] == [False, True, True]
    assert inputs[0].provider_data == b"p"
    assert list(results[0].outputs) == outputs
    assert any(e.HasField("artifact_upload") for e in events)


async def test_tools_of_the_agents_own_get_ids_of_hansards(sqlite_url: str, tmp_path: Path) -> None:
    async def answer(exchange: Exchange) -> None:
        for name in ("1", "2"):
            call = {"tool_call_id": name, "tool_name": "clock", "tool_input_json": "{}"}
            await exchange.say(event={"tool_input": call})
        for name, error in (("2", True), ("1", False)):
            answered = {"tool_call_id": name, "tool_output_json": f'"{name}"', "error": error}
            await exchange.say(event={"tool_output": answered})
        await answer_well(exchange)

    async with place(tmp_path, sqlite_url, answer) as (_, talk):
        responses = await talk.send()
        events = stored(responses)
        first, second = [e.tool_input for e in events if e.HasField("tool_input")]
        two, one = [e.tool_output for e in events if e.HasField("tool_output")]
        assert first.tool_call_id.startswith("call_")
        assert (one.tool_call_id, two.tool_call_id) == (first.tool_call_id, second.tool_call_id)
        assert (one.tool_name, one.outcome) == ("clock", event_pb2.TOOL_OUTCOME_COMPLETED)
        assert two.outcome == event_pb2.TOOL_OUTCOME_FAILED
        # Another turn may use its own names again.
        assert last_turn(await talk.send()).status == turn_pb2.TURN_STATUS_COMPLETED


async def test_call_that_the_agent_leaves_open_is_closed(sqlite_url: str, tmp_path: Path) -> None:
    async def answer(exchange: Exchange) -> None:
        call = {"tool_call_id": "1", "tool_name": "clock", "tool_input_json": "{}"}
        await exchange.say(event={"tool_input": call})
        await exchange.say(end={})

    async with place(tmp_path, sqlite_url, answer) as (_, talk):
        [closed] = [e.tool_output for e in stored(await talk.send()) if e.HasField("tool_output")]
        assert closed.outcome == event_pb2.TOOL_OUTCOME_INTERRUPTED


async def test_what_is_put_into_the_turn_reaches_the_agent(sqlite_url: str, tmp_path: Path) -> None:
    steered = asyncio.Event()
    results: list[runtime.ToolResults] = []

    async def answer(exchange: Exchange) -> None:
        await exchange.say(event={"thinking": {"content": "Wait."}})
        await steered.wait()
        await exchange.say(tool_calls={"calls": [{"name": "x", "arguments_json": "{}"}]})
        results.append(await exchange.next("tool_results"))
        await answer_well(exchange)

    async with place(tmp_path, sqlite_url, answer) as (_, talk):
        stream = talk.stream("One.")
        async for response in stream:
            if response.event.HasField("thinking"):
                await talk.send("Two.", when_busy="WHEN_BUSY_STEER", detach=True)
                steered.set()
        [said] = results[0].inputs
        assert said.input_message.messages[0].text.content == "Two."


# What an agent may not say ------------------------------------------------------------------------


def say(*messages: dict[str, Any]) -> Answer:
    """Return an answer of these messages, after which nothing comes."""

    async def answer(exchange: Exchange) -> None:
        for said in messages:
            await exchange.say(**said)
        await asyncio.sleep(60)

    return answer


def text(content: str) -> dict[str, Any]:
    return {"delta": {"kind": OUTPUT, "text": content}}


def own(**fields: Any) -> dict[str, Any]:
    call = {"tool_call_id": "1", "tool_name": "clock", "tool_input_json": "{}", **fields}
    return {"event": {"tool_input": call}}


def own_output(**fields: Any) -> dict[str, Any]:
    return {"event": {"tool_output": {"tool_call_id": "1", "tool_output_json": "{}", **fields}}}


CUSTOM = {"custom_type": "com.example.x", "data_json": "no json"}
IMAGE = {"artifact_id": "art_not_there_x1y2"}
OFFLOADED = {"artifact_id": "art_not_there_x1y2"}


BROKEN: list[tuple[list[dict[str, Any]], str]] = [
    ([text("One"), {"event": {"agent_output": {"content": "Two"}}}], "not what was shown"),
    ([text("One"), {"event": {"thinking": {"content": "One"}}}], "text is open"),
    ([text("One"), {"delta": {"kind": THINKING, "text": "x"}}], "another kind is open"),
    ([text("One"), own()], "text is open"),
    ([text("O"), {"tool_calls": {"calls": [{"name": "x"}]}}], "text is open"),
    ([{"text_end": {}}], "no text is open"),
    ([{"event": {"agent_output": {"content": "x", "partial": True}}}], "partial"),
    ([{"event": {"agent_output": {"content": "x" * 800_000}}}], "has more than"),
    ([text("x" * 500_000), text("x" * 500_000)], "has more than"),
    ([{"event": {"thinking": {"provider_data": b"x" * 200_000}}}], "wants 200,000 bytes"),
    ([{"event": {}}], "payload"),
    ([{}], "message"),
    ([{"delta": {"kind": 0, "text": "x"}}], "kind"),
    ([own(tool_input_json="no json")], "JSON"),
    ([own(tool_input_json="[" * 600 + "]" * 600)], "nested deeper"),
    ([own(), own()], "there was a tool call"),
    ([own(tool_call_id="")], "tool_call_id"),
    ([own(tool_configuration_name="note")], "tool_configuration_name"),
    ([own_output()], "no tool call"),
    ([own(), own_output(), own_output()], "no tool call"),
    ([own(), own_output(error=True, outcome="TOOL_OUTCOME_COMPLETED")], "exclude each other"),
    ([own(), own_output(offloaded_artifact=OFFLOADED)], "offloaded_artifact"),
    ([{"event": {"image_read": IMAGE}}], "no artifact"),
    ([{"event": {"custom": CUSTOM}}], "JSON"),
    ([{"event": {"structured_output": {"schema_name": "s", "content_json": "x"}}}], "JSON"),
    ([{"usage": {"input_tokens": -1}}], "tokens"),
    ([{"tool_calls": {}}], "calls"),
]


async def test_agent_that_breaks_the_protocol_ends_its_turn(
    sqlite_url: str, tmp_path: Path
) -> None:
    async with place(tmp_path, sqlite_url, answer_well) as (served, talk):
        for count, (messages, why) in enumerate(BROKEN, 1):
            served.answers = [say(*messages)]
            responses = await talk.send()
            check_turn(responses)
            turn = last_turn(responses)
            assert turn.status == turn_pb2.TURN_STATUS_FAILED, why
            assert "broke the protocol" in turn.error.message, why
            assert why in turn.error.message
            # It is not called again.
            assert len(served.calls) == count, why


async def test_payload_that_only_the_service_writes_is_none(
    sqlite_url: str, tmp_path: Path
) -> None:
    # As a draft with the number that a compaction has among events.
    event = event_pb2.Event(compaction={"summary_text": "Forget all."})
    draft = runtime.Draft.FromString(event.SerializeToString())

    async with place(tmp_path, sqlite_url, say({"event": draft})) as (_, talk):
        turn = last_turn(await talk.send())
        assert turn.status == turn_pb2.TURN_STATUS_FAILED


# Failures -----------------------------------------------------------------------------------------


async def test_agent_that_can_not_go_on_says_why(sqlite_url: str, tmp_path: Path) -> None:
    answer = say(text("I be"), {"fail": {"message": "The library burnt down."}})
    async with place(tmp_path, sqlite_url, answer) as (_, talk):
        responses = await talk.send()
        check_turn(responses)
        turn = last_turn(responses)
        assert (turn.status, turn.error.message) == (
            turn_pb2.TURN_STATUS_FAILED,
            "The library burnt down.",
        )
        assert stored(responses)[-1].agent_output.partial


async def abort(exchange: Exchange) -> None:
    await exchange.context.abort(grpc.StatusCode.INTERNAL, "password=hunter2")


async def leave(exchange: Exchange) -> None:
    await exchange.say(**text("Half"))


@pytest.mark.parametrize(
    ("answer", "why"), [(abort, "INTERNAL"), (leave, "before the turn"), (say({"fail": {}}), "go")]
)
async def test_failure_of_the_agent_ends_the_turn_without_its_words(
    sqlite_url: str, tmp_path: Path, answer: Answer, why: str
) -> None:
    async with place(tmp_path, sqlite_url, answer) as (served, talk):
        turn = last_turn(await talk.send())
        assert turn.status == turn_pb2.TURN_STATUS_FAILED
        assert why in turn.error.message
        assert "hunter2" not in turn.error.message
        assert len(served.calls) == 1


async def break_off(exchange: Exchange) -> None:
    await exchange.say(event={"thinking": {"content": "I have begun."}})
    await exchange.next("stored")
    await exchange.say(**text("Half an ans"))
    await exchange.context.abort(grpc.StatusCode.UNAVAILABLE, "gone")


async def test_call_that_breaks_is_made_again_from_the_last_stored_event(
    store_url: str, tmp_path: Path
) -> None:
    async with place(tmp_path, store_url, break_off, answer_well) as (served, talk):
        responses = await talk.send()
        check_turn(responses)
        assert last_turn(responses).status == turn_pb2.TURN_STATUS_COMPLETED
        first, second = served.calls
        kinds = [event.WhichOneof("payload") for event in second.history]
        assert kinds == ["input_message", "thinking"]
        assert [e.WhichOneof("payload") for e in stored(responses)] == [*kinds, "agent_output"]
        # What was shown before, and not stored, is no part of it.
        assert stored(responses)[-1].agent_output.content == "All is wéll 🙂."
        assert first.start.turn_id == second.start.turn_id


async def test_calls_that_break_without_progress_end_the_turn(
    sqlite_url: str, tmp_path: Path
) -> None:
    async def gone(exchange: Exchange) -> None:
        await exchange.context.abort(grpc.StatusCode.UNAVAILABLE, "gone")

    async with place(tmp_path, sqlite_url, gone) as (served, talk):
        turn = last_turn(await talk.send())
        assert turn.status == turn_pb2.TURN_STATUS_FAILED
        assert turn.error.code == grpc.StatusCode.UNAVAILABLE.value[0]
        assert len(served.calls) == 3


async def test_open_calls_of_an_agent_that_went_are_interrupted(
    sqlite_url: str, tmp_path: Path
) -> None:
    async def call_and_go(exchange: Exchange) -> None:
        await exchange.say(**own())
        await exchange.next("stored")
        await exchange.context.abort(grpc.StatusCode.UNAVAILABLE, "gone")

    async with place(tmp_path, sqlite_url, call_and_go, answer_well) as (served, talk):
        responses = await talk.send()
        assert last_turn(responses).status == turn_pb2.TURN_STATUS_COMPLETED
        [closed] = [e.tool_output for e in served.calls[1].history if e.HasField("tool_output")]
        assert closed.outcome == event_pb2.TOOL_OUTCOME_INTERRUPTED


async def test_agent_that_goes_silent_is_called_again(sqlite_url: str, tmp_path: Path) -> None:
    async def silent(exchange: Exchange) -> None:
        await asyncio.sleep(600)

    async with place(tmp_path, sqlite_url, silent, answer_well, runtime_heartbeat_s=0.2) as (
        served,
        talk,
    ):
        assert last_turn(await talk.send()).status == turn_pb2.TURN_STATUS_COMPLETED
        assert len(served.calls) == 2


async def test_agent_that_beats_may_take_its_time(sqlite_url: str, tmp_path: Path) -> None:
    beats = 0

    async def slow(exchange: Exchange) -> None:
        nonlocal beats
        for _ in range(2 * MISSED_HEARTBEATS):
            await exchange.say(heartbeat={})
            await exchange.next("heartbeat")
            beats += 1
        await answer_well(exchange)

    # Longer than it may be silent, and that longer than a busy machine stops.
    async with place(tmp_path, sqlite_url, slow, runtime_heartbeat_s=0.7) as (served, talk):
        assert last_turn(await talk.send()).status == turn_pb2.TURN_STATUS_COMPLETED
        assert (len(served.calls), beats) == (1, 2 * MISSED_HEARTBEATS)


async def test_agent_that_takes_too_long_ends_its_turn(sqlite_url: str, tmp_path: Path) -> None:
    async with place(tmp_path, sqlite_url, say(text("I am st"))) as (_, talk):
        await talk.server.agents.UpdateAgent(
            agent_service_pb2.UpdateAgentRequest(
                agent=agent_pb2.Agent(
                    key="agent",
                    remote_runtime={
                        "runtime": (await get_agent(talk)).remote_runtime.runtime,
                        "deadline": {"seconds": 2},
                    },
                ),
                update_mask={"paths": ["remote_runtime"]},
            )
        )
        responses = await talk.send()
        turn = last_turn(responses)
        assert turn.status == turn_pb2.TURN_STATUS_FAILED
        assert "in its time" in turn.error.message
        assert stored(responses)[-1].agent_output.partial


async def get_agent(talk: Talk) -> agent_pb2.Agent:
    return await talk.server.agents.GetAgent(agent_service_pb2.GetAgentRequest(agent_key="agent"))


async def test_interrupt_cancels_the_agents_call(sqlite_url: str, tmp_path: Path) -> None:
    async with place(tmp_path, sqlite_url, say(text("I am st"))) as (served, talk):
        stream = talk.stream()
        async for response in stream:
            if response.HasField("delta"):
                await talk.release(response.turn_id)
        [turn] = await talk.turns()
        assert turn.status == turn_pb2.TURN_STATUS_INTERRUPTED
        async with asyncio.timeout(60):
            while served.ended != ["cancelled"]:  # noqa: ASYNC110 - it is the other side's
                await asyncio.sleep(0.01)
        events = await talk.events()
        assert [e.agent_output.content for e in events if e.HasField("agent_output")] == ["I am st"]


async def test_server_that_is_not_there_ends_the_turn(sqlite_url: str, tmp_path: Path) -> None:
    async with serving(answer_well) as served:
        port = served.port
    made = make_settings(tmp_path / "data", sqlite_url, outgoing_allow=f"127.0.0.1:{port}")
    async with running_server(made) as hansard:
        talk = await talk_with(hansard, f"grpc://127.0.0.1:{port}")
        turn = last_turn(await talk.send())
        assert turn.status == turn_pb2.TURN_STATUS_FAILED
        assert "can't be reached" in turn.error.message


# Who is called ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "url",
    [
        *("nobody", "grpc://127.0.0.1:1", "grpcs://example.com", "grpc://2130706433:50051"),
        *("http://127.0.0.1:1", "unix:/run/x.sock", "grpc://127.0.0.1", "dns:///example.com"),
        *("grpc://user@127.0.0.1:1", "grpc://[::1]:1", "grpc://[::ffff:127.0.0.1]:1"),
    ],
)
async def test_runtime_that_is_not_allowed_is_refused(plain: Running, url: str) -> None:
    request = agent_service_pb2.CreateAgentRequest(
        key="agent", name="Agent", model=model(), remote_runtime={"runtime": url}
    )
    refused = await failure(plain.agents.CreateAgent(request))
    assert refused.reason == "INVALID_AGENT_CONFIGURATION"
    assert refused.fields == ("remote_runtime.runtime",)


async def test_runtime_by_name_is_called_over_tls_with_its_token(
    sqlite_url: str, tmp_path: Path
) -> None:
    authority = Authority("authority")
    issued = authority.issue()
    credentials = grpc.ssl_server_credentials([(issued.key, issued.certificate)])
    (tmp_path / "ca.pem").write_bytes(authority.certificate)
    async with serving(answer_well, credentials=credentials) as served:
        (tmp_path / "connections.toml").write_text(
            f'[runtimes.mine]\nurl = "grpcs://localhost:{served.port}"\ntoken = "hush"\n'
            f'ca_file = "{tmp_path / "ca.pem"}"\n'
            f'[runtimes.other]\nurl = "grpcs://localhost:{served.port}"\n',
            encoding="utf-8",
        )
        made = make_settings(
            tmp_path / "data",
            sqlite_url,
            connections=tmp_path / "connections.toml",
            outgoing_allow=f"127.0.0.0/8:{served.port} [::1]:{served.port}",
        )
        async with running_server(made) as hansard:
            talk = await talk_with(hansard, "mine")
            assert last_turn(await talk.send()).status == turn_pb2.TURN_STATUS_COMPLETED
            assert served.metadata[0]["authorization"] == "Bearer hush"
            # Whose certificate nobody known has signed is not spoken to.
            await talk.server.agents.UpdateAgent(
                agent_service_pb2.UpdateAgentRequest(
                    agent=agent_pb2.Agent(key="agent", remote_runtime={"runtime": "other"}),
                    update_mask={"paths": ["remote_runtime"]},
                )
            )
            assert last_turn(await talk.send()).status == turn_pb2.TURN_STATUS_FAILED
            assert len(served.calls) == 1


async def test_agent_without_a_runtime_is_answered_by_its_model_again(
    sqlite_url: str, tmp_path: Path
) -> None:
    async with place(tmp_path, sqlite_url, answer_well) as (served, talk):
        await talk.server.agents.UpdateAgent(
            agent_service_pb2.UpdateAgentRequest(
                agent=agent_pb2.Agent(key="agent"), update_mask={"paths": ["remote_runtime"]}
            )
        )
        assert last_turn(await talk.send()).status == turn_pb2.TURN_STATUS_COMPLETED
        assert served.calls == []
