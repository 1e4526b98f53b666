"""Hostile requests to every call, with keys and without: an answer with a reason, bounded memory,
and a record that is whole afterwards.
"""

from __future__ import annotations

import asyncio
import os
import random
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest
from google.protobuf.message import DecodeError
from google.protobuf.message_factory import GetMessageClass
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

from tests.support.access import (
    CALLS,
    Metadata,
    Place,
    Role,
    make,
    make_about,
    make_key,
    method_of,
    read_admin_key,
    request_of,
    with_key,
)
from tests.support.databases import Databases
from tests.support.invariants import check_store
from tests.support.messages import hostile_bytes
from tests.support.server import ServeProcess, open_channel, serve_process, to_failure

FAULTS = {grpc.StatusCode.INTERNAL, grpc.StatusCode.UNKNOWN}
MIB = 1024 * 1024
WORKERS = 8
BATCH = 500
# What grpc's own client says now and then when it is answered while it still writes.
CLIENT_FAULT = "Internal error from Core"


@dataclass
class Told:
    """How the calls went, by reason; and what should not have happened."""

    reasons: Counter[str] = field(default_factory=Counter)
    calls: Counter[str] = field(default_factory=Counter)
    faults: list[str] = field(default_factory=list)


@cache
def shapes() -> tuple[bytes, ...]:
    """Return what no strategy makes: messages that are too deep, too large, or no text."""
    deep = b""
    for _ in range(3_000):
        # Field 5 and 7 are free-form objects in most requests: value 5 of an entry, inside it.
        deep = _field(5, _field(2, _field(5, deep)))[: 200 * 1024]
    return (
        deep,
        _field(7, deep),
        _field(1, b"\xed\xa0\x80"),
        _field(1, b"\xff\xfe\0"),
        _field(2, b"x" * (5 * MIB)),
        _field(1, b"a" * 70_000),
        b"\x0a" + b"\xff" * 10,
        bytes(range(256)),
        b"\x08\x01" * 100_000,
    )


def _field(number: int, content: bytes) -> bytes:
    size, length = len(content), b""
    while size > 127:
        length += bytes([size & 127 | 128])
        size >>= 7
    return bytes([number << 3 | 2]) + length + bytes([size]) + content


def examples(strategy: st.SearchStrategy[bytes], count: int, of_seed: int) -> list[bytes]:
    """Return values of a strategy, the same for a seed."""
    found: list[bytes] = []

    @seed(of_seed)
    @settings(
        max_examples=count,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
        deadline=None,
    )
    @given(strategy)
    def collect(raw: bytes) -> None:
        found.append(raw)

    collect()
    return found


class Requests:
    """Hostile requests without end: some of each call by strategies, the rest are their variations,
    many of which name things that are there.
    """

    def __init__(self, per_call: int, of_seed: int) -> None:
        self._random = random.Random(of_seed)
        self._pools = {
            call: examples(hostile_bytes(method_of(call).input_type), per_call, of_seed)
            for call in CALLS
        }

    def draw(self) -> tuple[str, list[bytes]]:
        """Return a call and its requests."""
        call = self._random.choice(CALLS)
        count = self._random.randint(0, 4) if method_of(call).client_streaming else 1
        return call, [self._vary(call) for _ in range(count)]

    def _vary(self, call: str) -> bytes:
        if self._random.random() < 0.02:
            return self._random.choice(shapes())
        raw = self._random.choice(self._pools[call])
        if self._random.random() < 0.6:
            raw = self._with_names(call, raw)
        if self._random.random() < 0.3:
            raw = self._with_changes(raw)
        return raw

    def _with_names(self, call: str, raw: bytes) -> bytes:
        message: Any = GetMessageClass(method_of(call).input_type)()
        try:
            message.ParseFromString(raw)
        except DecodeError:
            return raw
        for part in (message, *(getattr(message, name, None) for name in _PARTS)):
            for name, value in _NAMES.items():
                if part is not None and name in part.DESCRIPTOR.fields_by_name:
                    setattr(part, name, value)
        # Of a session's key: what is new is called otherwise.
        if "Create" in call and hasattr(message, "key"):
            message.key = self._random.choice(["", "a", f"k{self._random.random()}"[2:]])
        serialized: bytes = message.SerializeToString()
        return serialized

    def _with_changes(self, raw: bytes) -> bytes:
        changed = bytearray(raw)
        for _ in range(self._random.randint(1, 3)):
            place = self._random.randint(0, len(changed))
            match self._random.randint(0, 3):
                case 0:
                    changed[place : place + 1] = bytes([self._random.randint(0, 255)])
                case 1:
                    del changed[place:]
                case 2:
                    changed[place:place] = self._random.randbytes(self._random.randint(1, 20))
                case _:
                    changed += changed[:place]
        return bytes(changed[: 64 * 1024])


