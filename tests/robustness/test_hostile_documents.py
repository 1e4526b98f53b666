"""Documents that were made to harm: the server's memory and answering are as before, each is
converted or is a tool's error that says why, and nothing is left of the processes that read them.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import tempfile
from collections.abc import AsyncIterator, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from hansard.v1 import (
    agent_pb2,
    agent_service_pb2,
    artifact_service_pb2,
    event_pb2,
    session_pb2,
    session_service_pb2,
    turn_pb2,
)
from hansard_server.domain.limits import MIB
from tests.support.hostile_documents import ALL, PLAIN, SAMPLE, Hostile
from tests.support.server import Running, open_channel, serve_process
from tests.support.talk import Talk, model, stored

AGENT = "reader"
AT_ONCE = 3
GROWTH_MAX_BYTES = 160 * MIB
ANSWER_MAX_S = 30.0
"""Other calls have so long, on a machine that is busy with the documents."""
SCRIPT = [
    {"tool_call": {"name": "document_conversion", "input": {}}},
    {"agent_output": {"content": "Done."}},
]
Upload = artifact_service_pb2.UploadArtifactsRequest


@dataclass
class Watched:
    """A server's process, looked at while it works."""

    pid: int
    peak_bytes: int = 0
    answers: int = 0
    workers: set[int] = field(default_factory=set)

    def rss_bytes(self) -> int:
        for line in Path(f"/proc/{self.pid}/status").read_text().splitlines():
            if line.startswith("VmRSS:"):
                return int(line.split()[1]) * 1024
        raise AssertionError("the server is gone")

    def children(self) -> set[int]:
        """Return the processes that the server has started and that are there."""
        found = set()
        for status in Path("/proc").glob("[0-9]*/stat"):
            with contextlib.suppress(OSError):
                parent = int(status.read_text().rpartition(")")[2].split()[1])
                if parent == self.pid:
                    found.add(int(status.parent.name))
        return found


async def watch(watched: Watched, address: str) -> None:
    """Sample memory and processes, and call the server, again and again."""
    async with open_channel(address) as channel:
        server: Any = None
        running = Running(server, channel)
        talk = Talk(running, AGENT, "beside")
        await talk.open_session()
        while True:
            watched.peak_bytes = max(watched.peak_bytes, watched.rss_bytes())
            watched.workers |= watched.children()
            await running.agents.GetAgent(
                agent_service_pb2.GetAgentRequest(agent_key=AGENT), timeout=ANSWER_MAX_S
            )
            draft = event_pb2.EventDraft(
                custom=event_pb2.Custom(custom_type="com.example.beside", data_json="1")
            )
            await asyncio.wait_for(talk.append(draft), ANSWER_MAX_S)
            watched.answers += 1
            await asyncio.sleep(0.05)


async def create_agent(running: Running) -> None:
    """Create the agent whose tool converts what the session's metadata names."""
    configuration = agent_pb2.ToolConfiguration(document_conversion={})
    configuration.argument_override.update({"artifact_id": {"$ref": "session.metadata.document"}})
    await running.agents.CreateAgent(
        agent_service_pb2.CreateAgentRequest(
            key=AGENT,
            name="Reader",
            model=model(SCRIPT),
            tool_configurations={"document_conversion": configuration},
        )
    )


def parts(talk: Talk, document: Hostile, data: bytes) -> Iterator[Upload]:
    yield Upload(start=artifact_service_pb2.UploadStart(**talk.keys))
    yield Upload(
        header=artifact_service_pb2.UploadHeader(
            filename=document.filename, mime_type=document.mime_type
        )
    )
    for at in range(0, len(data), MIB):
        yield Upload(chunk=data[at : at + MIB])


async def convert(running: Running, key: str, document: Hostile) -> event_pb2.ToolOutput:
    """Upload the document, have the agent convert it, and return what the tool said."""
    talk = Talk(running, AGENT, key)
    data = await asyncio.to_thread(document.make)
    await talk.open_session()
    event = await running.artifacts.UploadArtifacts(parts(talk, document, data))
    del data
    session = session_pb2.Session(agent_key=AGENT, key=talk.session_key)
    session.metadata.update({"document": event.artifact_upload.artifacts[0].artifact_id})
    await running.sessions.UpdateSession(
        session_service_pb2.UpdateSessionRequest(
            session=session, update_mask={"paths": ["metadata"]}
        )
    )
    responses = await talk.send("Convert it.")
    assert responses[-1].turn_end.turn.status == turn_pb2.TURN_STATUS_COMPLETED, document.filename
    (output,) = (e.tool_output for e in stored(responses) if e.HasField("tool_output"))
    if not output.error:
        await check_markdown(talk, document, json.loads(output.tool_output_json))
    return output


