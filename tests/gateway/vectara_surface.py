"""Run by the Python of a venv that has the unmodified `vectara` package: its whole surface that
Hansard serves, sync or async, against the door at the URL. What fails is an AssertionError.

    python vectara_surface.py sync|async URL
"""

# ruff: noqa: PT017, T201 - it runs where there is no pytest

from __future__ import annotations

import asyncio
import logging
import sys
from typing import Any

from vectara import (  # type: ignore[import-not-found, unused-ignore]
    AsyncVectara,
    Vectara,
)
from vectara.core.api_error import ApiError  # type: ignore[import-not-found, unused-ignore]
from vectara.environment import (  # type: ignore[import-not-found, unused-ignore]
    VectaraEnvironment,
)
from vectara.errors import (  # type: ignore[import-not-found, unused-ignore]
    BadRequestError,
    ConflictError,
    NotFoundError,
    UnprocessableEntityError,
)
from vectara.types import (  # type: ignore[import-not-found, unused-ignore]
    AgentModel,
    FirstAgentStep,
)

TEXT = "naïve café 中🎉   " * 20
SCRIPT = [
    {"thinking": {"content": "I think: " + TEXT, "delta_count": 10}},
    {"agent_output": {"content": TEXT, "delta_count": 10}},
]
TOOL_SCRIPT = [
    {"tool_call": {"name": "grep", "input": {"pattern": "x"}, "output": {"found": 1}}},
    {"agent_output": {"content": "Done."}},
]
FAIL = [{"thinking": {"content": "Hm."}}, {"fail": "the model is away"}]
MESSAGE = {
    "type": "input_message",
    "messages": [{"type": "text", "content": "I forgot my password. Can you help?"}],
}


