"""`hansard gateway`: a gateway on its own, in front of a server anywhere."""

from __future__ import annotations

import asyncio
import signal
from dataclasses import dataclass
from pathlib import Path

import grpc
import uvloop

from hansard_gateway.serving import Gateway, serve_until
from hansard_gateway.settings import Options
from hansard_gateway.sockets import listen

_SIGNALS = (signal.SIGTERM, signal.SIGINT)


@dataclass(frozen=True, slots=True, kw_only=True)
class Tls:
    """How the server is reached over TLS.

    Attributes:
        ca: authorities that the server's certificate must be of; None: the machine's.
        certificate: the gateway's own, for servers that ask for one.
        key: the certificate's private key.
    """

    ca: Path | None = None
    certificate: Path | None = None
    key: Path | None = None

    def credentials(self) -> grpc.ChannelCredentials:
        """Return them as grpc takes them. Raises OSError."""
        return grpc.ssl_channel_credentials(
            root_certificates=self.ca.read_bytes() if self.ca else None,
            private_key=self.key.read_bytes() if self.key else None,
            certificate_chain=self.certificate.read_bytes() if self.certificate else None,
        )


def serve(
    target: str,
    host: str,
    port: int,
    options: Options,
    *,
    tls: Tls | None = None,
    certificate: tuple[str, str] | None = None,
    ready: str = "",
) -> None:
    """Serve until a signal comes. Raises OSError.

    `certificate`: files with a certificate and its key, for HTTPS. `ready`: printed once it
    listens, with {port}.
    """
    credentials = tls.credentials() if tls else None
    listener = listen(host, port)
    if ready:
        print(ready.format(port=listener.getsockname()[1]), flush=True)  # noqa: T201 - for people
    gateway = Gateway(listener, target, options, credentials=credentials, certificate=certificate)
    uvloop.run(_run(gateway))


async def _run(gateway: Gateway) -> None:
    loop, ended = asyncio.get_running_loop(), asyncio.Event()
    for number in _SIGNALS:
        loop.add_signal_handler(number, ended.set)
    await serve_until(gateway, ended)
