"""`document_index`: a document of the session goes into a corpus, where others find it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from typing import Final, cast

from google.protobuf.struct_pb2 import Struct

from hansard.v1 import artifact_pb2, corpus_service_pb2
from hansard_server.agents.api import Json, ToolContext, ToolError
from hansard_server.agents.documents.convert import SUFFIXES, Unconvertible
from hansard_server.agents.tools.document_conversion import DocumentConversion, find_suffix
from hansard_server.domain.limits import MIB

_TEXT_MAX_BYTES = 16 * MIB
_PLAIN = frozenset({".md", ".txt"})


class DocumentIndex:
    """Answers {corpus_key, document_id, passages}."""

    name: Final = "document_index"
    description: Final = (
        "Puts a document of this session (text, Markdown, PDF, DOCX, PPTX, XLSX, HTML, EPUB and "
        "more) into this agent's document collection, where it can be searched from other sessions "
        "too. A document that has the id there is replaced."
    )
    input_schema: Final[Mapping[str, Json]] = {
        "type": "object",
        "properties": {
            "artifact_id": {"type": "string", "description": "The document's artifact id (art_…)."},
            "document_id": {
                "type": "string",
                "pattern": "^[0-9a-zA-Z_.:@+-]{1,128}$",
                "description": "Its id in the collection. Default: the artifact id.",
            },
            "metadata": {
                "type": "object",
                "description": "What searches can filter by, beside its `filename`.",
            },
        },
        "required": ["artifact_id"],
        "additionalProperties": False,
    }

    def __init__(self, conversion: DocumentConversion) -> None:
        """Convert by the converter of `conversion`."""
        self._conversion = conversion

    async def run(self, arguments: Mapping[str, Json], context: ToolContext) -> Json:
        """Index the document. Raises ToolError, ArtifactNotFound, and what the corpus raises."""
        artifact = await context.files.get_file(arguments["artifact_id"])
        text = await self._read(artifact, context)
        if not text.strip():
            raise ToolError(f"{artifact.filename} has no text that could be read.")
        metadata = Struct()
        metadata.update({"filename": artifact.filename, **arguments.get("metadata", {})})
        document = await context.corpora.index(
            corpus_service_pb2.IndexDocumentRequest(
                corpus_key=context.configuration.document_index.corpus_key,
                document_id=arguments.get("document_id", artifact.artifact_id),
                text=text,
                metadata=metadata,
                request_id=context.tool_call_id,
            )
        )
        return {
            "corpus_key": document.corpus_key,
            "document_id": document.document_id,
            "passages": document.passage_count,
        }

    async def _read(self, artifact: artifact_pb2.Artifact, context: ToolContext) -> str:
        suffix = find_suffix(artifact)
        chunks = cast("AsyncGenerator[bytes]", context.files.read_file(artifact.artifact_id))
        async with aclosing(chunks):
            if suffix in _PLAIN or (suffix is None and artifact.mime_type.startswith("text/")):
                data = b""
                async for chunk in chunks:
                    data += chunk
                    if len(data) > _TEXT_MAX_BYTES:
                        raise ToolError(f"{artifact.filename} has more than 16 MiB of text.")
                text = data.decode("utf-8-sig", "replace")
            elif suffix is None:
                known = ", ".join(sorted(SUFFIXES))
                raise ToolError(
                    f"{artifact.filename} ({artifact.mime_type}) is no document that can be "
                    f"indexed; these are: {known}."
                )
            else:
                try:
                    async with self._conversion.converter.convert(chunks, suffix) as markdown:
                        text = await asyncio.to_thread(markdown.read_text, "utf-8", "replace")
                except Unconvertible as error:
                    raise ToolError(f"{artifact.filename} was not converted: {error}.") from None
        # No database's text holds one.
        return text.replace("\0", "")
