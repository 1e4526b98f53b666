"""Keys and tokens over HTTP, and what one tenant hears of another."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from hansard_server.access.tenants import ADMIN_KEY_FILE, make_tenant
from hansard_server.domain.clock import now_us
from hansard_server.repository.sql.store import SqlStore
from tests.gateway.test_routes import AGENT
from tests.support.gateway import Door, open_door
from tests.support.server import make_settings, running_server
from tests.support.venvs import VECTARA, bin_of

HELLO = {"type": "input_message", "content": "Hello?"}


@pytest.fixture
async def their_key(store_url: str) -> str:
    """Give the key of another tenant, made as its operator makes it."""
    store = await SqlStore.open(store_url)
    key = await make_tenant(store, "other", clock=now_us)
    await store.close()
    assert key is not None
    return key


@pytest.fixture
async def locked(store_url: str, tmp_path: Path, their_key: str) -> AsyncIterator[tuple[Door, str]]:
    """Give a door to a server that knows its callers, and the administrator's key."""
    folder = tmp_path / "data"
    settings = make_settings(folder, store_url, insecure=False)
    async with running_server(settings) as running, open_door(running) as door:
        yield door, (folder / ADMIN_KEY_FILE).read_text().strip()


async def test_a_key_is_shown_in_either_header(locked: tuple[Door, str]) -> None:
    door, key = locked
    for headers in (
        {"x-api-key": key},
        {"authorization": f"Bearer {key}"},
        {"x-api-key": key, "authorization": f"Bearer {key}"},
    ):
        assert (await door.http.get("/v2/agents", headers=headers)).status_code == 200
    for wrong in (
        {},
        {"x-api-key": "nix"},
        {"authorization": "Bearer nix"},
        {"authorization": f"Basic {key}"},
        {"x-api-key": key, "authorization": "Bearer nix"},
    ):
        answer = await door.http.get("/v2/agents", headers=wrong)
        assert answer.status_code == 401, wrong
        assert answer.json()["code"] == "unauthorized"
        assert answer.headers["www-authenticate"] == "Bearer"
    for path in ("/healthz", "/readyz", "/openapi.json", "/docs"):
        assert (await door.http.get(path)).status_code == 200


async def test_a_token_is_issued_for_a_key(locked: tuple[Door, str]) -> None:
    door, key = locked
    (listed,) = (await door.http.get("/v2/api_keys", headers={"x-api-key": key})).json()["api_keys"]
    client = {"client_id": listed["id"], "client_secret": key}
    basic = base64.b64encode(f"{listed['id']}:{key}".encode()).decode()
    forms: list[dict[str, Any]] = [
        {"data": {**client, "grant_type": "client_credentials"}},
        {"json": client},
        {
            "data": {"grant_type": "client_credentials"},
            "headers": {"authorization": f"Basic {basic}"},
        },
    ]
    for path in ("/oauth2/token", "/oauth/token"):
        for form in forms:
            answer = await door.http.post(path, **form)
            assert answer.status_code == 200, answer.text
            told = answer.json()
            assert told["token_type"] == "Bearer"
            assert 1_700 < told["expires_in"] <= 1_800
            assert answer.headers["cache-control"] == "no-store"
            shown = {"authorization": f"Bearer {told['access_token']}"}
            assert (await door.http.get("/v2/agents", headers=shown)).status_code == 200
    for status, wrong in (
        (401, {"data": {**client, "client_secret": "nix"}}),
        (401, {"data": {**client, "client_id": "nix"}}),
        (401, {"json": {**client, "client_secret": "ä"}}),
        (400, {"data": {"client_id": "x"}}),
        (400, {"data": {**client, "grant_type": "password"}}),
        (400, {"json": {**client, "client_id": 3}}),
        (400, {"json": []}),
        (415, {"content": b"x", "headers": {"content-type": "text/plain"}}),
        (
            400,
            {"content": b"a&a", "headers": {"content-type": "application/x-www-form-urlencoded"}},
        ),
    ):
        answer = await door.http.post("/oauth2/token", **wrong)
        assert answer.status_code == status, (wrong, answer.text)


VECTARA_PROGRAM = """
import asyncio, sys
from vectara import AsyncVectara, Vectara
from vectara.environment import VectaraEnvironment
url, client, secret = sys.argv[1:]
more = {"environment": VectaraEnvironment(default=url, auth=url), "client_id": client,
        "client_secret": secret}
assert [a.key for a in Vectara(**more).agents.list()] == ["support"]
async def main():
    assert [a.key async for a in await AsyncVectara(**more).agents.list()] == ["support"]
asyncio.run(main())
"""


