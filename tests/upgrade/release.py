"""Released code and what it left behind: run it, have it make a row of every kind, dump, load.

    .venv/bin/python -m tests.upgrade.release COMMIT FOLDER

writes FOLDER of tests/upgrade/releases for a release: its database on SQLite and on PostgreSQL as
SQL, the bytes of its artifacts, what its server answered, and the commit.
"""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import psycopg
from google.protobuf import json_format
from google.protobuf.message import Message
from sqlalchemy import make_url

from hansard.v1 import (
    agent_pb2,
    agent_service_pb2,
    artifact_service_pb2,
    event_pb2,
    event_service_pb2,
    session_pb2,
    session_service_pb2,
)
from tests.support.postgres import running_postgres
from tests.support.server import Running, ServeProcess, open_channel
from tests.support.talk import Talk, message, model, output, rating

ROOT = Path(__file__).resolve().parents[2]
RELEASES = Path(__file__).parent / "releases"
SCRIPT = [
    {"thinking": {"content": "hm"}},
    {"tool_call": {"name": "t", "input": {"a": 1}, "output": {"b": 2}}},
    {"agent_output": {"content": "The answer: ä, 中, 🙂"}},
]
DATA = bytes(range(256)) * 8
BIG = "x" * 20_000
"""Longer than what is read with its row."""


def have_commit(commit: str) -> bool:
    """Tell whether the repository is there, with this commit in it."""
    git = ["git", "-C", str(ROOT), "cat-file", "-e", f"{commit}^{{commit}}"]
    try:
        return subprocess.run(git, capture_output=True, check=False).returncode == 0
    except OSError:
        return False


def check_out(commit: str, folder: Path) -> Path:
    """Write the sources of a commit into the folder, and return it."""
    archive = folder / "release.tar"
    with archive.open("wb") as file:
        git = ["git", "-C", str(ROOT), "archive", commit, "src", "generated"]
        subprocess.run(git, stdout=file, check=True)
    with tarfile.open(archive) as tar:
        tar.extractall(folder, filter="data")
    return folder


@contextmanager
def serve_release(code: Path, data_dir: Path, store_url: str) -> Iterator[ServeProcess]:
    """Give `hansard serve` of the sources in a folder; it is killed at the end."""
    paths = os.pathsep.join([str(code / "src"), str(code / "generated")])
    flags = ("--insecure", "--listen", "127.0.0.1:0", "--data-dir", str(data_dir))
    with subprocess.Popen(
        [
            *(sys.executable, "-m", "hansard_server", "serve", *flags),
            *("--store", store_url, "--set", "lease_s=1"),
        ],
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": paths},
    ) as process:
        served = ServeProcess(process)
        try:
            yield served
        finally:
            if process.poll() is None:
                process.kill()
            process.wait()


def migrate_by_release(code: Path, store_url: str) -> None:
    """Make the schema of a release."""
    paths = os.pathsep.join([str(code / "src"), str(code / "generated")])
    subprocess.run(
        [sys.executable, "-m", "hansard_server", "migrate", "--store", store_url],
        env={**os.environ, "PYTHONPATH": paths},
        check=True,
    )


@asynccontextmanager
async def connected(process: ServeProcess) -> AsyncIterator[Running]:
    """Give the server that the process is, as soon as it serves."""
    entry = await asyncio.to_thread(process.wait_for, "serving")
    server: Any = None
    async with open_channel(str(entry["address"])) as channel:
        yield Running(server, channel)


async def upload(talk: Talk) -> event_pb2.Event:
    """Upload two files under a request_id."""
    make = artifact_service_pb2.UploadArtifactsRequest

    async def parts() -> AsyncIterator[artifact_service_pb2.UploadArtifactsRequest]:
        yield make(start=artifact_service_pb2.UploadStart(request_id="upload", **talk.keys))
        header = artifact_service_pb2.UploadHeader
        yield make(
            header=header(filename="a.bin", description="A", metadata={"k": 1}, ttl_days=36_500)
        )
        yield make(chunk=DATA)
        yield make(header=header(filename="empty.txt"))

    return await talk.server.artifacts.UploadArtifacts(parts())