class Warnings(logging.Handler):
    """What the package warns of: frames that it could not read."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.said: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.said.append(record.getMessage())


class Sdk:
    """The sync client, or the async one as if it were sync."""

    def __init__(self, kind: str, url: str, **more: Any) -> None:
        self.kind = kind
        environment = VectaraEnvironment(default=url, auth=url)
        make = Vectara if kind == "sync" else AsyncVectara
        self.client = make(environment=environment, **{"api_key": "none", **more})

    def __getattr__(self, name: str) -> Any:
        return getattr(self.client, name)

    def do(self, call: Any) -> Any:
        return LOOP.run_until_complete(call) if asyncio.iscoroutine(call) else call

    def all(self, pager: Any) -> list[Any]:
        pager = self.do(pager)
        if self.kind == "sync":
            return list(pager)

        async def collect() -> list[Any]:
            return [item async for item in pager]

        return list(LOOP.run_until_complete(collect()))

    def fails(self, kind: Any, status: int, call: Any) -> Any:
        try:
            self.do(call())
        except kind as error:
            assert error.status_code == status, error
            return error.body
        raise AssertionError(f"no {kind.__name__}")


LOOP = asyncio.new_event_loop()


def agents(sdk: Sdk) -> None:
    made = sdk.do(
        sdk.agents.create(
            name="Support",
            key="support",
            description="Answers",
            model=AgentModel(name="hansard/scripted", parameters={"script": SCRIPT}),
            tool_configurations={"grep": {"type": "artifact_grep"}},
            first_step=FirstAgentStep(
                name="main",
                instructions=[
                    {
                        "type": "inline",
                        "name": "Language",
                        "template": "Use ${session.metadata.language}.",
                    }
                ],
                output_parser={"type": "default"},
            ),
            metadata={"team": "a"},
        )
    )
    assert (made.key, made.enabled, made.first_step.name) == ("support", True, "main")
    assert made.first_step.instructions[0].template == "Use ${session.metadata.language}."
    got = sdk.do(sdk.agents.get("support"))
    assert got.model.parameters["script"][0]["thinking"]["delta_count"] == 10
    updated = sdk.do(
        sdk.agents.update(
            "support", description="Still answers", tool_configurations={"grep": None}
        )
    )
    assert (updated.description, updated.tool_configurations) == ("Still answers", {})
    replaced = sdk.do(
        sdk.agents.replace(
            "support", name="Support", model=got.model, tool_configurations={}, description=None
        )
    )
    assert replaced.model.parameters == got.model.parameters
    for number in range(11):
        sdk.do(
            sdk.agents.create(
                name=f"Other {number}",
                key=f"other_{number}",
                model=AgentModel(name="hansard/extractive"),
                tool_configurations={},
            )
        )
    assert len({agent.key for agent in sdk.all(sdk.agents.list(limit=5))}) == 12
    assert [a.key for a in sdk.all(sdk.agents.list(filter="^Other 1$"))] == ["other_1"]
    sdk.do(sdk.agents.delete("other_0"))
    body = sdk.fails(NotFoundError, 404, lambda: sdk.agents.get("other_0"))
    assert body["code"] == "agent_not_found"
    assert body["messages"]
    for call in (lambda: sdk.agents.get_identity("support"),):
        sdk.fails(ApiError, 501, call)


def sessions(sdk: Sdk) -> None:
    made = sdk.do(
        sdk.agent_sessions.create(
            "support",
            key="user_12345_session",
            name="Customer Support Session",
            metadata={"user_role": "premium", "language": "en", "n": 3, "deep": {"a": [1, None]}},
            tti_minutes=60,
        )
    )
    assert (made.key, made.agent_key, made.enabled) == ("user_12345_session", "support", True)
    assert made.metadata == {
        "user_role": "premium",
        "language": "en",
        "n": 3,
        "deep": {"a": [1, None]},
    }
    assert made.created_at.tzinfo is not None
    assert sdk.do(sdk.agent_sessions.get("support", made.key)) == made
    changed = sdk.do(
        sdk.agent_sessions.update("support", made.key, name="New", metadata={"x": True})
    )
    assert (changed.name, changed.metadata, changed.tti_minutes) == ("New", {"x": True}, 60)
    same = sdk.do(sdk.agent_sessions.update("support", made.key, name=None))
    assert same.name == "New"
    for number in range(12):
        sdk.do(sdk.agent_sessions.create("support", name=f"Inquiry {number}"))
    assert len({s.key for s in sdk.all(sdk.agent_sessions.list("support"))}) == 13
    assert len(sdk.all(sdk.agent_sessions.list("support", filter="^Inq", limit=5))) == 12
    pager = sdk.do(sdk.agent_sessions.list("support", limit=100))
    assert (len(pager.items), pager.has_next) == (13, False)

    body = sdk.fails(BadRequestError, 400, lambda: sdk.agent_sessions.create("support"))
    assert list(body["field_errors"]) == ["name"]
    body = sdk.fails(
        BadRequestError,
        400,
        lambda: sdk.agent_sessions.create("support", name="x", metadata={"n": 2**53}),
    )
    assert body["code"] == "invalid_metadata"
    sdk.fails(NotFoundError, 404, lambda: sdk.agent_sessions.create("nobody", name="x"))
    sdk.fails(NotFoundError, 404, lambda: sdk.agent_sessions.get("support", "nobody"))
    sdk.fails(NotFoundError, 404, lambda: sdk.agent_sessions.get("support", "a/b"))
    sdk.fails(ApiError, 400, lambda: sdk.agent_sessions.get("support", "a b"))
    sdk.fails(
        ApiError,
        409,
        lambda: sdk.agent_sessions.create(
            "support", name="x", key=made.key, request_options={"max_retries": 0}
        ),
    )
    sdk.do(sdk.agent_sessions.delete("support", made.key))
    sdk.fails(NotFoundError, 404, lambda: sdk.agent_sessions.delete("support", made.key))


def events(sdk: Sdk) -> None:
    sdk.do(sdk.agent_sessions.create("support", name="Events", key="ev"))
    answer = sdk.do(sdk.agent_events.create("support", "ev", request=MESSAGE))
    assert answer.session_key == "ev"
    assert [e.type for e in answer.events] == ["input_message", "thinking", "agent_output"]
    assert answer.events[2].content == TEXT
    assert answer.turn["status"] == "completed"
    listed = sdk.all(sdk.agent_events.list("support", "ev", limit=2))
    assert listed == answer.events
    one = answer.events[0]
    assert sdk.do(sdk.agent_events.get("support", "ev", one.id)) == one
    hidden = sdk.do(sdk.agent_events.hide("support", "ev", one.id))
    assert hidden.hide_reason == "manual"
    assert len(sdk.all(sdk.agent_events.list("support", "ev"))) == 2
    assert len(sdk.all(sdk.agent_events.list("support", "ev", include_hidden=True))) == 3
    shown = sdk.do(sdk.agent_events.unhide("support", "ev", one.id))
    assert shown == one
    sdk.do(sdk.agent_events.delete("support", "ev", one.id))
    sdk.fails(NotFoundError, 404, lambda: sdk.agent_events.get("support", "ev", one.id))
    sdk.fails(NotFoundError, 404, lambda: sdk.agent_events.hide("support", "ev", "aev_no"))
    sdk.fails(NotFoundError, 404, lambda: sdk.agent_events.create("support", "no", request=MESSAGE))
    # An artifact, a custom event and an open call are there: every list can still be read.
    empty = sdk.do(sdk.agent_events.create("support", "ev", request={"type": "interrupt"}))
    assert empty.events == []
    bad = {"type": "input_message", "messages": []}
    sdk.fails(BadRequestError, 400, lambda: sdk.agent_events.create("support", "ev", request=bad))
    sdk.do(sdk.agent_sessions.update("support", "ev", enabled=False))
    sdk.fails(
        UnprocessableEntityError,
        422,
        lambda: sdk.agent_events.create("support", "ev", request=MESSAGE),
    )
    sdk.do(sdk.agent_sessions.update("support", "ev", enabled=True))
    options = {"additional_headers": {"Idempotency-Key": f"k-{sdk.kind}"}, "max_retries": 0}
    first = sdk.do(
        sdk.agent_events.create("support", "ev", request=MESSAGE, request_options=options)
    )
    again = sdk.do(
        sdk.agent_events.create("support", "ev", request=MESSAGE, request_options=options)
    )
    assert first.events == again.events
    sdk.fails(
        ConflictError,
        409,
        lambda: sdk.agent_events.create(
            "support",
            "ev",
            request={**MESSAGE, "messages": [{"type": "text", "content": "other"}]},
            request_options=options,
        ),
    )


def read(sdk: Sdk, session: str, request: Any) -> list[Any]:
    found: list[Any] = []
    if sdk.kind == "sync":
        return list(sdk.agent_events.create_stream("support", session, request=request))

    async def collect() -> None:
        found.extend(
            [e async for e in sdk.agent_events.create_stream("support", session, request=request)]
        )

    LOOP.run_until_complete(collect())
    return found


def streams(sdk: Sdk) -> None:
    sdk.do(sdk.agent_sessions.create("support", name="Streams", key="st"))
    request = {**MESSAGE, "stream_response": True}
    told = read(sdk, "st", request)
    types = [event.type for event in told]
    assert types[0] == "input_message"
    assert types[-1] == "end"
    assert "agent_output" not in types
    # Twenty deltas and their ends, not one piece at the end; to the character.
    assert types.count("streaming_agent_output") >= 1
    text = "".join(e.content for e in told if e.type == "streaming_agent_output")
    assert text == TEXT
    thought = "".join(e.content for e in told if e.type == "streaming_thinking")
    assert thought == "I think: " + TEXT
    (end,) = (event for event in told if event.type == "streaming_agent_output_end")
    assert sdk.do(sdk.agent_events.get("support", "st", end.event_id)).content == TEXT
    try:
        read(sdk, "nobody", request)
    except NotFoundError as error:
        assert error.body["code"] == "session_not_found"
    else:
        raise AssertionError("no NotFoundError")


def failures(sdk: Sdk) -> None:
    model = AgentModel(name="hansard/scripted", parameters={"script": FAIL})
    sdk.do(sdk.agents.update("support", model=model))
    sdk.do(sdk.agent_sessions.create("support", name="Fails", key="fa"))
    answer = sdk.do(sdk.agent_events.create("support", "fa", request=MESSAGE))
    assert answer.turn["status"] == "failed"
    assert answer.turn["error"]["code"] == "agent_processing_failed"
    listed = sdk.all(sdk.agent_events.list("support", "fa"))
    # Once, though the client would have tried three times after any server error.
    assert [e.type for e in listed].count("input_message") == 1
    told = read(sdk, "fa", {**MESSAGE, "stream_response": True})
    assert [event.type for event in told][-2:] == ["error", "end"]
    assert told[-2].messages
    tools = AgentModel(name="hansard/scripted", parameters={"script": TOOL_SCRIPT})
    grep = {"grep": {"type": "artifact_grep"}}
    sdk.do(sdk.agents.update("support", model=tools, tool_configurations=grep))
    sdk.do(sdk.agent_sessions.create("support", name="Tools", key="to"))
    answer = sdk.do(sdk.agent_events.create("support", "to", request=MESSAGE))
    types = [event.type for event in answer.events]
    assert types == ["input_message", "tool_input", "tool_output", "agent_output"], types
    assert answer.events[1].tool_input == {"pattern": "x"}
    assert isinstance(answer.events[2].error, bool)
    told = read(sdk, "to", {**MESSAGE, "stream_response": True})
    assert {"tool_input", "tool_output"} <= {event.type for event in told}


def artifacts(sdk: Sdk, url: str) -> None:
    import httpx  # noqa: PLC0415 - the package brings it

    sdk.do(sdk.agent_sessions.create("support", name="Files", key="fi"))
    base = f"{url}/v2/agents/support/sessions/fi"
    for number in range(12):
        files = {"file": (f"r{number}.txt", f"file {number}".encode())}
        assert httpx.post(f"{base}/upload", files=files).status_code == 201
    custom = {"type": "custom", "custom_type": "com.example.x", "data": {"a": 1}}
    posted = httpx.post(f"{base}/events:append", json={"events": [custom]})
    assert posted.status_code == 201
    listed = sdk.all(sdk.agent_artifacts.list("support", "fi", limit=5))
    assert [a.filename for a in listed] == [f"r{number}.txt" for number in range(12)]
    back = sdk.all(sdk.agent_artifacts.list("support", "fi", sort_by="updated_at", order_by="desc"))
    assert [a.artifact_id for a in back] == [a.artifact_id for a in reversed(listed)]
    one = sdk.do(sdk.agent_artifacts.get("support", "fi", listed[3].artifact_id))
    assert one.data == "ZmlsZSAz"
    assert (one.size_bytes, one.metadata, one.mime_type) == (6, {}, "text/plain")
    assert one.updated_at
    sdk.fails(NotFoundError, 404, lambda: sdk.agent_artifacts.get("support", "fi", "art_no"))
    uploads = sdk.all(sdk.agent_events.list("support", "fi"))
    assert {event.type for event in uploads} == {"artifact_upload"}
    assert uploads[0].artifacts[0].artifact_id == listed[0].artifact_id
    request = {
        "type": "input_message",
        "messages": [
            {"type": "text", "content": "Look."},
            {"type": "artifact", "artifact_id": listed[0].artifact_id},
        ],
    }
    answer = sdk.do(sdk.agent_events.create("support", "fi", request=request))
    parts = answer.events[0].messages
    assert [part.type for part in parts] == ["text", "text"]
    assert parts[1].artifact["artifact_id"] == listed[0].artifact_id


def main() -> None:
    kind, url = sys.argv[1:]
    warnings = Warnings()
    logging.getLogger().addHandler(warnings)
    sdk = Sdk(kind, url)
    for check in (agents, sessions, events, streams, failures):
        check(sdk)
        print(check.__name__, "passed", flush=True)
    artifacts(sdk, url)
    print("artifacts passed", flush=True)
    assert warnings.said == [], warnings.said


main()
