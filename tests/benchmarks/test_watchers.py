"""A thousand watchers: what they cost writers while nothing comes, and what an event costs them."""

from __future__ import annotations

import statistics
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path

import grpc

from hansard.v1 import (
    agent_service_pb2,
    agent_service_pb2_grpc,
    event_service_pb2,
    event_service_pb2_grpc,
)
from tests.benchmarks.fill import Filler
from tests.benchmarks.load_client import session_keys
from tests.benchmarks.measure import AGAIN, ROUNDS, Report, to_table
from tests.benchmarks.messages import AGENT_KEY
from tests.benchmarks.processes import (
    Served,
    client,
    cpu_seconds,
    memory_mib,
    serve,
    watchers,
)
from tests.support.databases import Databases
from tests.support.talk import output

WATCHERS = 1_000
MANY_WATCHERS = 5_000
SECONDS = 3.0
EVENTS_PER_S = 25
PARKED = 50
# An event of 1 MB as it was read, as it is sent, and what the connection takes ahead.
PARKED_MAX_MIB = 5
# A reader with so small a window takes a part, and then stands.
SMALL_WINDOW = [("grpc.http2.bdp_probe", 0), ("grpc.http2.lookahead_bytes", 1_024)]
P99_RATIO_MAX = 1.5
MEMORY_MAX_MIB = 300
DELIVERIES_MIN_PER_S = 20_000
WAIT_MAX_MS = 20.0
IDLE, BUSY = "idle-{}", "busy"


@contextmanager
def served(databases: Databases, database: str, folder: Path, *more: str) -> Iterator[Served]:
    """Give a server with sessions to write to, idle ones, and one that all watch."""
    url = databases.migrated(database)
    try:
        filler = Filler(url)
        for number in range(2 * ROUNDS + 2):
            filler.add_sessions(session_keys("append", number))
        filler.add_sessions(IDLE.format(number) for number in range(WATCHERS))
        filler.add_sessions([BUSY])
        filler.close()
        with serve(folder, url, *more) as server:
            yield server
    finally:
        databases.drop(url)


def test_idle_watchers_cost_writers_little(
    databases: Databases, database: str, tmp_path: Path, report: Report
) -> None:
    with ExitStack() as stack:
        servers = {
            name: stack.enter_context(served(databases, database, tmp_path / name))
            for name in ("none", "idle")
        }
        stack.enter_context(watchers(servers["idle"].address, WATCHERS, IDLE))
        rounds = _p99_of_appends(stack, servers, "idle")
        memory = memory_mib(servers["idle"].pid)
        notes = {"idle": f"memory {memory:.0f} MiB, none: {memory_mib(servers['none'].pid):.0f}"}
    title = f"{database}: AppendEvents, 64 at a time, p99 with {WATCHERS} idle watchers"
    table = to_table(title, "ms", "none", rounds, notes)
    report.add(table)
    assert memory < MEMORY_MAX_MIB
    control = f"{AGAIN}: {table.ratio(AGAIN):.2f}"
    assert table.ratio("idle") < P99_RATIO_MAX, f"{title}: {table.ratio('idle'):.2f} ({control})"


def test_readers_that_stopped_cost_writers_little(
    databases: Databases, database: str, tmp_path: Path, report: Report
) -> None:
    with ExitStack() as stack:
        servers = {
            # They are to stay, however long this takes.
            name: stack.enter_context(
                served(databases, database, tmp_path / name, "--set", "stall_s=0")
            )
            for name in ("none", "parked")
        }
        _park(stack, servers["parked"].address)
        rounds = _p99_of_appends(stack, servers, "parked")
        each = (memory_mib(servers["parked"].pid) - memory_mib(servers["none"].pid)) / PARKED
        notes = {"parked": f"memory {each:.1f} MiB each"}
    title = f"{database}: AppendEvents, 64 at a time, p99 with {PARKED} readers that stopped"
    table = to_table(title, "ms", "none", rounds, notes)
    report.add(table)
    assert each < PARKED_MAX_MIB
    table.check(P99_RATIO_MAX)


def _p99_of_appends(
    stack: ExitStack, servers: Mapping[str, Served], with_readers: str
) -> list[dict[str, float]]:
    """Return the rounds of AppendEvents at a server without readers, again, and at one with."""
    loads = {
        name: stack.enter_context(client(server.address, "append"))
        for name, server in servers.items()
    }
    rounds = []
    for number in range(-1, ROUNDS):
        figures = {}
        names = ["none", AGAIN, with_readers]
        for name in names[number % 3 :] + names[: number % 3]:
            load = loads["none" if name == AGAIN else name]
            load.begin(SECONDS)
            figures[name] = load.result()["p99_ms"]
        if number >= 0:
            rounds.append({name: figures[name] for name in names})
    return rounds


def _park(stack: ExitStack, address: str) -> None:
    """Have readers of a session of 24 MB, each on a connection of its own, read one message."""
    channel = stack.enter_context(grpc.insecure_channel(address))
    large = event_service_pb2.AppendEventsRequest(
        agent_key=AGENT_KEY, session_key=BUSY, events=[output("x" * 1_000_000) for _ in range(3)]
    )
    for _ in range(8):
        event_service_pb2_grpc.EventServiceStub(channel).AppendEvents(large)
    request = event_service_pb2.WatchEventsRequest(agent_key=AGENT_KEY, session_key=BUSY)
    options = [*SMALL_WINDOW, ("grpc.use_local_subchannel_pool", 1)]
    for _ in range(PARKED):
        aside = stack.enter_context(grpc.insecure_channel(address, options=options))
        watch = event_service_pb2_grpc.EventServiceStub(aside).WatchEvents(request)
        stack.callback(watch.cancel)
        next(watch)