def imported(artifact_id: str) -> list[event_pb2.EventDraft]:
    """Return a draft of every kind that callers may write."""
    call = event_pb2.ToolInput(
        tool_call_id="call_1", tool_name="t", tool_input_json='{"a":1.0}', provider_data=b"\x00\xff"
    )
    answer = event_pb2.ToolOutput(tool_call_id="call_1", tool_output_json='{"b":2}')
    still_open = event_pb2.ToolInput(tool_call_id="call_2", tool_name="t", tool_input_json="{}")
    structured = event_pb2.StructuredOutput(schema_name="s", content_json='{"n":9007199254740993}')
    draft = event_pb2.EventDraft
    mention = event_pb2.MessagePart(artifact={"artifact_id": artifact_id})
    return [
        draft(input_message=message("imported")),
        draft(input_message=event_pb2.InputMessage(messages=[mention])),
        draft(thinking=event_pb2.Thinking(content="t", provider_data=b"\x00\xfe")),
        draft(tool_input=call),
        draft(tool_output=answer),
        draft(tool_input=still_open),
        output(BIG, id="aev_given"),
        draft(structured_output=structured),
        draft(image_read=event_pb2.ImageRead(artifact_id=artifact_id)),
        rating(),
    ]


def create(agent_key: str = "agent") -> session_service_pb2.CreateSessionRequest:
    """Return the request that makes the session."""
    return session_service_pb2.CreateSessionRequest(
        agent_key=agent_key,
        key="s",
        name="Session",
        metadata={"order": 1},
        tti_minutes=52_560_000,
        request_id="create",
    )


async def repeat(talk: Talk) -> dict[str, Any]:
    """Make the requests that have ids, for the first time or again; return what was answered."""
    server = talk.server
    session = await server.sessions.CreateSession(create(talk.agent_key))
    turn = await talk.send("Hello?", request_id="send")
    uploaded = await upload(talk)
    artifact_id = uploaded.artifact_upload.artifacts[0].artifact_id
    appended = await server.events.AppendEvents(
        event_service_pb2.AppendEventsRequest(
            events=imported(artifact_id), request_id="append", **talk.keys
        )
    )
    return {
        "session": to_dict(session),
        "events": [to_dict(r.event) for r in turn if r.HasField("event")],
        "turn": to_dict(turn[-1].turn_end.turn),
        "upload": to_dict(uploaded),
        "append": to_dict(appended),
    }


async def converse(server: Running) -> dict[str, Any]:
    """Have a server without any agents make one row of every kind; return what it answered."""
    talk = Talk(server)
    make_agent = agent_service_pb2.CreateAgentRequest
    for key in ("agent", "gone", "broken"):
        made = model(SCRIPT) if key != "broken" else agent_pb2.Model(name="nobody/knows")
        await server.agents.CreateAgent(
            make_agent(key=key, name=key, model=made, metadata={"k": key}, request_id=key)
        )
    for key in ("gone", "s"):
        await server.sessions.CreateSession(
            session_service_pb2.CreateSessionRequest(agent_key="gone", key=key, name="x")
        )
    deleted = Talk(server, "gone", "s")
    await deleted.append(rating())
    await server.sessions.DeleteSession(session_service_pb2.DeleteSessionRequest(**deleted.keys))
    await server.agents.DeleteAgent(agent_service_pb2.DeleteAgentRequest(agent_key="gone"))

    answers = await repeat(talk)
    events = await talk.events()
    await server.events.HideEvent(
        event_service_pb2.HideEventRequest(event_id=events[0].id, **talk.keys)
    )
    await server.events.DeleteEvent(
        event_service_pb2.DeleteEventRequest(event_id=events[-1].id, **talk.keys)
    )
    await server.sessions.UpdateSession(
        session_service_pb2.UpdateSessionRequest(
            session=session_pb2.Session(name="Renamed", **_named(talk)),
            update_mask={"paths": ["name"]},
        )
    )
    stream, turn_id = await talk.hold("Interrupted.")
    await talk.release(turn_id)
    [response async for response in stream]
    failed = await Talk(server, "broken", "s").open_session()
    await failed.send("Who are you?")

    busy = await talk.another("busy").open_session()
    await busy.send("Before.")
    _, running = await busy.hold("Runs.", request_id="runs")
    await busy.send("Waits.", request_id="waits", detach=True)
    return {
        "running": running,
        "answers": answers,
        **await read(server, talk, failed),
        "busy": [to_dict(event) for event in await busy.events()],
    }


