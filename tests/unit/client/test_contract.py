"""The library reaches all of the contract: every call, every reason; both kinds the same."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf import descriptor_pb2, descriptor_pool
from google.protobuf.descriptor import ServiceDescriptor
from google.rpc import error_details_pb2, status_pb2

import hansard_client
from hansard.v1 import artifact_service_pb2, errors_pb2, event_service_pb2, options_pb2
from hansard.v1.access_pb2 import ApiKey
from hansard.v1.agent_pb2 import Agent
from hansard.v1.agent_service_pb2 import CreateAgentRequest
from hansard.v1.event_pb2 import Event
from hansard.v1.session_pb2 import Session
from hansard.v1.session_service_pb2 import CreateSessionRequest
from hansard.v1.turn_pb2 import TURN_STATUS_COMPLETED, Turn
from hansard_client import approve, async_client, client, errors, message, reject, tool_output
from hansard_client.errors import HansardError, InvalidRequest, from_call, from_status
from tests.support.client import Caller, ScriptedTransport

# Calls of the contract that the library leaves out on purpose, each with its reason. A new call
# belongs into the library, or here.
LEFT_OUT: dict[str, str] = {}

# What a resource is known by, and what it was made from.
ONCE = {"key", "agent_key", "request_id", "from_session"}

IMAGE = Path(__file__).resolve().parents[3] / "generated/hansard/hansard.binpb"
PARTS = ("Agents", "Sessions", "ApiKeys", "Corpora", "Events", "Turns", "Artifacts", "Session")
ENDED = Turn(id="trn_1", status=TURN_STATUS_COMPLETED)
END = event_service_pb2.SendEventResponse(turn_end=event_service_pb2.TurnEnd(turn=ENDED))
CAUGHT_UP = event_service_pb2.WatchEventsResponse(caught_up=event_service_pb2.CaughtUp())
WATCHED = event_service_pb2.WatchEventsResponse(event=Event(id="aev_1", sequence=2))
WAYS: dict[str, Callable[[Caller[Any]], Any]] = {
    "Agents.create": lambda c: c.hansard.agents.create(
        name="A", model="m", tools=["artifact_grep"], instructions=["Be brief."]
    ),
    "Agents.create_from": lambda c: c.hansard.agents.create_from({"name": "A"}),
    "Agents.get": lambda c: c.hansard.agents.get("a"),
    "Agents.list": lambda c: c.hansard.agents.list(metadata={"a": 1}, newest_first=True),
    "Agents.update": lambda c: c.hansard.agents.update("a", metadata={}),
    "Agents.patch": lambda c: c.hansard.agents.patch(Agent(key="a"), ["name"]),
    "Agents.delete": lambda c: c.hansard.agents.delete("a"),
    "Sessions.create": lambda c: c.hansard.sessions.create("a", name="S", metadata={"a": [1]}),
    "Sessions.get": lambda c: c.hansard.sessions.get("a", "s"),
    "Sessions.list": lambda c: c.hansard.sessions.list("a", filter="x"),
    "Sessions.update": lambda c: c.hansard.sessions.update("a", "s", tti_minutes=5),
    "Sessions.patch": lambda c: c.hansard.sessions.patch(Session(key="s"), ["name"]),
    "Sessions.delete": lambda c: c.hansard.sessions.delete("a", "s"),
    "ApiKeys.create": lambda c: c.hansard.api_keys.create(
        name="K", roles=[{"role": "ROLE_ADMINISTRATOR"}]
    ),
    "ApiKeys.list": lambda c: c.hansard.api_keys.list(include_revoked=True),
    "ApiKeys.revoke": lambda c: c.hansard.api_keys.revoke("k"),
    "ApiKeys.issue_token": lambda c: c.hansard.api_keys.issue_token(),
    "Corpora.create": lambda c: c.hansard.corpora.create(name="C", metadata={"a": 1}),
    "Corpora.get": lambda c: c.hansard.corpora.get("c"),
    "Corpora.list": lambda c: c.hansard.corpora.list(newest_first=False),
    "Corpora.delete": lambda c: c.hansard.corpora.delete("c"),
    "Corpora.index": lambda c: c.hansard.corpora.index("c", "text", metadata={"a": 1}),
    "Corpora.list_documents": lambda c: c.hansard.corpora.list_documents("c"),
    "Corpora.delete_document": lambda c: c.hansard.corpora.delete_document("c", "d"),
    "Corpora.search": lambda c: c.hansard.corpora.search("words", ["c", {"corpus_key": "d"}]),
    "Session.get": lambda c: c.session.get(),
    "Session.update": lambda c: c.session.update(name="N"),
    "Session.delete": lambda c: c.session.delete(),
    "Session.fork": lambda c: c.session.fork(name="F", up_to_event_id="aev_1"),
    "Session.send": lambda c: c.session.send(message("a", attach=["art_1"]), when_busy="steer"),
    "Session.stream": lambda c: c.session.stream(
        [approve("1"), reject("2", "no"), tool_output("3", "{}")]
    ),
    "Session.ask": lambda c: c.session.ask("Hello?", expected_last_sequence=0),
    "Session.submit": lambda c: c.session.submit("Hello?"),
    "Session.append": lambda c: c.session.append([{"agent_output": {"content": "a"}}]),
    "Session.interrupt": lambda c: c.session.interrupt("trn_1"),
    "Session.watch": lambda c: _first(c.session.watch(after_sequence=1)),
    "Session.watch_all": lambda c: _first(c.session.watch_all()),
    "Events.get": lambda c: c.session.events.get("aev_1"),
    "Events.list": lambda c: c.session.events.list(types=["custom"], newest_first=False),
    "Events.append": lambda c: c.session.events.append([]),
    "Events.hide": lambda c: c.session.events.hide("aev_1"),
    "Events.unhide": lambda c: c.session.events.unhide("aev_1"),
    "Events.delete": lambda c: c.session.events.delete("aev_1"),
    "Turns.get": lambda c: c.session.turns.get("trn_1"),
    "Turns.list": lambda c: c.session.turns.list(statuses=["RUNNING"]),
    "Turns.cancel": lambda c: c.session.turns.cancel("trn_1"),
    "Turns.follow": lambda c: c.session.turns.follow("trn_1"),
    "Artifacts.upload": lambda c: c.session.artifacts.upload(__file__),
    "Artifacts.get": lambda c: c.session.artifacts.get("art_1"),
    "Artifacts.list": lambda c: c.session.artifacts.list(limit=5),
    "Artifacts.download": lambda c: _first(c.session.artifacts.download("art_1")),
    # These two are `download` and more.
    "Artifacts.read": lambda _: None,
    "Artifacts.save": lambda _: None,
    "Artifacts.delete": lambda c: c.session.artifacts.delete("art_1"),
}


def _first(made: Any) -> Any:
    async def take() -> Any:
        return await anext(made)

    return take() if hasattr(made, "__anext__") else next(made)


def transport() -> ScriptedTransport:
    chunk = artifact_service_pb2.DownloadArtifactResponse(chunk=b"a")
    return ScriptedTransport(
        CreateApiKey=[ApiKey(id="k", secret="s")],
        SendEvent=[[END]], WatchEvents=[[WATCHED, CAUGHT_UP]], DownloadArtifact=[[chunk]],
        GetTurn=[ENDED, ENDED],
    )  # fmt: skip


def services() -> Iterator[ServiceDescriptor]:
    image = descriptor_pb2.FileDescriptorSet.FromString(IMAGE.read_bytes())
    pool = descriptor_pool.DescriptorPool()
    for file in image.file:
        pool.AddSerializedFile(file.SerializeToString())
    for file in image.file:
        if file.package == "hansard.v1":
            yield from pool.FindFileByName(file.name).services_by_name.values()


def test_every_call_is_reached(call: Callable[..., Caller[Any]]) -> None:
    reached = set()
    for way in WAYS.values():
        made = transport()
        caller = call(made)
        caller.get(way(caller))
        reached |= {name for name, _ in made.calls}
    contract = {
        method.name: f"{service.name}/{method.name}"
        for service in services()
        for method in service.methods
    }
    assert {path for name, path in contract.items() if name not in reached} == LEFT_OUT.keys()
    assert reached <= contract.keys()


@pytest.mark.parametrize("part", ["agents", "sessions"])
def test_all_that_can_be_set_can_be_given(part: str) -> None:
    operations = importlib.import_module(f"hansard_client.operations.{part}")
    made: Any = {"agents": CreateAgentRequest, "sessions": CreateSessionRequest}[part]
    create, update = inspect.signature(operations.create), inspect.signature(operations.update)
    wanted = set(made.DESCRIPTOR.fields_by_name)
    assert wanted <= set(create.parameters)
    assert wanted - ONCE <= set(update.parameters)


def test_both_kinds_have_the_same_ways() -> None:
    found = set()
    for part in PARTS:
        blocking, asynchronous = getattr(client, part), getattr(async_client, f"Async{part}")
        names = {name for name in vars(blocking) if not name.startswith("_")}
        assert names == {name for name in vars(asynchronous) if not name.startswith("_")}
        for name in names:
            ours, theirs = vars(blocking)[name], vars(asynchronous)[name]
            assert ours._operation is theirs._operation
            assert ours.__doc__
        found |= {f"{part}.{name}" for name in names}
    assert found == WAYS.keys()
    for name in ("session", "__init__"):
        one, other = getattr(client.Hansard, name), getattr(async_client.AsyncHansard, name)
        parameters = (inspect.signature(one).parameters, inspect.signature(other).parameters)
        assert list(parameters[0]) == list(parameters[1])


def test_methods_have_the_operations_names_and_words() -> None:
    with hansard_client.Hansard() as hansard:
        sent = inspect.signature(hansard.session("a", "s").send)
        assert next(iter(sent.parameters)) == "given"
        assert sent.return_annotation == "TurnStream[Event]"
        listed = hansard.agents.list
        assert listed.__name__ == "list"
        assert "page" in (listed.__doc__ or "")
        assert inspect.signature(listed).return_annotation == "Generator[Agent, None, None]"


def test_every_reason_has_its_exception() -> None:
    by_number = {code.value[0]: code for code in grpc.StatusCode}
    for value in errors_pb2.ErrorReason.DESCRIPTOR.values:
        if not value.number:
            continue
        reason = value.name.removeprefix("ERROR_REASON_")
        code = by_number[value.GetOptions().Extensions[options_pb2.error].grpc_code]
        made = HansardError.by_reason[reason]("words")
        assert (made.reason, made.code) == (reason, code)
        assert made.__doc__
        assert isinstance(made, HansardError.by_code.get(code, HansardError))


class Failed:
    """A failed call, as grpc and grpc.aio have it."""

    def __init__(self, code: grpc.StatusCode, words: str, *details: Any) -> None:
        status = status_pb2.Status(code=code.value[0], message=words)
        for detail in details:
            status.details.add().Pack(detail)
        self._code, self._words, self._status = code, words, status.SerializeToString()

    def code(self) -> grpc.StatusCode:
        return self._code

    def details(self) -> str:
        return self._words

    def trailing_metadata(self) -> list[tuple[str, Any]]:
        return [("x-request-id", "call-1"), ("grpc-status-details-bin", self._status)]


def info(reason: str, **facts: str) -> error_details_pb2.ErrorInfo:
    return error_details_pb2.ErrorInfo(domain="hansard", reason=reason, metadata=facts)


def test_what_the_server_tells_is_on_the_exception() -> None:
    violation = error_details_pb2.BadRequest.FieldViolation(field="name", description="too long")
    retry = error_details_pb2.RetryInfo()
    retry.retry_delay.FromMilliseconds(1_500)
    error = from_call(
        Failed(
            grpc.StatusCode.INVALID_ARGUMENT,
            "1 field is wrong",
            info("INVALID_REQUEST", violations="1"),
            error_details_pb2.BadRequest(field_violations=[violation]),
            retry,
        ),
        "somewhere:1",
    )
    assert type(error) is InvalidRequest
    assert (error.call_id, error.retry_after_s, error.metadata) == (
        *("call-1", 1.5),
        {"violations": "1"},
    )
    assert error.field_violations == (errors.FieldViolation("name", "too long"),)
    assert str(error) == "INVALID_REQUEST: 1 field is wrong; name: too long"


@pytest.mark.parametrize(
    ("failed", "kind"),
    [
        (Failed(grpc.StatusCode.UNAVAILABLE, "refused"), errors.Unreachable),
        (Failed(grpc.StatusCode.DEADLINE_EXCEEDED, "late"), errors.DeadlineExceeded),
        (Failed(grpc.StatusCode.NOT_FOUND, "no", info("LATER_REASON")), errors.NotFound),
        (Failed(grpc.StatusCode.DATA_LOSS, "oh", info("LATER_REASON")), HansardError),
        (Failed(grpc.StatusCode.PERMISSION_DENIED, "a proxy's"), errors.PermissionDenied),
    ],
)
def test_what_nobody_knows_is_of_its_kind(failed: Failed, kind: type[HansardError]) -> None:
    error = from_call(failed, "somewhere:1")
    assert type(error) is kind
    assert error.code is failed.code()


def test_a_turn_that_failed_raises_its_error(call: Callable[..., Caller[Any]]) -> None:
    status = status_pb2.Status(code=14, message="no such model")
    status.details.add().Pack(info("MODEL_UNAVAILABLE"))
    assert type(from_status(status)) is errors.ModelUnavailable
    failed = Turn(id="trn_1", status="TURN_STATUS_FAILED", error=status)
    end = event_service_pb2.SendEventResponse(turn_end=event_service_pb2.TurnEnd(turn=failed))
    caller = call(ScriptedTransport(SendEvent=[[end]]))
    with pytest.raises(errors.ModelUnavailable, match="no such model"):
        caller.get(caller.session.ask("Hello?"))


def test_values_that_are_none_are_refused(call: Callable[..., Caller[Any]]) -> None:
    caller = call(ScriptedTransport())
    for wrong in (
        lambda: caller.hansard.agents.update("a"),
        lambda: caller.hansard.agents.create(name="A", model={"nonsense": 1}),
        lambda: caller.session.send(message("a"), attach=["art_1"]),
        lambda: hansard_client.Hansard(" , "),
        lambda: hansard_client.Hansard(tls=hansard_client.Tls(private_key=b"a")),
    ):
        with pytest.raises(ValueError, match=r"."):
            caller.get(wrong())
