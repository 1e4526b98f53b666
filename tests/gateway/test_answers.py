"""Compaction and answers of a JSON schema over HTTP, as the documented API has them."""

from __future__ import annotations

from typing import Any

from tests.gateway.test_routes import ok, refused
from tests.support.gateway import Door, parse_frames
from tests.support.talk import Talk

EVENTS = "/v2/agents/agent/sessions/s/events"
HELLO = {"type": "input_message", "content": "Hello?"}
SCHEMA = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}
AGENT: dict[str, Any] = {
    "key": "agent",
    "name": "Agent",
    "model": {
        "name": "hansard/scripted",
        "parameters": {
            "script": [{"structured_output": {"content_json": '{"n": 12345678901234567890}'}}],
            "summary": [{"agent_output": {"content": "They greeted each other."}}],
        },
    },
    "first_step": {
        "type": "conversational",
        "output_parser": {"type": "structured", "schema_name": "Number", "json_schema": SCHEMA},
    },
    "compaction": {
        "enabled": True,
        "threshold_percent": 80,
        "keep_recent_inputs": 1,
        "compaction_message": "Keep names.",
    },
}


async def begin(door: Door) -> None:
    agent = await ok(door, "POST", "/v2/agents", 201, json=AGENT)
    assert agent["compaction"] == AGENT["compaction"]
    assert agent["first_step"]["output_parser"] == AGENT["first_step"]["output_parser"]
    await ok(door, "POST", "/v2/agents/agent/sessions", 201, json={"name": "s", "key": "s"})


async def test_a_structured_answer_is_json(door: Door) -> None:
    await begin(door)
    answer = await ok(door, "POST", EVENTS, 201, json=HELLO)
    assert [event["type"] for event in answer["events"]] == ["input_message", "structured_output"]
    event = answer["events"][1]
    assert (event["schema_name"], event["content"]) == ("Number", {"n": 12345678901234567890})
    streamed = await door.http.post(EVENTS, json={**HELLO, "stream_response": True})
    frames = parse_frames(streamed.text)
    assert frames.types == ["input_message", "structured_output", "end"]


async def test_compaction_on_demand(door: Door) -> None:
    await begin(door)
    first = await ok(door, "POST", EVENTS, 201, json=HELLO)
    await ok(door, "POST", EVENTS, 201, json=HELLO)
    # The settings keep the newest input.
    answer = await ok(door, "POST", EVENTS, 201, json={"type": "compact"})
    (event,) = answer["events"]
    assert event["type"] == "compaction"
    assert event["summary_text"] == "They greeted each other."
    assert (event["turns_compacted"], event["events_compacted"]) == (1, 2)
    assert event["summary_key"].startswith("sum_")
    assert answer["turn"]["status"] == "completed"
    listed = await ok(door, "GET", EVENTS, params={"include_hidden": "true"})
    assert [e.get("hide_reason") for e in listed["events"]] == [
        "compaction",
        "compaction",
        *[None] * 3,
    ]
    # An anchor goes past what the settings keep.
    anchor = listed["events"][3]["id"]
    body = {"type": "compact", "compact_up_to_event_id": anchor, "compaction_message": "Short."}
    streamed = await door.http.post(EVENTS, json={**body, "stream_response": True})
    frames = parse_frames(streamed.text)
    assert frames.types == ["compaction", "end"]
    assert frames.frames[0].data["events_compacted"] == 2
    gone = {**body, "compact_up_to_event_id": "aev_no"}
    told = await refused(door, "POST", EVENTS, 404, json=gone)
    assert told["code"] == "event_not_found"
    assert first["session_key"] == "s"


async def test_a_schema_that_can_not_be_used_is_refused(plain: Door) -> None:
    parser = {"type": "structured", "schema_name": "N", "json_schema": {"type": "objekt"}}
    body = {**AGENT, "first_step": {"output_parser": parser}}
    told = await refused(plain, "POST", "/v2/agents", 422, json=body)
    assert told["code"] == "invalid_agent_configuration"
    assert "json_schema" in str(told)


async def test_a_turn_whose_answer_does_not_fit_is_stored_and_no_server_error(plain: Door) -> None:
    await begin(plain)
    script = [{"structured_output": {"content": n}} for n in ("one", "two")]
    model = {"name": "hansard/scripted", "parameters": {"script": script}}
    await ok(plain, "PATCH", "/v2/agents/agent", json={"model": model})
    answer = await ok(plain, "POST", EVENTS, 201, json=HELLO)
    assert [event["type"] for event in answer["events"]] == ["input_message"]
    assert answer["turn"]["status"] == "failed"
    assert "Number" in str(answer["turn"]["error"])
    assert await Talk(plain.server).turns()
