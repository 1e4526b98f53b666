"""What providers get of a history, by their real client libraries, under their own rules."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Sequence
from typing import Any

import pytest

from hansard.v1 import event_pb2
from hansard_server.agents.api import OutputSchema, ToolDescription
from hansard_server.agents.models.providers.messages import GO_ON, NOTHING_BEFORE
from hansard_server.agents.models.providers.provider_data import ProviderData, decode, encode
from tests.support.agents import MemoryFiles, message
from tests.support.providers.bodies import PROVIDERS, BodyMaker
from tests.support.providers.rules import FAULTS, sign

OWN = {"anthropic": "anthropic", "openai": "openai-compatible/provider.test", "google": "google"}
LOOK = ToolDescription(name="look", description="Looks.", input_schema={"type": "object"})
PNG = b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR" + bytes((0, 0, 0, 2, 0, 0, 0, 3, 8, 2, 0, 0, 0, 1, 2, 3, 4))


@pytest.fixture(params=PROVIDERS)
async def maker(request: pytest.FixtureRequest) -> AsyncIterator[BodyMaker]:
    maker = BodyMaker(str(request.param), vision=True)
    yield maker
    await maker.close()


class Talk:
    """Makes events of a conversation with one provider's model."""

    def __init__(self, provider: str) -> None:
        self.provider = provider
        self.events: list[event_pb2.Event] = []
        self.turn_id = "trn_1"

    def add(self, **payload: Any) -> Talk:
        event = event_pb2.Event(turn_id=self.turn_id, **payload)
        self.events.append(event)
        return self

    def ask(self, text: str, *artifact_ids: str) -> Talk:
        event = message(text, *artifact_ids)
        event.turn_id = self.turn_id
        self.events.append(event)
        return self

    def think(self, content: str, response: str = "r1") -> Talk:
        details = {"thought_signature": sign(content)} if self.provider == "google" else {}
        data = self.data(
            "thinking",
            response,
            signature=sign(content) if self.provider == "anthropic" else "",
            part_id="reasoning_content" if self.provider == "openai" else "",
            details=details,
            characters=str(len(content)),
        )
        return self.add(thinking=event_pb2.Thinking(content=content, provider_data=data))

    def say(self, content: str, response: str = "r1") -> Talk:
        data = self.data("text", response)
        return self.add(agent_output=event_pb2.AgentOutput(content=content, provider_data=data))

    def call(self, call_id: str, response: str = "r1", provider_id: str = "") -> Talk:
        signature = {"thought_signature": sign('look {"a": 1}')}
        data = self.data(
            "tool_call",
            response,
            call_id=provider_id or f"p_{call_id}",
            details=signature if self.provider == "google" else {},
        )
        return self.add(
            tool_input=event_pb2.ToolInput(
                tool_call_id=call_id,
                tool_configuration_name="look",
                tool_name="look",
                tool_input_json='{"a": 1}',
                provider_data=data,
            )
        )

    def output(self, call_id: str, *, error: bool = False) -> Talk:
        return self.add(
            tool_output=event_pb2.ToolOutput(
                tool_call_id=call_id,
                tool_configuration_name="look",
                tool_output_json=json.dumps({"error" if error else "seen": call_id}),
                error=error,
            )
        )

    def data(self, kind: str, response: str, **more: Any) -> bytes:
        return encode(
            ProviderData(provider=OWN[self.provider], response_id=response, kind=kind, **more)
        )


async def body_of(maker: BodyMaker, talk: Talk, **request: Any) -> dict[str, Any]:
    """Return the body, which the provider takes."""
    body = await maker.body(talk.events, **{"tools": (LOOK,), **request})
    assert FAULTS[maker.provider](body) == ""
    return body


def spoken(body: dict[str, Any]) -> list[tuple[str, str]]:
    """Return who says what, as words whichever provider it is."""
    lines = []
    for one in body.get("messages") or body["contents"]:
        content = one.get("content") or one.get("parts") or ""
        parts: Sequence[Any] = [content] if isinstance(content, str) else content
        for part in parts:
            text = part if isinstance(part, str) else part.get("text") or part.get("thinking")
            if text:
                lines.append((one["role"].replace("model", "assistant"), text))
    return [line for line in lines if line[0] not in {"system", "developer"}]


