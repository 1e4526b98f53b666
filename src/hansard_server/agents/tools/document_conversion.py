"""`document_conversion`: a document of the session becomes a Markdown file beside it."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import aclosing
from pathlib import Path, PurePath
from typing import Final, cast

from hansard.v1 import artifact_pb2
from hansard_server.agents.api import Json, SessionFiles, ToolContext, ToolError, ToolResult
from hansard_server.agents.documents.convert import (
    SUFFIX_OF_TYPE,
    SUFFIXES,
    DocumentConverter,
    Unconvertible,
)
from hansard_server.agents.tools.artifact_create import FILENAME_MAX_CHARACTERS, describe_file
from hansard_server.domain.limits import KIB

_CHUNK_BYTES = 256 * KIB
_BEGINNING_CHARACTERS = 1_000
_CHARACTER_MAX_BYTES = 4
_FILES_MAX = 1_000
_DESCRIPTION = re.compile(r" \((art_[a-z0-9_-]+)\) as Markdown\.$")
_BY_TOOL = artifact_pb2.ARTIFACT_SOURCE_TOOL


class DocumentConversion:
    """Answers {artifact_id, filename, mime_type, size_bytes, beginning} of the Markdown file.

    A document that has been converted is not converted again: the answer names the file that is
    there.
    """

    name: Final = "document_conversion"
    description: Final = (
        "Converts a document of this session (PDF, DOCX, PPTX, XLSX, HTML, EPUB and more) to a "
        "Markdown file, which the other tools can read. Answers the new file's artifact id and how "
        "it begins."
    )
    input_schema: Final[Mapping[str, Json]] = {
        "type": "object",
        "properties": {
            "artifact_id": {"type": "string", "description": "The document's artifact id (art_…)."}
        },
        "required": ["artifact_id"],
        "additionalProperties": False,
    }

    def __init__(self, converter: DocumentConverter | None = None) -> None:
        """Convert by `converter`."""
        self._converter = converter

    @property
    def converter(self) -> DocumentConverter:
        """What converts."""
        if self._converter is None:
            # Made here and not at the start: it belongs to the loop that runs it.
            self._converter = DocumentConverter()
        return self._converter

    async def run(self, arguments: Mapping[str, Json], context: ToolContext) -> ToolResult:
        """Return the new file. Raises ToolError, ArtifactNotFound, QuotaExceeded."""
        artifact = await context.files.get_file(arguments["artifact_id"])
        suffix = find_suffix(artifact)
        if suffix is None:
            known = ", ".join(sorted(SUFFIXES))
            raise ToolError(
                f"{artifact.filename} ({artifact.mime_type}) is no document that can be converted; "
                f"these are: {known}."
            )
        made_before = await _find_made(context.files, artifact)
        if made_before is not None:
            return ToolResult(
                output=_describe(
                    made_before, artifact, await _read_head(context.files, made_before)
                )
            )
        chunks = cast("AsyncGenerator[bytes]", context.files.read_file(artifact.artifact_id))
        try:
            async with aclosing(chunks), self.converter.convert(chunks, suffix) as markdown:
                beginning = await asyncio.to_thread(_read_beginning, markdown)
                if not beginning.strip():
                    raise ToolError(f"{artifact.filename} has no text that could be read.")
                made = await context.files.make_file(
                    _markdown_name(artifact.filename),
                    _chunks(markdown),
                    mime_type="text/markdown",
                    description=_description(artifact),
                )
        except Unconvertible as error:
            raise ToolError(f"{artifact.filename} was not converted: {error}.") from None
        return ToolResult(output=_describe(made.artifact, artifact, beginning), files=(made,))


def converted_from(artifact: artifact_pb2.Artifact) -> str:
    """Return the artifact that this one was converted from; empty when it was not."""
    made = _DESCRIPTION.search(artifact.description) if artifact.source == _BY_TOOL else None
    return made[1] if made else ""


def find_suffix(artifact: artifact_pb2.Artifact) -> str | None:
    """Return what kind of document it is, as a suffix; None when it is none.

    The type counts before the name, since for an upload without a type it was told from the bytes.
    """
    by_type = SUFFIX_OF_TYPE.get(artifact.mime_type.partition(";")[0].strip().lower())
    by_name = PurePath(artifact.filename).suffix.lower()
    if by_type in {None, ".txt"} and by_name in SUFFIXES:
        return by_name
    return by_type


def _describe(
    made: artifact_pb2.Artifact, source: artifact_pb2.Artifact, beginning: str
) -> Mapping[str, Json]:
    return {
        **describe_file(made),
        "source_artifact_id": source.artifact_id,
        "beginning": beginning,
    }


async def _find_made(
    files: SessionFiles, source: artifact_pb2.Artifact
) -> artifact_pb2.Artifact | None:
    """Return what the document was converted to before, if that is among the newest files."""
    made = (
        file
        for file in await files.list_files(_FILES_MAX)
        if converted_from(file) == source.artifact_id
    )
    return next(made, None)


async def _read_head(files: SessionFiles, file: artifact_pb2.Artifact) -> str:
    length = _BEGINNING_CHARACTERS * _CHARACTER_MAX_BYTES
    chunks = cast("AsyncGenerator[bytes]", files.read_file(file.artifact_id, 0, length))
    async with aclosing(chunks):
        head = b"".join([chunk async for chunk in chunks])
    return head.decode("utf-8", "replace")[:_BEGINNING_CHARACTERS]


def _description(source: artifact_pb2.Artifact) -> str:
    return f"{source.filename} ({source.artifact_id}) as Markdown."


def _markdown_name(filename: str) -> str:
    return filename[: FILENAME_MAX_CHARACTERS - len(".md")] + ".md"


def _read_beginning(path: Path) -> str:
    with path.open(encoding="utf-8", errors="replace") as file:
        return file.read(_BEGINNING_CHARACTERS)


async def _chunks(path: Path) -> AsyncIterator[bytes]:
    file = await asyncio.to_thread(path.open, "rb")
    try:
        while chunk := await asyncio.to_thread(file.read, _CHUNK_BYTES):
            yield chunk
    finally:
        await asyncio.to_thread(file.close)
