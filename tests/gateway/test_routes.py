"""Agents, sessions and lists over HTTP: what stands in http-api's tables, by its own bodies."""

from __future__ import annotations

import json
from typing import Any

import pytest

from hansard_gateway.contract import bindings, rpcs
from tests.support.gateway import Door
from tests.support.talk import Talk

AGENT = {"key": "support", "name": "Support", "model": {"name": "hansard/extractive"}}
GUIDES_SESSIONS: list[dict[str, Any]] = [
    {
        "name": "Customer inquiry - Order #12345",
        "metadata": {"channel": "web", "priority": "high"},
    },
    {"name": "Customer support session", "description": "Help with password reset"},
    {
        "key": "user_12345_session",
        "name": "Customer Support Session",
        "metadata": {"user_role": "premium", "language": "en"},
    },
]
INSTRUCTION = {
    "type": "inline",
    "name": "Language preference",
    "template": "Always respond to the user in their preferred language: "
    "${session.metadata.language}. If the language is 'en', use English. If it's 'es', use "
    "Spanish.",
}


async def ok(door: Door, method: str, path: str, status: int = 200, **more: Any) -> Any:
    """Return the JSON of an answer that is a success."""
    answer = await door.http.request(method, path, **more)
    assert answer.status_code == status, answer.text
    assert answer.headers["x-request-id"]
    return answer.json() if answer.content else None


async def refused(door: Door, method: str, path: str, status: int, **more: Any) -> Any:
    """Return the JSON of an answer that is an error, in its documented shape."""
    answer = await door.http.request(method, path, **more)
    assert answer.status_code == status, answer.text
    body = answer.json()
    assert all(isinstance(words, str) and words for words in body["messages"])
    assert body["messages"]
    assert body["code"].islower()
    assert body["request_id"] == answer.headers["x-request-id"]
    assert isinstance(body.get("field_errors", {}), dict)
    return body


async def make_agent(door: Door, **fields: Any) -> Any:
    return await ok(door, "POST", "/v2/agents", 201, json={**AGENT, **fields})


def test_every_rpc_has_a_binding() -> None:
    bound = {binding.rpc.path for binding in bindings()}
    assert {rpc.path for rpc in rpcs()} - bound == set()
    assert all(binding.template.startswith("/v2/") for binding in bindings())


async def test_an_agent_is_made_read_changed_replaced_and_deleted(door: Door) -> None:
    made = await make_agent(
        door,
        model={
            "name": "hansard/extractive",
            "retry_configuration": {
                "max_retries": 2,
                "initial_backoff_ms": 100,
                "max_backoff_ms": "2000",
                "backoff_factor": 2,
            },
        },
        first_step={"instructions": [INSTRUCTION]},
        tool_configurations={
            "grep": {"type": "artifact_grep", "argument_override": {"pattern": "x"}},
            "read": {"type": "artifact_read"},
        },
    )
    assert made["model"]["retry_configuration"] == {
        "max_retries": 2,
        "initial_backoff_ms": 100,
        "max_backoff_ms": 2000,
        "backoff_factor": 2,
    }
    step = made["first_step"]
    assert step["type"] == "conversational"
    assert step["instructions"][0]["template"] == INSTRUCTION["template"]
    assert step["output_parser"] == {"type": "default"}
    assert made["tool_configurations"]["grep"]["argument_override"] == {"pattern": "x"}
    assert await ok(door, "GET", "/v2/agents/support") == made

    changed = await ok(
        door,
        "PATCH",
        "/v2/agents/support",
        json={"tool_configurations": {"grep": None}, "description": None, "name": None},
    )
    assert set(changed["tool_configurations"]) == {"read"}
    assert changed["name"] == "Support"
    for etag, status in ((changed["etag"], 200), ("nix", 409), ("x" * 100, 409)):
        answer = await door.http.patch("/v2/agents/support", json={"etag": etag})
        assert answer.status_code == status, answer.text
    unchanged = await ok(door, "PATCH", "/v2/agents/support", json={"name": None})
    assert unchanged == changed

    replaced = await ok(door, "PUT", "/v2/agents/support", json={**changed, "name": "Other"})
    assert (replaced["name"], set(replaced["tool_configurations"])) == ("Other", {"read"})
    bare = await ok(door, "PUT", "/v2/agents/support", json={**AGENT, "name": "Bare"})
    assert bare["tool_configurations"] == {}
    assert bare["model"] == {"name": "hansard/extractive"}

    answer = await door.http.delete("/v2/agents/support")
    assert (answer.status_code, answer.content) == (204, b"")
    body = await refused(door, "GET", "/v2/agents/support", 404)
    assert body["code"] == "agent_not_found"


@pytest.mark.parametrize("first_step", [{}, None, {"instructions": []}])
async def test_first_step_may_be_left_out(plain: Door, first_step: Any) -> None:
    made = await make_agent(plain, first_step=first_step)
    assert made["first_step"]["instructions"] == []