async def test_a_turn_with_two_tools_side_by_side(maker: BodyMaker) -> None:
    talk = Talk(maker.provider).ask("Look at both").think("Two looks.").say("I look.")
    talk.call("call_1").call("call_2").output("call_1").output("call_2", error=True)
    body = await body_of(maker, talk)
    text = json.dumps(body)
    assert text.index("p_call_1") < text.index("p_call_2")
    assert "Two looks." in text
    if maker.provider == "anthropic":
        results = body["messages"][-1]["content"]
        assert [result["is_error"] for result in results] == [False, True]
        thought = body["messages"][1]["content"][0]
        assert thought["signature"] == sign("Two looks.")
    if maker.provider == "openai":
        assert body["messages"][2]["reasoning_content"] == "Two looks."
        assert json.loads(body["messages"][-1]["content"]) == {"error": "call_2"}


async def test_ids_that_a_provider_repeats_or_that_are_ours_become_unique(maker: BodyMaker) -> None:
    talk = Talk(maker.provider).ask("Again")
    for number, response in enumerate(("r1", "r2", "r3")):
        talk.call(f"call_{number}", response, provider_id="call_0").output(f"call_{number}")
    talk.events[-2].tool_input.provider_data = b""
    talk.events[-2].tool_input.tool_call_id = talk.events[-1].tool_output.tool_call_id = "ä b" * 40
    await body_of(maker, talk)


async def test_a_thought_that_nothing_followed_is_left_out(maker: BodyMaker) -> None:
    talk = Talk(maker.provider).ask("Hello").think("Cut off", "r1")
    assert spoken(await body_of(maker, talk)) == [("user", "Hello")]
    talk.think("Again", "r2").say("Hi!", "r2").ask("And now?")
    lines = spoken(await body_of(maker, talk))
    assert ("assistant", "Hi!") in lines
    assert "Cut off" not in str(lines)


async def test_an_answer_that_broke_off_is_followed_by_a_request_to_go_on(maker: BodyMaker) -> None:
    talk = Talk(maker.provider).ask("Tell").say("Once upon", "r1")
    assert spoken(await body_of(maker, talk))[-1] == ("user", GO_ON)
    talk.say("a time.", "r2").ask("More")
    lines = spoken(await body_of(maker, talk))
    # What the second call was given stays as it was: caches and signatures hang on it.
    assert lines == [
        ("user", "Tell"),
        ("assistant", "Once upon"),
        ("user", GO_ON),
        ("assistant", "a time."),
        ("user", "More"),
    ]


async def test_whoever_speaks_first_it_is_the_user(maker: BodyMaker) -> None:
    assert spoken(await body_of(maker, Talk(maker.provider))) == [("user", NOTHING_BEFORE)]
    talk = Talk(maker.provider).say("I am here.")
    assert spoken(await body_of(maker, talk))[0] == ("user", NOTHING_BEFORE)


async def test_blank_texts_and_lonely_halves_of_calls_are_no_fault(maker: BodyMaker) -> None:
    talk = Talk(maker.provider).ask(" ").say("\n").call("call_1").output("call_9").ask("Well?")
    talk.say(" ", "r2").ask("")
    await body_of(maker, talk, instructions=(" ", ""))


async def test_what_others_said_and_thought(maker: BodyMaker) -> None:
    """Another provider's thought has a signature that this one would refuse."""
    other = Talk(next(p for p in PROVIDERS if p != maker.provider)).ask("Hello")
    other.think("Secretly").say("Hi.").call("call_1").output("call_1")
    other.add(agent_output=event_pb2.AgentOutput(content="Cut sho", partial=True))
    other.add(thinking=event_pb2.Thinking(content="Unsigned"))
    other.add(session_interrupted=event_pb2.SessionInterrupted(reason="Enough"))
    other.add(custom=event_pb2.Custom(custom_type="com.example.x", data_json='"hidden"'))
    other.turn_id = "trn_2"
    other.add(compaction=event_pb2.Compaction(summary_text="They greeted each other."))
    other.add(structured_output=event_pb2.StructuredOutput(content_json='{"a":1}'))
    other.ask("Next")
    body = await body_of(maker, other)
    text = json.dumps(body)
    assert "Secretly" not in text
    assert "Unsigned" not in text
    assert "hidden" not in text
    lines = spoken(body)
    assert ("assistant", '{"a":1}') in lines
    assert any("They greeted" in line and role == "user" for role, line in lines)
    assert any("Enough" in line and role == "user" for role, line in lines)


