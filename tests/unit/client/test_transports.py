"""The two transports over real connections: what goes with a call, and how one is ended."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from concurrent import futures
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import pytest

from hansard.v1.agent_pb2 import Agent
from hansard.v1.event_service_pb2 import CaughtUp, WatchEventsResponse
from hansard_client import AsyncHansard, ClientClosed, File, Hansard, Tls, Unavailable
from tests.support.certificates import Authority
from tests.support.server import make_settings, running_server

CAUGHT_UP = WatchEventsResponse(session_uid="uid", caught_up=CaughtUp())


@dataclass
class Peer(grpc.GenericRpcHandler):
    """A server that keeps what came with a call. A watch of it is silent."""

    metadata: list[dict[str, Any]] = field(default_factory=list)
    watching: threading.Event = field(default_factory=threading.Event)
    done: threading.Event = field(default_factory=threading.Event)

    def service(self, details: Any) -> Any:
        self.metadata.append(dict(details.invocation_metadata))
        match details.method.rpartition("/")[2]:
            case "GetAgent":
                return grpc.unary_unary_rpc_method_handler(
                    lambda *_: Agent(key="a").SerializeToString()
                )
            case _:
                return grpc.unary_stream_rpc_method_handler(self._watch)

    def _watch(self, _request: bytes, _context: Any) -> Iterator[bytes]:
        yield CAUGHT_UP.SerializeToString()
        self.watching.set()
        self.done.wait(60)


@dataclass
class Place:
    peer: Peer
    server: grpc.Server
    address: str
    secure_address: str
    authority: Authority


@pytest.fixture
def place() -> Iterator[Place]:
    peer, authority = Peer(), Authority("ours")
    server = grpc.server(futures.ThreadPoolExecutor(4), handlers=(peer,))
    issued = authority.issue()
    credentials = grpc.ssl_server_credentials(
        [(issued.key, issued.certificate)], authority.certificate, require_client_auth=True
    )
    port = server.add_insecure_port("127.0.0.1:0")
    secure = server.add_secure_port("127.0.0.1:0", credentials)
    server.start()
    yield Place(peer, server, f"127.0.0.1:{port}", f"127.0.0.1:{secure}", authority)
    peer.done.set()
    server.stop(None).wait()


def get(kind: str, address: str, **settings: Any) -> Agent:
    if kind == "blocking":
        with Hansard(address, **settings) as hansard:
            return hansard.agents.get("a")

    async def on_loop() -> Agent:
        async with AsyncHansard(address, **settings) as hansard:
            return await hansard.agents.get("a")

    return asyncio.run(on_loop())


KINDS = pytest.mark.parametrize("kind", ["blocking", "asynchronous"])


@KINDS
def test_the_key_goes_with_every_call(place: Place, kind: str) -> None:
    assert get(kind, place.address, api_key="secret").key == "a"
    get(kind, place.address)
    first, second = place.peer.metadata
    assert first["authorization"] == "Bearer secret"
    assert first["user-agent"].startswith("hansard-client/")
    assert "authorization" not in second


@KINDS
def test_each_side_knows_the_other_by_its_certificate(place: Place, kind: str) -> None:
    own = place.authority.issue("client")
    ours = place.authority.certificate
    tls = Tls(root_certificates=ours, private_key=own.key, certificate_chain=own.certificate)
    assert get(kind, place.secure_address, tls=tls, api_key="secret").key == "a"
    assert place.peer.metadata[0]["authorization"] == "Bearer secret"
    stranger = Authority("others").certificate
    for wrong in (Tls(root_certificates=ours), Tls(root_certificates=stranger)):
        with pytest.raises(Unavailable):
            get(kind, place.secure_address, tls=wrong, patience_s=0.2)
    assert len(place.peer.metadata) == 1


def test_closing_ends_what_other_threads_wait_for(place: Place) -> None:
    hansard = Hansard(place.address)
    failures: list[BaseException] = []

    def watch() -> None:
        try:
            list(hansard.session("a", "s").watch())
        except ClientClosed as error:
            failures.append(error)

    thread = threading.Thread(target=watch)
    thread.start()
    assert place.peer.watching.wait(60)
    hansard.close()
    thread.join(60)
    assert len(failures) == 1
    with pytest.raises(ClientClosed):
        hansard.agents.get("a")
    assert hansard.closed


def test_closing_ends_waits_for_a_server_that_is_gone(place: Place) -> None:
    place.peer.done.set()
    place.server.stop(None).wait()
    hansard = Hansard(place.address, patience_s=600)
    threading.Timer(0.3, hansard.close).start()
    with pytest.raises(ClientClosed):
        hansard.agents.get("a")


async def test_closing_ends_what_other_tasks_wait_for(place: Place) -> None:
    hansard = AsyncHansard(place.address)

    async def watch() -> None:
        async for _ in hansard.session("a", "s").watch():
            pass

    task = asyncio.create_task(watch())
    assert await asyncio.to_thread(place.peer.watching.wait, 60)
    await hansard.close()
    with pytest.raises(ClientClosed):
        await task
    with pytest.raises(ClientClosed):
        await hansard.agents.get("a")


async def test_a_task_that_is_cancelled_is_cancelled(place: Place) -> None:
    async with AsyncHansard(place.address) as hansard:

        async def watch() -> None:
            async for _ in hansard.session("a", "s").watch():
                pass

        task = asyncio.create_task(watch())
        assert await asyncio.to_thread(place.peer.watching.wait, 60)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert (await hansard.agents.get("a")).key == "a"


class Fails:
    """A pipe that breaks after its first bytes."""

    def __init__(self) -> None:
        self._reads = 0

    def seekable(self) -> bool:
        return False

    def read(self, _size: int) -> bytes:
        self._reads += 1
        if self._reads > 1:
            raise OSError("the disk is on fire")
        return b"some"


@KINDS
async def test_a_file_that_fails_half_way_is_not_taken_for_the_whole(
    tmp_path: Path, kind: str
) -> None:
    async with running_server(make_settings(tmp_path)) as running:
        address = running.server.address

        def blocking() -> None:
            with Hansard(address) as hansard:
                hansard.session("a", "s").artifacts.upload(File(source=pipe(), filename="f"))

        async with AsyncHansard(address) as hansard:
            await hansard.agents.create(key="a", name="A", model="hansard/extractive")
            await hansard.sessions.create("a", key="s", name="S")
            artifacts = hansard.session("a", "s").artifacts
            for _ in range(10):
                uploading = (
                    asyncio.to_thread(blocking)
                    if kind == "blocking"
                    else artifacts.upload(File(source=pipe(), filename="f"))
                )
                with pytest.raises(OSError, match="on fire"):
                    await uploading
            # A header without size and checksum: only how the call ends tells the server.
            assert [artifact async for artifact in artifacts.list()] == []


def pipe() -> Any:
    return Fails()


@KINDS
def test_a_stream_left_early_is_ended(place: Place, kind: str) -> None:
    def blocking() -> None:
        with Hansard(place.address) as hansard:
            watching = hansard.session("a", "s").watch_all()
            next(watching)
            watching.close()
            assert hansard.agents.get("a").key == "a"

    async def asynchronous() -> None:
        async with AsyncHansard(place.address) as hansard:
            watching = hansard.session("a", "s").watch_all()
            await anext(watching)
            await watching.aclose()
            assert (await hansard.agents.get("a")).key == "a"

    blocking() if kind == "blocking" else asyncio.run(asynchronous())


async def test_the_blocking_client_works_beside_a_running_loop(place: Place) -> None:
    # A loop's hooks for asynchronous generators are no business of the blocking client.
    with Hansard(place.address) as hansard:
        watching = hansard.session("a", "s").watch_all()
        next(watching)
        del watching
        assert hansard.agents.get("a").key == "a"
