"""`artifact_grep`: lines of the session's text files that match a regular expression."""

from __future__ import annotations

import asyncio
import re
from collections import deque
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing
from typing import Any, Final, cast

import re2

from hansard.v1 import artifact_pb2
from hansard_server.agents.api import Json, SessionFiles, ToolContext, ToolError
from hansard_server.agents.tools.document_conversion import converted_from
from hansard_server.agents.tools.lines import line_batches, shown_line
from hansard_server.domain.limits import KIB, MIB

MATCHES_DEFAULT = 50
MATCHES_MAX = 500
CONTEXT_MAX_LINES = 10
PATTERN_MAX_CHARACTERS = 1_000
FILES_MAX = 1_000
TEXT_MAX_BYTES = 128 * KIB
SEARCHED_MAX_BYTES = 512 * MIB
_SKIPPED_SHOWN = 20
# Anchors of the whole text, flags of its own, any byte: \A \z \C (?…) and \Q, which hides them.
_TELLS_LINES = re.compile(r"\\[AzCQ]|\(\?")


class ArtifactGrep:
    """Answers {matches: [{artifact_id, filename, line, text, cut?, converted_from?, before?,
    after?}], files_searched, files_skipped: [{artifact_id, filename, reason}], more}.

    `more` says that not everything was searched or shown.
    """

    name: Final = "artifact_grep"
    description: Final = (
        "Finds the lines of this session's text files that match a regular expression (RE2 syntax: "
        "no backreferences, no lookaround). Searches one file, or all of them, the newest first; "
        "of a document that was converted, its text."
    )
    input_schema: Final[Mapping[str, Json]] = {
        "type": "object",
        "properties": {
            "pattern": {
                "type": "string",
                "minLength": 1,
                "maxLength": PATTERN_MAX_CHARACTERS,
                "description": "The regular expression; it is looked for in each line.",
            },
            "artifact_id": {
                "type": "string",
                "description": "The file's artifact id (art_…). Default: all files.",
            },
            "ignore_case": {"type": "boolean", "description": "Default: false."},
            "context_lines": {
                "type": "integer",
                "minimum": 0,
                "maximum": CONTEXT_MAX_LINES,
                "description": "Lines shown before and after each match. Default: 0.",
            },
            "max_matches": {
                "type": "integer",
                "minimum": 1,
                "maximum": MATCHES_MAX,
                "description": f"Default: {MATCHES_DEFAULT}.",
            },
        },
        "required": ["pattern"],
        "additionalProperties": False,
    }

    async def run(self, arguments: Mapping[str, Json], context: ToolContext) -> Json:
        """Return the matches. Raises ToolError, ArtifactNotFound."""
        search = _Search(
            _Pattern(arguments["pattern"], ignore_case=bool(arguments.get("ignore_case"))),
            context_lines=int(arguments.get("context_lines", 0)),
            max_matches=int(arguments.get("max_matches", MATCHES_DEFAULT)),
        )
        artifact_id = arguments.get("artifact_id")
        if artifact_id is not None:
            await search.file(context.files, await context.files.get_file(artifact_id))
            return search.to_json()
        files = await context.files.list_files(FILES_MAX)
        # Their text is in another file.
        converted = {converted_from(artifact) for artifact in files}
        for artifact in files:
            if search.full:
                break
            if artifact.artifact_id in converted:
                continue
            try:
                await search.file(context.files, artifact)
            except ToolError as error:
                search.skip(artifact, str(error))
        return search.to_json()


class _Pattern:
    """A regular expression that is looked for in each line."""

    def __init__(self, pattern: str, *, ignore_case: bool) -> None:
        options = re2.Options()
        options.case_sensitive = not ignore_case
        options.log_errors = False
        self._line = _compile(pattern, options)
        # Most of a file matches nothing: one search through many lines tells that a hundred times
        # faster than one for each. Not so where a pattern can tell a line from a longer text.
        options.never_nl = True
        self._lines = None if _TELLS_LINES.search(pattern) else _compile(f"(?m:{pattern})", options)

    def matches(self, line: bytes) -> bool:
        """Return whether the line, without its end, matches."""
        return self._line.search(_utf8(line.removesuffix(b"\r"))) is not None

    def may_match(self, lines: Sequence[bytes]) -> bool:
        """Return False only when none of the lines matches."""
        if self._lines is None:
            return True
        block = b"\n".join(lines).replace(b"\r\n", b"\n").removesuffix(b"\r")
        return self._lines.search(_utf8(block)) is not None


