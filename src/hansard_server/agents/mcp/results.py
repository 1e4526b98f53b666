"""Results of MCP tools: what of them goes on record as JSON, and what becomes a file."""

from __future__ import annotations

import base64
import binascii
import json
import re
from collections.abc import AsyncIterator
from dataclasses import field

import mcp_types

from hansard.v1 import event_pb2
from hansard_server.agents.api import Json, MadeFile, SessionFiles, ToolError, ToolResult
from hansard_server.agents.json_text import NotJson, check_json, dump_json, parse_json
from hansard_server.agents.tools.artifact_create import describe_file
from hansard_server.agents.tools.image_read import IMAGE_MAX_BYTES
from hansard_server.agents.tools.images import read_image_info
from hansard_server.domain.limits import KIB
from hansard_server.domain.values import dataclass

FILES_MAX = 32
"""So many files one answer may bring."""
_PIECE_BYTES = 256 * KIB
_MIME_TYPE = re.compile(r"[a-z]{1,20}/[0-9A-Za-z.+-]{1,100}")


async def to_tool_result(
    result: mcp_types.CallToolResult, files: SessionFiles, tool_id: str
) -> ToolResult:
    """Return the answer as {content: [...], structured_content}: bytes become files of the session.

    Text that only repeats the structured content is left out. Raises ToolError for an answer that
    says that it is an error, and for one that can't be kept; what `files` raises.
    """
    if result.is_error:
        raise ToolError(_error_text(result))
    answer = _Answer(files, tool_id)
    for block in result.content:
        await answer.add(block)
    output: dict[str, Json] = {"content": answer.content}
    if result.structured_content is not None:
        output["structured_content"] = result.structured_content
        if _repeats(answer.content, result.structured_content):
            del output["content"]
    try:
        check_json(dump_json(output))
    except NotJson as error:
        raise ToolError(f"The tool's answer can't be kept: {error}.") from None
    return ToolResult(output=output, files=tuple(answer.files), events=tuple(answer.events))


def _error_text(result: mcp_types.CallToolResult) -> str:
    texts = [block.text for block in result.content if isinstance(block, mcp_types.TextContent)]
    if not texts and result.structured_content is not None:
        texts = [json.dumps(result.structured_content)]
    return "\n".join(texts) or "The tool failed and said nothing more."


def _repeats(content: list[Json], structured: Json) -> bool:
    if len(content) != 1 or content[0]["type"] != "text":
        return False
    try:
        return bool(parse_json(content[0]["text"]) == structured)
    except NotJson:
        return False


@dataclass(slots=True)
class _Answer:
    """The blocks of an answer, one by one."""

    store: SessionFiles
    tool_id: str
    content: list[Json] = field(default_factory=list)
    files: list[MadeFile] = field(default_factory=list)
    events: list[event_pb2.Event] = field(default_factory=list)

    async def add(self, block: mcp_types.ContentBlock) -> None:
        match block:
            case mcp_types.TextContent():
                self.content.append({"type": "text", "text": block.text})
            case mcp_types.ImageContent() | mcp_types.AudioContent():
                self.content.append(
                    {"type": block.type, **await self._file(block.data, block.mime_type)}
                )
            case mcp_types.ResourceLink():
                link = {
                    "type": "resource_link",
                    "uri": str(block.uri),
                    "name": block.name,
                    "description": block.description,
                    "mime_type": block.mime_type,
                }
                self.content.append({k: v for k, v in link.items() if v is not None})
            case mcp_types.EmbeddedResource():
                self.content.append(await self._resource(block.resource))

    async def _resource(
        self, resource: mcp_types.TextResourceContents | mcp_types.BlobResourceContents
    ) -> Json:
        described = {"type": "resource", "uri": str(resource.uri)}
        mime_type = resource.mime_type or ""
        if isinstance(resource, mcp_types.TextResourceContents):
            kind = {"mime_type": mime_type} if mime_type else {}
            return {**described, **kind, "text": resource.text}
        name = str(resource.uri).rpartition("/")[2].partition("?")[0]
        return {**described, **await self._file(resource.blob, mime_type, name)}

    async def _file(self, data: str, mime_type: str, name: str = "") -> dict[str, Json]:
        """Return what is told of the file that the base64 becomes."""
        if len(self.files) == FILES_MAX:
            raise ToolError(f"The tool's answer has more than {FILES_MAX} files.")
        try:
            content = base64.b64decode(data, validate=True)
        except (binascii.Error, ValueError):
            raise ToolError("The tool's answer holds bytes that are no base64.") from None
        made = await self.store.make_file(
            _filename(name)
            or f"{_filename(self.tool_id)}-{len(self.files) + 1}{_ending(mime_type)}",
            _pieces(content),
            # Anything else is told from the bytes.
            mime_type=mime_type if _MIME_TYPE.fullmatch(mime_type) else "",
            description=f"Made by the tool {self.tool_id}.",
        )
        self.files.append(made)
        if len(content) <= IMAGE_MAX_BYTES and read_image_info(content) is not None:
            read = event_pb2.ImageRead(artifact_id=made.artifact.artifact_id)
            self.events.append(event_pb2.Event(image_read=read))
        return describe_file(made.artifact)


def _filename(name: str) -> str:
    kept = "".join(c for c in name if c.isprintable() and c not in '/\\:*?"<>|%')
    return kept.strip(". ")[:200]


def _ending(mime_type: str) -> str:
    kind = mime_type.partition(";")[0].strip().rpartition("/")[2].partition("+")[0]
    return f".{kind}" if kind.isalnum() and kind.isascii() and len(kind) <= 8 else ".bin"  # noqa: PLR2004


async def _pieces(data: bytes) -> AsyncIterator[bytes]:
    for start in range(0, len(data), _PIECE_BYTES):
        yield data[start : start + _PIECE_BYTES]
