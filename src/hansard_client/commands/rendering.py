"""What people see: consoles that obey no server data, tables, and a turn as it happens."""

from __future__ import annotations

import datetime as dt
import json
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, TextIO

from google.protobuf.json_format import MessageToDict
from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp
from rich.box import SIMPLE_HEAD
from rich.cells import cell_len
from rich.console import Console
from rich.table import Table
from rich.text import Text

from hansard.v1 import event_pb2, turn_pb2
from hansard_client.commands.text import json_safe, one_line, plain
from hansard_client.items import Delta, Queued, RequiresAction, TurnEnd, TurnItem, Void

# Where nobody looks at it, the text is for programs: nothing is cut for want of columns.
_WIDTH_OF_FILES = 200
_ROWS_OF_A_TABLE = 500
_GAP = 3
_COLUMN_MIN = 8
_SHORT_CHARACTERS = 100
_UTF8 = {"utf8", "utf-8"}


def make_console(file: TextIO | None = None) -> Console:
    """Return a console that takes text as it is, without markup; on stdout by default."""
    stream = file or sys.stdout
    width = None if stream.isatty() else _WIDTH_OF_FILES
    return Console(file=stream, markup=False, emoji=False, highlight=False, width=width)


@dataclass(frozen=True, slots=True)
class Column:
    """A column of a table: its heading, the text of an item in it, and whether that may be cut."""

    heading: str
    text: Callable[[Any], str]
    whole: bool = False
    right: bool = False


def print_table(console: Console, columns: Sequence[Column], items: Iterable[Any]) -> int:
    """Print the items as a table, a part at a time; return how many there were."""
    rest = iter(items)
    count = 0
    while rows := list(islice(rest, _ROWS_OF_A_TABLE)):
        count += len(rows)
        cells = [[one_line(column.text(row)) for column in columns] for row in rows]
        table = Table(box=SIMPLE_HEAD, pad_edge=False, show_edge=False, header_style="bold")
        for column, width in zip(columns, _widths(columns, cells, console.width), strict=True):
            table.add_column(
                column.heading,
                width=width,
                no_wrap=True,
                overflow="ellipsis",
                justify="right" if column.right else "left",
            )
        for row_cells in cells:
            table.add_row(*map(Text, row_cells))
        console.print(table, crop=False, overflow="ignore")
    return count


def _widths(columns: Sequence[Column], cells: Sequence[Sequence[str]], room: int) -> list[int]:
    """Return each column's width: what must stay whole does, the widest of the others give way."""
    widths = [
        max(cell_len(text) for text in (column.heading, *(row[index] for row in cells)))
        for index, column in enumerate(columns)
    ]
    cut = [index for index, column in enumerate(columns) if not column.whole]
    excess = sum(widths) + _GAP * len(columns) - room
    while excess > 0 and cut:
        widest = max(cut, key=lambda index: widths[index])
        if widths[widest] <= _COLUMN_MIN:
            break
        widths[widest] -= 1
        excess -= 1
    return widths


def print_json(console: Console, message: Message, *, indent: int | None = None) -> None:
    """Print the message as JSON with the contract's field names: one line unless indented."""
    fields = MessageToDict(message, preserving_proto_field_name=True)
    utf8 = (console.encoding or "").lower() in _UTF8
    document = json.dumps(fields, ensure_ascii=not utf8, indent=indent)
    console.file.write(json_safe(document) + "\n")
    console.file.flush()


def moment(stamp: Timestamp) -> str:
    """Return the time to the second, in UTC."""
    return stamp.ToDatetime(dt.UTC).strftime("%Y-%m-%d %H:%M:%SZ")


def kind_of(event: event_pb2.Event) -> str:
    """Return the event's type, or that it was deleted."""
    return event.WhichOneof("payload") or ("(deleted)" if event.HasField("deleted_at") else "")


def content_of(event: event_pb2.Event) -> str:  # noqa: PLR0911 - one for each kind
    """Return what the event says; of long contents a table shows the beginning."""
    payload = event.WhichOneof("payload")
    match payload:
        case "input_message":
            return " ".join(_parts(event.input_message))
        case "thinking" | "agent_output":
            text = getattr(event, payload)
            return ("(cut) " if text.partial else "") + str(text.content)
        case "tool_input":
            return f"{event.tool_input.tool_name} {event.tool_input.tool_input_json}"
        case "tool_output":
            output = event.tool_output
            outcome = event_pb2.ToolOutcome.Name(output.outcome).removeprefix("TOOL_OUTCOME_")
            mark = "" if output.outcome == event_pb2.TOOL_OUTCOME_COMPLETED else f"{outcome} "
            return f"{output.tool_name} {mark}{output.tool_output_json}"
        case "artifact_upload":
            return ", ".join(
                f"{a.filename} ({a.artifact_id})" for a in event.artifact_upload.artifacts
            )
        case None:
            return ""
        case _:
            return json.dumps(
                MessageToDict(getattr(event, payload), preserving_proto_field_name=True),
                ensure_ascii=False,
            )


