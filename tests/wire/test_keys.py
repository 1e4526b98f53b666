"""Keys and tokens through the wire: who is let in, for how long, and at which server."""

from __future__ import annotations

import asyncio
import json
import stat
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest
from google.protobuf.timestamp_pb2 import Timestamp
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from structlog.testing import capture_logs

from hansard.v1 import access_pb2, access_service_pb2, event_service_pb2, event_service_pb2_grpc
from hansard_server.access.credentials import make_secret
from hansard_server.app import Server
from hansard_server.config import Settings
from hansard_server.domain.clock import now_us
from hansard_server.domain.keys import make_api_key_id
from hansard_server.stores import CannotStart
from tests.support.access import (
    Metadata,
    Outcome,
    Place,
    Role,
    make,
    make_about,
    make_agent,
    make_key,
    make_place,
    read_admin_key,
    with_key,
)
from tests.support.databases import Databases
from tests.support.server import Running, failure, make_settings, open_channel, running_server

LIST = "/hansard.v1.AgentService/ListAgents"
CREATE = "/hansard.v1.AccessService/CreateApiKey"
REVOKE = "/hansard.v1.AccessService/RevokeApiKey"
ISSUE = "/hansard.v1.AccessService/IssueToken"
ADMINISTRATOR = (Role.ROLE_ADMINISTRATOR, "")
NOWHERE = Place("none")
CACHE_S = 0.5


def secure(folder: Path, url: str = "", **changes: object) -> Settings:
    return make_settings(folder, url, insecure=False, **changes)


@pytest.fixture
async def keyed(databases: Databases, tmp_path: Path) -> AsyncIterator[tuple[Running, Metadata]]:
    """Give a server on SQLite that asks for keys, and its administrator's."""
    settings = secure(tmp_path / "data", databases.migrated("sqlite"))
    async with running_server(settings) as running:
        yield running, with_key(read_admin_key(tmp_path / "data"))


@asynccontextmanager
async def replicas(url: str, *folders: Path, **changes: object) -> AsyncIterator[list[Running]]:
    """Give servers on one database that start at the same time."""
    servers = await asyncio.gather(
        *(Server.start(secure(folder, url, **changes)) for folder in folders)
    )
    async with AsyncExitStack() as stack:
        for server in servers:
            stack.push_async_callback(server.stop)
        channels = [
            await stack.enter_async_context(open_channel(server.address)) for server in servers
        ]
        yield [Running(*pair) for pair in zip(servers, channels, strict=True)]


async def revoke(channel: grpc.aio.Channel, by: Metadata, key_id: str) -> access_pb2.ApiKey:
    request = access_service_pb2.RevokeApiKeyRequest(api_key_id=key_id)
    revoked = await make(channel, REVOKE, request, by)
    assert revoked.reason == "OK", revoked
    return access_pb2.ApiKey.FromString(revoked.reply)


async def issue(channel: grpc.aio.Channel, by: Metadata) -> str:
    issued = await make_about(channel, ISSUE, NOWHERE, by)
    assert issued.reason == "OK", issued
    response = access_service_pb2.IssueTokenResponse.FromString(issued.reply)
    assert 1_700 < response.expires_at.seconds - time.time() < 1_801
    return response.token


async def try_key(running: Running, secret: str) -> Outcome:
    return await make_about(running.channel, LIST, NOWHERE, with_key(secret))


async def test_first_start_leaves_a_key_and_the_second_changes_nothing(
    store_url: str, tmp_path: Path
) -> None:
    data = tmp_path / "data"
    async with running_server(secure(data, store_url)) as running:
        secret = read_admin_key(data)
        assert (await try_key(running, secret)).reason == "OK"
    assert stat.S_IMODE((data / "admin.key").stat().st_mode) == 0o600
    async with running_server(secure(data, store_url)) as running:
        assert read_admin_key(data) == secret
        assert (await try_key(running, secret)).reason == "OK"
    # A key that was taken away is not made again.
    (data / "admin.key").unlink()
    async with running_server(secure(data, store_url)) as running:
        assert not (data / "admin.key").exists()
        assert (await try_key(running, secret)).reason == "OK"


