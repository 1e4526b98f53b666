"""Servers killed under clients of the library: their callers see the whole of it, once."""

from __future__ import annotations

import asyncio
import hashlib
import logging
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from hansard.v1.event_pb2 import Event
from hansard.v1.turn_pb2 import TURN_STATUS_COMPLETED
from hansard_client import AsyncHansard, CaughtUp, Delta, File, Hansard, TurnEnd, Void
from tests.support.databases import Databases
from tests.support.invariants import check_store
from tests.support.ports import free_port
from tests.support.server import ServeProcess, serve_process

LONG = "Hansard keeps it verbatim, naïve café and all 🎉, word by word. " * 20
SCRIPT = [
    {"thinking": {"content": "First I look it up.", "delta_count": 5}},
    {"tool_call": {"name": "lookup", "input": {"q": 1}, "output": {"found": True}}},
    {"agent_output": {"content": LONG, "delta_count": 100, "pause_ms": 20}},
]
FILE_BYTES = 12 * 1024 * 1024
MODEL = {"name": "hansard/scripted", "parameters": {"script": SCRIPT}}


class Servers:
    """One server after the other at the same address."""

    def __init__(self, folder: Path, store_url: str, *more: str) -> None:
        self.address = f"127.0.0.1:{free_port()}"
        self._arguments = (
            *("--listen", self.address, "--data-dir", str(folder), "--store", store_url),
            *more,
        )
        self._stack = ExitStack()
        self._process: ServeProcess | None = None

    def start(self) -> None:
        """Start a server and return when it serves."""
        self._process = self._stack.enter_context(serve_process(*self._arguments))
        self._process.wait_for("serving")

    def kill(self) -> None:
        """Kill the server as the machine's end would."""
        assert self._process is not None
        self._process.send(signal.SIGKILL)
        self._process.wait()

    def close(self) -> None:
        self._stack.close()


@pytest.fixture
def make_servers(tmp_path: Path) -> Iterator[Callable[..., Servers]]:
    """Give the maker of servers, each in a folder of its own."""
    made: list[Servers] = []

    def make(store_url: str, *more: str) -> Servers:
        folder = tmp_path / f"{len(made)}"
        made.append(Servers(folder, store_url, *more))
        made[-1].start()
        return made[-1]

    yield make
    for servers in made:
        servers.close()


class Reader:
    """Somebody who reads a stream, and says when a long answer has begun."""

    def __init__(self, *, deltas: bool = True) -> None:
        self.items: list[Any] = []
        self.reached = threading.Event()
        self._deltas = deltas

    def read(self, stream: Any) -> None:
        """Read what blocks, to its end."""
        for item in stream:
            if self._take(item):
                return

    async def read_async(self, stream: Any) -> None:
        """Read on a loop, to its end."""
        async for item in stream:
            if self._take(item):
                return

    def _take(self, item: Any) -> bool:
        self.items.append(item)
        if self._deltas:
            told = [i for i in self.items[-5:] if isinstance(i, Delta) and i.kind == "agent_output"]
            begun = len(told) == 5
        else:
            # The answer comes next.
            begun = isinstance(item, Event) and item.HasField("tool_output")
        if begun:
            self.reached.set()
        return isinstance(item, TurnEnd)

    def check(self, record: Sequence[Event]) -> set[str]:
        """Check that the items tell the record; return what was void."""
        assert [item for item in self.items if isinstance(item, Event)] == list(record)
        texts: dict[str, bytes] = {}
        voided: set[str] = set()
        for item in self.items:
            if isinstance(item, Delta):
                assert item.event_id not in voided
                assert item.offset == len(texts.get(item.event_id, b""))
                texts[item.event_id] = texts.get(item.event_id, b"") + item.text.encode()
            if isinstance(item, Void):
                assert item.event_id not in voided
                voided.add(item.event_id)
        contents = {e.id: e.thinking.content or e.agent_output.content for e in record}
        assert voided == texts.keys() - contents.keys()
        assert all(texts[id_].decode() == contents[id_] for id_ in texts.keys() - voided)
        return voided


async def _until(true: Callable[[], bool]) -> None:
    async with asyncio.timeout(60):
        while not true():  # noqa: ASYNC110 - threads make it true
            await asyncio.sleep(0.01)