async def check_markdown(talk: Talk, document: Hostile, made: dict[str, Any]) -> None:
    """Check that what was made is Markdown of the document, and of nothing else."""
    request = artifact_service_pb2.DownloadArtifactRequest(
        artifact_id=made["artifact_id"], **talk.keys
    )
    text = b""
    async for part in talk.server.artifacts.DownloadArtifact(request):
        text += part.chunk
    assert text.strip(), document.filename
    assert len(text) == made["size_bytes"] <= 16 * MIB
    assert b"root:" not in text, f"{document.filename} has read a file of the server"


def check_error(document: Hostile, output: event_pb2.ToolOutput) -> None:
    """Check that the error names the document, says why, and tells nothing of the server."""
    message = json.loads(output.tool_output_json)["error"]
    assert message.startswith(document.filename), message
    reasons = ("was not converted: ", "is no document that can be converted", "has no text that")
    assert any(reason in message for reason in reasons), message
    assert not any(word in message for word in ("Traceback", "/tmp", "hansard")), message  # noqa: S108


async def in_turn(running: Running, kind: str, documents: Iterable[Hostile]) -> AsyncIterator[Any]:
    """Yield each document with its output, a few of them being converted at a time."""
    places = asyncio.Semaphore(AT_ONCE)

    async def one(number: int, document: Hostile) -> tuple[Hostile, event_pb2.ToolOutput]:
        async with places:
            return document, await convert(running, f"{kind}-{number}", document)

    tasks = [asyncio.create_task(one(n, document)) for n, document in enumerate(documents)]
    for task in asyncio.as_completed(tasks):
        yield await task


async def run(folder: Path, documents: list[Hostile]) -> None:
    scratch = folder / "scratch"
    scratch.mkdir()
    arguments = ("--listen", "127.0.0.1:0", "--data-dir", str(folder / "data"))
    with serve_process(*arguments, environment={"TMPDIR": str(scratch)}) as served:
        address = str(served.wait_for("serving")["address"])
        watched = Watched(served.process.pid)
        async with open_channel(address) as channel:
            server: Any = None
            running = Running(server, channel)
            await create_agent(running)
            # What a first conversion leaves behind for good is not the documents' fault.
            async for _, output in in_turn(running, "plain", PLAIN):
                assert not output.error, (output.tool_output_json, served.log)
            before_bytes = watched.rss_bytes()
            watching = asyncio.create_task(watch(watched, address))
            converted, refused = [], []
            async for document, output in in_turn(running, "hostile", documents):
                assert not watching.done(), watching.exception()
                if output.error:
                    check_error(document, output)
                    refused.append(f"{document.filename}: {output.tool_output_json}")
                else:
                    converted.append(document.filename)
            watching.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await watching
            grown = watched.peak_bytes - before_bytes
            print(  # noqa: T201 - what the run has seen
                f"{len(converted)} converted, {len(refused)} refused, {watched.answers} answers "
                f"beside, memory {before_bytes // MIB} MiB and at most {grown // MIB} more\n"
                + "\n".join(sorted(refused) + [f"converted: {name}" for name in sorted(converted)])
            )
            assert grown < GROWTH_MAX_BYTES
            assert watched.answers
            assert watched.workers, "nothing was converted in a process of its own"
            assert watched.children() == set(), "a process is left"
            assert list(scratch.iterdir()) == [], "files are left"
    assert not (Path(tempfile.gettempdir()) / "hostile").exists()


async def test_a_sample_of_hostile_documents(tmp_path: Path) -> None:
    assert len(SAMPLE) >= 15
    await run(tmp_path, SAMPLE)


@pytest.mark.soak
async def test_a_hundred_hostile_documents(tmp_path: Path) -> None:
    assert len(ALL) >= 100
    await run(tmp_path, ALL)
