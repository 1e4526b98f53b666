"""What is repeated after a failure, what is not, for how long, and where."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc
import pytest

from hansard.v1 import agent_pb2, event_pb2, session_pb2
from hansard.v1 import agent_service_pb2 as agents_pb2
from hansard.v1 import artifact_service_pb2 as artifacts_pb2
from hansard.v1 import event_service_pb2 as events_pb2
from hansard.v1.access_pb2 import ApiKey
from hansard.v1.artifact_pb2 import Artifact
from hansard_client import File, errors
from hansard_client.channels import Endpoints
from hansard_client.errors import (
    AgentNotFound,
    ArtifactNotFound,
    ChecksumMismatch,
    ClientClosed,
    DeadlineExceeded,
    EtagMismatch,
    HansardError,
    QuotaExceeded,
    RateLimitExceeded,
    ServerShuttingDown,
    SessionBusy,
    SessionNotFound,
    StoreUnavailable,
    Unreachable,
)
from tests.support.client import Caller, ScriptedTransport, broken

Make = Callable[..., Caller[Any]]

UNKNOWN_OUTCOME: list[Callable[[], HansardError]] = [
    broken,
    lambda: StoreUnavailable("the store does not answer", retry_after_s=1.0),
    lambda: DeadlineExceeded("no answer"),
    lambda: HansardError("reset", code=grpc.StatusCode.CANCELLED),
    lambda: HansardError("reset", code=grpc.StatusCode.UNKNOWN),
    lambda: HansardError("reset", code=grpc.StatusCode.INTERNAL),
]
REFUSED: list[Callable[[], HansardError]] = [
    lambda: ServerShuttingDown("the server is stopping", retry_after_s=1.0),
    lambda: RateLimitExceeded("too many", retry_after_s=1.0),
    lambda: SessionBusy("a turn is unfinished", retry_after_s=1.0),
]
FINAL: list[Callable[[], HansardError]] = [
    lambda: AgentNotFound("none"),
    lambda: QuotaExceeded("full"),
    lambda: SessionBusy("a turn is unfinished"),
    lambda: errors.Internal("report this"),
    lambda: errors.Unauthorized("no key"),
    lambda: HansardError("too large", code=grpc.StatusCode.RESOURCE_EXHAUSTED),
]
REPEATABLE: list[tuple[str, Callable[[Any], Any]]] = [
    ("GetAgent", lambda c: c.hansard.agents.get("a")),
    ("ListAgents", lambda c: c.hansard.agents.list()),
    ("CreateAgent", lambda c: c.hansard.agents.create(name="A", model="m")),
    ("CreateSession", lambda c: c.hansard.sessions.create("a", name="S")),
    ("AppendEvents", lambda c: c.session.append([{"custom": {"data_json": "1"}}])),
    ("UploadArtifacts", lambda c: c.session.artifacts.upload(File(source=b"a", filename="a"))),
    ("HideEvent", lambda c: c.session.events.hide("aev_1")),
    ("DeleteEvent", lambda c: c.session.events.delete("aev_1")),
    ("CancelTurn", lambda c: c.session.turns.cancel("trn_1")),
    ("RevokeApiKey", lambda c: c.hansard.api_keys.revoke("k")),
    ("IssueToken", lambda c: c.hansard.api_keys.issue_token()),
    ("DeleteArtifact", lambda c: c.session.artifacts.delete("art_1")),
    ("UpdateAgent", lambda c: c.hansard.agents.update("a", etag="e", name="N")),
]
ids = [name for name, _ in REPEATABLE]


@pytest.mark.parametrize(("name", "make_call"), REPEATABLE, ids=ids)
@pytest.mark.parametrize("failure", UNKNOWN_OUTCOME + REFUSED)
def test_what_may_be_repeated_is(
    call: Make,
    name: str,
    make_call: Callable[[Any], Any],
    failure: Callable[[], HansardError],
) -> None:
    transport = ScriptedTransport(**{name: [failure(), failure()]})
    caller = call(transport)
    caller.get(make_call(caller))
    requests = transport.requests(name)
    assert len(requests) == 3
    assert all(request == requests[0] for request in requests)
    if name == "UploadArtifacts":
        assert requests[0][0].start.request_id
    elif "request_id" in requests[0].DESCRIPTOR.fields_by_name:
        assert requests[0].request_id


@pytest.mark.parametrize(("name", "make_call"), REPEATABLE, ids=ids)
@pytest.mark.parametrize("failure", FINAL)
def test_an_answer_is_not_asked_for_again(
    call: Make,
    name: str,
    make_call: Callable[[Any], Any],
    failure: Callable[[], HansardError],
) -> None:
    transport = ScriptedTransport(**{name: [failure()]})
    caller = call(transport)
    with pytest.raises(type(failure())):
        caller.get(make_call(caller))
    assert len(transport.requests(name)) == 1


@pytest.mark.parametrize("failure", UNKNOWN_OUTCOME)
def test_an_update_without_etag_is_not_repeated_blindly(
    call: Make, failure: Callable[[], HansardError]
) -> None:
    transport = ScriptedTransport(UpdateAgent=[failure()])
    caller = call(transport)
    with pytest.raises(type(failure())):
        caller.get(caller.hansard.agents.update("a", name="N"))
    # It was only made on a connection that stood: a failure to connect is not one of these.
    assert transport.waited_for_connection == [True]


@pytest.mark.parametrize("failure", REFUSED)
def test_an_update_that_was_refused_is_repeated(
    call: Make, failure: Callable[[], HansardError]
) -> None:
    transport = ScriptedTransport(UpdateAgent=[failure()])
    caller = call(transport)
    caller.get(caller.hansard.agents.update("a", name="N"))
    assert len(transport.requests("UpdateAgent")) == 2


def test_an_etag_that_our_own_attempt_has_changed_is_no_mismatch(call: Make) -> None:
    ours = agent_pb2.Agent(key="a", name="N", description="D", etag="2")
    script = [broken(), EtagMismatch("another")]
    caller = call(ScriptedTransport(UpdateAgent=list(script), GetAgent=[ours]))
    assert caller.get(caller.hansard.agents.update("a", etag="1", name="N")) == ours
    caller = call(ScriptedTransport(UpdateAgent=list(script), GetAgent=[ours]))
    with pytest.raises(EtagMismatch):
        caller.get(caller.hansard.agents.update("a", etag="1", name="Other"))
    # Nobody has lost an answer: it is a mismatch, and nothing is looked up.
    transport = ScriptedTransport(UpdateAgent=[EtagMismatch("another")], GetAgent=[ours])
    caller = call(transport)
    with pytest.raises(EtagMismatch):
        caller.get(caller.hansard.agents.update("a", etag="1", name="N"))
    assert transport.requests("GetAgent") == []


def test_one_entry_of_a_map_is_compared_alone(call: Make) -> None:
    now = agent_pb2.Agent(key="a", etag="2")
    now.tool_configurations["mine"].artifact_read.SetInParent()
    now.tool_configurations["theirs"].artifact_grep.SetInParent()
    wanted = agent_pb2.Agent(key="a", etag="1")
    wanted.tool_configurations["mine"].artifact_read.SetInParent()
    script = [broken(), EtagMismatch("another")]
    for paths, fails in ((["tool_configurations.mine"], False), (["tool_configurations"], True)):
        caller = call(ScriptedTransport(UpdateAgent=list(script), GetAgent=[now]))
        made = caller.hansard.agents.patch
        if fails:
            with pytest.raises(EtagMismatch):
                caller.get(made(wanted, paths))
        else:
            assert caller.get(made(wanted, paths)) == now


def test_a_delete_meets_no_other_incarnation(call: Make) -> None:
    first, second = session_pb2.Session(uid="1"), session_pb2.Session(uid="2")

    def delete(*got: Any, uid: str = "", answers: tuple[Any, ...] = (broken(),)) -> int:
        transport = ScriptedTransport(GetSession=got, DeleteSession=answers)
        caller = call(transport)
        caller.get(caller.hansard.sessions.delete("a", "s", uid=uid))
        return len(transport.requests("DeleteSession"))

    # Our own attempt has deleted it; somebody has made another one; it is still there.
    assert delete(first, SessionNotFound("gone")) == 1
    assert delete(first, AgentNotFound("gone")) == 1
    assert delete(first, second) == 1
    assert delete(first, first) == 2
    assert delete(first, first, first, answers=(broken(), broken())) == 3
    with pytest.raises(SessionNotFound):
        delete(second, uid="1")
    with pytest.raises(SessionNotFound):
        delete(first, answers=(SessionNotFound("gone"),))


def test_an_artifact_that_a_lost_attempt_has_deleted_is_deleted(call: Make) -> None:
    caller = call(ScriptedTransport(DeleteArtifact=[broken(), ArtifactNotFound("gone")]))
    caller.get(caller.session.artifacts.delete("art_1"))
    caller = call(ScriptedTransport(DeleteArtifact=[ArtifactNotFound("gone")]))
    with pytest.raises(ArtifactNotFound):
        caller.get(caller.session.artifacts.delete("art_1"))


def test_waits_grow_and_heed_the_server(call: Make) -> None:
    transport = ScriptedTransport(GetAgent=[broken() for _ in range(8)])
    caller = call(transport)
    caller.get(caller.hansard.agents.get("a"))
    for wait_s, most_s in zip(transport.waits_s, (0.1, 0.2, 0.4, 0.8, 1.6, 2, 2, 2), strict=True):
        assert most_s / 2 <= wait_s <= most_s
    limited = RateLimitExceeded("too many", retry_after_s=7.0)
    transport = ScriptedTransport(GetAgent=[limited])
    caller = call(transport)
    caller.get(caller.hansard.agents.get("a"))
    assert 7.0 <= transport.waits_s[0] <= 8.4
    # Nobody waits for what comes after the end of all patience.
    transport = ScriptedTransport(GetAgent=[RateLimitExceeded("too many", retry_after_s=70.0)])
    caller = call(transport)
    with pytest.raises(RateLimitExceeded) as told:
        caller.get(caller.hansard.agents.get("a"))
    assert transport.waits_s == []
    assert told.value.retry_after_s == 70.0


def test_a_send_that_is_refused_for_a_busy_session_is_told(call: Make) -> None:
    busy = SessionBusy("a turn is unfinished", retry_after_s=1.0)
    caller = call(ScriptedTransport(SendEvent=[[busy]]))
    with pytest.raises(SessionBusy):
        caller.get(caller.session.send("Hello?", when_busy="reject"))


def test_where_no_server_ever_answered_patience_is_its_own(call: Make) -> None:
    transport = ScriptedTransport(GetAgent=[broken() for _ in range(9)])
    caller = call(transport, first_contact_s=0)
    with pytest.raises(Unreachable):
        caller.get(caller.hansard.agents.get("a"))
    assert len(transport.calls) == 1
    # Each address is tried.
    transport = ScriptedTransport("one:1", "two:2", GetAgent=[broken(), agent_pb2.Agent(key="a")])
    caller = call(transport, first_contact_s=0)
    assert caller.get(caller.hansard.agents.get("a")).key == "a"
    assert transport.used == ["one:1", "two:2"]
    # From then on it is the client's.
    transport.scripts["GetAgent"] = [broken(), broken(), broken()]
    caller.get(caller.hansard.agents.get("a"))
    assert transport.used[2:] == ["two:2", "one:1", "two:2", "one:1"]


def test_another_server_is_asked_without_waiting_as_the_first_one_says(call: Make) -> None:
    stopping = ServerShuttingDown("the server is stopping", retry_after_s=30.0)
    transport = ScriptedTransport("one:1", "two:2", GetAgent=[stopping])
    caller = call(transport)
    caller.get(caller.hansard.agents.get("a"))
    assert transport.used == ["one:1", "two:2"]
    assert transport.waits_s[0] <= 0.1


def test_pages_are_fetched_as_they_are_needed(call: Make) -> None:
    def page(first: int, count: int, token: str) -> agents_pb2.ListAgentsResponse:
        made = [agent_pb2.Agent(key=str(number)) for number in range(first, first + count)]
        return agents_pb2.ListAgentsResponse(agents=made, next_page_token=token)

    def keys(limit: int | None) -> tuple[list[str], list[Any]]:
        # A page may be empty and have a token.
        pages = [page(0, 2, "x"), broken(), page(2, 0, "y"), page(2, 2, "")]
        transport = ScriptedTransport(ListAgents=pages)
        caller = call(transport)
        listed = caller.get(caller.hansard.agents.list(limit=limit))
        return [agent.key for agent in listed], transport.requests("ListAgents")

    assert keys(None)[0] == ["0", "1", "2", "3"]
    assert [request.page_token for request in keys(None)[1]] == ["", "x", "x", "y"]
    found, requests = keys(3)
    assert found == ["0", "1", "2"]
    assert [request.page_size for request in requests] == [3, 1, 1, 1]
    assert len(keys(2)[1]) == 1
    assert keys(0) == ([], [])


# Files.


def chunks(*parts: bytes, artifact: Artifact | None = None) -> list[Any]:
    answers = [artifacts_pb2.DownloadArtifactResponse(artifact=artifact)] if artifact else []
    return answers + [artifacts_pb2.DownloadArtifactResponse(chunk=part) for part in parts]


SHA = "88d4266fd4e6338d13b845fcf289579d209c897823b9217da3e161936f031589"  # of abcd
ABCD = Artifact(artifact_id="art_1", size_bytes=4, checksum_sha256=SHA)


def test_a_download_goes_on_where_it_broke(call: Make) -> None:
    for offset, length, script, joined, places in (
        (0, None, [["a"], ["b", "c"], ["d"]], b"abcd", [(0, None), (1, None), (3, None)]),
        (1, 2, [["b"], ["c"]], b"bc", [(1, 2), (2, 1)]),
        (3, 9, [[], ["d"]], b"d", [(3, 9), (3, 9)]),
    ):
        parts = [chunks(*(p.encode() for p in part), artifact=ABCD) for part in script]
        streams = [[*part, broken()] for part in parts[:-1]] + parts[-1:]
        transport = ScriptedTransport(DownloadArtifact=streams)
        caller = call(transport)
        made = caller.session.artifacts.download("art_1", offset=offset, length=length)
        assert b"".join(caller.get(made)) == joined
        assert [
            (request.offset, request.length if request.HasField("length") else None)
            for request in transport.requests("DownloadArtifact")
        ] == places


def test_bytes_that_are_not_those_uploaded_leave_no_file(call: Make, tmp_path: Path) -> None:
    caller = call(ScriptedTransport(DownloadArtifact=[chunks(b"abcx", artifact=ABCD)]))
    with pytest.raises(ChecksumMismatch, match="SHA-256"):
        caller.get(caller.session.artifacts.save("art_1", tmp_path / "file"))
    assert list(tmp_path.iterdir()) == []
    caller = call(ScriptedTransport(DownloadArtifact=[chunks(b"abcd", artifact=ABCD)]))
    caller.get(caller.session.artifacts.save("art_1", tmp_path / "file"))
    assert (tmp_path / "file").read_bytes() == b"abcd"
    caller = call(ScriptedTransport())
    with pytest.raises(FileExistsError):
        caller.get(caller.session.artifacts.save("art_1", tmp_path / "file"))


def test_a_file_that_can_not_be_read_again_is_sent_once(call: Make, tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"..abcd")
    with path.open("rb") as file:
        file.seek(2)
        transport = ScriptedTransport(UploadArtifacts=[broken(), event_pb2.Event()])
        caller = call(transport)
        caller.get(caller.session.artifacts.upload(File(source=file, filename="f")))
        for _, header, chunk in transport.requests("UploadArtifacts"):
            assert header.header.checksum_sha256 == SHA
            assert chunk.chunk == b"abcd"

        class Pipe:
            def seekable(self) -> bool:
                return False

            def read(self, size: int) -> bytes:
                return file.read(size)

        file.seek(2)
        transport = ScriptedTransport(UploadArtifacts=[broken(), event_pb2.Event()])
        caller = call(transport)
        pipe: Any = Pipe()
        with pytest.raises(Unreachable):
            caller.get(caller.session.artifacts.upload(File(source=pipe, filename="f")))
        [(_, header, _)] = transport.requests("UploadArtifacts")
        assert not header.header.HasField("size_bytes")
    with pytest.raises(OSError, match="none"):
        caller.get(caller.session.artifacts.upload(tmp_path / "none"))
    with pytest.raises(ValueError, match="filename"):
        caller.get(caller.session.artifacts.upload(File(source=b"a")))


def test_a_closed_client_says_so(call: Make) -> None:
    transport = ScriptedTransport()
    transport.closed = True
    caller = call(transport)
    with pytest.raises(ClientClosed):
        caller.get(caller.hansard.agents.get("a"))
    with pytest.raises(ClientClosed):
        caller.get(caller.session.send("Hello?"))


def test_a_stream_that_nobody_reads_warns(call: Make) -> None:
    caller = call(ScriptedTransport())
    with pytest.warns(RuntimeWarning, match="nothing was sent"):
        caller.session.send("Hello?")


def test_an_input_is_taken(call: Make) -> None:
    accepted = events_pb2.SendEventResponse(
        turn_id="trn_1", session_uid="uid", sequence=7, queued=events_pb2.Queued(position=2)
    )
    transport = ScriptedTransport(SendEvent=[[broken()], [accepted]])
    caller = call(transport)
    taken = caller.get(caller.session.submit("Hello?", attach=["art_1"], request_id="r"))
    assert (taken.turn_id, taken.session_uid, taken.sequence, taken.position, taken.request_id) == (
        *("trn_1", "uid", 7, 2),
        "r",
    )
    for request in transport.requests("SendEvent"):
        assert request.detach
        parts = request.input_message.messages
        assert [part.WhichOneof("part") for part in parts] == ["text", "artifact"]


def test_a_key_whose_secret_was_lost_is_replaced(call: Make) -> None:
    lost, whole = ApiKey(id="lost"), ApiKey(id="whole", secret="secret")
    transport = ScriptedTransport(CreateApiKey=[broken(), lost, whole])
    caller = call(transport)
    roles = [{"role": "ROLE_AGENT_USER", "agent_key": "support"}]
    assert caller.get(caller.hansard.api_keys.create(name="K", roles=roles)) == whole
    assert [request.api_key_id for request in transport.requests("RevokeApiKey")] == ["lost"]
    ids = [request.request_id for request in transport.requests("CreateApiKey")]
    assert ids[0] == ids[1] != ids[2]
    # Whoever has an id of their own may have had the answer elsewhere.
    transport = ScriptedTransport(CreateApiKey=[lost])
    caller = call(transport)
    made = caller.hansard.api_keys.create(name="K", roles=roles, request_id="mine")
    assert caller.get(made) == lost
    assert transport.requests("RevokeApiKey") == []


def test_the_next_address_is_used_when_one_is_left() -> None:
    given = Endpoints(" one:1, two:2,three:3 ", api_key=None, tls=False, options=None)
    assert given.addresses == ("one:1", "two:2", "three:3")
    assert [given.leave("one:1"), given.current] == [True, "two:2"]
    # Of two calls that fail together only one changes it.
    assert [given.leave("one:1"), given.current] == [True, "two:2"]
    assert [given.leave("two:2"), given.leave("three:3"), given.current] == [True, True, "one:1"]
    alone = Endpoints(["one:1"], api_key=None, tls=False, options=None)
    assert not alone.leave("one:1")
    options = dict(given.options("127.0.0.1:1")) | {"proxied": dict(given.options("far:1"))}
    assert options["grpc.enable_http_proxy"] == 0
    assert "grpc.enable_http_proxy" not in options["proxied"]


class SlowTransport(ScriptedTransport):
    """Each attempt takes so long, by a clock of its own."""

    attempt_s = 20.0
    now_s = 0.0

    def _note(self, rpc: Any, request: Any) -> None:
        super()._note(rpc, request)
        self.now_s += self.attempt_s


@pytest.mark.parametrize("kept", [False, True])
def test_time_without_a_sign_of_life_is_what_counts(
    call: Make, monkeypatch: pytest.MonkeyPatch, *, kept: bool
) -> None:
    sign = events_pb2.WatchEventsResponse(caught_up=events_pb2.CaughtUp())
    # A stream that lives may be silent for hours before it breaks.
    streams = [[*([sign] if kept else []), broken()] for _ in range(8)]
    transport = SlowTransport(WatchEvents=[*streams, [SessionNotFound("deleted")]])
    monkeypatch.setattr("hansard_client.link.time.monotonic", lambda: transport.now_s)
    caller = call(transport, patience_s=50.0, first_contact_s=50.0)
    with pytest.raises(SessionNotFound if kept else Unreachable):
        caller.get(caller.session.watch())
    assert len(transport.calls) == (9 if kept else 3)