class Conversation:
    """Six readers of long answers, of both kinds of clients."""

    def __init__(self, addresses: Sequence[str]) -> None:
        self._addresses = list(addresses)
        self._readers = {
            name: Reader(deltas=name not in {"send", "a"})
            for name in ("send", "stream", "watch", "a", "b", "c")
        }

    async def run(self, meanwhile: Callable[[], None]) -> None:
        """Hold it; when all long answers have begun, do something, and check what comes of all."""
        with Hansard(self._addresses) as hansard:
            hansard.agents.create(key="agent", name="Agent", model=MODEL)
            async with AsyncHansard(self._addresses) as on_loop:
                await self._run(hansard, on_loop, meanwhile)

    async def _run(
        self, hansard: Hansard, on_loop: AsyncHansard, meanwhile: Callable[[], None]
    ) -> None:
        readers = self._readers
        made = [hansard.sessions.create("agent", name="S", key=f"s{n}") for n in range(4)]
        one, two = hansard.session(made[0]), hansard.session(made[1])
        three, four = on_loop.session(made[2]), on_loop.session(made[3])
        sent, sent_on_loop = one.send("Tell me."), three.send("Tell me.")
        tasks = [
            asyncio.create_task(asyncio.to_thread(readers["watch"].read, two.watch_all())),
            asyncio.create_task(readers["c"].read_async(four.watch_all())),
        ]
        await _until(lambda: all(CaughtUp() in readers[name].items for name in ("watch", "c")))
        tasks += [
            asyncio.create_task(asyncio.to_thread(readers["send"].read, sent)),
            asyncio.create_task(asyncio.to_thread(readers["stream"].read, two.stream("Tell me."))),
            asyncio.create_task(readers["a"].read_async(sent_on_loop)),
            asyncio.create_task(readers["b"].read_async(four.stream("Tell me."))),
        ]
        await _until(lambda: all(reader.reached.is_set() for reader in readers.values()))
        await asyncio.to_thread(meanwhile)
        async with asyncio.timeout(90):
            await asyncio.gather(*tasks)
        for stream in (sent, sent_on_loop):
            assert stream.turn is not None
            assert stream.turn.status == TURN_STATUS_COMPLETED
        voided = []
        for names, session in (
            *((("send",), one), (("stream", "watch"), two)),
            *((("a",), hansard.session(made[2])), (("b", "c"), hansard.session(made[3]))),
        ):
            record = list(session.events.list())
            assert record[-1].agent_output.content == LONG
            voided += [readers[name].check(record) for name in names]
        # Who shows texts is told that what was shown when the server died is not on record.
        assert [len(void) for void in voided] == [0, 1, 1, 0, 1, 1]


async def test_a_restart_in_the_middle_of_long_answers(
    store_url: str, make_servers: Callable[..., Servers]
) -> None:
    # With another lease the new process would be half a minute late on PostgreSQL.
    servers = make_servers(store_url, "--set", "lease_s=2")

    def restart() -> None:
        servers.kill()
        servers.start()

    await Conversation([servers.address]).run(restart)
    servers.close()
    check_store(store_url)


async def test_one_of_two_replicas_dies_in_the_middle_of_long_answers(
    databases: Databases, make_servers: Callable[..., Servers]
) -> None:
    url = databases.migrated("postgresql")
    more = ("--set", "lease_s=2", "--set", "poll_floor_s=0.2")
    secret = ("--set", "page_token_secret=the-same-for-all-replicas")
    one, two = make_servers(url, *more, *secret), make_servers(url, *more, *secret)
    await Conversation([one.address, two.address]).run(one.kill)
    one.close()
    two.close()
    check_store(url)
    databases.drop(url)


class Halfway:
    """Lets files move until both are half way, then does something, and lets them go on."""

    def __init__(self, then: Callable[[], None]) -> None:
        self._barrier = threading.Barrier(2, action=then)
        self._moved: dict[str, int] = {}
        self._passed: set[str] = set()

    def move(self, name: str, count: int) -> None:
        """Note that so many bytes have moved."""
        self._moved[name] = self._moved.get(name, 0) + count
        if self._moved[name] > FILE_BYTES // 4 and name not in self._passed:
            self._passed.add(name)
            self._barrier.wait(60)


async def test_files_in_the_middle_of_a_restart(
    databases: Databases,
    make_servers: Callable[..., Servers],
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    servers = make_servers(databases.migrated("sqlite"))
    caplog.set_level(logging.INFO, "hansard_client")
    path = tmp_path / "large"
    path.write_bytes(os.urandom(FILE_BYTES))
    checksum = hashlib.sha256(path.read_bytes()).hexdigest()

    def restart() -> None:
        servers.kill()
        threading.Thread(target=servers.start).start()

    with Hansard(servers.address) as hansard:
        async with AsyncHansard(servers.address) as on_loop:
            hansard.agents.create(key="agent", name="Agent", model="hansard/extractive")
            made = hansard.sessions.create("agent", name="S")
            mine, theirs = hansard.session(made).artifacts, on_loop.session(made).artifacts
            half = Halfway(restart)
            await asyncio.gather(
                asyncio.to_thread(mine.upload, path, progress=lambda n: half.move("one", n)),
                theirs.upload(
                    File(source=path, filename="other"), progress=lambda n: half.move("two", n)
                ),
            )
            assert len(caplog.records) >= 2
            stored = list(mine.list())
            assert sorted(artifact.filename for artifact in stored) == ["large", "other"]
            assert {artifact.checksum_sha256 for artifact in stored} == {checksum}
            # Nothing of the attempts that broke is on record.
            assert len(list(hansard.session(made).events.list())) == 2
            caplog.clear()
            half = Halfway(restart)
            copies = tmp_path / "copy-one", tmp_path / "copy-two"
            await asyncio.gather(
                asyncio.to_thread(
                    mine.save,
                    stored[0].artifact_id,
                    copies[0],
                    progress=lambda n: half.move("one", n),
                ),
                asyncio.to_thread(
                    asyncio.run,
                    _save_elsewhere(servers.address, made, stored[1].artifact_id, copies[1], half),
                ),
            )
            assert len(caplog.records) >= 2
            assert all(copy.read_bytes() == path.read_bytes() for copy in copies)


async def _save_elsewhere(
    address: str, made: Any, artifact_id: str, path: Path, half: Halfway
) -> None:
    async with AsyncHansard(address) as hansard:
        await hansard.session(made).artifacts.save(
            artifact_id, path, progress=lambda n: half.move("two", n)
        )
