"""Tools of MCP servers as agents have them: found in the server's listing, called by name."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping

import mcp_types
from mcp.client.session import ClientSession

from hansard_server.agents.api import Json, ToolContext, ToolError, ToolResult
from hansard_server.agents.json_text import dump_json, well_formed
from hansard_server.agents.mcp.connection import McpConnection, ServerFailed
from hansard_server.agents.mcp.results import to_tool_result
from hansard_server.agents.tool_schemas import check_schema
from hansard_server.domain.limits import MIB
from hansard_server.domain.values import dataclass

DESCRIPTION_MAX_CHARACTERS = 8_192
LISTING_MAX_TOOLS = 512
LISTING_MAX_BYTES = MIB
"""Descriptions and schemas of all tools of a server, as they are kept for a while."""
_LISTING_MAX_PAGES = 32
_UNKNOWN_TOOL = frozenset({mcp_types.INVALID_PARAMS, mcp_types.METHOD_NOT_FOUND})
NO_ARGUMENTS: Mapping[str, Json] = {"type": "object"}


@dataclass(frozen=True, slots=True)
class ListedTool:
    """A tool as its server lists it.

    Attributes:
        problem: why it can't be used; empty: it can.
    """

    description: str
    input_schema: Mapping[str, Json]
    problem: str = ""


Listing = Mapping[str, ListedTool]


async def list_tools(connection: McpConnection) -> Listing:
    """Return the server's tools by name. Raises ServerFailed."""
    return await connection.request(_list)


async def _list(session: ClientSession) -> Listing:
    found: dict[str, ListedTool] = {}
    cursor: str | None = None
    size = 0
    for _ in range(_LISTING_MAX_PAGES):
        page = await session.list_tools(
            params=mcp_types.PaginatedRequestParams(cursor=cursor) if cursor else None
        )
        for tool in page.tools:
            listed = found[tool.name] = _listed(tool)
            size += len(listed.description) + len(dump_json(listed.input_schema))
            if len(found) > LISTING_MAX_TOOLS or size > LISTING_MAX_BYTES:
                raise ServerFailed(
                    f"The server lists more than {LISTING_MAX_TOOLS} tools, or describes them in "
                    f"more than {LISTING_MAX_BYTES:,} bytes."
                )
        cursor = page.next_cursor
        if cursor is None:
            return found
    raise ServerFailed(f"The server's list of tools has more than {_LISTING_MAX_PAGES} pages.")


def _listed(tool: mcp_types.Tool) -> ListedTool:
    description = well_formed(tool.description or tool.title or tool.name)
    description = description[:DESCRIPTION_MAX_CHARACTERS]
    try:
        check_schema(tool.input_schema)
    except ValueError as error:
        # What is not kept takes no memory.
        return ListedTool(description, NO_ARGUMENTS, f"Its schema can't be used: {error}.")
    return ListedTool(description, tool.input_schema)


class McpTool:
    """A tool of a server, for one turn. It implements agents.api.Tool."""

    def __init__(
        self,
        tool_id: str,
        listed: ListedTool,
        connection: McpConnection,
        *,
        on_unknown: Callable[[], None],
    ) -> None:
        """Call by `connection`; `on_unknown` is called when the server seems to have changed."""
        self._tool_id = tool_id
        self._listed = listed
        self._connection = connection
        self._on_unknown = on_unknown

    @property
    def name(self) -> str:
        """What the tool is: `mcp:` and its name at the server."""
        return f"mcp:{self._tool_id}"

    @property
    def description(self) -> str:
        """What the server says of it."""
        return self._listed.description

    @property
    def input_schema(self) -> Mapping[str, Json]:
        """The form of the arguments, as the server lists it."""
        return self._listed.input_schema

    async def run(self, arguments: Mapping[str, Json], context: ToolContext) -> ToolResult:
        """Return the server's answer. Raises ToolError."""
        call = mcp_types.CallToolRequest(
            params=mcp_types.CallToolRequestParams(name=self._tool_id, arguments=dict(arguments))
        )
        try:
            result = await self._call(call)
        except ServerFailed as error:
            if error.code in _UNKNOWN_TOOL:
                self._on_unknown()
            raise ToolError(str(error)) from None
        return await to_tool_result(result, context.files, self._tool_id)

    async def _call(self, call: mcp_types.CallToolRequest) -> mcp_types.CallToolResult:
        async def ask(session: ClientSession) -> mcp_types.CallToolResult:
            # Not call_tool: it checks the answer by the server's own schema, without bounds.
            return await session.send_request(call, mcp_types.CallToolResult)

        try:
            return await self._connection.request(ask)
        except ServerFailed as error:
            if error.code != mcp_types.HEADER_MISMATCH:
                raise
        # Refused before it ran: this connection has not listed what goes into the headers.
        await list_tools(self._connection)
        return await self._connection.request(ask)


@dataclass(frozen=True, slots=True)
class UnusableTool:
    """A tool that can only say why it can't be used. It implements agents.api.Tool."""

    tool_id: str
    problem: str

    @property
    def name(self) -> str:
        """What the tool would be."""
        return f"mcp:{self.tool_id}"

    @property
    def description(self) -> str:
        """That it can't be used now."""
        return f"This tool can't be used now. {self.problem}"

    @property
    def input_schema(self) -> Mapping[str, Json]:
        """Any arguments: nothing is known of them."""
        return NO_ARGUMENTS

    async def run(self, arguments: Mapping[str, Json], context: ToolContext) -> Json:  # noqa: ARG002
        """Raise ToolError."""
        await asyncio.sleep(0)
        raise ToolError(f"The tool can't be used. {self.problem}")
