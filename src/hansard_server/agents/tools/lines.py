"""Lines of text files, in bounded memory whatever the file."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from typing import cast

from hansard.v1 import artifact_pb2
from hansard_server.agents.api import SessionFiles, ToolError
from hansard_server.domain.limits import KIB

SHOWN_LINE_MAX_CHARACTERS = 2_000
"""A longer line is cut in what a tool answers."""
KEPT_LINE_MAX_BYTES = 64 * KIB
"""Of a longer line only the beginning is looked at."""
_HEAD_BYTES = 8 * KIB
_INVALID_SHARE = 0.1
_INVALID_FINE = 4
_REPLACEMENT = "\N{REPLACEMENT CHARACTER}"


class LineSplitter:
    """Splits chunks of bytes at newlines; keeps at most `max_bytes` + 1 of a line.

    A line longer than `max_bytes` comes out with `max_bytes` + 1 bytes: so one sees the cut.
    """

    def __init__(self, max_bytes: int = KEPT_LINE_MAX_BYTES) -> None:
        """Make a splitter that stands at the beginning of a file."""
        self._keep = max_bytes + 1
        self._open = b""
        self._begun = False

    def feed(self, chunk: bytes) -> list[bytes]:
        """Return the lines that the chunk completes, without their newlines."""
        first, *rest = chunk.split(b"\n")
        if not rest:
            self._extend(first)
            return []
        self._extend(first)
        lines = [self._open, *(line[: self._keep] for line in rest[:-1])]
        self._open = rest[-1][: self._keep]
        self._begun = bool(rest[-1])
        return lines

    def finish(self) -> list[bytes]:
        """Return the last line, if the file does not end with a newline."""
        return [self._open] if self._begun else []

    def _extend(self, piece: bytes) -> None:
        self._begun = self._begun or bool(piece)
        room = self._keep - len(self._open)
        if room > 0:
            self._open += piece[:room]


async def line_batches(
    files: SessionFiles, artifact: artifact_pb2.Artifact
) -> AsyncIterator[list[bytes]]:
    """Yield the file's lines in order, batch by batch. Raises ToolError when it is not text."""
    splitter = LineSplitter()
    head = b""
    # A generator in practice; closing it gives back the connection when the reader stops early.
    chunks = cast("AsyncGenerator[bytes]", files.read_file(artifact.artifact_id))
    async with aclosing(chunks):
        async for chunk in chunks:
            if len(head) < _HEAD_BYTES:
                head += chunk[: _HEAD_BYTES - len(head)]
                whole = len(head) == min(_HEAD_BYTES, artifact.size_bytes)
                if _binary_beginning(head) or (whole and _mostly_invalid(head)):
                    raise _not_text(artifact)
            yield splitter.feed(chunk)
    yield splitter.finish()


def _not_text(artifact: artifact_pb2.Artifact) -> ToolError:
    return ToolError(
        f"{artifact.filename} ({artifact.artifact_id}) is not UTF-8 text but "
        f"{artifact.mime_type}, {artifact.size_bytes:,} bytes: only text can be read."
    )


def _binary_beginning(head: bytes) -> bool:
    return b"\0" in head or head.startswith(b"%PDF-")


def _mostly_invalid(head: bytes) -> bool:
    text = head.decode("utf-8", "replace")
    return text.count(_REPLACEMENT) > max(_INVALID_FINE, len(text) * _INVALID_SHARE)


def decode_line(line: bytes) -> str:
    """Return the line's text: UTF-8 with replacement, without a carriage return at its end."""
    return line.removesuffix(b"\r").decode("utf-8", "replace")


def shown_line(line: bytes) -> tuple[str, bool]:
    """Return the line as tools show it, and whether it was cut."""
    text = decode_line(line)
    cut = len(text) > SHOWN_LINE_MAX_CHARACTERS
    return text[:SHOWN_LINE_MAX_CHARACTERS], cut or len(line) > KEPT_LINE_MAX_BYTES