async def test_key_that_a_crash_left_in_its_file_is_used(tmp_path: Path) -> None:
    data = tmp_path / "data"
    data.mkdir()
    secret = make_secret(make_api_key_id())
    (data / "admin.key").write_text(f"{secret}\n")
    (data / "admin.key").chmod(0o600)
    async with running_server(secure(data)) as running:
        assert (await try_key(running, secret)).reason == "OK"
    assert read_admin_key(data) == secret


async def test_file_that_holds_no_key_is_said(tmp_path: Path) -> None:
    data = tmp_path / "data"
    data.mkdir()
    (data / "admin.key").write_text("nothing")
    with pytest.raises(CannotStart, match=r"admin\.key holds no key"):
        await Server.start(secure(data))
    assert (data / "admin.key").read_text() == "nothing"


async def test_servers_that_start_at_once_make_one_key(
    databases: Databases, tmp_path: Path
) -> None:
    url = databases.migrated("postgresql")
    folders = [tmp_path / str(n) for n in range(4)]
    async with replicas(url, *folders) as running:
        # Each has a folder of its own: the key stands in one of them, and works at all servers.
        [folder] = [folder for folder in folders if (folder / "admin.key").exists()]
        by = with_key(read_admin_key(folder))
        assert {(await try_key(one, read_admin_key(folder))).reason for one in running} == {"OK"}
        listing = await make_about(
            running[0].channel, "/hansard.v1.AccessService/ListApiKeys", NOWHERE, by
        )
        keys = access_service_pb2.ListApiKeysResponse.FromString(listing.reply).api_keys
        assert len(keys) == 1
    databases.drop(url)


async def test_servers_that_share_a_folder_make_one_key(
    databases: Databases, tmp_path: Path
) -> None:
    url = databases.migrated("postgresql")
    async with replicas(url, *[tmp_path / "shared"] * 4) as running:
        secret = read_admin_key(tmp_path / "shared")
        assert {(await try_key(one, secret)).reason for one in running} == {"OK"}
    databases.drop(url)


def altered(secret: str) -> dict[str, str]:
    """Return what is almost a key."""
    last = "a" if secret[-1] != "a" else "b"
    return {
        "nothing": "",
        "truncated": secret[:-1],
        "cut in front": secret[1:],
        "doubled": secret * 2,
        "one character off": secret[:-1] + last,
        "one bit off": secret[:-1] + chr(ord(secret[-1]) ^ 1),
        "another's secret": secret[:21] + make_secret(make_api_key_id())[21:],
        "unknown": make_secret(make_api_key_id()),
        "long": "x" * 4_000,
    }


async def test_whatever_is_wrong_with_a_key_the_words_are_the_same(
    keyed: tuple[Running, Metadata],
) -> None:
    running, by = keyed
    channel = running.channel
    made = await make_key(channel, by, ADMINISTRATOR)
    revoked = await make_key(channel, by, ADMINISTRATOR)
    assert (await try_key(running, revoked.secret)).reason == "OK"
    await revoke(channel, by, revoked.id)
    token = await issue(channel, with_key(made.secret))
    assert (await try_key(running, token)).reason == "OK"
    wrong: list[Metadata] = [
        (),
        with_key(revoked.secret),
        (("authorization", made.secret),),
        (("authorization", f"Basic {made.secret}"),),
        *((("x-api-key", text),) for text in altered(made.secret).values()),
        *(with_key(text) for text in altered(made.secret).values()),
        *(with_key(text) for text in (token[:-1], token * 2, token.upper())),
        (*with_key(made.secret), *with_key(made.secret)),
        (*with_key(made.secret), ("x-api-key", revoked.secret)),
        (*with_key(made.secret), ("x-api-key", token)),
    ]
    outcomes = [await make_about(channel, LIST, NOWHERE, metadata) for metadata in wrong]
    assert {outcome.reason for outcome in outcomes} == {"UNAUTHORIZED"}
    assert {outcome.code for outcome in outcomes} == {grpc.StatusCode.UNAUTHENTICATED}
    assert len(set(outcomes)) == 1
    both = (*with_key(made.secret), ("x-api-key", made.secret))
    assert (await make_about(channel, LIST, NOWHERE, both)).reason == "OK"