_NAMES = {"agent_key": "a", "session_key": "s", "session_uid": "", "page_token": ""}
_PARTS = ("start", "from_session")
FRIENDLY_CALL = "/hansard.v1.AgentService/ListAgents"
_FRIENDLY = 20
"""One of so many calls is friendly."""


class Attack:
    """Makes hostile calls of all kinds to one server."""

    def __init__(
        self, address: str, admin: Metadata, user: str, requests: Requests, of_seed: int
    ) -> None:
        self._address = address
        self._admin = admin
        self._user = user
        self._requests = requests
        self._random = random.Random(of_seed)
        self.told = Told()

    async def run(self, count: int) -> None:
        """Make so many calls, some at a time."""
        done = 0
        while done < count:
            some = min(BATCH, count - done)
            done += some
            async with open_channel(self._address) as channel:
                await restore(channel, self._admin)
                queue = iter(range(some))
                await asyncio.gather(*(self._work(channel, queue) for _ in range(WORKERS)))

    def _metadata(self) -> Metadata:
        choice = self._random.random()
        if choice < 0.6:
            return self._admin
        if choice < 0.75:
            return with_key(self._user)
        forged = list(self._user)
        forged[self._random.randrange(len(forged))] = chr(self._random.randint(33, 126))
        return self._random.choice(
            [
                (),
                with_key("".join(forged)),
                with_key(self._user * 2),
                (*self._admin, *with_key(self._user)),
                (*self._admin, ("x-api-key", self._user)),
                (("authorization", "x" * 3_000),),
                (("x-api-key", ""),),
                with_key(f"hst_{self._user[4:20]}_99999999999_{'0' * 64}"),
                (*self._admin, ("x-request-id", "~" * 1_000)),
            ]
        )

    async def _work(self, channel: grpc.aio.Channel, queue: Iterator[int]) -> None:
        for number in queue:
            if number % _FRIENDLY == 0:
                await self._make_friendly(channel)
                continue
            call, raws = self._requests.draw()
            metadata = self._metadata()
            self.told.calls[call] += 1
            try:
                async with asyncio.timeout(60):
                    await self._make(channel, call, raws, metadata)
                self.told.reasons["OK"] += 1
            except grpc.aio.AioRpcError as error:
                self._note(call, raws, error)
            except TimeoutError:
                self.told.faults.append(f"{call} did not end: {raws!r:.300}")

    async def _make_friendly(self, channel: grpc.aio.Channel) -> None:
        """Make a call that nothing is wrong with: it is answered whatever else is asked."""
        made = await make_about(channel, FRIENDLY_CALL, Place("a"), self._admin)
        self.told.calls[FRIENDLY_CALL] += 1
        self.told.reasons[made.reason] += 1
        if made.reason != "OK":
            self.told.faults.append(f"{FRIENDLY_CALL}: {made}")

    def _note(self, call: str, raws: list[bytes], error: grpc.aio.AioRpcError) -> None:
        refused = to_failure(error)
        if CLIENT_FAULT in refused.message:
            self.told.reasons["(the client)"] += 1
            return
        # What is over grpc's own limit, and a deadline that has passed, have no reason of ours.
        ours = refused.reason or {
            grpc.StatusCode.RESOURCE_EXHAUSTED: "(grpc: too large)",
            grpc.StatusCode.DEADLINE_EXCEEDED: "(grpc: deadline)",
        }.get(refused.code, "")
        self.told.reasons[ours] += 1
        if refused.code in FAULTS or not ours:
            self.told.faults.append(f"{call}: {refused}: {raws!r:.300}")

    async def _make(
        self, channel: grpc.aio.Channel, call: str, raws: list[bytes], metadata: Metadata
    ) -> None:
        method = method_of(call)
        kind = f"{_arity(method.client_streaming)}_{_arity(method.server_streaming)}"
        argument = _stream(raws) if method.client_streaming else raws[0]
        made: Any = getattr(channel, kind)(call)(argument, metadata=tuple(metadata))
        try:
            if not method.server_streaming:
                await made
                return
            # A watch goes on for ever: a few messages are enough.
            for _ in range(3):
                if await asyncio.wait_for(made.read(), 1) is grpc.aio.EOF:
                    return
        except TimeoutError:
            return
        finally:
            made.cancel()


