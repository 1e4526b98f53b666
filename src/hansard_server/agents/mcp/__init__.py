"""Tools of MCP servers, by the official SDK: an extra, imported when an agent has such a tool."""