def _utf8(data: bytes) -> bytes:
    return data if data.isascii() else data.decode("utf-8", "replace").encode()


def _compile(pattern: str, options: Any) -> Any:
    try:
        return re2.compile(pattern, options)
    except re2.error as error:
        reason = error.args[0] if error.args else ""
        reason = reason.decode("utf-8", "replace") if isinstance(reason, bytes) else reason
        raise ToolError(f"The pattern is no RE2 regular expression: {reason}") from error


class _Search:
    """One search: what it has found so far, within its bounds."""

    def __init__(self, pattern: _Pattern, *, context_lines: int, max_matches: int) -> None:
        self.full = False
        self.pattern = pattern
        self._context_lines = context_lines
        self._max_matches = max_matches
        self._matches: list[dict[str, Json]] = []
        self._searched = 0
        self._skipped: list[Json] = []
        self._bytes_left = SEARCHED_MAX_BYTES
        self._text_left = TEXT_MAX_BYTES

    async def file(self, files: SessionFiles, artifact: artifact_pb2.Artifact) -> None:
        """Search one file. Raises ToolError when it is not text."""
        if artifact.size_bytes > self._bytes_left:
            raise ToolError(f"The search would read more than {SEARCHED_MAX_BYTES:,} bytes.")
        self._bytes_left -= artifact.size_bytes
        scan = _FileScan(self, artifact, self._context_lines)
        batches = cast("AsyncGenerator[list[bytes]]", line_batches(files, artifact))
        async with aclosing(batches):
            async for batch in batches:
                # Matching is work for the processor: beside the loop, so that others go on.
                await asyncio.to_thread(scan.add, batch)
                if self.full:
                    break
        self._searched += 1

    def skip(self, artifact: artifact_pb2.Artifact, reason: str) -> None:
        """Note that the file can't be searched."""
        self._skipped.append(
            {"artifact_id": artifact.artifact_id, "filename": artifact.filename, "reason": reason}
        )

    def found(self, match: dict[str, Json]) -> bool:
        """Take the match; False, and the search is full, when there is no room for it."""
        if len(self._matches) == self._max_matches or not self.take_room(match["text"]):
            self.full = True
            return False
        self._matches.append(match)
        return True

    def take_room(self, text: str) -> bool:
        """Return whether there is room to show the text, and take it."""
        size = len(text.encode())
        if size > self._text_left:
            return False
        self._text_left -= size
        return True

    def to_json(self) -> Json:
        """Return the tool's answer."""
        return {
            "matches": self._matches,
            "files_searched": self._searched,
            "files_skipped": self._skipped[:_SKIPPED_SHOWN],
            "more": self.full or any("would read" in skip["reason"] for skip in self._skipped),
        }


class _FileScan:
    """A file's lines passing by, with the context of its matches."""

    def __init__(
        self, search: _Search, artifact: artifact_pb2.Artifact, context_lines: int
    ) -> None:
        self._search = search
        self._artifact = artifact
        self._context_lines = context_lines
        self._number = 0
        self._before: deque[str] = deque(maxlen=context_lines)
        self._open: list[dict[str, Json]] = []

    def add(self, batch: Sequence[bytes]) -> None:
        """Look at the next lines."""
        pattern = self._search.pattern
        if not self._open and not pattern.may_match(batch):
            self._number += len(batch)
            if self._context_lines:
                self._before.extend(shown_line(line)[0] for line in batch[-self._context_lines :])
            return
        for line in batch:
            self._number += 1
            matched = pattern.matches(line)
            if not matched and not self._context_lines:
                continue
            if not self._line(line, matched=matched):
                return

    def _line(self, line: bytes, *, matched: bool) -> bool:
        text, cut = shown_line(line)
        for match in self._open:
            if self._search.take_room(text):
                match["after"].append(text)
        self._open = [m for m in self._open if self._number < m["line"] + self._context_lines]
        if matched:
            match = self._match(text, cut=cut)
            if not self._search.found(match):
                return False
            if self._context_lines:
                self._open.append(match)
        self._before.append(text)
        return True

    def _match(self, text: str, *, cut: bool) -> dict[str, Json]:
        match: dict[str, Json] = {
            "artifact_id": self._artifact.artifact_id,
            "filename": self._artifact.filename,
            "line": self._number,
            "text": text,
        }
        if source := converted_from(self._artifact):
            match["converted_from"] = source
        if cut:
            match["cut"] = True
        if self._context_lines:
            match["before"] = [before for before in self._before if self._search.take_room(before)]
            match["after"] = []
        return match