async def test_the_guides_sessions_are_taken_as_they_stand(door: Door) -> None:
    await make_agent(door)
    path = "/v2/agents/support/sessions"
    for body in GUIDES_SESSIONS:
        made = await ok(door, "POST", path, 201, json=body)
        assert made["metadata"] == body.get("metadata", {})
        assert made["agent_key"] == "support"
        assert made["enabled"] is True
        assert await ok(door, "GET", f"{path}/{made['key']}") == made
    changed = await ok(
        door,
        "PATCH",
        f"{path}/user_12345_session",
        json={"name": "New", "metadata": {"a": [1, 2.5, None, "x"]}, "tti_minutes": "60"},
    )
    assert changed["metadata"] == {"a": [1, 2.5, None, "x"]}
    assert changed["tti_minutes"] == 60
    cleared = await ok(
        door, "PATCH", f"{path}/user_12345_session", json={"metadata": None, "tti_minutes": None}
    )
    assert (cleared["metadata"], cleared["tti_minutes"]) == ({}, 60)
    assert (await door.http.delete(f"{path}/user_12345_session")).status_code == 204


@pytest.mark.parametrize(
    ("body", "code", "field"),
    [
        ({}, "invalid_request", "name"),
        ({"name": None}, "invalid_request", "name"),
        ({"name": ""}, "invalid_request", "name"),
        ({"name": 3}, "invalid_request", "name"),
        ({"name": "x", "key": "a b"}, "invalid_request", "key"),
        ({"name": "x", "nix": 1}, "invalid_request", "nix"),
        ({"name": "x", "agent_key": "other"}, "invalid_request", "agent_key"),
        ({"name": "x", "agent_key": ""}, "invalid_request", "agent_key"),
        ({"name": "x", "enabled": "yes"}, "invalid_request", "enabled"),
        ({"name": "x", "tti_minutes": -1}, "invalid_request", "tti_minutes"),
        ({"name": "x", "metadata": []}, "invalid_metadata", "metadata"),
        ({"name": "x", "metadata": {"a": "x" * 70_000}}, "invalid_metadata", "metadata"),
        (
            {"name": "x", "from_session": {"session_key": "s", "compact_up_to_event_id": "aev_1"}},
            "invalid_request",
            "from_session.compact_up_to_event_id",
        ),
    ],
)
async def test_a_wrong_session_names_its_field(
    plain: Door, body: dict[str, Any], code: str, field: str
) -> None:
    await make_agent(plain)
    told = await refused(plain, "POST", "/v2/agents/support/sessions", 400, json=body)
    assert told["code"] == code
    assert list(told["field_errors"]) == [field]


async def test_null_is_absent(plain: Door) -> None:
    await make_agent(plain)
    body = {"name": "x", "key": None, "nix": None, "metadata": None, "agent_key": "support"}
    await ok(plain, "POST", "/v2/agents/support/sessions", 201, json=body)


async def test_pages_go_through_all_and_none_is_empty(door: Door) -> None:
    await make_agent(door)
    path = "/v2/agents/support/sessions"
    for number in range(13):
        body = {"name": f"Session {number}", "enabled": number % 2 == 0}
        await ok(door, "POST", path, 201, json=body)
    first = await ok(door, "GET", path)
    assert len(first["sessions"]) == 10
    rest = await ok(door, "GET", path, params={"page_key": first["metadata"]["page_key"]})
    assert len(rest["sessions"]) == 3
    assert rest["metadata"] == {}
    assert len((await ok(door, "GET", path, params={"limit": 1000}))["sessions"]) == 13
    enabled = await ok(door, "GET", path, params={"enabled": "false"})
    assert len(enabled["sessions"]) == 6
    named = await ok(door, "GET", path, params={"filter": "^Session 1[0-9]$", "limit": 2})
    assert len(named["sessions"]) == 2
    by_metadata = await ok(door, "GET", path, params={"metadata": '{"a": 1}'})
    assert by_metadata == {"sessions": [], "metadata": {}}
    forged = await refused(door, "GET", path, 400, params={"page_key": "forged"})
    assert forged["code"] == "invalid_page_token"


@pytest.mark.parametrize(
    ("query", "field"),
    [
        ("limit=0", "limit"),
        ("limit=-1", "limit"),
        ("limit=x", "limit"),
        ("limit=99999999999", "limit"),
        ("limit=1&limit=2", "limit"),
        ("nix=1", "nix"),
        ("enabled=maybe", "enabled"),
        ("created_before=yesterday", "created_before"),
        ("metadata=3", "metadata"),
        ("metadata={", "metadata"),
    ],
)
async def test_a_wrong_query_names_its_parameter(plain: Door, query: str, field: str) -> None:
    await make_agent(plain)
    told = await refused(plain, "GET", f"/v2/agents/support/sessions?{query}", 400)
    assert list(told["field_errors"]) == [field]