async def test_token_that_is_one_bit_off_is_refused(keyed: tuple[Running, Metadata]) -> None:
    running, by = keyed
    token = await issue(running.channel, by)
    tried = 0
    for place in range(len(token)):
        for bit in range(7):
            character = chr(ord(token[place]) ^ (1 << bit))
            # What a header can't carry, and what its ends lose on the way.
            if not "!" <= character <= "~":
                continue
            changed = token[:place] + character + token[place + 1 :]
            assert (await try_key(running, changed)).reason == "UNAUTHORIZED", changed
            tried += 1
    assert tried > 500
    assert (await try_key(running, token)).reason == "OK"


async def test_key_expires(databases: Databases, tmp_path: Path) -> None:
    ahead_us = 0
    settings = secure(tmp_path, databases.migrated("sqlite"), api_key_cache_s=CACHE_S)
    server = await Server.start(settings, clock=lambda: now_us() + ahead_us)
    async with open_channel(server.address) as channel:
        running = Running(server, channel)
        by = with_key(read_admin_key(tmp_path))
        expires_at = Timestamp(seconds=int(time.time()) + 1_000)
        made = await make_key(channel, by, ADMINISTRATOR, expires_at=expires_at)
        assert made.expires_at == expires_at
        token = await issue(channel, with_key(made.secret))
        await make_agent(channel, by, "a")
        place = await make_place(channel, by, "a", "s")
        watch = event_service_pb2_grpc.EventServiceStub(channel).WatchEvents(
            event_service_pb2.WatchEventsRequest(**place.session),
            metadata=with_key(made.secret),
        )
        await watch.read()
        ahead_us = 1_001_000_000
        assert (await try_key(running, made.secret)).reason == "UNAUTHORIZED"
        assert (await try_key(running, token)).reason == "UNAUTHORIZED"
        assert (await failure(drain(watch))).reason == "UNAUTHORIZED"
        request = access_service_pb2.CreateApiKeyRequest(
            name="Late", roles=[{"role": Role.ROLE_ADMINISTRATOR}], expires_at=expires_at
        )
        refused = await make(channel, CREATE, request, by)
        assert refused.reason == "INVALID_REQUEST"
        assert "expires_at" in refused.words
        # A token ends by itself too.
        token = await issue_ahead(channel, by)
        assert (await try_key(running, token)).reason == "OK"
        ahead_us += 1_801_000_000
        assert (await try_key(running, token)).reason == "UNAUTHORIZED"
    await server.stop()


async def issue_ahead(channel: grpc.aio.Channel, by: Metadata) -> str:
    issued = await make_about(channel, ISSUE, NOWHERE, by)
    return access_service_pb2.IssueTokenResponse.FromString(issued.reply).token


async def drain(stream: Any) -> None:
    async with asyncio.timeout(30):
        while await stream.read() is not grpc.aio.EOF:
            pass


async def test_key_that_is_revoked_at_one_server_ends_at_the_other(
    databases: Databases, tmp_path: Path
) -> None:
    url = databases.migrated("postgresql")
    async with replicas(url, tmp_path / "1", tmp_path / "2", api_key_cache_s=CACHE_S) as servers:
        [secret] = [
            read_admin_key(folder)
            for folder in (tmp_path / "1", tmp_path / "2")
            if (folder / "admin.key").exists()
        ]
        by, (here, there) = with_key(secret), servers
        await make_agent(here.channel, by, "a")
        place = await make_place(here.channel, by, "a", "s")
        made = await make_key(here.channel, by, ADMINISTRATOR)
        # A token of one server is good at the other.
        token = await issue(here.channel, with_key(made.secret))
        for credential in (made.secret, token):
            assert (await try_key(there, credential)).reason == "OK"
        watches = [
            one.events.WatchEvents(
                event_service_pb2.WatchEventsRequest(**place.session),
                metadata=with_key(credential),
            )
            for one in servers
            for credential in (made.secret, token)
        ]
        for watch in watches:
            await watch.read()

        assert (await revoke(here.channel, by, made.id)).HasField("revoked_at")

        revoked = time.monotonic()
        assert (await try_key(here, made.secret)).reason == "UNAUTHORIZED"
        assert (await try_key(here, token)).reason == "UNAUTHORIZED"
        while (await try_key(there, made.secret)).reason == "OK":
            # Asking all the time keeps no key alive. The rest is for a busy machine.
            assert time.monotonic() - revoked < CACHE_S + 20
        assert (await try_key(there, token)).reason == "UNAUTHORIZED"
        for watch in watches:
            assert (await failure(drain(watch))).reason == "UNAUTHORIZED"
        assert (await try_key(there, secret)).reason == "OK"
    databases.drop(url)