async def test_the_vectara_package_gets_tokens(locked: tuple[Door, str]) -> None:
    python = bin_of(VECTARA) / "python"
    door, key = locked
    headers = {"x-api-key": key}
    await door.http.post("/v2/agents", json=AGENT, headers=headers)
    (listed,) = (await door.http.get("/v2/api_keys", headers=headers)).json()["api_keys"]
    process = await asyncio.create_subprocess_exec(
        *(python, "-c", VECTARA_PROGRAM, door.url, listed["id"], key),
        stderr=asyncio.subprocess.PIPE,
    )
    _, told = await process.communicate()
    assert process.returncode == 0, told.decode()


async def test_keys_are_created_and_revoked(locked: tuple[Door, str]) -> None:
    door, key = locked
    admin = {"x-api-key": key}
    await door.http.post("/v2/agents", json=AGENT, headers=admin)
    body = {"name": "Reader", "roles": [{"role": "agent_user", "agent_key": "support"}]}
    answer = await door.http.post("/v2/api_keys", json=body, headers=admin)
    assert answer.status_code == 201, answer.text
    made = answer.json()
    user = {"x-api-key": made["secret"]}
    assert (await door.http.get("/v2/agents/support", headers=user)).status_code == 200
    refused = await door.http.delete("/v2/agents/support", headers=user)
    assert (refused.status_code, refused.json()["code"]) == (403, "forbidden")
    path = f"/v2/api_keys/{made['id']}"
    assert (await door.http.delete(path, headers=admin)).status_code == 204
    assert (await door.http.get("/v2/agents/support", headers=user)).status_code == 401


async def test_another_tenants_things_never_were(locked: tuple[Door, str], their_key: str) -> None:
    door, key = locked
    ours = {"x-api-key": key}
    theirs = {"x-api-key": their_key}
    await door.http.post("/v2/agents", json=AGENT, headers=theirs)
    sessions = "/v2/agents/support/sessions"
    await door.http.post(sessions, json={"name": "s", "key": "s"}, headers=theirs)
    sent = await door.http.post(f"{sessions}/s/events", json=HELLO, headers=theirs)
    event = sent.json()["events"][0]["id"]
    turn = sent.json()["turn"]["id"]
    files = {"file": ("a.txt", b"secret")}
    upload = await door.http.post(f"{sessions}/s/upload", files=files, headers=theirs)
    artifact = upload.json()["artifacts"][0]["artifact_id"]
    (kept,) = (await door.http.get("/v2/api_keys", headers=theirs)).json()["api_keys"]
    # Ours has an agent of the name in one round, and none in the other.
    for _ in range(2):
        calls: list[tuple[str, str, dict[str, Any]]] = [
            ("GET", f"/s/events/{event}", {}),
            ("POST", f"/s/events/{event}/hide", {}),
            ("DELETE", f"/s/events/{event}", {}),
            ("GET", "/s/events:watch", {}),
            ("GET", "/s/events", {}),
            ("POST", "/s/events", {"json": HELLO}),
            ("POST", "/s/events", {"json": {**HELLO, "stream_response": True}}),
            ("POST", "/s/upload", {"files": files}),
            ("GET", f"/s/turns/{turn}", {}),
            ("POST", f"/s/turns/{turn}:cancel", {"json": {}}),
            ("GET", f"/s/artifacts/{artifact}", {}),
            ("GET", f"/s/artifacts/{artifact}/content", {}),
            ("HEAD", f"/s/artifacts/{artifact}/content", {}),
            ("DELETE", f"/s/artifacts/{artifact}", {}),
            ("PATCH", "/s", {"json": {"name": "x"}}),
            ("GET", "/s", {}),
            ("DELETE", "/s", {}),
        ]
        for method, path, more in calls:
            never = path.replace("/s", "/never", 1)
            told = await door.http.request(method, f"{sessions}{path}", headers=ours, **more)
            same = await door.http.request(method, f"{sessions}{never}", headers=ours, **more)
            assert told.status_code == same.status_code == 404, (method, path, told.text)
            if method != "HEAD":
                assert without_id(told) == without_id(same)
        await door.http.post("/v2/agents", json=AGENT, headers=ours)
    revoked = await door.http.delete(f"/v2/api_keys/{kept['id']}", headers=ours)
    assert revoked.status_code == 404
    assert (await door.http.get(f"{sessions}/s/events", headers=theirs)).status_code == 200


def without_id(answer: httpx.Response) -> str:
    """Return the body without what differs anyhow: the request's id, and the key that was asked."""
    text = answer.text.replace(answer.json()["request_id"], "")
    return text.replace("'s'", "'never'")
