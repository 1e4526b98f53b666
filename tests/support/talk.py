"""Conversations through the wire: a scripted agent, a session, and what came of an input."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from typing import Any

from google.protobuf import json_format

from hansard.v1 import (
    agent_pb2,
    agent_service_pb2,
    event_pb2,
    event_service_pb2,
    session_service_pb2,
    turn_pb2,
    turn_service_pb2,
)
from tests.support.server import Running

SendRequest = event_service_pb2.SendEventRequest
SendResponse = event_service_pb2.SendEventResponse
WatchResponse = event_service_pb2.WatchEventsResponse

THOUGHT = "I think about it: ä, 中, 🙂. " * 3
ANSWER = "Here is the answer, character by character — naïve café 🎉 " * 4
TWENTY_DELTAS = [
    {"thinking": {"content": THOUGHT, "delta_count": 10}},
    {"agent_output": {"content": ANSWER, "delta_count": 10}},
]
"""A turn of 20 deltas and two durable events."""


def model(script: Sequence[dict[str, Any]] | None = None, **parameters: Any) -> agent_pb2.Model:
    """Return a scripted model."""
    made = agent_pb2.Model(name="hansard/scripted")
    if script is not None:
        parameters["script"] = list(script)
    json_format.ParseDict(parameters, made.parameters)
    return made


class Talk:
    """One session with a scripted agent."""

    def __init__(self, server: Running, agent_key: str = "agent", session_key: str = "s") -> None:
        self.server = server
        self.agent_key = agent_key
        self.session_key = session_key
        self.keys: dict[str, Any] = {"agent_key": agent_key, "session_key": session_key}
        self.uid = ""

    async def begin(
        self,
        script: Sequence[dict[str, Any]] | None = None,
        *,
        tools: Sequence[str] = (),
        **parameters: Any,
    ) -> Talk:
        """Create the agent, with these tools under their own names, and the session."""
        await self.server.agents.CreateAgent(
            agent_service_pb2.CreateAgentRequest(
                key=self.agent_key,
                name="Agent",
                model=model(script, **parameters),
                tool_configurations={
                    tool: agent_pb2.ToolConfiguration(**{tool: {}}) for tool in tools
                },
            )
        )
        return await self.open_session()

    async def open_session(self) -> Talk:
        """Create the session of an agent that is there."""
        session = await self.server.sessions.CreateSession(
            session_service_pb2.CreateSessionRequest(
                agent_key=self.agent_key, key=self.session_key, name="Session"
            )
        )
        self.uid = session.uid
        return self

    async def until_turns(self, count: int) -> list[turn_pb2.Turn]:
        """Return the turns as soon as there are so many."""
        while True:
            turns = await self.turns()
            if len(turns) >= count:
                return turns
            await asyncio.sleep(0.01)

    async def set_model(self, made: agent_pb2.Model) -> None:
        """Give the agent another model, for turns that start from now on."""
        await self.server.agents.UpdateAgent(
            agent_service_pb2.UpdateAgentRequest(
                agent=agent_pb2.Agent(key=self.agent_key, model=made),
                update_mask={"paths": ["model"]},
            )
        )

    async def hold(self, text: str = "Wait.", **fields: Any) -> tuple[Any, str]:
        """Begin a turn that goes on until it is released; return its call and its id.

        Turns after it have the model that the agent had before.
        """
        agent = await self.server.agents.GetAgent(
            agent_service_pb2.GetAgentRequest(agent_key=self.agent_key)
        )
        await self.set_model(model([{"thinking": {"content": "I wait."}}, {"pause_ms": 60_000}]))
        stream = self.stream(text, **fields)
        source = aiter(stream)
        while True:
            response = await anext(source)
            if response.event.HasField("thinking"):
                break
        await self.set_model(agent.model)
        return stream, response.turn_id

    async def release(self, turn_id: str) -> turn_pb2.Turn:
        """End a turn."""
        return await self.server.turns.CancelTurn(
            turn_service_pb2.CancelTurnRequest(turn_id=turn_id, **self.keys)
        )

    def another(self, session_key: str) -> Talk:
        """Return a talk in another session of the same agent; `open_session` creates it."""
        return Talk(self.server, self.agent_key, session_key)

    def request(self, text: str = "Hello?", **fields: Any) -> SendRequest:
        """Return the request that sends a text."""
        return SendRequest(input_message=message(text), **self.keys, **fields)

    def stream(self, text: str = "Hello?", **fields: Any) -> Any:
        """Return the running call that sends a text."""
        return self.server.events.SendEvent(self.request(text, **fields))

    async def send(self, text: str = "Hello?", **fields: Any) -> list[SendResponse]:
        """Send a text and return the whole stream."""
        return [response async for response in self.stream(text, **fields)]

    def watch(self, after_sequence: int = 0, **fields: Any) -> Any:
        """Return a running watch."""
        return self.server.events.WatchEvents(
            event_service_pb2.WatchEventsRequest(
                after_sequence=after_sequence, **self.keys, **fields
            )
        )

    async def append(self, *payloads: event_pb2.EventDraft, **fields: Any) -> list[int]:
        """Append drafts and return their sequences."""
        answer = await self.append_call(*payloads, **fields)
        return [event.sequence for event in answer.events]

    def append_call(self, *payloads: event_pb2.EventDraft, **fields: Any) -> Any:
        """Return the running call that appends drafts."""
        return self.server.events.AppendEvents(
            event_service_pb2.AppendEventsRequest(events=payloads, **self.keys, **fields)
        )

    def list_call(self, **fields: Any) -> Any:
        """Return the running call that lists a page of events."""
        return self.server.events.ListEvents(
            event_service_pb2.ListEventsRequest(**self.keys, **fields)
        )

    async def events(self, **fields: Any) -> list[event_pb2.Event]:
        """Return all events, page by page."""
        events: list[event_pb2.Event] = []
        token = fields.pop("page_token", "")
        while True:
            page = await self.list_call(page_token=token, **fields)
            events += page.events
            token = page.next_page_token
            if not token:
                return events

    async def all_turns(self) -> list[turn_pb2.Turn]:
        """Return all turns, page by page."""
        turns: list[turn_pb2.Turn] = []
        token = ""
        while True:
            page = await self.server.turns.ListTurns(
                turn_service_pb2.ListTurnsRequest(page_size=1_000, page_token=token, **self.keys)
            )
            turns += page.turns
            token = page.next_page_token
            if not token:
                return turns

    async def turns(self, **fields: Any) -> list[turn_pb2.Turn]:
        """Return the first page of turns."""
        page = await self.server.turns.ListTurns(
            turn_service_pb2.ListTurnsRequest(**self.keys, **fields)
        )
        return list(page.turns)


def message(text: str) -> event_pb2.InputMessage:
    """Return a message of one text."""
    part = event_pb2.MessagePart(text=event_pb2.TextPart(content=text))
    return event_pb2.InputMessage(messages=[part])


def output(text: str = "An answer.", **fields: Any) -> event_pb2.EventDraft:
    """Return the draft of an agent_output."""
    return event_pb2.EventDraft(agent_output=event_pb2.AgentOutput(content=text), **fields)


def rating(data_json: str = "5", **fields: Any) -> event_pb2.EventDraft:
    """Return the draft of a custom event."""
    custom = event_pb2.Custom(custom_type="com.example.rating", data_json=data_json)
    return event_pb2.EventDraft(custom=custom, **fields)


def items(responses: Sequence[SendResponse | WatchResponse]) -> list[str]:
    """Return what the responses are."""
    return [str(response.WhichOneof("item")) for response in responses]


def stored(responses: Sequence[SendResponse | WatchResponse]) -> list[event_pb2.Event]:
    """Return the events among the responses."""
    return [response.event for response in responses if response.HasField("event")]


def joined_deltas(responses: Sequence[SendResponse | WatchResponse]) -> dict[str, bytes]:
    """Return the texts that the deltas make, by event id; an AssertionError for a gap."""
    texts: dict[str, bytes] = {}
    for response in responses:
        if response.HasField("delta"):
            delta = response.delta
            known = texts.get(delta.event_id, b"")
            assert delta.offset == len(known), f"a gap at {delta.offset} after {len(known)}"
            texts[delta.event_id] = known + delta.text.encode()
    return texts


def content(event: event_pb2.Event) -> str:
    """Return the text of a thinking or agent_output."""
    return event.thinking.content or event.agent_output.content


def check_turn(responses: Sequence[SendResponse]) -> None:
    """Assert what must hold of every whole stream (contract section 3, points 1 and 2)."""
    kinds = items(responses)
    assert kinds[-1] in {"turn_end", "requires_action"}
    assert sum(kind in {"turn_end", "requires_action"} for kind in kinds) == 1
    assert responses[0].session_uid
    assert not any(response.session_uid for response in responses[1:])
    assert len({response.turn_id for response in responses}) == 1
    sequences = [response.sequence for response in responses]
    assert sequences == sorted(sequences)
    texts = joined_deltas(responses)
    seen: set[str] = set()
    for response in responses:
        if response.HasField("delta"):
            assert response.delta.event_id not in seen, "a delta after its event"
        if response.HasField("event"):
            assert response.sequence == response.event.sequence
            seen.add(response.event.id)
    for event in stored(responses):
        if event.id in texts:
            assert texts[event.id] == content(event).encode()


async def take(stream: AsyncIterator[Any], count: int) -> list[Any]:
    """Return the next `count` messages of a stream."""
    source = aiter(stream)
    return [await anext(source) for _ in range(count)]


async def take_until(source: AsyncIterator[Any], item: str) -> list[Any]:
    """Return what comes up to the first item, or event, of a kind; an AssertionError for none."""
    seen = []
    async for response in source:
        seen.append(response)
        if item in {response.WhichOneof("item"), response.event.WhichOneof("payload")}:
            return seen
    raise AssertionError(f"ended before {item}: {items(seen)}")
