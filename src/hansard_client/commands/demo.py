"""A first conversation with a server: an agent, a document, questions, the record."""

from __future__ import annotations

import json
import shlex
import shutil
import sys
from importlib import resources
from pathlib import Path

from hansard_client.client import Hansard
from hansard_client.commands import sample
from hansard_client.commands.chat import create_session
from hansard_client.commands.common import describe
from hansard_client.commands.events import EVENT_COLUMNS
from hansard_client.commands.rendering import Teller, make_console, print_table
from hansard_client.commands.text import one_line, size
from hansard_client.errors import AgentAlreadyExists, ClientClosed, HansardError
from hansard_client.files import File

AGENT_KEY = "librarian"
DOCUMENT = "hansard-handbook.md"
QUESTIONS = (
    "What happens to a running turn when the connection breaks?",
    "And is it safe to send the same request twice?",
    "Which football club won the championship?",
)


class Demo:
    """Shows a server what to record, and people what it recorded."""

    def __init__(self, hansard: Hansard, key_file: Path | None = None) -> None:
        """Talk by the client; what is told to try next takes its key from the file."""
        self._hansard = hansard
        self._key_file = key_file
        self._out = make_console()

    def run(self) -> None:
        """Hold the conversation on stdout; a failure is told there. Closing the client ends it."""
        try:
            self._prepare()
            for question in QUESTIONS:
                self._ask(question)
            self._read_back()
            self._what_next()
        except ClientClosed:
            pass
        except HansardError as error:
            self._say(f"hansard: {describe(error)}")

    def _prepare(self) -> None:
        made = self._make_agent()
        self._say(f"Agent {AGENT_KEY}: {'made' if made else 'is there already'}.")
        key = create_session(self._hansard, AGENT_KEY, "First conversation")
        self._session = self._hansard.session(AGENT_KEY, key)
        self._say(f"Session {key}: made.")
        text = resources.files(sample).joinpath(DOCUMENT).read_bytes()
        document = File(source=text, filename=DOCUMENT, description="A document to ask about.")
        event = self._session.artifacts.upload(document)
        for artifact in event.artifact_upload.artifacts:
            told = f"{artifact.filename}, {size(artifact.size_bytes)}, {artifact.mime_type}"
            self._say(f"Artifact {artifact.artifact_id}: {told}.")

    def _make_agent(self) -> bool:
        try:
            self._hansard.agents.create(
                key=AGENT_KEY,
                name="Librarian",
                description="Answers by quoting the files of the session.",
                model="hansard/extractive",
                tools=["artifact_grep", "artifact_read", "document_conversion"],
            )
        except AgentAlreadyExists:
            return False
        return True

    def _ask(self, question: str) -> None:
        self._out.print()
        teller = Teller(self._out, inputs=True)
        for item in self._session.stream(question):
            teller.tell(item)

    def _read_back(self) -> None:
        self._out.print()
        self._say("The record of this conversation, as ListEvents reads it back:")
        self._out.print()
        print_table(self._out, EVENT_COLUMNS, self._session.events.list())

    def _what_next(self) -> None:
        [target] = self._hansard.addresses
        session = json.dumps({"agent_key": AGENT_KEY, "session_key": self._session.key})
        agent = json.dumps({"agent_key": AGENT_KEY})
        at = "" if target == "127.0.0.1:50051" else f" --target {target}"
        grpcurl = "grpcurl -plaintext"
        if self._key_file is not None:
            file = shlex.quote(str(self._key_file))
            grpcurl += f' -H "authorization: Bearer $(cat {file})"'
            if self._key_file != Path("hansard-data", "admin.key"):
                at += f' --api-key "$(cat {file})"'
        self._out.print()
        self._say("Try next, in a second terminal:")
        self._out.print()
        for line in (
            f"{grpcurl} -d '{session}' {target} hansard.v1.EventService/ListEvents",
            f"{grpcurl} -d '{agent}' {target} hansard.v1.SessionService/ListSessions",
            f"{grpcurl} {target} list",
            f"{_command()} chat {AGENT_KEY} {self._session.key}{at}",
        ):
            self._out.print(f"  {line}", soft_wrap=True)
        self._out.print()

    def _say(self, text: str) -> None:
        self._out.print(one_line(text), soft_wrap=True)
        self._out.file.flush()


def _command() -> str:
    """Return how to start this program again: by name, or by path when its name leads nowhere."""
    path = Path(sys.argv[0])
    if path.name == "hansard" and shutil.which("hansard") is None:
        return shlex.quote(str(path))
    return "hansard"
