"""One conversation, as a client has it that knows nothing but the contract's image.

Each step prints a line of JSON. After the lines "kill" and "drain" somebody else kills or stops the
server and starts it again; the client goes on from what it has.
"""

from __future__ import annotations

import hashlib
import json
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import grpc
import protovalidate
from client import Client, Failure, from_status, to_failure
from google.protobuf import field_mask_pb2, json_format, struct_pb2
from google.protobuf.message import Message

from hansard.v1 import (
    access_pb2,
    access_service_pb2,
    agent_pb2,
    agent_service_pb2,
    artifact_service_pb2,
    event_pb2,
    event_service_pb2,
    session_pb2,
    session_service_pb2,
    turn_pb2,
    turn_service_pb2,
)

T = TypeVar("T")

SESSION = "conversation"
CHUNK_BYTES = 256 * 1024
FILE = bytes(index * 31 % 256 for index in range(600_000))
Upload = artifact_service_pb2.UploadArtifactsRequest


def say(step: str, **facts: Any) -> None:
    sys.stdout.write(json.dumps({"step": step, **facts}) + "\n")
    sys.stdout.flush()


class Conversation:
    """An agent, a session, and what was said in it."""

    def __init__(self, agent_key: str, scripts: dict[str, Any]) -> None:
        self.client = Client()
        self.keys: dict[str, Any] = {"agent_key": agent_key, "session_key": SESSION}
        self.scripts = scripts
        self.uploaded: str = ""

    def model(self, name: str) -> agent_pb2.Model:
        parameters = struct_pb2.Struct()
        json_format.ParseDict({"script": self.scripts[name]}, parameters)
        return agent_pb2.Model(name="hansard/scripted", parameters=parameters)

    def create(self) -> None:
        agent = agent_service_pb2.CreateAgentRequest(
            key=self.keys["agent_key"],
            name="Polyglot",
            model=self.model("steady"),
            request_id="agent",
        )
        session = session_service_pb2.CreateSessionRequest(
            agent_key=self.keys["agent_key"], key=SESSION, name="Conversation", request_id="session"
        )
        agents = [self.client.agents.CreateAgent(agent).uid for _ in range(2)]
        sessions = [self.client.sessions.CreateSession(session).uid for _ in range(2)]
        say("created", agent_uids=agents, session_uids=sessions)

    def upload(self, data: bytes, request_id: str, checksum: str) -> event_pb2.Event:
        def parts() -> Iterator[Upload]:
            yield Upload(start=artifact_service_pb2.UploadStart(request_id=request_id, **self.keys))
            yield Upload(
                header=artifact_service_pb2.UploadHeader(
                    filename="table.bin", size_bytes=len(data), checksum_sha256=checksum
                )
            )
            for start in range(0, len(data), CHUNK_BYTES):
                yield Upload(chunk=data[start : start + CHUNK_BYTES])

        return self.client.artifacts.UploadArtifacts(parts())

    def exchange_file(self) -> None:
        checksum = hashlib.sha256(FILE).hexdigest()
        events = [self.upload(FILE, "upload", checksum) for _ in range(2)]
        [reference] = events[0].artifact_upload.artifacts
        download = artifact_service_pb2.DownloadArtifactRequest(
            artifact_id=reference.artifact_id, **self.keys
        )
        digest = hashlib.sha256()
        for part in self.client.artifacts.DownloadArtifact(download):
            digest.update(part.chunk)
        say("uploaded", events=[event.id for event in events], sha256=digest.hexdigest())

    def request(self, text: str, request_id: str) -> event_service_pb2.SendEventRequest:
        part = event_pb2.MessagePart(text=event_pb2.TextPart(content=text))
        message = event_pb2.InputMessage(messages=[part])
        return event_service_pb2.SendEventRequest(
            request_id=request_id, input_message=message, **self.keys
        )

    def send_until_cut(self, text: str, request_id: str) -> tuple[Any, str, int, list[str]]:
        """Return the call in the middle of a text, its turn, a place to resume from, the events."""
        call = self.client.events.SendEvent(self.request(text, request_id))
        events: list[str] = []
        deltas = 0
        for item in call:
            if item.HasField("event"):
                events.append(item.event.id)
            deltas += item.HasField("delta")
            if deltas == 3:
                return call, item.turn_id, item.sequence, events
        raise AssertionError("the turn ended before it could be cut off")

    def send_whole(self, text: str, request_id: str) -> dict[str, Any]:
        call = self.client.events.SendEvent(self.request(text, request_id))
        return whole_turn(call)

    def watch_until_answer(self, after: int) -> dict[str, Any]:
        """Return what a watch gives from a sequence on until the agent has answered."""
        watch = event_service_pb2.WatchEventsRequest(
            after_sequence=after, include_deltas=True, **self.keys
        )
        call = self.client.events.WatchEvents(watch)
        events: list[event_pb2.Event] = []
        texts: dict[str, bytes] = {}
        for item in call:
            if item.HasField("delta"):
                add(texts, item.delta)
            if item.HasField("event"):
                events.append(item.event)
                if item.event.HasField("agent_output"):
                    break
        call.cancel()
        return seen(events, texts)

    def cut_and_resume(self) -> None:
        call, turn_id, sequence, events = self.send_until_cut("Cut me off.", "cut")
        call.cancel()
        code = failure_of(lambda: list(call)).code
        say("cut", turn_id=turn_id, sequence=sequence, events=events, code=code)
        say("watched", **self.watch_until_answer(sequence))
        say("replayed", **self.send_whole("Cut me off.", "cut"))

    def survive_kill(self) -> None:
        self.set_model("slow")
        call, turn_id, sequence, events = self.send_until_cut("Die.", "kill")
        # The turn's next owner reads the agent anew.
        self.set_model("quick")
        say("kill", turn_id=turn_id, sequence=sequence, events=events)
        say("killed", code=failure_of(lambda: list(call)).code)
        say("joined", **until_served(lambda: self.send_whole("Die.", "kill")))
        say("watched again", **self.watch_until_answer(sequence))

    def survive_drain(self) -> None:
        watch = event_service_pb2.WatchEventsRequest(**self.keys)

        def follow() -> None:
            for item in self.client.events.WatchEvents(watch):
                if item.HasField("caught_up"):
                    say("drain")

        failure = failure_of(follow)
        say("drained", **vars(failure))
        watch.after_sequence = int(failure.metadata["sequence"])
        time.sleep(failure.retry_s)
        first = until_served(lambda: self.first_of(watch))
        say("back", caught_up=first.HasField("caught_up"), sequence=first.sequence)

    def first_of(
        self, watch: event_service_pb2.WatchEventsRequest
    ) -> event_service_pb2.WatchEventsResponse:
        call = self.client.events.WatchEvents(watch)
        first = next(iter(call))
        call.cancel()
        return first

    def set_model(self, name: str) -> None:
        key = agent_service_pb2.GetAgentRequest(agent_key=self.keys["agent_key"])
        agent = self.client.agents.GetAgent(key)
        change = agent_pb2.Agent(key=agent.key, etag=agent.etag, model=self.model(name))
        self.client.agents.UpdateAgent(
            agent_service_pb2.UpdateAgentRequest(
                agent=change, update_mask=field_mask_pb2.FieldMask(paths=["model"])
            )
        )

    def list_back(self) -> None:
        request = event_service_pb2.ListEventsRequest(page_size=3, **self.keys)
        events: list[event_pb2.Event] = []
        pages = 0
        while True:
            page = self.client.events.ListEvents(request)
            pages += 1
            events += page.events
            request.page_token = page.next_page_token
            if not request.page_token:
                break
        turns = self.client.turns.ListTurns(turn_service_pb2.ListTurnsRequest(**self.keys)).turns
        say(
            "listed",
            pages=pages,
            sequences=[event.sequence for event in events],
            events=[event.id for event in events],
            types=[event.WhichOneof("payload") for event in events],
            tool_inputs=[e.tool_input.tool_input_json for e in events if e.HasField("tool_input")],
            turns=[turn.id for turn in turns],
        )

    def check_rules(self) -> None:
        """Compare what the contract's rules say here with what the server says."""
        agent_key = self.keys["agent_key"]
        client = self.client
        bad_session = session_service_pb2.CreateSessionRequest(agent_key="no spaces")
        bad_file = Upload(header=artifact_service_pb2.UploadHeader(filename="../table.bin"))
        bad_update = session_service_pb2.UpdateSessionRequest(
            session=session_pb2.Session(agent_key=agent_key, key=SESSION),
            update_mask=field_mask_pb2.FieldMask(paths=["name"]),
        )
        good = event_pb2.Custom(custom_type="com.example.rating", data_json="5")
        bad = event_pb2.Custom(custom_type="rating", data_json="5")
        bad_append = event_service_pb2.AppendEventsRequest(
            events=[event_pb2.EventDraft(custom=good), event_pb2.EventDraft(custom=bad)],
            **self.keys,
        )
        no_input = event_service_pb2.SendEventRequest(**self.keys)
        requests: list[tuple[str, Message, Callable[[], Any]]] = [
            ("patterns", bad_session, lambda: client.sessions.CreateSession(bad_session)),
            ("oneof", no_input, lambda: list(client.events.SendEvent(no_input))),
            (
                "cel of a field",
                bad_file,
                lambda: client.artifacts.UploadArtifacts(iter([bad_file])),
            ),
            ("cel of a message", bad_update, lambda: client.sessions.UpdateSession(bad_update)),
            ("nested", bad_append, lambda: client.events.AppendEvents(bad_append)),
        ]
        for name, request, call in requests:
            local = [
                [_path(violation.proto), violation.proto.rule_id]
                for violation in protovalidate.collect_violations(request)
            ]
            say("rule", name=name, local=sorted(local), server=vars(failure_of(call)))
        protovalidate.validate(self.request("Hello?", "hello"))

    def meet_errors(self) -> None:
        """Meet an error of each kind."""
        client, keys = self.client, self.keys
        absent = {**keys, "session_key": "absent"}
        again = session_service_pb2.CreateSessionRequest(
            agent_key=keys["agent_key"], key=SESSION, name="Another"
        )
        ahead = event_service_pb2.WatchEventsRequest(after_sequence=1_000_000, **keys)
        wrong_sequence = self.request("Hello?", "sequence")
        wrong_sequence.expected_last_sequence = 1
        update = agent_service_pb2.UpdateAgentRequest(
            agent=agent_pb2.Agent(
                key=keys["agent_key"], model=agent_pb2.Model(name="hansard/scripted")
            ),
            update_mask=field_mask_pb2.FieldMask(paths=["model"]),
        )
        update.agent.model.parameters["script"] = "none"
        get = session_service_pb2.GetSessionRequest(**keys)
        role = access_pb2.RoleGrant(role=access_pb2.ROLE_AGENT_VIEWER, agent_key=keys["agent_key"])
        reader_key = access_service_pb2.CreateApiKeyRequest(name="Reader", roles=[role])
        anybody, reader = Client(""), Client(client.access.CreateApiKey(reader_key).secret)
        calls: list[tuple[str, Callable[[], Any]]] = [
            ("absent", lambda: client.sessions.GetSession(type(get)(**absent))),
            ("exists", lambda: client.sessions.CreateSession(again)),
            ("sequence", lambda: list(client.events.SendEvent(wrong_sequence))),
            ("reused", lambda: list(client.events.SendEvent(self.request("Other.", "cut")))),
            ("configuration", lambda: client.agents.UpdateAgent(update)),
            ("range", lambda: list(client.events.WatchEvents(ahead))),
            ("quota", lambda: self.upload(b"more", "more", hashlib.sha256(b"more").hexdigest())),
            ("checksum", lambda: self.upload(b"more", "less", "0" * 64)),
            ("nobody", lambda: anybody.sessions.GetSession(get)),
            ("reader", lambda: list(reader.events.SendEvent(self.request("Hi.", "reader")))),
        ]
        for name, call in calls:
            say("error", name=name, **vars(failure_of(call)))
        self.set_model("failing")
        *_, end = self.client.events.SendEvent(self.request("Fail.", "fail"))
        turn = end.turn_end.turn
        failure = from_status(grpc_name(turn.error.code), turn.error)
        say("error", name="turn", **vars(failure))


