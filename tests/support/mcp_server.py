"""A real MCP server, made with the official SDK, as a process of its own.

`python -m tests.support.mcp_server NOTES [--port N] [--manner M]` serves streamable HTTP, or
stdio without a port. What it does it notes in the file NOTES, a line each. Manners: `list` dies if
it is asked for its tools, `silent` does not answer then, `older` speaks only the protocol that was
there before 2026.
"""

from __future__ import annotations

import argparse
import os
import signal
from pathlib import Path
from typing import Any

import anyio
import anyio.lowlevel
import mcp_types
from mcp.server.mcpserver import Context, MCPServer
from mcp.server.mcpserver.exceptions import ToolError
from mcp.shared.exceptions import MCPError

PNG = bytes.fromhex(
    "89504e470d0a1a0a0000000d4948445200000001000000010806000000"
    "1f15c4890000000d49444154789c6360606060000000050001a5f64540"
    "0000000049454e44ae426082"
)


def main() -> None:
    """Serve until killed."""
    parser = argparse.ArgumentParser()
    parser.add_argument("notes", type=Path)
    parser.add_argument("--port", type=int)
    parser.add_argument("--manner", default="")
    arguments = parser.parse_args()
    notes = Notes(arguments.notes)
    server = make_server(notes, arguments.manner)
    if arguments.manner == "older":
        forget_the_new(server)
    notes.add(f"pid {os.getpid()}")
    if arguments.port is None:
        server.run("stdio")
    else:
        server.run("streamable-http", port=arguments.port)


class Notes:
    """The file in which the server says what it does."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def add(self, line: str) -> None:
        """Write a line, all at once."""
        with self._path.open("a", encoding="utf-8") as file:
            file.write(line + "\n")


class DyingServer(MCPServer):
    """A server that dies when it is asked for its tools, if it is to."""

    notes: Notes
    manner: str

    async def list_tools(self) -> list[mcp_types.Tool]:
        self.notes.add("list")
        if self.manner == "list":
            die()
        if self.manner == "silent":
            await anyio.sleep_forever()
        return await super().list_tools()


def forget_the_new(server: MCPServer) -> None:
    """Answer as servers do that know nothing of what came in 2026."""

    async def unknown(*_: Any) -> Any:
        await anyio.lowlevel.checkpoint()
        raise MCPError(code=mcp_types.METHOD_NOT_FOUND, message="Method not found")

    server._lowlevel_server.add_request_handler("server/discover", mcp_types.RequestParams, unknown)


def die() -> None:
    """End this process as kill -9 does."""
    os.kill(os.getpid(), signal.SIGKILL)


def make_server(notes: Notes, manner: str) -> MCPServer:  # noqa: C901 - its tools stand in it
    """Return the server with its tools."""
    server = DyingServer("tests", log_level="ERROR")
    server.notes, server.manner = notes, manner

    @server.tool()
    def add(a: int, b: int) -> int:
        """Adds two numbers."""
        notes.add(f"add {a} {b}")
        return a + b

    @server.tool(structured_output=False)
    def echo(value: Any) -> str:
        """Says what it was given."""
        notes.add("echo")
        return repr(value)

    @server.tool()
    async def wait() -> str:
        """Waits for ever, unless it is cancelled."""
        notes.add("wait began")
        try:
            await anyio.sleep_forever()
        except anyio.get_cancelled_exc_class():
            notes.add("wait cancelled")
            raise
        return "never"

    @server.tool()
    def refuse() -> str:
        """Fails."""
        notes.add("refuse")
        raise ToolError("The library is closed on Mondays.")

    @server.tool(structured_output=False)
    def much(size: int) -> str:
        """Says a lot."""
        return "ü" * size

    @server.tool(structured_output=False)
    def kill() -> str:
        """Kills its own server."""
        notes.add("kill")
        die()
        return "never"

    @server.tool(structured_output=False)
    def picture() -> list[mcp_types.ContentBlock]:
        """Shows a picture, a sound, a text and a link."""
        encoded = __import__("base64").b64encode
        return [
            mcp_types.TextContent(text="Here they are."),
            mcp_types.ImageContent(data=encoded(PNG).decode(), mime_type="image/png"),
            mcp_types.EmbeddedResource(
                resource=mcp_types.BlobResourceContents(
                    uri="file:///notes/data.bin",
                    mime_type="application/octet-stream",
                    blob=encoded(b"\0\1\2").decode(),
                )
            ),
            mcp_types.EmbeddedResource(
                resource=mcp_types.TextResourceContents(
                    uri="file:///notes/a.txt", mime_type="text/plain", text="A note."
                )
            ),
            mcp_types.ResourceLink(name="more", uri="https://example.com/more"),
        ]

    @server.tool(structured_output=False)
    async def grow(ctx: Context) -> str:
        """Gives the server another tool, and says so."""
        server.add_tool(grown, name="grown")
        await ctx.session.send_tool_list_changed()
        return "There is another tool."

    @server.tool(structured_output=False)
    async def rename(ctx: Context) -> str:
        """Describes another tool anew, and says so."""
        server.remove_tool("add")
        server.add_tool(lambda a, b: a + b, name="add", description="Adds, and says it anew.")
        await ctx.session.send_tool_list_changed()
        return "It says something else."

    return server


def grown() -> str:
    """The other tool."""
    return "I am new."


if __name__ == "__main__":
    main()