def _parts(message: event_pb2.InputMessage) -> Iterator[str]:
    for part in message.messages:
        if part.WhichOneof("part") == "artifact":
            yield f"[{part.artifact.filename or part.artifact.artifact_id}]"
        else:
            yield part.text.content


class Teller:
    """Tells a turn on a console as it happens: thinking dim, tools in short, the answer."""

    def __init__(self, console: Console, *, inputs: bool = False) -> None:
        """Tell on the console; the inputs too, when they were not typed there."""
        self._console = console
        self._inputs = inputs
        self._open_id = ""
        self._at_start = True
        self._width = min(console.width, _WIDTH_OF_FILES) if console.is_terminal else 160

    def tell(self, item: TurnItem) -> None:
        """Print what happened."""
        match item:
            case Delta(event_id=event_id, kind=kind, text=text):
                self._piece(event_id, kind, text)
            case Void():
                self.line(
                    "(the text above was cut off by a restart and is not on record)", "yellow"
                )
            case event_pb2.Event():
                self._event(item)
            case Queued(position):
                self.line(f"(waiting: number {position} in the queue)", "dim")
            case TurnEnd(turn) | RequiresAction(turn):
                self._stopped(turn)

    def line(self, text: str, style: str = "") -> None:
        """Print a line of its own."""
        self.end_line()
        self._open_id = ""
        self._console.print(Text(plain(text), style=style), soft_wrap=True)

    def end_line(self) -> None:
        """Go to the beginning of a line."""
        if not self._at_start:
            self._console.print()
            self._at_start = True

    def _piece(self, event_id: str, field: str, text: str) -> None:
        if self._open_id != event_id:
            self.end_line()
            self._open_id = event_id
            if field == "agent_output":
                self._console.print()
        style = "dim italic" if field == "thinking" else ""
        self._console.print(Text(plain(text), style=style), end="", soft_wrap=True)
        self._console.file.flush()
        self._at_start = text.endswith("\n")

    def _event(self, event: event_pb2.Event) -> None:
        payload = event.WhichOneof("payload")
        if payload in {"thinking", "agent_output"}:
            self.end_line()
            if getattr(event, payload).partial:
                self.line("(cut)", "yellow")
        elif payload == "input_message":
            if self._inputs:
                self.line(f"you> {content_of(event)}", "bold")
        elif payload == "tool_input":
            call = event.tool_input
            self._short(f"→ {call.tool_name} {_arguments(call.tool_input_json)}", "cyan")
        elif payload == "tool_output":
            style = "red" if event.tool_output.error else "green"
            self._short(f"← {content_of(event)}", style)
        else:
            self._short(f"* {kind_of(event)} {content_of(event)}", "magenta")

    def _short(self, text: str, style: str) -> None:
        self.line(one_line(text, self._width - 1), style)

    def _stopped(self, turn: turn_pb2.Turn) -> None:
        self.end_line()
        if turn.status == turn_pb2.TURN_STATUS_FAILED:
            self.line(f"The turn failed: {one_line(turn.error.message, 1_000)}", "red")
        elif turn.status == turn_pb2.TURN_STATUS_INTERRUPTED:
            self.line("(the turn was interrupted)", "yellow")
        elif turn.status == turn_pb2.TURN_STATUS_REQUIRES_ACTION:
            for call in turn.pending_calls:
                kind = turn_pb2.PendingCallKind.Name(call.kind).removeprefix("PENDING_CALL_KIND_")
                self.line(f"(the turn waits: {kind} of {call.tool_call_id})", "yellow")


def _arguments(document: str) -> str:
    """Return the arguments as name=value, or the document as it is when it is no object."""
    try:
        arguments = json.loads(document)
    except (ValueError, RecursionError):
        return document
    if not isinstance(arguments, dict):
        return document
    return " ".join(
        f"{name}={one_line(json.dumps(value, ensure_ascii=False), _SHORT_CHARACTERS)}"
        for name, value in arguments.items()
    )
