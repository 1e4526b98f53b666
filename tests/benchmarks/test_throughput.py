"""Calls against a bare server of the same messages: appends, turns, pages, deltas, files."""

from __future__ import annotations

import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import pytest

from hansard.v1 import agent_pb2, artifact_service_pb2_grpc
from tests.benchmarks import messages
from tests.benchmarks.fill import Filler
from tests.benchmarks.frames import framed
from tests.benchmarks.load_client import AT_A_TIME, CONNECTIONS, session_keys
from tests.benchmarks.measure import AGAIN, QUICK, ROUNDS, Report, to_table
from tests.benchmarks.messages import CLOCK_KEY, FILE_BYTES, Upload, UploadRequest
from tests.benchmarks.processes import (
    Client,
    Served,
    client,
    cpu_seconds,
    serve_bare,
    serve_clock,
    tree_cpu_seconds,
)
from tests.support.databases import DATABASES, Databases
from tests.support.postgres import PostgresServer, connect

SECONDS = 0.3 if QUICK else 1.5
BARE = "bare"
LISTED = "listed"
LISTED_EVENTS = 1_000
FILES = "files"
_MB = 1_000_000


@dataclass(frozen=True, slots=True)
class Work:
    """What clients do, and which figure of it is compared.

    Attributes:
        figure: `rate`, or the name of a time in milliseconds of what the client counted.
        place: the one session, where not every call has its own.
    """

    title: str
    workload: str
    at_a_time: int = AT_A_TIME
    figure: str = "rate"
    place: str = ""
    databases: Sequence[str] = DATABASES


WORKS = {
    "append": Work(f"AppendEvents, one event of 500 bytes, {AT_A_TIME} at a time", "append"),
    "alone": Work("AppendEvents, one event of 500 bytes, alone", "append", 1, "p50_ms"),
    "send": Work(
        f"SendEvent, a turn of an input, 20 deltas and 2 events, {AT_A_TIME} at a time", "send"
    ),
    "delta": Work("SendEvent, a delta, from agent to client, alone", "deltas", 1, "delta_p50_ms"),
    "list": Work(f"ListEvents, a page of 100, {AT_A_TIME} at a time", "list", place=LISTED),
    "upload": Work(
        f"UploadArtifacts, {FILE_BYTES // 2**20} MiB, alone", "upload", 1, databases=("sqlite",)
    ),
    "download": Work(
        f"DownloadArtifact, {FILE_BYTES // 2**20} MiB, alone", "download", 1, databases=("sqlite",)
    ),
}


@dataclass(frozen=True, slots=True)
class Subject:
    """A server, and the database's processes beside it, 0 for none."""

    served: Served
    database_pid: int = 0
    file: str = "any/art_any"


@pytest.fixture(scope="module")
def subjects(
    databases: Databases, tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest
) -> Iterator[dict[str, Subject]]:
    """Give a bare server and one of each database, all with the same sessions."""
    with ExitStack() as stack:
        folder: Path = tmp_path_factory.mktemp("servers")
        subjects = {BARE: Subject(stack.enter_context(serve_bare(folder / BARE)))}
        for database in DATABASES:
            url = databases.migrated(database)
            stack.callback(databases.drop, url)
            _fill(url)
            served = stack.enter_context(serve_clock(folder / database, url))
            pid = 0
            if database == "postgresql":
                pid = _postmaster(request.getfixturevalue("postgres_server"))
            subjects[database] = Subject(served, pid, _upload(served))
        yield subjects


@pytest.mark.parametrize("name", WORKS)
def test_against_bare(subjects: dict[str, Subject], name: str, report: Report) -> None:
    work = WORKS[name]
    measured: list[dict[str, Measured]] = []
    with ExitStack() as stack:
        loads = {
            name: stack.enter_context(_client(subject, work))
            for name, subject in subjects.items()
            if name in (BARE, *work.databases)
        }
        for target, load in loads.items():
            _measure(subjects[target], load)
        names = [BARE, AGAIN, *work.databases]
        for number in range(ROUNDS):
            seen = {}
            for name_ in names[number % len(names) :] + names[: number % len(names)]:
                target = BARE if name_ == AGAIN else name_
                seen[name_] = _measure(subjects[target], loads[target])
            measured.append({name_: seen[name_] for name_ in names})
    _report(name, work, measured, report)


@dataclass(frozen=True, slots=True)
class Measured:
    """What a client counted in one run, and the processor time that it cost, in seconds."""

    counted: Mapping[str, Any]
    server_s: float
    database_s: float

    def figure(self, work: Work) -> float:
        """Return what is compared."""
        if work.figure != "rate":
            return float(self.counted[work.figure])
        rate = self.counted["calls"] / self.counted["seconds"]
        return float(rate * FILE_BYTES / _MB if work.workload in ("upload", "download") else rate)

    def cost_us(self) -> float:
        """Return the server's processor time for a call, in microseconds."""
        return self.server_s / float(self.counted["calls"]) * 1_000_000

    def notes(self) -> str:
        """Return what else there is to say."""
        counted, calls, seconds = self.counted, self.counted["calls"], self.counted["seconds"]
        database = f", database {self.database_s / seconds:.0%}" if self.database_s else ""
        return (
            f"p50 {counted['p50_ms']:.2f} p99 {counted['p99_ms']:.2f} ms,"
            f" {counted['messages'] / calls:.1f} messages a call,"
            f" processors: server {self.server_s / seconds:.0%}{database},"
            f" client {counted['cpu_seconds'] / seconds:.0%}"
        )


