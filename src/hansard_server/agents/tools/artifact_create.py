"""`artifact_create`: a text becomes a file of the session."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from typing import Final

from hansard.v1 import artifact_pb2
from hansard_server.agents.api import Json, ToolContext, ToolResult
from hansard_server.domain.limits import KIB

FILENAME_MAX_CHARACTERS = 255
DESCRIPTION_MAX_CHARACTERS = 4_096
_CHUNK_BYTES = 256 * KIB


class ArtifactCreate:
    """Answers {artifact_id, filename, mime_type, size_bytes} of the new file."""

    name: Final = "artifact_create"
    description: Final = (
        "Writes a text to a new file of this session, so that the user can download it and other "
        "tools can read it. Answers the new file's artifact id."
    )
    input_schema: Final[Mapping[str, Json]] = {
        "type": "object",
        "properties": {
            "filename": {
                "type": "string",
                "minLength": 1,
                "maxLength": FILENAME_MAX_CHARACTERS,
                # As uploads have it: a name, not a path.
                "pattern": r"^[^/\\\u0000-\u001f\u007f]+$",
                "description": "What the file is called, such as report.md.",
            },
            "content": {"type": "string", "description": "The whole text."},
            "description": {
                "type": "string",
                "maxLength": DESCRIPTION_MAX_CHARACTERS,
                "description": "What the file holds.",
            },
        },
        "required": ["filename", "content"],
        "additionalProperties": False,
    }

    async def run(self, arguments: Mapping[str, Json], context: ToolContext) -> ToolResult:
        """Return the new file. Raises PayloadTooLarge, QuotaExceeded."""
        made = await context.files.make_file(
            arguments["filename"],
            _chunks(arguments["content"].encode()),
            description=arguments.get("description", ""),
        )
        return ToolResult(output=describe_file(made.artifact), files=(made,))


def describe_file(artifact: artifact_pb2.Artifact) -> dict[str, Json]:
    """Return what a model is told of a file."""
    return {
        "artifact_id": artifact.artifact_id,
        "filename": artifact.filename,
        "mime_type": artifact.mime_type,
        "size_bytes": artifact.size_bytes,
    }


async def _chunks(data: bytes) -> AsyncIterator[bytes]:
    for start in range(0, len(data), _CHUNK_BYTES):
        yield data[start : start + _CHUNK_BYTES]
