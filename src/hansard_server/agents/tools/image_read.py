"""`image_read`: an image of the session is handed to a model that can see."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from typing import Final, cast

from hansard.v1 import artifact_pb2, event_pb2
from hansard_server.agents.api import Json, SessionFiles, ToolContext, ToolError, ToolResult
from hansard_server.agents.tools.artifact_create import describe_file
from hansard_server.agents.tools.images import HEAD_BYTES, read_image_info
from hansard_server.domain.limits import MIB

IMAGE_MAX_BYTES = 20 * MIB
"""What providers of models take at most."""
_DETAILS = {
    "auto": event_pb2.IMAGE_DETAIL_UNSPECIFIED,
    "low": event_pb2.IMAGE_DETAIL_LOW,
    "high": event_pb2.IMAGE_DETAIL_HIGH,
}


class ImageRead:
    """Answers {artifact_id, filename, mime_type, size_bytes, width, height}; the image follows."""

    name: Final = "image_read"
    description: Final = (
        "Looks at an image of this session (PNG, JPEG, GIF or WebP). Answers its kind and size in "
        "pixels, and shows the image to models that can see."
    )
    input_schema: Final[Mapping[str, Json]] = {
        "type": "object",
        "properties": {
            "artifact_id": {"type": "string", "description": "The image's artifact id (art_…)."},
            "detail": {
                "type": "string",
                "enum": list(_DETAILS),
                "description": "How closely to look. Default: auto.",
            },
        },
        "required": ["artifact_id"],
        "additionalProperties": False,
    }

    async def run(self, arguments: Mapping[str, Json], context: ToolContext) -> ToolResult:
        """Return what the image is. Raises ToolError, ArtifactNotFound."""
        artifact = await context.files.get_file(arguments["artifact_id"])
        if artifact.size_bytes > IMAGE_MAX_BYTES:
            raise ToolError(
                f"{artifact.filename} has {artifact.size_bytes:,} bytes; images have at most "
                f"{IMAGE_MAX_BYTES:,}."
            )
        info = read_image_info(await _read_head(context.files, artifact))
        if info is None:
            raise ToolError(
                f"{artifact.filename} ({artifact.artifact_id}) is no image by its bytes: PNG, "
                "JPEG, GIF and WebP are known."
            )
        read = event_pb2.ImageRead(
            artifact_id=artifact.artifact_id, detail=_DETAILS[arguments.get("detail", "auto")]
        )
        seen = {
            **describe_file(artifact),
            # By the bytes: what the uploader said may be wrong.
            "mime_type": info.mime_type,
            "width": info.width,
            "height": info.height,
        }
        return ToolResult(output=seen, events=(event_pb2.Event(image_read=read),))


async def _read_head(files: SessionFiles, artifact: artifact_pb2.Artifact) -> bytes:
    chunks = cast("AsyncGenerator[bytes]", files.read_file(artifact.artifact_id, 0, HEAD_BYTES))
    async with aclosing(chunks):
        return b"".join([chunk async for chunk in chunks])
