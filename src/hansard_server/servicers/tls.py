"""The server's certificates: read from files, checked before they are used, and read again when the
files change. A new connection gets the new ones; connections that are open keep what they have.
"""

from __future__ import annotations

import asyncio
import ssl
import threading
from pathlib import Path

import grpc
import structlog

from hansard_server.domain.values import dataclass

_log = structlog.get_logger("hansard.tls")

_WATCH_INTERVAL_S = 10.0
"""Files that nobody connects to see are looked at this often, so that a bad one is logged soon."""

# Of each file: inode, size, time of change.
_State = tuple[tuple[int, int, int], ...]


class BadCertificate(Exception):  # noqa: N818 - reads as what it is
    """The files can't be used; the message is one line for the operator, and holds no key."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CertificateFiles:
    """PEM files.

    Attributes:
        certificate: the server's certificate, and those between it and its authority.
        key: the certificate's private key, not encrypted.
        client_ca: authorities of clients; with them every client must show a certificate.
    """

    certificate: Path
    key: Path
    client_ca: Path | None = None

    @property
    def paths(self) -> tuple[Path, ...]:
        """The files that there are."""
        files = (self.certificate, self.key, self.client_ca)
        return tuple(path for path in files if path is not None)


class Certificates:
    """What a listener shows and trusts. grpc asks for it before each handshake, in its threads."""

    def __init__(self, files: CertificateFiles) -> None:
        """Read the files. Raises BadCertificate."""
        self._files = files
        self._lock = threading.Lock()
        self._refused: _State | None = None
        try:
            self._used = _look_at(files)
            self._initial = _read(files)
        except OSError as error:
            raise BadCertificate(_words(files, error)) from None
        self._next: grpc.ServerCertificateConfiguration | None = None

    def credentials(self) -> grpc.ServerCredentials:
        """Return what one secure port is opened with."""
        return grpc.dynamic_ssl_server_credentials(
            self._initial,
            self._take_change,  # type: ignore[arg-type] # None, for no change, is what grpc names
            require_client_authentication=self._files.client_ca is not None,
        )

    def refresh(self) -> None:
        """Read files that have changed. Bad ones are logged, once, and what was read stays."""
        with self._lock:
            self._refresh()

    async def watch(self) -> None:
        """Refresh for ever, every few seconds."""
        while True:
            await asyncio.sleep(_WATCH_INTERVAL_S)
            await asyncio.to_thread(self.refresh)

    def _take_change(self) -> grpc.ServerCertificateConfiguration | None:
        with self._lock:
            self._refresh()
            changed, self._next = self._next, None
            return changed

    def _refresh(self) -> None:
        try:
            found = _look_at(self._files)
            if found in (self._used, self._refused):
                return
            configuration = _read(self._files)
            if _look_at(self._files) != found:
                # Somebody is at it: the next look sees the whole.
                return
        except (OSError, BadCertificate) as error:
            self._refuse(error)
            return
        self._used, self._refused, self._next = found, None, configuration
        _log.info("certificates reloaded", files=[str(path) for path in self._files.paths])

    def _refuse(self, error: OSError | BadCertificate) -> None:
        try:
            state = _look_at(self._files)
        except OSError:
            state = ()
        if state != self._refused:
            words = _words(self._files, error) if isinstance(error, OSError) else str(error)
            _log.error("certificates not reloaded, the old ones stay", error=words)
        self._refused = state


def _look_at(files: CertificateFiles) -> _State:
    stats = [path.stat() for path in files.paths]
    return tuple((stat.st_ino, stat.st_size, stat.st_mtime_ns) for stat in stats)


def _read(files: CertificateFiles) -> grpc.ServerCertificateConfiguration:
    """Return what the files hold. Raises BadCertificate, OSError."""
    key, chain = files.key.read_bytes(), files.certificate.read_bytes()
    authorities = None if files.client_ca is None else files.client_ca.read_bytes()
    _check(files)
    return grpc.ssl_server_certificate_configuration([(key, chain)], authorities)


def _check(files: CertificateFiles) -> None:
    """Raise BadCertificate for what grpc would refuse with no word of why."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    try:
        context.load_cert_chain(files.certificate, files.key, password=_no_password)
    except ssl.SSLError as error:
        raise BadCertificate(_mismatch(files, error)) from None
    if files.client_ca is None:
        return
    try:
        context.load_verify_locations(cafile=files.client_ca)
    except ssl.SSLError:
        raise BadCertificate(f"tls_client_ca: {files.client_ca} holds no certificates") from None


def _no_password() -> str:
    raise BadCertificate("tls_key: the key is encrypted; write it without a passphrase")


def _mismatch(files: CertificateFiles, error: ssl.SSLError) -> str:
    if error.reason == "KEY_VALUES_MISMATCH":
        return f"tls_key: {files.key} is not the key of {files.certificate}"
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_verify_locations(cafile=files.certificate)
    except ssl.SSLError:
        return f"tls_certificate: {files.certificate} holds no certificate"
    return f"tls_key: {files.key} holds no private key"


def _words(files: CertificateFiles, error: OSError) -> str:
    settings = {files.certificate: "tls_certificate", files.key: "tls_key"}
    path = Path(str(error.filename)) if error.filename else files.certificate
    return f"{settings.get(path, 'tls_client_ca')}: {path}: {error.strerror}"
