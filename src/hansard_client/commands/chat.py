"""`hansard chat`: a conversation with an agent in the terminal."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Annotated

import typer

from hansard.v1 import turn_pb2
from hansard_client.client import Hansard
from hansard_client.commands.asking import ask_for_answers
from hansard_client.commands.common import EXIT_INTERRUPTED, AgentKey, Caller, Mistake
from hansard_client.commands.rendering import Teller
from hansard_client.commands.text import as_utf8, one_line, plain
from hansard_client.items import RequiresAction, TurnEnd, TurnItem
from hansard_client.methods import TurnStream

PROMPT = "you> "
_NAME_MAX_CHARACTERS = 60


def chat(
    caller: Caller,
    agent: AgentKey,
    session: Annotated[
        str, typer.Argument(metavar="[SESSION]", help="To go on with one; else a new one is made.")
    ] = "",
    *,
    name: Annotated[str, typer.Option(help="Of a new session. Default: the first input.")] = "",
    once: Annotated[str | None, typer.Option(help="Send this alone, and end.")] = None,
) -> None:
    """Talk with an agent; without a terminal, each line of stdin is an input."""
    Conversation(caller, agent, session, name).run(_inputs(caller, once))


class Conversation:
    """One session, input by input."""

    def __init__(self, caller: Caller, agent_key: str, session_key: str, name: str) -> None:
        self._caller = caller
        self._hansard = caller.hansard
        self._agent_key = agent_key
        self._session_key = session_key
        self._name = name
        self._failed = False

    def run(self, inputs: Iterator[str]) -> None:
        """Send the inputs one after the other; exit with 1 when a turn failed and nobody saw it."""
        self._hansard.agents.get(self._agent_key)
        if self._session_key:
            with self._politely():
                self._catch_up()
        for text in inputs:
            if not self._session_key:
                self._create(text)
            with self._politely():
                self._send(text)
        if self._failed and not sys.stdin.isatty():
            raise typer.Exit(1)

    def _create(self, first_input: str) -> None:
        session = create_session(self._hansard, self._agent_key, self._name or first_input)
        self._session_key = session
        self._caller.say(f"New session: {session}")

    def _send(self, text: str) -> None:
        session = self._hansard.session(self._agent_key, self._session_key)
        self._answer(self._tell(session.stream(text), Teller(self._caller.out)))

    def _answer(self, turn: turn_pb2.Turn | None) -> None:
        """Ask for what the turn waits for, until it does not wait any more.

        Without a terminal there is nobody to ask, and further inputs would wait for ever: exit.
        """
        session = self._hansard.session(self._agent_key, self._session_key)
        while turn is not None and turn.status == turn_pb2.TURN_STATUS_REQUIRES_ACTION:
            if not sys.stdin.isatty():
                raise Mistake("the turn waits for somebody: go on with it at a terminal")
            try:
                answers = ask_for_answers(turn)
            except EOFError:
                raise KeyboardInterrupt from None
            turn = self._tell(session.stream(answers), Teller(self._caller.out))

    def _catch_up(self) -> None:
        """Tell the last turn, and what is still going on, to who comes back."""
        session = self._hansard.sessions.get(self._agent_key, self._session_key)
        self._caller.say(
            f"Session {session.key}: {one_line(session.name, _NAME_MAX_CHARACTERS)} "
            f"({session.last_sequence} events)"
        )
        turns = self._hansard.session(session).turns
        unfinished = list(turns.list(statuses=("QUEUED", "RUNNING", "REQUIRES_ACTION")))
        for turn in unfinished or list(turns.list(newest_first=True, limit=1)):
            self._answer(self._tell(turns.follow(turn.id), Teller(self._caller.out, inputs=True)))
        self._failed = False

    def _tell(self, items: TurnStream[TurnItem], teller: Teller) -> turn_pb2.Turn | None:
        """Tell the items to the end, and return how the turn stands then."""
        stopped = None
        try:
            for item in items:
                teller.tell(item)
                if isinstance(item, TurnEnd | RequiresAction):
                    stopped = item.turn
                    self._failed |= stopped.status == turn_pb2.TURN_STATUS_FAILED
        finally:
            teller.end_line()
        return stopped

    @contextmanager
    def _politely(self) -> Iterator[None]:
        """On Ctrl-C leave the turn to the server, and say how to come back."""
        try:
            yield
        except KeyboardInterrupt:
            self._caller.say(
                "The turn goes on without you. To come back: "
                f"hansard chat {self._agent_key} {self._session_key}"
            )
            raise typer.Exit(EXIT_INTERRUPTED) from None


def create_session(hansard: Hansard, agent_key: str, name: str) -> str:
    """Return the key of a new session. Raises HansardError."""
    name = one_line(name, _NAME_MAX_CHARACTERS) or "Conversation"
    return hansard.sessions.create(agent_key, name=name).key


def _inputs(caller: Caller, once: str | None) -> Iterator[str]:
    """Yield what is typed, or each line of stdin; nothing of lines without text."""
    if once is not None:
        if not once.strip():
            raise Mistake("--once: there is nothing to send")
        yield as_utf8(once)
        return
    lines = _typed() if sys.stdin.isatty() else _piped(caller)
    for line in lines:
        if line.strip():
            yield as_utf8(line)


def _typed() -> Iterator[str]:
    with suppress(ImportError):
        # From then on input() has line editing and a history.
        import readline  # noqa: F401, PLC0415 - not on every system
    while True:
        try:
            yield input(PROMPT)
        except (EOFError, KeyboardInterrupt):
            sys.stdout.write("\n")
            return


def _piped(caller: Caller) -> Iterator[str]:
    for raw in sys.stdin.buffer:
        line = raw.decode("utf-8", "replace").rstrip("\r\n")
        if line.strip():
            caller.out.print(PROMPT + plain(line), soft_wrap=True)
        yield line
