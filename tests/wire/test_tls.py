"""TLS and mutual TLS: who gets in, and certificates that change while the server runs."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import grpc
import grpc.aio
import pytest
from structlog.testing import capture_logs

from hansard.v1 import (
    agent_service_pb2,
    agent_service_pb2_grpc,
    event_service_pb2,
    event_service_pb2_grpc,
    session_service_pb2,
    session_service_pb2_grpc,
)
from hansard_server.app import Server
from hansard_server.config import ConfigurationMistake, Settings, load
from hansard_server.stores import CannotStart
from tests.support.certificates import Authority, Issued, replace
from tests.support.databases import Databases
from tests.support.server import failure, make_settings
from tests.wire.conftest import agent_request
from tests.wire.test_serve import hansard

RELOADED = "certificates reloaded"
KEPT = "certificates not reloaded, the old ones stay"


@pytest.fixture
def secure(databases: Databases, tmp_path: Path) -> Settings:
    """Give settings of a server on SQLite that has no certificates yet."""
    return make_settings(tmp_path / "data", databases.migrated("sqlite"))


@asynccontextmanager
async def serving(settings: Settings, **tls: object) -> AsyncIterator[str]:
    server = await Server.start(settings.model_copy(update=tls))
    try:
        yield server.address
    finally:
        await server.stop()


@asynccontextmanager
async def connect(
    address: str, authority: Authority, client: Issued | None = None
) -> AsyncIterator[grpc.aio.Channel]:
    credentials = grpc.ssl_channel_credentials(
        authority.certificate, client and client.key, client and client.certificate
    )
    options = [("grpc.use_local_subchannel_pool", 1)]
    async with grpc.aio.secure_channel(address, credentials, options=options) as channel:
        yield channel


async def ask(
    address: str, authority: Authority, client: Issued | None = None
) -> grpc.StatusCode | None:
    """Make one call over a new connection; None when it was answered."""
    async with connect(address, authority, client) as channel:
        stub = agent_service_pb2_grpc.AgentServiceStub(channel)
        try:
            await stub.ListAgents(agent_service_pb2.ListAgentsRequest(), timeout=30)
        except grpc.aio.AioRpcError as error:
            return error.code()
    return None


async def test_only_clients_that_know_the_authority_connect(
    secure: Settings, tmp_path: Path
) -> None:
    ours, other = Authority("ours"), Authority("other")
    async with serving(secure, **ours.issue().write(tmp_path)) as address:
        assert await ask(address, ours) is None
        assert await ask(address, other) is grpc.StatusCode.UNAVAILABLE
        async with grpc.aio.insecure_channel(address) as plain:
            stub = agent_service_pb2_grpc.AgentServiceStub(plain)
            refused = await failure(
                stub.ListAgents(agent_service_pb2.ListAgentsRequest(), timeout=30)
            )
        assert refused.code is grpc.StatusCode.UNAVAILABLE


async def test_mutual_tls_asks_every_client_for_a_certificate(
    secure: Settings, tmp_path: Path
) -> None:
    ours, clients, strangers = Authority("ours"), Authority("clients"), Authority("strangers")
    client_ca = tmp_path / "clients.pem"
    client_ca.write_bytes(clients.certificate)
    tls = {**ours.issue().write(tmp_path), "tls_client_ca": client_ca}
    async with serving(secure, **tls) as address:
        assert await ask(address, ours, clients.issue("app")) is None
        assert await ask(address, ours) is grpc.StatusCode.UNAVAILABLE
        assert await ask(address, ours, strangers.issue()) is grpc.StatusCode.UNAVAILABLE

        # Whom the server trusts changes as its own certificate does.
        with capture_logs() as logs:
            replace(client_ca, strangers.certificate)
            assert await ask(address, ours, strangers.issue()) is None
            assert await ask(address, ours, clients.issue("app")) is grpc.StatusCode.UNAVAILABLE
        assert [entry["event"] for entry in logs if "certificates" in entry["event"]] == [RELOADED]


async def test_new_connection_sees_new_certificates_while_a_stream_goes_on(
    secure: Settings, tmp_path: Path
) -> None:
    old, new = Authority("old"), Authority("new")
    async with (
        serving(secure, **old.issue().write(tmp_path)) as address,
        connect(address, old) as channel,
    ):
        agents = agent_service_pb2_grpc.AgentServiceStub(channel)
        sessions = session_service_pb2_grpc.SessionServiceStub(channel)
        events = event_service_pb2_grpc.EventServiceStub(channel)
        await agents.CreateAgent(agent_request(key="a"))
        await sessions.CreateSession(
            session_service_pb2.CreateSessionRequest(agent_key="a", key="s", name="S")
        )
        watch = events.WatchEvents(
            event_service_pb2.WatchEventsRequest(agent_key="a", session_key="s")
        )
        assert (await anext(aiter(watch))).HasField("caught_up")

        new.issue().write(tmp_path)
        assert await ask(address, new) is None
        assert await ask(address, old) is grpc.StatusCode.UNAVAILABLE
        await events.AppendEvents(
            event_service_pb2.AppendEventsRequest(
                agent_key="a",
                session_key="s",
                events=[{"custom": {"custom_type": "org.example.note", "data_json": "{}"}}],
            )
        )
        assert (await anext(aiter(watch))).event.sequence == 1
        watch.cancel()


async def test_bad_files_at_a_reload_leave_the_old_ones(secure: Settings, tmp_path: Path) -> None:
    ours, later = Authority("ours"), Authority("later")
    files = ours.issue().write(tmp_path)
    async with serving(secure, **files) as address:
        with capture_logs() as logs:
            for content in (b"no certificate", later.issue().certificate):
                replace(files["tls_certificate"], content)
                assert await ask(address, ours) is None
                assert await ask(address, ours) is None
            files["tls_certificate"].unlink()
            assert await ask(address, ours) is None
            assert await ask(address, ours) is None
        kept = [entry["error"] for entry in logs if entry["event"] == KEPT]
        assert len(kept) == 3  # each once
        assert "holds no certificate" in kept[0]
        assert "is not the key of" in kept[1]
        assert "No such file" in kept[2]

        later.issue().write(tmp_path)
        assert await ask(address, later) is None


async def test_files_are_looked_at_when_nobody_connects(
    secure: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hansard_server.servicers.tls._WATCH_INTERVAL_S", 0.01)
    ours = Authority("ours")
    files = ours.issue().write(tmp_path)
    with capture_logs() as logs:
        async with serving(secure, **files), asyncio.timeout(30):
            replace(files["tls_certificate"], b"no certificate")
            while KEPT not in [entry["event"] for entry in logs]:  # noqa: ASYNC110 - no event to wait for
                await asyncio.sleep(0.01)


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (
            {"tls_certificate": b"nothing"},
            "tls_certificate: {tls_certificate} holds no certificate",
        ),
        ({"tls_key": b"nothing"}, "tls_key: {tls_key} holds no private key"),
        ({"tls_key": Authority("x").issue().key}, "tls_key: {tls_key} is not the key of"),
        ({"tls_client_ca": b"nothing"}, "tls_client_ca: {tls_client_ca} holds no certificates"),
        ({"tls_client_ca": None}, "tls_client_ca: {tls_client_ca}: No such file"),
        ({"tls_key": None}, "tls_key: {tls_key}: No such file"),
    ],
)
async def test_bad_files_at_the_start_are_said_in_one_line(
    secure: Settings, tmp_path: Path, spoil: dict[str, bytes | None], words: str
) -> None:
    authority = Authority("ours")
    files = authority.issue().write(tmp_path)
    files["tls_client_ca"] = tmp_path / "clients.pem"
    files["tls_client_ca"].write_bytes(authority.certificate)
    for name, content in spoil.items():
        if content is None:
            files[name].unlink()
        else:
            files[name].write_bytes(content)
    with pytest.raises((ConfigurationMistake, CannotStart)) as raised:
        await Server.start(secure.model_copy(update=files))
    assert words.format(**files) in str(raised.value)
    assert "\n" not in str(raised.value)


def test_encrypted_key_is_refused_without_asking_for_a_passphrase(tmp_path: Path) -> None:
    from cryptography.hazmat.primitives import serialization as pem  # noqa: PLC0415

    issued = Authority("ours").issue()
    files = issued.write(tmp_path)
    key = pem.load_pem_private_key(issued.key, None)
    files["tls_key"].write_bytes(
        key.private_bytes(
            pem.Encoding.PEM, pem.PrivateFormat.PKCS8, pem.BestAvailableEncryption(b"x")
        )
    )
    flags = [f"--{name.replace('_', '-')}={path}" for name, path in files.items()]
    flags += ["--insecure", f"--data-dir={tmp_path / 'data'}"]
    ended = hansard("serve", "--listen=127.0.0.1:0", *flags)
    assert ended.returncode == 2
    assert ended.stderr == (
        "hansard: tls_key: the key is encrypted; write it without a passphrase\n"
    )


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ({"tls_certificate": "a.pem"}, "tls_certificate and tls_key go together"),
        ({"tls_key": "a.key"}, "tls_certificate and tls_key go together"),
        ({"tls_client_ca": "ca.pem"}, "tls_client_ca needs tls_certificate"),
    ],
)
def test_half_of_the_settings_is_a_mistake(flags: dict[str, str], words: str) -> None:
    with pytest.raises(ConfigurationMistake) as raised:
        load(flags)
    assert str(raised.value).startswith(words)
