"""Models of providers through a real server, against servers that speak the providers' formats."""

from __future__ import annotations

import asyncio
import json
import uuid
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
from google.protobuf import json_format

from hansard.v1 import (
    agent_pb2,
    agent_service_pb2,
    artifact_service_pb2,
    event_service_pb2,
    session_service_pb2,
    turn_pb2,
)
from tests.support.artifacts import chunks, header
from tests.support.databases import Databases
from tests.support.invariants import check_store
from tests.support.providers.process import (
    PROVIDERS,
    ProviderProcess,
    no_faults,
    provider_process,
)
from tests.support.providers.server import KEY
from tests.support.server import Running, failure, make_settings, running_server
from tests.support.talk import Talk, check_turn, content, joined_deltas, stored

THINKING = {
    "anthropic": {
        "anthropic_thinking": {"type": "enabled", "budget_tokens": 1_024},
        "max_tokens": 4_096,
    }
}
QUICK = {"initialBackoff": "0.01s", "maxBackoff": "0.02s"}


@pytest.fixture(scope="module")
def providers() -> Iterator[ProviderProcess]:
    with provider_process() as process:
        yield process


class Called:
    """A server whose model `m` is a provider's, and a session that it answers in."""

    def __init__(self, running: Running, process: ProviderProcess, provider: str) -> None:
        self.running = running
        self.process = process
        self.provider = provider
        self.lane = ""
        self.talk = Talk(running)

    def reply(self, *replies: dict[str, Any]) -> None:
        self.process.reply(self.provider, *replies, lane=self.lane)

    def asked(self) -> list[dict[str, Any]]:
        return self.process.asked(self.provider, self.lane)

    def messages(self, index: int = -1) -> list[dict[str, Any]]:
        """Return what the conversation was in a request."""
        body = self.asked()[index]["body"]
        found = body.get("messages") or body["contents"]
        return [m for m in found if m["role"] not in {"system", "developer"}]

    async def begin(self, *tools: str, **parameters: Any) -> Talk:
        made = agent_pb2.Model(name="m")
        json_format.ParseDict(QUICK, made.retry)
        json_format.ParseDict(parameters, made.parameters)
        await self.running.agents.CreateAgent(
            agent_service_pb2.CreateAgentRequest(
                key="agent",
                name="Agent",
                model=made,
                first_step={"instructions": [{"inline": {"template": "Be brief."}}]},
                tool_configurations={
                    tool: agent_pb2.ToolConfiguration(**{tool: {}}) for tool in tools
                },
            )
        )
        return await self.talk.open_session()


@pytest.fixture(params=PROVIDERS)
def provider(request: pytest.FixtureRequest) -> str:
    return str(request.param)


async def _called(
    url: str, folder: Path, process: ProviderProcess, provider: str, **changes: Any
) -> AsyncIterator[Called]:
    lane = f"-{uuid.uuid4().hex[:8]}"
    model = process.settings(provider, lane, **changes.pop("model", {}))
    settings = make_settings(folder / "data", url, models={"m": model}, **changes)
    async with running_server(settings) as running:
        called = Called(running, process, provider)
        called.lane = lane
        yield called
    check_store(url, folder / "data")


@pytest.fixture
async def called(
    databases: Databases, tmp_path: Path, providers: ProviderProcess, provider: str
) -> AsyncIterator[Called]:
    """Give a server on SQLite with each provider in turn."""
    url = databases.migrated("sqlite")
    async for made in _called(url, tmp_path, providers, provider):
        yield made


@pytest.fixture
async def on_both(
    store_url: str, tmp_path: Path, providers: ProviderProcess, provider: str
) -> AsyncIterator[Called]:
    """Give a server on each database with each provider."""
    async for made in _called(store_url, tmp_path, providers, provider):
        yield made


@pytest.fixture
async def claude(
    databases: Databases, tmp_path: Path, providers: ProviderProcess
) -> AsyncIterator[Called]:
    """Give a server on SQLite with Anthropic, in whose time a step may take 2 s."""
    url = databases.migrated("sqlite")
    changes = {"model_step_max_s": 2.0}
    async for made in _called(url, tmp_path, providers, "anthropic", **changes):
        yield made