async def restore(channel: grpc.aio.Channel, admin: Metadata) -> None:
    """Make again what hostile calls delete, that others have something to be hostile to."""
    for call, key in (("AgentService/CreateAgent", "a"), ("SessionService/CreateSession", "s")):
        method = f"/hansard.v1.{call}"
        request: Any = request_of(method, Place("a"))
        request.key = key
        made = await make(channel, method, request, admin)
        assert made.reason in {"OK", "AGENT_ALREADY_EXISTS", "SESSION_ALREADY_EXISTS"}, made


def _arity(streaming: bool) -> str:  # noqa: FBT001 - what the descriptor says
    return "stream" if streaming else "unary"


async def _stream(raws: list[bytes]) -> AsyncIterator[bytes]:
    for raw in raws:
        yield raw


def memory_mib(served: ServeProcess) -> float:
    """Return what the process holds."""
    status = Path(f"/proc/{served.process.pid}/status").read_text()
    [line] = [line for line in status.splitlines() if line.startswith("VmRSS")]
    return int(line.split()[1]) / 1_024


async def attack(
    databases: Databases, database: str, folder: Path, count: int, per_call: int
) -> Told:
    """Make so many hostile calls, from so many examples of each, and hold the server to what it
    promises.
    """
    url = databases.migrated(database)
    of_seed = int(os.environ.get("HANSARD_SEED", time.time_ns() % 1_000_000))
    sys.stdout.write(f"HANSARD_SEED={of_seed}\n")
    requests = Requests(per_call, of_seed)
    arguments = ("--listen", "127.0.0.1:0", "--data-dir", str(folder), "--store", url)
    with serve_process(*arguments, insecure=False) as served:
        address = served.wait_for("serving")["address"]
        async with open_channel(address) as channel:
            admin = with_key(read_admin_key(folder))
            await restore(channel, admin)
            key = await make_key(channel, admin, (Role.ROLE_AGENT_USER, "a"))
            attacker = Attack(address, admin, key.secret, requests, of_seed)
            # By then all that is made once is made: caches, pools, code.
            await attacker.run(count // 5)
            before = memory_mib(served)
            await attacker.run(count - count // 5)
            grown = memory_mib(served) - before
            alive = await make_about(channel, FRIENDLY_CALL, Place("a"), admin)
        served.process.terminate()
        assert await asyncio.to_thread(served.wait) == 0
    told = attacker.told
    sys.stdout.write(
        f"{told.calls.total()} calls, memory {before:.0f} MiB, grown by {grown:.0f} MiB,"
        f" {told.reasons.most_common()}\n"
    )
    assert not told.faults, told.faults[:5]
    assert "Traceback" not in served.log, served.log[-3_000:]
    assert alive.reason == "OK"
    assert grown < 100, grown
    # Of the hostile ones some do no harm.
    assert told.reasons["OK"] > count // _FRIENDLY
    assert told.reasons["UNAUTHORIZED"] > count // 20
    check_store(url, folder)
    databases.drop(url)
    return told


async def test_hostile_calls_are_answered(
    databases: Databases, database: str, tmp_path: Path
) -> None:
    told = await attack(databases, database, tmp_path / "data", 1_000, per_call=8)
    assert told.calls.total() == 1_000


@pytest.mark.soak
async def test_100_000_hostile_calls_are_answered(
    databases: Databases, database: str, tmp_path: Path
) -> None:
    told = await attack(databases, database, tmp_path / "data", 50_000, per_call=200)
    assert set(told.calls) == set(CALLS)
