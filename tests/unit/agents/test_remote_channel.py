"""Channels to agents elsewhere: what is dialled are addresses that the guard has checked."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest

from hansard_server.agents.connections import Connections, Runtime
from hansard_server.agents.outgoing import (
    AddressRefused,
    AddressUnknown,
    OutgoingGuard,
    parse_rules,
)
from hansard_server.agents.outside import Outside, UnknownConnection
from hansard_server.agents.remote.channel import Options, metadata_of, open_channel
from tests.support.certificates import Authority

PUBLIC = "93.184.215.14"
NAMES: dict[str, Sequence[str]] = {
    "agents.example.com": [PUBLIC, "93.184.215.15"],
    "six.example.com": ["2606:2800::1"],
    "inside.example.com": ["10.0.0.5"],
    "loop.example.com": ["127.0.0.1"],
    "meta.example.com": ["169.254.169.254"],
    "mixed.example.com": [PUBLIC, "192.168.1.1"],
    "mapped.example.com": ["::ffff:10.0.0.5"],
    "tunnel.example.com": ["2002:a00:5::1"],
    "zone.example.com": ["fe80::1%eth0"],
    "evil.com": [PUBLIC],
    "localhost": ["127.0.0.1"],
}


class Dialled(Exception):  # noqa: N818 - reads as what happened
    """A channel would have been opened."""


class Dialler:
    """Opens nothing, and keeps what it should have opened."""

    def __init__(self) -> None:
        self.target = ""
        self.secure = False
        self.options: dict[str, Any] = {}

    def __call__(
        self, target: str, credentials: grpc.ChannelCredentials | None, options: Options
    ) -> grpc.aio.Channel:
        self.target, self.secure = target, credentials is not None
        self.options = dict(options)
        raise Dialled


def resolve(names: Mapping[str, Sequence[str]]) -> Any:
    async def look_up(host: str, port: int) -> Sequence[str]:
        assert port
        if host not in names:
            raise socket.gaierror
        return names[host]

    return look_up


async def call(url: str, allow: str) -> Dialler:
    """Call the runtime that an agent names."""
    dialler = Dialler()
    outside = Outside.of(Connections(), parse_rules(allow), resolve=resolve(NAMES))
    try:
        async with open_channel(
            outside.guard, outside.runtime(url), message_max_bytes=1_000, dial=dialler
        ):
            raise AssertionError
    except Dialled:
        return dialler


@pytest.mark.parametrize(
    "url",
    [
        *("grpcs://inside.example.com", "grpcs://loop.example.com", "grpcs://meta.example.com"),
        *("grpcs://mixed.example.com", "grpcs://mapped.example.com", "grpcs://tunnel.example.com"),
        *("grpcs://zone.example.com", "grpcs://evil.com", "grpcs://localhost", "grpcs://127.0.0.1"),
        *("grpcs://2130706433", "grpcs://0x7f000001", "grpcs://127.1", "grpcs://[::1]"),
        *("grpcs://[::ffff:10.0.0.5]", "grpcs://agents.example.com:444", "unix:///run/x.sock"),
        *("grpcs://agents.example.com@evil.com", "dns:///evil.com", "xds:///evil.com", "evil.com"),
    ],
)
async def test_what_is_not_on_the_list_is_not_dialled(url: str) -> None:
    with pytest.raises((AddressRefused, UnknownConnection)):
        await call(url, "*.example.com")


async def test_addresses_are_dialled_and_the_name_is_what_the_certificate_is_for() -> None:
    dialled = await call("grpcs://Agents.Example.com.", "*.example.com")
    assert dialled.target == f"ipv4:{PUBLIC}:443,93.184.215.15:443"
    assert dialled.secure
    assert dialled.options["grpc.default_authority"] == "agents.example.com:443"
    assert dialled.options["grpc.enable_http_proxy"] == 0


async def test_certificate_that_is_the_addresss_and_not_the_names_is_refused(
    tmp_path: Path,
) -> None:
    authority = Authority("authority")
    issued = authority.issue()
    (tmp_path / "ca.pem").write_bytes(authority.certificate)
    server = grpc.aio.server()
    credentials = grpc.ssl_server_credentials([(issued.key, issued.certificate)])
    port = server.add_secure_port("127.0.0.1:0", credentials)
    await server.start()
    try:
        for host, ends in (("127.0.0.1", "READY"), ("loop.example.com", "TRANSIENT_FAILURE")):
            runtime = Runtime(url=f"grpcs://{host}:{port}", ca_file=tmp_path / "ca.pem")
            guard = OutgoingGuard(parse_rules("127.0.0.0/8:*"), resolve=resolve(NAMES))
            async with open_channel(guard, runtime, message_max_bytes=1_000) as channel:
                assert await settled(channel) == ends
    finally:
        await server.stop(0)


async def settled(channel: grpc.aio.Channel) -> str:
    """Return what becomes of the first attempt to connect."""
    async with asyncio.timeout(60):
        while True:
            state = channel.get_state(try_to_connect=True)
            if state.name in {"READY", "TRANSIENT_FAILURE"}:
                return str(state.name)
            await channel.wait_for_state_change(state)


async def test_without_tls_only_when_the_url_says_so() -> None:
    dialled = await call("grpc://six.example.com:50051", "six.example.com:50051")
    assert (dialled.target, dialled.secure) == ("ipv6:[2606:2800::1]:50051", False)


async def test_name_without_an_address_is_unknown() -> None:
    with pytest.raises(AddressUnknown):
        await call("grpcs://nobody.example.com", "*.example.com")


def test_only_a_runtime_of_the_settings_has_a_token() -> None:
    known = Connections(runtimes={"mine": Runtime(url="grpcs://agents.example.com", token="hush")})
    outside = Outside.of(known, parse_rules("*"))
    assert metadata_of(outside.runtime("mine")) == (("authorization", "Bearer hush"),)
    assert metadata_of(outside.runtime("grpcs://agents.example.com")) == ()
    assert "hush" not in repr(outside.runtime("mine"))