async def read(server: Running, *talks: Talk) -> dict[str, Any]:
    """Return what the server says of agents and of these sessions."""
    agents = await server.agents.ListAgents(agent_service_pb2.ListAgentsRequest())
    found: dict[str, Any] = {"agents": [to_dict(agent) for agent in agents.agents]}
    for talk in talks:
        artifacts = await server.artifacts.ListArtifacts(
            artifact_service_pb2.ListArtifactsRequest(**talk.keys)
        )
        session = await server.sessions.GetSession(
            session_service_pb2.GetSessionRequest(**talk.keys)
        )
        found[f"{talk.agent_key}/{talk.session_key}"] = {
            "session": to_dict(session),
            "events": [to_dict(event) for event in await talk.events(include_hidden=True)],
            "turns": [to_dict(turn) for turn in await talk.turns()],
            "artifacts": [to_dict(artifact) for artifact in artifacts.artifacts],
        }
    return found


def to_dict(made: Message) -> Any:
    return json_format.MessageToDict(made, preserving_proto_field_name=True)


def _named(talk: Talk) -> dict[str, str]:
    return {"agent_key": talk.agent_key, "key": talk.session_key}


# Dumps -------------------------------------------------------------------------------------------


def dump_sqlite(url: str) -> str:
    """Return the database as SQL."""
    connection = sqlite3.connect(url.removeprefix("sqlite:///"))
    text = "\n".join(connection.iterdump()) + "\n"
    connection.close()
    return text


def dump_postgresql(url: str) -> str:
    """Return the database as SQL that every client can run."""
    parsed = make_url(url)
    environment = {**os.environ, "PGPASSWORD": str(parsed.password or "")}
    where = str(parsed.query.get("host", parsed.host))
    port = str(parsed.query.get("port", parsed.port or 5432))
    named = ["-h", where, "-p", port, "-U", str(parsed.username), "-d", str(parsed.database)]
    dumped = subprocess.run(
        [_pg_dump(url), "--inserts", "--no-owner", "--no-privileges", *named],
        env=environment,
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    ).stdout
    noise = ("SET ", "SELECT pg_catalog.set_config", "--", "\\")
    lines = [line for line in dumped.splitlines() if line and not line.startswith(noise)]
    return "\n".join(lines) + "\n"


def _pg_dump(url: str) -> str:
    """Return the program that came with the server."""
    with psycopg.connect(_dsn(url)) as server:
        row = server.execute("SELECT setting FROM pg_config WHERE name = 'BINDIR'").fetchone()
    assert row is not None
    return str(Path(row[0]) / "pg_dump")


def _dsn(url: str) -> str:
    return make_url(url).set(drivername="postgresql").render_as_string(hide_password=False)


def load(kind: str, url: str, folder: Path) -> None:
    """Run the dump of a release on an empty database."""
    text = (folder / f"{kind}.sql").read_text()
    if kind == "sqlite":
        connection = sqlite3.connect(url.removeprefix("sqlite:///"))
        connection.executescript(text)
        connection.close()
        return
    with psycopg.connect(_dsn(url), autocommit=True) as server:
        server.execute(text.encode())


async def make_release(commit: str, name: str) -> None:
    """Write the folder of a release."""
    target = RELEASES / name
    target.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as made, running_postgres() as postgres:
        work = Path(made)
        code = check_out(commit, work)
        for kind in ("sqlite", "postgresql"):
            data_dir = work / kind
            data_dir.mkdir()
            url = f"sqlite:///{data_dir}/hansard.db"
            if kind == "postgresql":
                url = postgres.create_database()
                await asyncio.to_thread(migrate_by_release, code, url)
            with serve_release(code, data_dir, url) as process:
                async with connected(process) as server:
                    answered = await converse(server)
                    # In the middle of a turn, as a machine may go.
                    process.send(signal.SIGKILL)
                    await asyncio.to_thread(process.wait)
            dump = dump_sqlite(url) if kind == "sqlite" else dump_postgresql(url)
            (target / f"{kind}.sql").write_text(dump)
            text = json.dumps(answered, indent=1, sort_keys=True, ensure_ascii=False)
            (target / f"{kind}.json").write_text(text + "\n")
            shutil.copytree(data_dir / "artifacts", target / f"{kind}-artifacts")
    (target / "COMMIT").write_text(f"{commit}\n")


if __name__ == "__main__":
    asyncio.run(make_release(*sys.argv[1:]))