async def test_several_keys_are_valid_at_a_time(keyed: tuple[Running, Metadata]) -> None:
    running, by = keyed
    old, new = [await make_key(running.channel, by, ADMINISTRATOR) for _ in range(2)]
    assert old.secret != new.secret
    for key in (old, new):
        assert (await try_key(running, key.secret)).reason == "OK"
    await revoke(running.channel, with_key(new.secret), old.id)
    assert (await try_key(running, old.secret)).reason == "UNAUTHORIZED"
    assert (await try_key(running, new.secret)).reason == "OK"
    # Once more changes nothing.
    again = await revoke(running.channel, by, old.id)
    assert again == await revoke(running.channel, by, old.id)


async def test_same_request_id_makes_one_key_and_shows_its_secret_once(
    keyed: tuple[Running, Metadata],
) -> None:
    running, by = keyed
    request = access_service_pb2.CreateApiKeyRequest(
        name="Once", roles=[{"role": Role.ROLE_ADMINISTRATOR}], request_id="r-1"
    )
    first, repeat = [
        access_pb2.ApiKey.FromString((await make(running.channel, CREATE, request, by)).reply)
        for _ in range(2)
    ]
    assert first.secret
    assert not repeat.secret
    repeat.secret = first.secret
    assert repeat == first
    request.name = "Twice"
    assert (await make(running.channel, CREATE, request, by)).reason == "REQUEST_ID_REUSED"


async def test_token_issues_no_tokens_and_only_for_its_own_key(
    keyed: tuple[Running, Metadata],
) -> None:
    running, by = keyed
    channel = running.channel
    token = await issue(channel, by)
    refused = await make_about(channel, ISSUE, NOWHERE, with_key(token))
    assert refused.reason == "FORBIDDEN"
    made = await make_key(channel, by, ADMINISTRATOR)
    request = access_service_pb2.IssueTokenRequest(api_key_id=made.id)
    assert (await make(channel, ISSUE, request, by)).reason == "UNAUTHORIZED"
    assert (await make(channel, ISSUE, request, with_key(made.secret))).reason == "OK"


async def test_role_ends_with_its_agent(keyed: tuple[Running, Metadata]) -> None:
    running, by = keyed
    channel = running.channel
    await make_agent(channel, by, "a")
    made = await make_key(channel, by, (Role.ROLE_AGENT_DEVELOPER, "a"))
    get = "/hansard.v1.AgentService/GetAgent"
    assert (await make_about(channel, get, Place("a"), with_key(made.secret))).reason == "OK"
    await make_about(channel, "/hansard.v1.AgentService/DeleteAgent", Place("a"), by)
    got = await make_about(channel, get, Place("a"), with_key(made.secret))
    assert got.reason == "AGENT_NOT_FOUND"
    await make_agent(channel, by, "a")
    async with asyncio.timeout(30):
        while True:
            got = await make_about(channel, get, Place("a"), with_key(made.secret))
            if got.reason == "FORBIDDEN":
                break


@pytest.mark.parametrize(
    "roles",
    [
        [{"role": Role.ROLE_ADMINISTRATOR, "agent_key": "a"}],
        [{"role": Role.ROLE_AGENT_USER}],
        [{"role": 0}],
        [{"role": 6, "agent_key": "a"}],
        [],
        [{"role": Role.ROLE_AGENT_USER, "agent_key": "a"}] * 2,
        [{"role": Role.ROLE_AGENT_USER, "agent_key": f"a{n}"} for n in range(101)],
    ],
)
async def test_roles_that_make_no_sense_are_refused(
    keyed: tuple[Running, Metadata], roles: list[Any]
) -> None:
    running, by = keyed
    await make_agent(running.channel, by, "a")
    request = access_service_pb2.CreateApiKeyRequest(name="Key", roles=roles)
    refused = await make(running.channel, CREATE, request, by)
    assert refused.reason == "INVALID_REQUEST"
    assert "roles" in refused.words