def test_watchers_of_the_session_written_to(
    databases: Databases, database: str, tmp_path: Path, report: Report
) -> None:
    with ExitStack() as stack:
        server = stack.enter_context(served(databases, database, tmp_path))
        channel = stack.enter_context(grpc.insecure_channel(server.address))
        aside = stack.enter_context(grpc.insecure_channel(server.address, options=SMALL_WINDOW))
        parked = event_service_pb2_grpc.EventServiceStub(aside).WatchEvents(
            event_service_pb2.WatchEventsRequest(agent_key=AGENT_KEY, session_key=BUSY)
        )
        next(parked)
        clients = [
            stack.enter_context(watchers(server.address, WATCHERS // 2, BUSY)) for _ in range(2)
        ]
        alone = _waits(channel, SECONDS)
        writer = Writer(channel)
        writer.start()
        cpu = cpu_seconds(server.pid)
        for one in clients:
            one.begin(SECONDS)
        waits = _waits(channel, SECONDS)
        counted = [one.result() for one in clients]
        cpu = cpu_seconds(server.pid) - cpu
        writer.stop()
        parked.cancel()
    rate = sum(one["messages"] / one["seconds"] for one in counted)
    delivered = sum(one["messages"] for one in counted)
    notes = {
        "fan-out": f"{rate:,.0f} deliveries/s, {cpu / delivered * 1e6:.1f} us of the server each,"
        f" clients {sum(one['cpu_seconds'] / one['seconds'] for one in counted):.0%},"
        f" p50 {statistics.median(waits):.1f} ms, longest {max(waits):.1f} ms"
    }
    p99 = {"alone": _p99(alone), "fan-out": _p99(waits)}
    title = f"{database}: GetAgent beside {EVENTS_PER_S} events/s to {WATCHERS} watchers, p99"
    report.add(to_table(title, "ms", "alone", [p99], notes))
    assert rate >= DELIVERIES_MIN_PER_S, notes["fan-out"]
    assert p99["fan-out"] - p99["alone"] <= WAIT_MAX_MS, notes["fan-out"]


def test_five_thousand_watchers(
    databases: Databases, database: str, tmp_path: Path, report: Report
) -> None:
    with ExitStack() as stack:
        server = stack.enter_context(served(databases, database, tmp_path))
        channel = stack.enter_context(grpc.insecure_channel(server.address))
        # What the first ones bring with them is not counted as theirs.
        stack.enter_context(watchers(server.address, 10, BUSY))
        before = memory_mib(server.pid)
        many = stack.enter_context(watchers(server.address, MANY_WATCHERS, BUSY))
        each_kb = (memory_mib(server.pid) - before) * 1_048.576 / MANY_WATCHERS
        writer = Writer(channel, events_per_s=1_000)
        writer.start()
        rounds, cpu, counted = [], 0.0, {}
        for _ in range(ROUNDS):
            cpu = cpu_seconds(server.pid)
            many.begin(SECONDS)
            counted = many.result()
            cpu = cpu_seconds(server.pid) - cpu
            assert counted["open"] == MANY_WATCHERS
            rounds.append({"deliveries": counted["messages"] / counted["seconds"]})
        writer.stop()
    notes = {
        "deliveries": f"{cpu / counted['messages'] * 1e6:.1f} us of the server each,"
        f" processors: server {cpu / counted['seconds']:.0%},"
        f" client {counted['cpu_seconds'] / counted['seconds']:.0%};"
        f" memory {each_kb:.1f} KB a watcher"
    }
    title = f"{database}: {MANY_WATCHERS:,} watchers of a session that is written to"
    table = to_table(title, "per s", "deliveries", rounds, notes)
    report.add(table)
    report.reach("watchers", database, MANY_WATCHERS)
    report.reach("watcher memory", database, each_kb)
    report.reach("deliveries", database, table.row("deliveries").value)


class Writer(threading.Thread):
    """Appends an event at a time to the session that all watch."""

    def __init__(self, channel: grpc.Channel, events_per_s: int = EVENTS_PER_S) -> None:
        """Append by this channel."""
        super().__init__()
        self._pause_s = 1 / events_per_s
        self._stub = event_service_pb2_grpc.EventServiceStub(channel)
        self._stopped = threading.Event()

    def run(self) -> None:
        """Append so many events a second, or as many as there may be."""
        request = event_service_pb2.AppendEventsRequest(
            agent_key=AGENT_KEY, session_key=BUSY, events=[output("x" * 500)]
        )
        due = time.monotonic()
        while not self._stopped.wait(max(0.0, due - time.monotonic())):
            self._stub.AppendEvents(request)
            due = max(due + self._pause_s, time.monotonic() - 1)

    def stop(self) -> None:
        """Return when no more is appended."""
        self._stopped.set()
        self.join()


def _waits(channel: grpc.Channel, seconds: float) -> list[float]:
    """Return how long calls took, one after another, in milliseconds."""
    stub = agent_service_pb2_grpc.AgentServiceStub(channel)
    request = agent_service_pb2.GetAgentRequest(agent_key=AGENT_KEY)
    waits = []
    deadline = time.perf_counter() + seconds
    while (started := time.perf_counter()) < deadline:
        stub.GetAgent(request)
        waits.append((time.perf_counter() - started) * 1_000)
        time.sleep(0.005)
    return waits


def _p99(waits: list[float]) -> float:
    return statistics.quantiles(waits, n=100)[-1]
