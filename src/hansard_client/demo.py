"""A first conversation with a server: an agent, a document, questions, the record."""

from __future__ import annotations

import json
import shlex
import shutil
import sys
import tempfile
from importlib import resources
from pathlib import Path

import grpc

from hansard.v1 import agent_pb2, agent_service_pb2, event_service_pb2
from hansard_client import files, sample
from hansard_client.commands.chat import create_session, message_request
from hansard_client.commands.events import EVENT_COLUMNS
from hansard_client.connection import Connection
from hansard_client.errors import Mistake, describe, reason_of
from hansard_client.paging import all_pages
from hansard_client.rendering import Teller, make_console, print_table
from hansard_client.text import one_line, size
from hansard_client.turns import send

AGENT_KEY = "librarian"
DOCUMENT = "hansard-handbook.md"
QUESTIONS = (
    "What happens to a running turn when the connection breaks?",
    "And is it safe to send the same request twice?",
    "Which football club won the championship?",
)


class Demo:
    """Shows a server what to record, and people what it recorded."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._out = make_console()
        self._session_key = ""

    def run(self) -> None:
        """Hold the conversation on stdout. A failure is told there too; stopping ends it early."""
        try:
            self._prepare()
            for question in QUESTIONS:
                self._ask(question)
            self._read_back()
            self._what_next()
        except grpc.RpcError as error:
            self._tell_failure(describe(error, self._connection.target))
        except Mistake as error:
            self._tell_failure(str(error))

    def _prepare(self) -> None:
        made = self._make_agent()
        self._say(f"Agent {AGENT_KEY}: {'made' if made else 'is there already'}.")
        self._session_key = create_session(self._connection, AGENT_KEY, "First conversation")
        self._say(f"Session {self._session_key}: made.")
        text = resources.files(sample).joinpath(DOCUMENT).read_bytes()
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, DOCUMENT)
            path.write_bytes(text)
            upload = files.Upload(self._connection, AGENT_KEY, self._session_key)
            event = upload.run([path], description="A document to ask about.")
        for artifact in event.artifact_upload.artifacts:
            told = f"{artifact.filename}, {size(artifact.size_bytes)}, {artifact.mime_type}"
            self._say(f"Artifact {artifact.artifact_id}: {told}.")

    def _make_agent(self) -> bool:
        request = agent_service_pb2.CreateAgentRequest(
            key=AGENT_KEY,
            name="Librarian",
            description="Answers by quoting the files of the session.",
            model=agent_pb2.Model(name="hansard/extractive"),
            tool_configurations={
                "artifact_grep": agent_pb2.ToolConfiguration(
                    artifact_grep=agent_pb2.ArtifactGrepTool()
                ),
                "artifact_read": agent_pb2.ToolConfiguration(
                    artifact_read=agent_pb2.ArtifactReadTool()
                ),
            },
        )
        try:
            self._connection.call(self._connection.agents.CreateAgent, request)
        except grpc.RpcError as error:
            if reason_of(error) != "AGENT_ALREADY_EXISTS":
                raise
            return False
        return True

    def _ask(self, question: str) -> None:
        self._out.print()
        teller = Teller(self._out, inputs=True)
        for item in send(self._connection, message_request(AGENT_KEY, self._session_key, question)):
            teller.tell(item)

    def _read_back(self) -> None:
        self._out.print()
        self._say("The record of this conversation, as ListEvents reads it back:")
        self._out.print()
        request = event_service_pb2.ListEventsRequest(
            agent_key=AGENT_KEY, session_key=self._session_key
        )
        events = all_pages(
            lambda page: self._connection.call(self._connection.events.ListEvents, page),
            request,
            "events",
        )
        print_table(self._out, EVENT_COLUMNS, events)

    def _what_next(self) -> None:
        target = self._connection.target
        session = json.dumps({"agent_key": AGENT_KEY, "session_key": self._session_key})
        agent = json.dumps({"agent_key": AGENT_KEY})
        at = "" if target == "127.0.0.1:50051" else f" --target {target}"
        self._out.print()
        self._say("Try next, in a second terminal:")
        self._out.print()
        for line in (
            f"grpcurl -plaintext -d '{session}' {target} hansard.v1.EventService/ListEvents",
            f"grpcurl -plaintext -d '{agent}' {target} hansard.v1.SessionService/ListSessions",
            f"grpcurl -plaintext {target} list",
            f"{_command()} chat {AGENT_KEY} {self._session_key}{at}",
        ):
            self._out.print(f"  {line}", soft_wrap=True)
        self._out.print()

    def _say(self, text: str) -> None:
        self._out.print(one_line(text), soft_wrap=True)
        self._out.file.flush()

    def _tell_failure(self, words: str) -> None:
        if not self._connection.stopping.is_set():
            self._say(f"hansard: {words}")


def _command() -> str:
    """Return how to start this program again: by name, or by path when its name leads nowhere."""
    path = Path(sys.argv[0])
    if path.name == "hansard" and shutil.which("hansard") is None:
        return shlex.quote(str(path))
    return "hansard"