async def test_last_use_is_written_down(databases: Databases, tmp_path: Path) -> None:
    url = databases.migrated("sqlite")
    started = time.time()
    key = access_pb2.ApiKey()
    for known in (False, True):
        async with running_server(secure(tmp_path, url)) as running:
            by = with_key(read_admin_key(tmp_path))
            listing = await make_about(
                running.channel, "/hansard.v1.AccessService/ListApiKeys", NOWHERE, by
            )
            [key] = access_service_pb2.ListApiKeysResponse.FromString(listing.reply).api_keys
            assert key.HasField("last_used_at") is known
    assert key.last_used_at.ToNanoseconds() / 1e9 >= started


async def test_probes_need_no_key_and_reflection_does(keyed: tuple[Running, Metadata]) -> None:
    running, by = keyed
    health: Any = health_pb2_grpc.HealthStub(running.channel)
    for service in ("", "hansard.v1.AccessService"):
        checked = await health.Check(health_pb2.HealthCheckRequest(service=service))
        assert checked.status == health_pb2.HealthCheckResponse.SERVING
    listed = await health.List(health_pb2.HealthListRequest())  # type: ignore[attr-defined]
    assert set(listed.statuses) > {"", "hansard.v1.AccessService"}
    stub: Any = reflection_pb2_grpc.ServerReflectionStub(running.channel)
    question = reflection_pb2.ServerReflectionRequest(list_services="")
    answers = stub.ServerReflectionInfo(iter([question]), metadata=by)
    assert [answer async for answer in answers]
    refused = await failure(drain(stub.ServerReflectionInfo(iter([question]))))
    assert refused.reason == "UNAUTHORIZED"


async def test_log_names_the_key_and_never_shows_it(keyed: tuple[Running, Metadata]) -> None:
    running, by = keyed
    made = await make_key(running.channel, by, ADMINISTRATOR)
    token = await issue(running.channel, with_key(made.secret))
    with capture_logs() as logs:
        for text in (made.secret, token, made.secret[:-1] + "~", token * 2):
            await try_key(running, text)
        async with asyncio.timeout(30):
            while len(logs) < 4:  # noqa: ASYNC110 - lines come after the answers
                await asyncio.sleep(0.01)
    written = json.dumps(logs, default=repr)
    assert [line["key_id"] for line in logs] == [made.id, made.id, None, None]
    assert [line["tenant"] for line in logs] == ["default", "default", None, None]
    assert made.secret[25:40] not in written
    assert token[40:60] not in written


async def test_insecure_server_knows_nobody(plain: Running) -> None:
    assert (await try_key(plain, "whatever")).reason == "OK"
    got = await make_about(plain.channel, ISSUE, NOWHERE, ())
    token = access_service_pb2.IssueTokenResponse.FromString(got.reply).token
    assert (await try_key(plain, token)).reason == "OK"
    made = await make_key(plain.channel, (), ADMINISTRATOR)
    assert made.secret
    assert replace(got, reply=None).reason == "OK"


async def test_key_is_not_looked_up_for_every_call(
    keyed: tuple[Running, Metadata], monkeypatch: pytest.MonkeyPatch
) -> None:
    from hansard_server.repository.sql.access import SqlAccessReads  # noqa: PLC0415

    running, by = keyed
    asked: list[tuple[str, ...]] = []
    find = SqlAccessReads.find_api_keys

    def count(self: SqlAccessReads, key_ids: Any) -> Any:
        asked.append(tuple(key_ids))
        return find(self, key_ids)

    monkeypatch.setattr(SqlAccessReads, "find_api_keys", count)
    started = time.monotonic()
    for _ in range(50):
        assert (await make_about(running.channel, LIST, NOWHERE, by)).reason == "OK"
    # Beside the calls, what is in use is read again twice in `api_key_cache_s`.
    assert len(asked) <= 2 + (time.monotonic() - started) / 2.5
