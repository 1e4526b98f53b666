"""Channels to servers of agents: to addresses that the guard has checked, as the settings say."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any

import grpc
import grpc.aio

from hansard_server.agents.connections import Runtime
from hansard_server.agents.outgoing import OutgoingGuard, Url, parse_url
from hansard_server.agents.outside import RUNTIME_SCHEMES

Options = Sequence[tuple[str, Any]]
Dial = Callable[[str, grpc.ChannelCredentials | None, Options], grpc.aio.Channel]
"""Returns a channel to a target of addresses; without credentials in the clear."""


def dial_by_grpc(
    target: str, credentials: grpc.ChannelCredentials | None, options: Options
) -> grpc.aio.Channel:
    """Return a channel of grpc's own."""
    if credentials is None:
        return grpc.aio.insecure_channel(target, options=list(options))
    return grpc.aio.secure_channel(target, credentials, options=list(options))


@asynccontextmanager
async def open_channel(
    guard: OutgoingGuard, runtime: Runtime, *, message_max_bytes: int, dial: Dial = dial_by_grpc
) -> AsyncIterator[grpc.aio.Channel]:
    """Give a channel to the runtime, which may not be connected yet.

    Raises AddressRefused, AddressUnknown, and OSError when the file of authorities can't be read.
    """
    url = parse_url(runtime.url, RUNTIME_SCHEMES)
    addresses = await guard.addresses(url.host, url.port)
    credentials = None
    if url.scheme == "grpcs":
        roots = None
        if runtime.ca_file is not None:
            roots = await asyncio.to_thread(runtime.ca_file.read_bytes)
        credentials = grpc.ssl_channel_credentials(root_certificates=roots)
    channel = dial(_target(addresses, url.port), credentials, _options(url, message_max_bytes))
    try:
        yield channel
    finally:
        await channel.close()


def metadata_of(runtime: Runtime) -> tuple[tuple[str, str], ...]:
    """Return what a call says of who makes it."""
    token = runtime.token.get_secret_value()
    return (("authorization", f"Bearer {token}"),) if token else ()


def _target(addresses: Sequence[str], port: int) -> str:
    # Names would be resolved again, by grpc. One target holds addresses of one family.
    six = ":" in addresses[0]
    if six:
        return "ipv6:" + ",".join(f"[{address}]:{port}" for address in addresses if ":" in address)
    return "ipv4:" + ",".join(f"{address}:{port}" for address in addresses if ":" not in address)


def _options(url: Url, message_max_bytes: int) -> Options:
    return (
        # The certificate is the name's, not that of the address.
        ("grpc.default_authority", url.authority),
        ("grpc.max_receive_message_length", message_max_bytes),
        ("grpc.max_send_message_length", -1),
        ("grpc.enable_http_proxy", 0),
        # What is done again, and when, is decided where it is known what was stored.
        ("grpc.enable_retries", 0),
        ("grpc.service_config_disable_resolution", 1),
        ("grpc.use_local_subchannel_pool", 1),
    )
