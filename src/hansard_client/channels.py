"""Where servers are and how they are connected to: addresses, keys, TLS, gRPC's own settings."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Any, Final

import grpc

DEFAULT_TARGET: Final = "127.0.0.1:50051"
DEFAULT_TIMEOUT_S: Final = 30.0
DEFAULT_PATIENCE_S: Final = 60.0

_LOOPBACK = ("127.", "localhost:", "localhost", "[::1]:", "unix:")
_OPTIONS: Mapping[str, Any] = {
    # A restarted server is found again within a second; grpc's own backoff grows to minutes.
    "grpc.initial_reconnect_backoff_ms": 100,
    "grpc.max_reconnect_backoff_ms": 1_000,
    # How long one attempt to connect may take: a far server needs several round trips for TLS.
    "grpc.min_reconnect_backoff_ms": 5_000,
    # A server whose machine is gone is noticed, also while a stream is silent. The server allows
    # a ping every 10 s.
    "grpc.keepalive_time_ms": 30_000,
    "grpc.keepalive_timeout_ms": 10_000,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Tls:
    """How the connection is encrypted, and who each side is. All of it in PEM.

    Attributes:
        root_certificates: whom the client believes; None: whom gRPC believes by itself.
        private_key: the client's own key, where the server asks for one.
        certificate_chain: the client's own certificate.
        server_name: the name that the server's certificate must have, if it is not the address.
    """

    root_certificates: bytes | None = None
    private_key: bytes | None = None
    certificate_chain: bytes | None = None
    server_name: str = ""

    def credentials(self) -> grpc.ChannelCredentials:
        """Return what gRPC wants of it. Raises ValueError when only half of a pair is given."""
        if (self.private_key is None) != (self.certificate_chain is None):
            raise ValueError("private_key and certificate_chain go together")
        return grpc.ssl_channel_credentials(
            self.root_certificates, self.private_key, self.certificate_chain
        )


class Endpoints:
    """The addresses of one service, one of them in use, and how to connect to each.

    Attributes:
        addresses: host:port, in the order in which they are tried.
        metadata: what goes with every call; None: nothing.
        credentials: of the channel; None: plain text.
    """

    def __init__(
        self,
        target: str | Sequence[str],
        *,
        api_key: str | None,
        tls: Tls | bool,
        options: Mapping[str, Any] | None,
    ) -> None:
        """Take one address, several with commas between, or a sequence of them."""
        given = target.split(",") if isinstance(target, str) else target
        self.addresses = tuple(address.strip() for address in given if address.strip())
        if not self.addresses:
            raise ValueError("target: no address is given")
        self.metadata = (("authorization", f"Bearer {api_key}"),) if api_key else None
        self._tls = Tls() if tls is True else tls or None
        self.credentials = self._tls.credentials() if self._tls else None
        self._options = dict(options or {})
        self._lock = threading.Lock()
        self._current = 0

    @property
    def current(self) -> str:
        """The address in use."""
        return self.addresses[self._current]

    def leave(self, address: str) -> bool:
        """Use the next address, if this is the one in use; tell whether another is in use now."""
        with self._lock:
            if self.current == address:
                self._current = (self._current + 1) % len(self.addresses)
            return self.current != address

    def options(self, address: str) -> list[tuple[str, Any]]:
        """Return gRPC's settings for a channel to the address."""
        options = {**_OPTIONS, "grpc.primary_user_agent": f"hansard-client/{_version()}"}
        if address.startswith(_LOOPBACK):
            # No proxy leads to this machine, whatever the environment names.
            options["grpc.enable_http_proxy"] = 0
        if self._tls and self._tls.server_name:
            options["grpc.ssl_target_name_override"] = self._tls.server_name
        return list((options | self._options).items())

    def __str__(self) -> str:
        return ", ".join(self.addresses)


def _version() -> str:
    try:
        return version("hansard")
    except PackageNotFoundError:
        return "0"