def shown(seen: list[event_service_pb2.SendEventResponse]) -> list[str]:
    """Return the texts that the deltas make."""
    return [text.decode() for text in joined_deltas(seen).values()]


def create(filename: str) -> dict[str, Any]:
    return {"tool": "artifact_create", "input": {"filename": filename, "content": "x"}}


def thoughts(provider: str, *texts: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = [{"thinking": text} for text in texts]
    return [*found, {"redacted": "sealed"}] if provider == "anthropic" else found


async def test_ask_think_two_tools_answer_follow_up(on_both: Called) -> None:
    provider = on_both.provider
    talk = await on_both.begin("artifact_create", **THINKING.get(provider, {}))
    on_both.reply(
        {
            "parts": [
                *thoughts(provider, "Two files: ä, 中, 🙂."),
                {"text": "I make both."},
                create("a.txt"),
                create("b.txt"),
            ]
        },
        {"parts": [*thoughts(provider, "Both are there."), {"text": "Made a.txt and b.txt."}]},
        {"parts": [{"text": "The first was a.txt."}]},
    )
    seen = await talk.send("Make two files.")
    check_turn(seen)
    kinds = [event.WhichOneof("payload") for event in stored(seen)]
    sealed = ["thinking"] if provider == "anthropic" else []
    assert kinds == [
        *("input_message", "thinking", *sealed, "agent_output", "tool_input", "tool_input"),
        *("tool_output", "artifact_upload", "tool_output", "artifact_upload"),
        *("thinking", *sealed, "agent_output"),
    ]
    assert "Two files: ä, 中, 🙂." in shown(seen)
    outputs = [event.tool_output for event in stored(seen) if event.HasField("tool_output")]
    assert [json.loads(output.tool_output_json)["filename"] for output in outputs] == [
        "a.txt",
        "b.txt",
    ]
    turn = seen[-1].turn_end.turn
    assert (turn.usage.input_tokens, turn.usage.output_tokens) == (42, 26)
    again = await talk.send("Which was the first?")
    assert content(stored(again)[-1]) == "The first was a.txt."
    asked = on_both.asked()
    no_faults(asked)
    assert len(asked) == 3
    assert_signatures_came_back(on_both)
    assert "Made a.txt and b.txt." in json.dumps(on_both.messages(2))
    session = await on_both.running.sessions.GetSession(
        session_service_pb2.GetSessionRequest(**talk.keys)
    )
    assert session.usage.output_tokens == 39


def assert_signatures_came_back(called: Called) -> None:
    """What the provider had signed it was given back as it was, in both requests after."""
    text = json.dumps(called.messages(1), ensure_ascii=False)
    for messages in (called.messages(1), called.messages(2)):
        answer = messages[1]
        match called.provider:
            case "anthropic":
                kinds = [block["type"] for block in answer["content"]]
                assert kinds == ["thinking", "redacted_thinking", "text", "tool_use", "tool_use"]
                assert answer["content"][0]["thinking"] == "Two files: ä, 中, 🙂."
                assert answer["content"][1]["data"] == "redacted:sealed"
            case "google":
                signed = [part for part in answer["parts"] if "thoughtSignature" in part]
                assert [part["functionCall"]["args"]["filename"] for part in signed] == ["a.txt"]
    if called.provider == "openai":
        # Only while the turn lasts: servers don't take the reasoning of earlier ones.
        assert called.messages(1)[1]["reasoning_content"] == "Two files: ä, 中, 🙂."
        assert "reasoning_content" not in called.messages(2)[1]
    assert text.index("a.txt") < text.index("b.txt")


@pytest.mark.parametrize("label", ["head", "thinking", "text", "tool", "tail"])
async def test_an_answer_that_breaks_off_is_made_again(called: Called, label: str) -> None:
    provider = called.provider
    if provider == "google" and label == "head":
        label = "thinking"  # Its answers have no other beginning.
    talk = await called.begin("artifact_create", **THINKING.get(provider, {}))
    parts = [*thoughts(provider, "Well then."), {"text": "I make it."}, create("a.txt")]
    alone = label in {"head", "tail"} or (provider, label) == ("google", "tool")
    for how in ("reset", "close", "malformed", "error"):
        stop = {"label": label, "nth": int(not alone), "how": how}
        called.reply(
            {"parts": parts, "stop": stop}, {"parts": parts}, {"parts": [{"text": "Done."}]}
        )
        asked_before = len(called.asked())
        seen = await talk.send("Make a file.")
        check_turn(seen)
        assert seen[-1].turn_end.turn.status == turn_pb2.TURN_STATUS_COMPLETED, how
        events = stored(seen)
        assert content(events[-1]) == "Done."
        assert sum(event.HasField("artifact_upload") for event in events) == 1, how
        texts = {e.agent_output.content for e in events if e.HasField("agent_output")}
        assert texts == {"I make it.", "Done."}, how
        assert {e.thinking.content for e in events if e.HasField("thinking")} <= {"Well then.", ""}
        # What was shown and not stored was voided, or another text came in its place.
        assert not [e for e in events if e.agent_output.partial or e.thinking.partial]
        assert len(called.asked()) == asked_before + 3
    no_faults(called.asked())


async def test_busy_providers_are_asked_again_when_they_say(called: Called) -> None:
    talk = await called.begin()
    called.reply(
        {"status": 429, "headers": {"retry-after": "1"}, "message": "Slow down."},
        {"status": 503},
        {"parts": [{"text": "Here."}]},
    )
    loop = asyncio.get_running_loop()
    start = loop.time()
    seen = await talk.send()
    assert loop.time() - start >= 1
    assert content(stored(seen)[-1]) == "Here."
    assert len(called.asked()) == 3


async def test_a_provider_that_stays_away_ends_the_turn(called: Called) -> None:
    talk = await called.begin()
    called.reply(*[{"status": 503, "message": f"Not now, {KEY}."}] * 4)
    seen = await talk.send()
    error = seen[-1].turn_end.turn.error
    assert "503" in error.message
    assert "MODEL_UNAVAILABLE" in str(error)
    assert KEY not in str(error)
    assert len(called.asked()) == 4


async def test_what_the_provider_refuses_is_not_asked_again(called: Called) -> None:
    talk = await called.begin()
    called.reply({"status": 400, "message": f"temperature: no; your key is {KEY}"})
    seen = await talk.send()
    error = seen[-1].turn_end.turn.error
    assert "AGENT_PROCESSING_FAILED" in str(error)
    assert "temperature" in error.message
    assert KEY not in str(error)
    assert len(called.asked()) == 1


async def test_an_interrupt_closes_the_connection_and_keeps_what_was_shown(called: Called) -> None:
    talk = await called.begin(**THINKING.get(called.provider, {}))
    called.reply(
        {
            "parts": [*thoughts(called.provider, "Hm."), {"text": "Half an answer"}],
            # Anthropic begins a block with a frame that has no text.
            "stop": {"label": "text", "nth": 2 + (called.provider == "anthropic"), "how": "hang"},
        },
        {"parts": [{"text": "As you wish."}]},
    )
    stream = talk.stream("Talk.")
    seen = []
    async for response in stream:
        seen.append(response)
        if any("Half an" in text for text in shown(seen)):
            break
    interrupt = event_service_pb2.Interrupt()
    call = talk.server.events.SendEvent(
        event_service_pb2.SendEventRequest(interrupt=interrupt, **talk.keys)
    )
    async for _ in call:
        pass
    seen += [response async for response in stream]
    check_turn(seen)
    partial = [e.agent_output for e in stored(seen) if e.HasField("agent_output")]
    assert [(output.content, output.partial) for output in partial] == [("Half an ", True)]
    # The provider is not left sending to nobody.
    process, provider = called.process, called.provider
    await asyncio.to_thread(process.wait, provider, lambda a: a[0]["end"] == "gone", called.lane)
    again = await talk.send("Go on.")
    assert content(stored(again)[-1]) == "As you wish."
    assert "Half an " in json.dumps(called.messages())
    no_faults(called.asked())


async def test_a_step_has_a_deadline(claude: Called) -> None:
    talk = await claude.begin()
    claude.reply(
        {
            "parts": [{"text": "Slowly, slowly"}],
            "stop": {"label": "text", "nth": 2, "how": "hang"},
        }
    )
    seen = await talk.send()
    check_turn(seen)
    turn = seen[-1].turn_end.turn
    assert turn.status == turn_pb2.TURN_STATUS_FAILED
    assert "MODEL_UNAVAILABLE" in str(turn.error)
    assert "2 s" in turn.error.message
    assert [(e.agent_output.content, e.agent_output.partial) for e in stored(seen)[1:]] == [
        ("Slow", True)
    ]


async def test_a_wait_that_is_too_long_is_not_waited(claude: Called) -> None:
    talk = await claude.begin()
    claude.reply({"status": 429, "headers": {"retry-after": "900"}})
    seen = await talk.send()
    assert "MODEL_UNAVAILABLE" in str(seen[-1].turn_end.turn.error)
    assert len(claude.asked()) == 1


async def test_parameters_reach_the_provider_or_are_refused(called: Called) -> None:
    refused = await failure(called.begin(temperature=9, messages=[], max_tokens="many"))
    assert refused.reason == "INVALID_AGENT_CONFIGURATION"
    assert sorted(refused.fields) == [
        "model.parameters.max_tokens",
        "model.parameters.messages",
        "model.parameters.temperature",
    ]
    more = {} if called.provider == "google" else {"mirostat": 2}
    talk = await called.begin(temperature=0.25, max_tokens=99, **more)
    called.reply({"parts": [{"text": "Ok."}]})
    await talk.send()
    body = called.asked()[0]["body"]
    told = body.get("generationConfig", body)
    assert told["temperature"] == 0.25
    assert told.get("max_tokens", told.get("maxOutputTokens")) == 99
    assert {name: body[name] for name in more} == more


async def test_images_are_shown_to_models_that_see(
    databases: Databases, tmp_path: Path, providers: ProviderProcess, provider: str
) -> None:
    url = databases.migrated("sqlite")
    model = {"vision": True}
    async for called in _called(url, tmp_path, providers, provider, model=model):
        talk = await called.begin("image_read", **THINKING.get(provider, {}))
        png = b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR" + bytes((0, 0, 0, 2, 0, 0, 0, 3, 8, 2, 0, 0, 0))
        begin = artifact_service_pb2.UploadArtifactsRequest(start=talk.keys)
        call = called.running.artifacts.UploadArtifacts(
            iter([begin, header("dot.png"), *chunks(png)])
        )
        image = (await call).artifact_upload.artifacts[0].artifact_id
        called.reply(
            {
                "parts": [
                    *thoughts(provider, "I look."),
                    {"tool": "image_read", "input": {"artifact_id": image}},
                ]
            },
            {"parts": [{"text": "A dot."}]},
        )
        seen = await talk.send("What is on it?")
        assert content(stored(seen)[-1]) == "A dot."
        assert "iVBORw0KGgo" in json.dumps(called.messages())
        no_faults(called.asked())


async def test_a_key_that_the_provider_refuses_stays_secret(
    databases: Databases, tmp_path: Path, providers: ProviderProcess, provider: str
) -> None:
    url = databases.migrated("sqlite")
    key = "sk-wrong-987654321-private"
    model = {"api_key": key}
    async for called in _called(url, tmp_path, providers, provider, model=model):
        talk = await called.begin()
        seen = await talk.send()
        error = seen[-1].turn_end.turn.error
        assert "AGENT_PROCESSING_FAILED" in str(error)
        assert "401" in error.message
        for part in (key, key[:8], key[-4:]):
            assert part not in str(error)


async def test_a_family_of_models_by_a_prefix(
    databases: Databases, tmp_path: Path, providers: ProviderProcess
) -> None:
    url = databases.migrated("sqlite")
    entry = providers.settings("openai")
    del entry["model"]
    settings = make_settings(tmp_path / "data", url, models={"openai/*": entry})
    async with running_server(settings) as running:
        talk = Talk(running)
        await running.agents.CreateAgent(
            agent_service_pb2.CreateAgentRequest(
                key="agent", name="Agent", model={"name": "openai/gpt-4o-family"}
            )
        )
        await talk.open_session()
        providers.reply("openai", {"parts": [{"text": "Family."}]}, lane="-family")
        seen = await talk.send()
        assert content(stored(seen)[-1]) == "Family."