def _path(violation: Any) -> str:
    """Return the path of a violation: `events[1].custom.custom_type`."""
    names = [
        element.field_name + (f"[{element.subscript.value}]" if element.subscript else "")
        for element in (violation.field.elements if violation.field else ())
    ]
    return ".".join(names)


def grpc_name(number: int) -> str:
    """Return the name of a status code."""
    return next(code.name for code in grpc.StatusCode if code.value[0] == number)


def until_served(call: Callable[[], T]) -> T:
    """Return the answer of a call that may meet a server that is going away, and is safe to repeat.

    CANCELLED, by somebody else than this client, is how such a server cuts off what comes too late.
    """
    while True:
        try:
            return call()
        except grpc.RpcError as error:
            if to_failure(error).code not in {"UNAVAILABLE", "CANCELLED"}:
                raise
            time.sleep(0.2)


def failure_of(call: Callable[[], Any]) -> Failure:
    """Return how a call failed."""
    try:
        answer = call()
    except grpc.RpcError as error:
        return to_failure(error)
    raise AssertionError(f"the call succeeded: {answer}")


def add(texts: dict[str, bytes], delta: event_service_pb2.Delta) -> None:
    """Put a delta in its place; what came after it before is dropped."""
    known = texts.get(delta.event_id, b"")
    assert delta.offset <= len(known), "a gap"
    texts[delta.event_id] = known[: delta.offset] + delta.text.encode()