def _report(name: str, work: Work, rounds: list[dict[str, Measured]], report: Report) -> None:
    figures = [{who: one.figure(work) for who, one in seen.items()} for seen in rounds]
    notes = {who: one.notes() for who, one in rounds[-1].items()}
    files = work.workload in ("upload", "download")
    unit = ("MB/s" if files else "per s") if work.figure == "rate" else "ms"
    table = to_table(work.title, unit, BARE, figures, notes)
    report.add(table)
    costs = [{who: one.cost_us() for who, one in seen.items()} for seen in rounds]
    cost_notes = {
        who: f"and the database's {one.database_s / one.counted['calls'] * 1e6:.0f}"
        for who, one in rounds[-1].items()
        if one.database_s
    }
    title = f"{work.title}: the server's processor time"
    report.add(to_table(title, "us/call", BARE, costs, cost_notes))
    for database in work.databases:
        row = table.row(database)
        value = row.value - table.row(BARE).value if name == "delta" else row.ratio
        report.reach(name, database, value)


def _measure(subject: Subject, load: Client) -> Measured:
    before = cpu_seconds(subject.served.pid), _database_seconds(subject)
    load.begin(SECONDS)
    counted = load.result()
    assert not counted["others"], f"statuses other than OK: {counted['others']}"
    server_s = cpu_seconds(subject.served.pid) - before[0]
    return Measured(counted, server_s, _database_seconds(subject) - before[1])


def _client(subject: Subject, work: Work) -> Any:
    place = subject.file if work.workload == "download" else work.place
    served = subject.served
    return client(served.address, work.workload, served.key, work.at_a_time, place)


def _database_seconds(subject: Subject) -> float:
    return tree_cpu_seconds(subject.database_pid) if subject.database_pid else 0.0


def _fill(url: str) -> None:
    filler = Filler(url)
    filler.add_agent(CLOCK_KEY, agent_pb2.Model(name="hansard/clock"))
    for number in range(ROUNDS + 1):
        for workload in ("append", "send", "upload"):
            filler.add_sessions(session_keys(workload, number))
        filler.add_sessions(session_keys("deltas", number)[:1], agent_key=CLOCK_KEY)
    filler.add_sessions([LISTED], events_each=LISTED_EVENTS)
    filler.add_sessions([FILES])
    filler.close()


def _upload(served: Served) -> str:
    """Upload a file, and return `session_key/artifact_id`."""
    with grpc.insecure_channel(served.address) as channel:
        parts = map(UploadRequest.FromString, Upload().messages(FILES, "file"))
        event = artifact_service_pb2_grpc.ArtifactServiceStub(channel).UploadArtifacts(
            parts, metadata=(("authorization", f"Bearer {served.key}"),)
        )
    return f"{FILES}/{event.artifact_upload.artifacts[0].artifact_id}"


def _postmaster(server: PostgresServer) -> int:
    """Return the process id of the database's main process; 0 when it runs elsewhere."""
    if not str(server.url.query.get("host", "")).startswith("/"):
        return 0
    with connect(server.url) as connection:
        row = connection.execute("SELECT pg_backend_pid()").fetchone()
        assert row is not None
        return int(Path(f"/proc/{row[0]}/stat").read_text().rpartition(")")[2].split()[1])


def test_the_client_hides_nothing(subjects: dict[str, Subject], report: Report) -> None:
    """Our client beside h2load, which is in C, and can only send one request again and again."""
    program = shutil.which("h2load")
    if program is None:
        pytest.skip("h2load is not installed (Debian: nghttp2-client)")
    work = WORKS["list"]
    bare = subjects[BARE]
    rounds = []
    with _client(bare, work) as ours:
        measured = _measure(bare, ours)
        for _ in range(ROUNDS):
            measured = _measure(bare, ours)
            rounds.append({"ours": measured.figure(work), "h2load": _h2load(program, bare.served)})
    notes = {"ours": measured.notes()}
    report.add(to_table("ListEvents of bare, by two clients", "per s", "ours", rounds, notes))


def _h2load(program: str, served: Served) -> float:
    """Return how many calls a second it makes."""
    path = "/hansard.v1.EventService/ListEvents"
    with tempfile.NamedTemporaryFile() as file:
        file.write(framed(messages.list_events(LISTED).SerializeToString()))
        file.flush()
        shown = subprocess.run(
            [
                *(program, "--clients", str(CONNECTIONS)),
                *("--max-concurrent-streams", str(AT_A_TIME // CONNECTIONS)),
                *("--duration", str(max(1, round(SECONDS))), "--data", file.name),
                *("--header", "te: trailers", "--header", "content-type: application/grpc"),
                f"http://{served.address}{path}",
            ],
            capture_output=True,
            text=True,
            check=True,
        ).stdout
    found = re.search(r"finished in .*?, ([0-9.]+) req/s", shown)
    assert found is not None, shown
    return float(found[1])