async def test_an_idempotency_key_makes_one(door: Door) -> None:
    await make_agent(door)
    path, headers = "/v2/agents/support/sessions", {"Idempotency-Key": "k-1"}
    first = await ok(door, "POST", path, 201, json={"name": "x"}, headers=headers)
    assert await ok(door, "POST", path, 201, json={"name": "x"}, headers=headers) == first
    other = await refused(door, "POST", path, 409, json={"name": "y"}, headers=headers)
    assert other["code"] == "request_id_reused"
    both = await refused(
        door, "POST", path, 400, json={"name": "x", "request_id": "k-2"}, headers=headers
    )
    assert list(both["field_errors"]) == ["request_id"]


async def test_events_are_appended_listed_hidden_and_deleted(door: Door) -> None:
    talk = await Talk(door.server).begin()
    path = "/v2/agents/agent/sessions/s/events"
    raw = '{"b": 9007199254740993, "a": 1e400,\n "x": [0.10, "\u00e9\\u2028"]}'
    body = (
        '{"events": [{"type": "input_message", "messages": [{"type": "text", "content": "hi"}]},'
        f'{{"type": "tool_input", "tool_call_id": "c", "tool_name": "t", "tool_input": {raw}}},'
        '{"type": "tool_output", "tool_call_id": "c", "tool_name": "t", "tool_output": [1]},'
        '{"type": "custom", "custom_type": "com.example.x", "data": {"z": 1, "a": 2}}]}'
    )
    answer = await door.http.post(
        f"{path}:append", content=body.encode(), headers={"content-type": "application/json"}
    )
    assert answer.status_code == 201, answer.text
    ids = [event["event_id"] for event in answer.json()["events"]]
    # What is kept is what was sent, byte for byte.
    stored = await talk.events()
    assert stored[1].tool_input.tool_input_json == raw
    listed = await door.http.get(path)
    assert listed.text.isascii()
    assert '"b": 9007199254740993, "a": 1e400,  "x": [0.10, ' in listed.text
    events = listed.json()["events"]
    assert [event["type"] for event in events] == ["input_message", "tool_input", "tool_output"]
    assert events[2]["tool_output"] == {"value": [1]}
    assert events[2]["error"] is False
    named = await ok(door, "GET", path, params={"types": "custom"})
    assert [event["data"] for event in named["events"]] == [{"z": 1, "a": 2}]

    hidden = await ok(door, "POST", f"{path}/{ids[0]}/hide")
    assert hidden["hide_reason"] == "manual"
    assert ids[0] not in [e["id"] for e in (await ok(door, "GET", path))["events"]]
    all_of_them = await ok(door, "GET", path, params={"include_hidden": "true"})
    assert ids[0] in [event["id"] for event in all_of_them["events"]]
    shown = await ok(door, "POST", f"{path}/{ids[0]}/unhide")
    assert "hide_reason" not in shown
    assert (await door.http.delete(f"{path}/{ids[0]}")).status_code == 204
    gone = await refused(door, "GET", f"{path}/{ids[0]}", 404)
    assert gone["code"] == "event_not_found"
    all_of_them = await ok(door, "GET", path, params={"include_hidden": "true"})
    assert ids[0] not in [event["id"] for event in all_of_them["events"]]
    # What is left out makes no page empty that is not the last.
    first = await ok(door, "GET", path, params={"include_hidden": "true", "limit": 1})
    assert [event["id"] for event in first["events"]] == [ids[1]]


async def test_what_is_not_served_says_so(plain: Door) -> None:
    for path in ("agents/a/identity", "agents/a/schedules/x", "instructions", "tool_servers/x"):
        told = await refused(plain, "GET", f"/v2/{path}", 501)
        assert told["code"] == "unimplemented"
    assert (await refused(plain, "GET", "/v2/nix", 404))["code"] == "not_found"
    answer = await plain.http.put("/v2/agents", json={})
    assert answer.status_code == 405
    assert {"GET", "POST"} <= set(answer.headers["allow"].replace(" ", "").split(","))
    assert (await plain.http.head("/v2/agents")).status_code == 405


async def test_health(plain: Door) -> None:
    assert json.loads((await plain.http.get("/healthz")).text) == {"status": "ok"}
    assert json.loads((await plain.http.get("/readyz")).text) == {"status": "ready"}
    plain.server.server.drain.begin(10)
    await plain.server.server.stop()
    assert (await plain.http.get("/readyz")).status_code == 503
    assert (await plain.http.get("/healthz")).status_code == 200


async def test_pages_of_other_sites_are_refused(plain: Door) -> None:
    evil = {"origin": "http://evil.example"}
    assert (await plain.http.get("/v2/agents", headers=evil)).status_code == 403
    assert "access-control-allow-origin" not in (await plain.http.get("/v2/agents")).headers
    assert (await plain.http.get("/v2/agents", headers={"origin": plain.url})).status_code == 200