async def test_a_long_thought_in_two_events_comes_back_whole(maker: BodyMaker) -> None:
    talk = Talk(maker.provider).ask("Think")
    talk.add(thinking=event_pb2.Thinking(content="First half, "))
    talk.think("First half, second half.").say("Done.")
    talk.events[-2].thinking.content = "second half."
    assert "First half, second half." in json.dumps(await body_of(maker, talk))


async def test_a_thought_that_is_not_whole_any_more_is_left_out(maker: BodyMaker) -> None:
    talk = Talk(maker.provider).ask("Think")
    talk.think("First half, second half.").say("Done.").ask("More")
    talk.events[1].thinking.content = "second half."
    body = await body_of(maker, talk)
    assert "second half" not in json.dumps(body)
    # One that nobody signed is not the beginning of the next.
    talk.events[1].thinking.provider_data = b""
    talk.events[2:2] = Talk(maker.provider).think("Another.", "r2").events
    assert "second half" not in json.dumps(await body_of(maker, talk))


async def test_images_come_after_all_outputs(maker: BodyMaker) -> None:
    files = MemoryFiles()
    image = files.add("dot.png", PNG, "image/png")
    talk = Talk(maker.provider).ask("Look", image).call("call_1").call("call_2").output("call_1")
    talk.add(image_read=event_pb2.ImageRead(artifact_id=image)).output("call_2")
    talk.add(image_read=event_pb2.ImageRead(artifact_id="art_gone"))
    text = json.dumps(await body_of(maker, talk, files=files))
    assert "iVBORw0KGgo" in text
    assert "art_gone is no longer shown" in text


async def test_who_cannot_see_is_told_so() -> None:
    maker = BodyMaker("openai")
    files = MemoryFiles()
    image = files.add("dot.png", PNG, "image/png")
    talk = Talk("openai").ask("Look").call("call_1").output("call_1")
    talk.add(image_read=event_pb2.ImageRead(artifact_id=image))
    text = json.dumps(await maker.body(talk.events, files=files))
    await maker.close()
    assert "can't see" in text
    assert "iVBORw0KGgo" not in text


async def test_reasoning_goes_back_to_openai_only_in_its_turn() -> None:
    maker = BodyMaker("openai")
    talk = Talk("openai").ask("One").think("Old").say("1").ask("Two").think("New", "r2")
    talk.call("call_1", "r2").output("call_1")
    body = await maker.body(talk.events, tools=(LOOK,))
    await maker.close()
    assert [m.get("reasoning_content") for m in body["messages"]][2:5:2] == [None, "New"]


def test_provider_data_of_strangers_is_none() -> None:
    data = ProviderData(provider="p", response_id="r", kind="text", details={"a": [1]})
    assert decode(encode(data)) == data
    for strange in (b"", b"\xff", b"{", b"[]", b'{"v":1}', b'{"v":2,"p":"p","r":"r","k":"text"}'):
        assert decode(strange) is None
    assert decode(b'{"v":1,"p":"p","r":1,"k":"text"}') is None


async def test_a_schema_is_the_providers_business_where_it_can(maker: BodyMaker) -> None:
    schema = {
        "type": "object",
        "properties": {"city": {"type": "string"}},
        "required": ["city"],
        "additionalProperties": False,
    }
    wanted = OutputSchema(name="place", json_schema=schema)
    talk = Talk(maker.provider).ask("Where?")
    # Not every model of Google's takes both.
    tools = () if maker.provider == "google" else (LOOK,)
    body = await body_of(maker, talk, output_schema=wanted, tools=tools)
    form = body.get("response_format") or body.get("output_config") or body["generationConfig"]
    assert '"city"' in json.dumps(form)
    in_words = BodyMaker(maker.provider, native_schema=False)
    body = await body_of(in_words, Talk(maker.provider).ask("Where?"), output_schema=wanted)
    await in_words.close()
    assert "response_format" not in body
    assert "output_config" not in body
    told = body.get("system") or body.get("systemInstruction") or body["messages"][0]
    assert "place" in json.dumps(told)
    assert "city" in json.dumps(told)


async def test_tools_that_an_agent_had_are_named_as_long_as_their_calls_stand(
    maker: BodyMaker,
) -> None:
    talk = Talk(maker.provider).ask("Look").call("call_1").output("call_1").ask("And now?")
    assert "is gone" in json.dumps(await body_of(maker, talk, tools=()))
