"""`artifact_read`: lines of a text file of the session."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from typing import Final, cast

from hansard.v1 import artifact_pb2
from hansard_server.agents.api import Json, ToolContext, ToolError
from hansard_server.agents.tools.document_conversion import converted_from
from hansard_server.agents.tools.lines import line_batches, shown_line
from hansard_server.domain.limits import KIB

LINES_DEFAULT = 200
LINES_MAX = 1_000
TEXT_MAX_BYTES = 64 * KIB


class ArtifactRead:
    """Answers {artifact_id, filename, converted_from?, lines: [{line, text, cut?}], next_line}.

    `next_line` is where to go on, null at the end of the file; `cut` says that the line is longer
    than shown.
    """

    name: Final = "artifact_read"
    description: Final = (
        "Reads lines of a text file of this session. Lines count from 1. Answers the lines and, "
        "when the file goes on, next_line."
    )
    input_schema: Final[Mapping[str, Json]] = {
        "type": "object",
        "properties": {
            "artifact_id": {"type": "string", "description": "The file's artifact id (art_…)."},
            "start_line": {"type": "integer", "minimum": 1, "description": "Default: 1."},
            "line_count": {
                "type": "integer",
                "minimum": 1,
                "maximum": LINES_MAX,
                "description": f"How many lines at most. Default: {LINES_DEFAULT}.",
            },
        },
        "required": ["artifact_id"],
        "additionalProperties": False,
    }

    async def run(self, arguments: Mapping[str, Json], context: ToolContext) -> Json:
        """Return the lines. Raises ToolError, ArtifactNotFound."""
        artifact = await context.files.get_file(arguments["artifact_id"])
        start = int(arguments.get("start_line", 1))
        end = start + int(arguments.get("line_count", LINES_DEFAULT))
        window = _Window(start, end)
        batches = cast("AsyncGenerator[list[bytes]]", line_batches(context.files, artifact))
        async with aclosing(batches):
            async for batch in batches:
                if window.add(batch):
                    break
        return window.to_json(artifact)


class _Window:
    """The lines from `start` until before `end`, as many as there is room for."""

    def __init__(self, start: int, end: int) -> None:
        self._start = start
        self._end = end
        self._seen = 0
        self._room = TEXT_MAX_BYTES
        self._lines: list[Json] = []
        self._next: int | None = None

    def add(self, batch: list[bytes]) -> bool:
        """Take what is wanted of the file's next lines; return whether nothing more is."""
        first = self._seen + 1
        self._seen += len(batch)
        for number in range(max(first, self._start), self._seen + 1):
            text, cut = shown_line(batch[number - first])
            self._room -= len(text.encode())
            if number == self._end or (self._room < 0 and self._lines):
                self._next = number
                return True
            self._lines.append({"line": number, "text": text, **({"cut": True} if cut else {})})
        return False

    def to_json(self, artifact: artifact_pb2.Artifact) -> Json:
        """Return the tool's answer."""
        if self._start > max(self._seen, 1):
            raise ToolError(
                f"{artifact.filename} ({artifact.artifact_id}) has {self._seen} lines, so none "
                f"from line {self._start} on."
            )
        source = converted_from(artifact)
        return {
            "artifact_id": artifact.artifact_id,
            "filename": artifact.filename,
            **({"converted_from": source} if source else {}),
            "lines": self._lines,
            "next_line": self._next,
        }
