"""Outgoing addresses: what is not on the list is refused before a connection is opened.

Names are resolved and connections are opened by the tests' own: nothing leaves the machine.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager

import httpcore2
import pytest

from hansard.v1 import agent_pb2
from hansard_server.agents.api import ToolError
from hansard_server.agents.connections import Connections, McpServer
from hansard_server.agents.mcp.http import GuardedBackend
from hansard_server.agents.mcp.toolbox import McpToolbox
from hansard_server.agents.outgoing import (
    AddressRefused,
    AddressUnknown,
    BadAddress,
    OutgoingGuard,
    parse_rules,
    parse_url,
)
from hansard_server.agents.outside import Outside, UnknownConnection

PUBLIC = "93.184.215.14"
SCHEMES = {"http": 80, "https": 443}


class Resolver:
    """Names as a test has them; it keeps what it was asked."""

    def __init__(self, names: Mapping[str, Sequence[str] | Sequence[Sequence[str]]]) -> None:
        self.names = dict(names)
        self.asked: list[str] = []

    async def __call__(self, host: str, port: int) -> Sequence[str]:
        assert port
        self.asked.append(host)
        found = self.names.get(host)
        if found is None:
            raise socket.gaierror
        # A list of lists answers differently each time.
        if found and not isinstance(found[0], str):
            return list(found[min(self.asked.count(host), len(found)) - 1])
        return [str(address) for address in found]


class Connector(httpcore2.AsyncNetworkBackend):
    """Opens nothing, and keeps what it should have opened."""

    def __init__(self) -> None:
        self.opened: list[tuple[str, int]] = []

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,  # noqa: ARG002, ASYNC109 - the library's signature
        local_address: str | None = None,  # noqa: ARG002
        socket_options: Iterable[httpcore2.SOCKET_OPTION] | None = None,  # noqa: ARG002
    ) -> httpcore2.AsyncNetworkStream:
        self.opened.append((host, port))
        raise httpcore2.ConnectError("this test opens no connections")

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)


async def use(url: str, allow: str, names: Mapping[str, Sequence[str]]) -> tuple[str, Connector]:
    """Use a tool of an MCP server at the URL; return what it said, and what was to be opened."""
    connector = Connector()
    outside = Outside.of(Connections(), parse_rules(allow), resolve=Resolver(names))
    box = McpToolbox(outside, backend=GuardedBackend(outside.guard, connector))
    agent = agent_pb2.Agent(
        tool_configurations={"x": {"mcp": {"tool_id": "add", "server": url}}},
    )
    async with box.open(agent) as tools:
        context: object = None
        with pytest.raises(ToolError) as said:
            await tools["x"].run({}, context)
    await box.close()
    return str(said.value), connector


NAMES: dict[str, Sequence[str]] = {
    "mcp.example.com": [PUBLIC],
    "inside.example.com": ["10.0.0.5"],
    "loop.example.com": ["127.0.0.1"],
    "meta.example.com": ["169.254.169.254"],
    "mixed.example.com": [PUBLIC, "192.168.1.1"],
    "mapped.example.com": ["::ffff:127.0.0.1"],
    "six.example.com": ["::1"],
    "sixtofour.example.com": ["2002:7f00:1::1"],
    "teredo.example.com": ["2001:0:7f00:1::1"],
    "nat.example.com": ["64:ff9b::10.0.0.1"],
    "zone.example.com": ["fe80::1%eth0"],
    "unique.example.com": ["fd12::1"],
    "azure.example.com": ["168.63.129.16"],
    "evil.com": [PUBLIC],
    "localhost": ["127.0.0.1"],
    "example.com.evil.com": [PUBLIC],
    "shared.example.com": ["100.100.100.200"],
    "zero.example.com": ["0.0.0.0"],  # noqa: S104
    "many.example.com": ["239.1.1.1"],
}


@pytest.mark.parametrize(
    "url",
    [
        *(f"https://{name}/mcp" for name in NAMES if name != "mcp.example.com"),
        # Addresses in all their forms.
        *("https://127.0.0.1/", "https://2130706433/", "https://0x7f000001/", "https://0x7f.1/"),
        *("https://0177.0.0.1/", "https://127.1/", "https://127.0.0.1./", "https://0/"),
        *("https://[::1]/", "https://[::ffff:127.0.0.1]/", "https://[::ffff:7f00:1]/"),
        *("https://[::127.0.0.1]/", "https://[fe80::1%25eth0]/", "https://[fe80::1]/"),
        *("https://[64:ff9b::7f00:1]/", "https://[2002:7f00:1::]/", "https://10.0.0.1/"),
        *("https://169.254.169.254/latest/meta-data/", f"https://{PUBLIC}/"),
        # Another port, another scheme, and what programs read in different ways.
        *("https://mcp.example.com:8443/", "http://mcp.example.com/"),
        *("https://mcp.example.com@evil.com/", "https://evil.com#@mcp.example.com/"),
        *("https://mcp.example.com\\@evil.com/", "https://mcp.example.com:443@evil.com/"),
        *("https://evil.com?x=mcp.example.com", "https://mcp.example.com%2eevil.com/"),
        *(
            "https://\uff11\uff12\uff17.0.0.1/",
            "https://mcp.example.com:0x1bb/",
            "unix:///run/x.sock",
        ),
        *("https://mcp.example.com%00.evil.com/", "file:///etc/passwd", "https:///x", "//evil.com"),
        "https://mcp.example.com\t.evil.com/",
    ],
)
async def test_what_is_not_on_the_list_is_refused_before_a_connection_is_opened(url: str) -> None:
    said, connector = await use(url, "*.example.com", NAMES)
    assert connector.opened == []
    assert "can't be called" in said
    assert "10.0.0.5" not in said


@pytest.mark.parametrize(
    "host",
    [
        *("127.0.0.1", "2130706433", "0x7f000001", "0x7f.1", "0177.0.0.1", "127.1", "0", "::1"),
        *("::ffff:127.0.0.1", "fe80::1%eth0", "[::1]", "localhost", "LOCALHOST.", "10.0.0.5"),
        *("", ".", "a..b", "-a", "evil.com", "mcp.example.com\n", "mcp.example.com/"),
    ],
)
async def test_client_that_reads_a_url_in_its_own_way_is_refused_too(host: str) -> None:
    connector = Connector()
    guard = OutgoingGuard(parse_rules("*.example.com"), resolve=Resolver(NAMES))
    with pytest.raises(AddressRefused):
        await GuardedBackend(guard, connector).connect_tcp(host, 443)
    assert connector.opened == []


async def test_what_is_on_the_list_is_connected_to_by_its_address() -> None:
    _, connector = await use("https://MCP.Example.com./mcp", "*.example.com", NAMES)
    assert set(connector.opened) == {(PUBLIC, 443)}


@pytest.mark.parametrize(
    ("url", "allow", "opened"),
    [
        ("http://127.0.0.1:9000/", "127.0.0.1:9000", ("127.0.0.1", 9000)),
        ("http://inside.example.com:81/", "10.0.0.0/8:81", ("10.0.0.5", 81)),
        ("http://[::1]:9000/", "[::1]:9000", ("::1", 9000)),
        ("http://[::ffff:127.0.0.1]:9000/", "127.0.0.1:*", ("::ffff:7f00:1", 9000)),
        ("https://evil.com/", "*", (PUBLIC, 443)),
        (f"https://{PUBLIC}/", "93.184.0.0/16", (PUBLIC, 443)),
        ("https://nat.example.com/", "10.0.0.0/8", ("64:ff9b::a00:1", 443)),
    ],
)
async def test_ranges_that_are_not_public_are_called_when_they_are_on_the_list(
    url: str, allow: str, opened: tuple[str, int]
) -> None:
    _, connector = await use(url, allow, NAMES)
    assert set(connector.opened) == {opened}


async def test_every_name_does_not_mean_every_address() -> None:
    _, connector = await use("https://localhost/", "*:*", NAMES)
    assert connector.opened == []


async def test_name_that_changes_its_address_gains_nothing() -> None:
    resolver = Resolver({"mcp.example.com": [[PUBLIC], ["127.0.0.1"]]})
    guard = OutgoingGuard(parse_rules("mcp.example.com"), resolve=resolver)
    connector = Connector()
    backend = GuardedBackend(guard, connector)
    with pytest.raises(httpcore2.ConnectError):
        await backend.connect_tcp("mcp.example.com", 443)
    # It was looked up once, and that address was connected to; the next look is checked again.
    assert resolver.asked == ["mcp.example.com"]
    assert connector.opened == [(PUBLIC, 443)]
    with pytest.raises(AddressRefused):
        await backend.connect_tcp("mcp.example.com", 443)
    assert connector.opened == [(PUBLIC, 443)]


async def test_name_that_nothing_allows_is_not_even_looked_up() -> None:
    resolver = Resolver(NAMES)
    guard = OutgoingGuard(parse_rules("mcp.example.com"), resolve=resolver)
    with pytest.raises(AddressRefused):
        await guard.addresses("secret-words.evil.com", 443)
    assert resolver.asked == []


@pytest.mark.parametrize("found", [[], None, ["no address"]])
async def test_name_without_an_address_is_unknown(found: Sequence[str] | None) -> None:
    names = {} if found is None else {"mcp.example.com": found}
    guard = OutgoingGuard(parse_rules("mcp.example.com"), resolve=Resolver(names))
    with pytest.raises(AddressUnknown):
        await guard.addresses("mcp.example.com", 443)


async def test_without_a_list_nothing_is_called() -> None:
    with pytest.raises(AddressRefused):
        await OutgoingGuard(resolve=Resolver(NAMES)).addresses("mcp.example.com", 443)


async def test_no_file_is_called_as_a_socket() -> None:
    backend = GuardedBackend(OutgoingGuard(parse_rules("*:*")), Connector())
    with pytest.raises(AddressRefused):
        await backend.connect_unix_socket("/run/docker.sock")


@asynccontextmanager
async def answering(answer: bytes) -> AsyncIterator[tuple[int, list[bytes]]]:
    """Give the port of a server on loopback that answers all the same, and what it was asked."""
    asked: list[bytes] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        asked.append(await reader.readuntil(b"\r\n\r\n"))
        writer.write(answer)
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        yield server.sockets[0].getsockname()[1], asked


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
async def test_redirect_to_what_is_not_on_the_list_is_not_followed(status: int) -> None:
    async with answering(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n") as (forbidden, asked):
        answer = (
            f"HTTP/1.1 {status} Moved\r\nlocation: http://127.0.0.1:{forbidden}/mcp\r\n"
            "content-length: 0\r\nconnection: close\r\n\r\n"
        )
        async with answering(answer.encode()) as (port, first):
            url = f"http://127.0.0.1:{port}/mcp"
            outside = Outside.of(Connections(), parse_rules(f"127.0.0.1:{port}"))
            box = McpToolbox(outside)
            agent = agent_pb2.Agent(
                tool_configurations={"x": {"mcp": {"tool_id": "add", "server": url}}},
            )
            async with box.open(agent) as tools:
                assert "can't be used" in tools["x"].description
            await box.close()
        assert first
        assert asked == []


async def test_proxy_of_the_environment_is_not_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    async with answering(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n") as (proxy, asked):
        for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
            monkeypatch.setenv(name, f"http://127.0.0.1:{proxy}")
        _, connector = await use("http://mcp.example.com:80/", "mcp.example.com:80", NAMES)
        assert set(connector.opened) == {(PUBLIC, 80)}
        assert asked == []


async def test_server_of_the_settings_is_allowed_where_it_says_and_nowhere_else() -> None:
    known = Connections(mcp_servers={"mine": McpServer(url="http://127.0.0.1:9000/mcp")})
    outside = Outside.of(known, resolve=Resolver(NAMES))
    assert outside.mcp_server("mine").url == "http://127.0.0.1:9000/mcp"
    assert await outside.guard.addresses("127.0.0.1", 9000) == ("127.0.0.1",)
    with pytest.raises(AddressRefused):
        await outside.guard.addresses("127.0.0.1", 9001)
    with pytest.raises(UnknownConnection):
        outside.mcp_server("http://127.0.0.1:9001/mcp")


@pytest.mark.parametrize(
    "rules", ["10.0.0.0/33", "exa mple:x", "http://x", "*.", "-x", "a:0", "a:65536", "1.2.3", "[x]"]
)
def test_list_that_can_not_be_read_is_refused(rules: str) -> None:
    with pytest.raises(BadAddress):
        parse_rules(rules)


@pytest.mark.parametrize(
    ("text", "url"),
    [
        ("https://Example.com/a?b=c", "https://example.com:443/a?b=c"),
        ("http://[2606:2800::1]", "http://[2606:2800::1]:80"),
        ("http://1.2.3.4:65535/", "http://1.2.3.4:65535/"),
    ],
)
def test_url_is_read_in_one_way(text: str, url: str) -> None:
    assert str(parse_url(text, SCHEMES)) == url