def seen(events: Iterable[event_pb2.Event], texts: dict[str, bytes]) -> dict[str, Any]:
    """Return the events, and whether the texts that were shown are theirs, byte for byte."""
    contents = {
        event.id: (event.thinking.content or event.agent_output.content).encode()
        for event in events
    }
    return {
        "events": list(contents),
        "sequences": [event.sequence for event in events],
        "shown": sum(key in contents for key in texts),
        "verbatim": all(contents.get(key, text) == text for key, text in texts.items()),
    }


def whole_turn(call: Iterable[event_service_pb2.SendEventResponse]) -> dict[str, Any]:
    """Return what a stream gave that ran to its end."""
    events: list[event_pb2.Event] = []
    texts: dict[str, bytes] = {}
    turn = turn_pb2.Turn()
    for item in call:
        if item.HasField("delta"):
            add(texts, item.delta)
        if item.HasField("void"):
            texts.pop(item.void.event_id, None)
        if item.HasField("event"):
            events.append(item.event)
        if item.HasField("turn_end"):
            turn = item.turn_end.turn
    return {
        "turn_id": turn.id,
        "status": turn_pb2.TurnStatus.Name(turn.status),
        **seen(events, texts),
    }


def main() -> None:
    agent_key, scripts = sys.argv[1:]
    conversation = Conversation(agent_key, json.loads(Path(scripts).read_text(encoding="utf-8")))
    conversation.create()
    conversation.check_rules()
    conversation.exchange_file()
    conversation.cut_and_resume()
    conversation.survive_kill()
    conversation.survive_drain()
    conversation.meet_errors()
    conversation.list_back()
    say("done")


if __name__ == "__main__":
    main()
