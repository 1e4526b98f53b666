"""The file of connections: what it may say, and that its secrets stay where they are."""

from __future__ import annotations

from pathlib import Path

import pytest

from hansard_server.agents.connections import BadConnections, load_connections

GOOD = """
[mcp_servers.search]
url = "https://mcp.example.com/mcp"
headers = { Authorization = "Bearer hush" }

[mcp_servers.files]
command = "mcp-files"
args = ["--root", "/srv"]
env = { TOKEN = "hush" }

[runtimes.support]
url = "grpcs://agents.example.com"
token = "hush"
"""


def test_file_is_read(tmp_path: Path) -> None:
    path = tmp_path / "connections.toml"
    path.write_text(GOOD, encoding="utf-8")
    known = load_connections(path)
    assert known.mcp_servers["search"].headers["Authorization"].get_secret_value() == "Bearer hush"
    assert known.mcp_servers["files"].args == ("--root", "/srv")
    assert known.runtimes["support"].url == "grpcs://agents.example.com"
    assert "hush" not in repr(known)


@pytest.mark.parametrize(
    "text",
    [
        "not toml",
        '[mcp_servers.x]\nurl = "https://hush@example.com/"',
        '[mcp_servers.x]\nurl = "https://example.com/"\ncommand = "x"',
        "[mcp_servers.x]\nargs = []",
        '[mcp_servers.x]\ncommand = "x"\nheaders = { a = "hush" }',
        '[mcp_servers.x]\nurl = "https://example.com/"\nenv = { a = "hush" }',
        '[mcp_servers."a/b"]\ncommand = "x"',
        '[mcp_servers.x]\ncommand = "x"\nsecret = "hush"',
        '[runtimes.x]\nurl = "http://example.com/"',
        '[runtimes.x]\nurl = "grpc://example.com"',
        '[others.x]\nurl = "hush"',
    ],
)
def test_file_that_can_not_be_used_is_refused_without_its_secrets(
    tmp_path: Path, text: str
) -> None:
    path = tmp_path / "connections.toml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(BadConnections) as refused:
        load_connections(path)
    assert str(path) in str(refused.value)
    assert "hush" not in str(refused.value)


def test_file_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadConnections):
        load_connections(tmp_path / "nothing.toml")
