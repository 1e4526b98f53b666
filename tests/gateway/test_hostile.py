"""What strangers send: each is refused with a reason, costs little, and leaves nothing behind."""

from __future__ import annotations

import asyncio
import json
import time
import tracemalloc
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hansard.v1 import event_pb2
from hansard_gateway import serving
from hansard_gateway.settings import Options
from tests.gateway.test_routes import AGENT, ok, refused
from tests.support.gateway import Door, open_door, until
from tests.support.talk import TWENTY_DELTAS, Talk

SESSIONS = "/v2/agents/agent/sessions"
EVENTS = f"{SESSIONS}/s/events"
JSON = {"content-type": "application/json"}
FORM = "content-type: multipart/form-data; boundary=b"
MIB = 1024 * 1024


async def raw(door: Door, data: bytes, *, until_closed: bool = False) -> bytes:
    """Return what is answered to bytes on a connection of their own."""
    reader, writer = await asyncio.open_connection("127.0.0.1", door.port)
    try:
        writer.write(data)
        with suppress(ConnectionError):
            await writer.drain()
            if until_closed:
                return await reader.read()
            return await reader.readuntil(b"\r\n\r\n")
        return b""
    finally:
        writer.close()


@pytest.mark.parametrize(
    "key",
    [
        "..",
        "%2e%2e",
        "%2e",
        "a%00b",
        "a%2fb",
        "a%5cb",
        "a%2F..%2Fb",
        "a%0d%0ax",
        "%e2%80%ae",
        "%ff",
        "a%20b",
        "x" * 10_000,
        "{agent_key}",
        "s;x=1",
    ],
)
async def test_a_key_that_is_a_trick(plain: Door, key: str) -> None:
    for method, path in (("GET", f"/v2/agents/{key}"), ("DELETE", f"{SESSIONS}/{key}")):
        head = await raw(plain, f"{method} {path} HTTP/1.1\r\nhost: x\r\n\r\n".encode())
        assert head.split()[1] in {b"400", b"404"}, head


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b'"x"',
        b"{}x",
        b'{"name": "x",}',
        b'{"name": NaN}',
        b'{"name": "x", "name": "y"}',
        b'{"name": "x", "metadata": {"a": 1, "a": 1}}',
        b'{"name": "x", "metadata": {"a": {"b": [{"c": 1, "c": 2}]}}}',
        b'{"name": "x", "metadata": {"a": Infinity}}',
        b'{"name": "x", "metadata": {"a": 9007199254740992}}',
        b'{"name": "x", "metadata": {"a": -9007199254740993}}',
        b'{"name": "x", "metadata": {"a": 1e400}}',
        b'{"name": "x", "metadata": {"a": 1' + b"0" * 5_000 + b"}}",
        b'{"name": "x", "metadata": {"a": "\\ud800"}}',
        b'{"name": "x", "metadata": {"\\udfff": 1}}',
        b'{"name": "x", "tti_minutes": 1.5}',
        b'{"name": "x", "tti_minutes": 99999999999999999999}',
        b'{"name": "\\u0000"}',
        b'{"name": "\xff"}',
        b'\xef\xbb\xbf{"name": "x"}',
        '{"name": "x"}'.encode("utf-16"),
        b'{"name": "x", "metadata": ' + b"[" * 10_000 + b"]" * 10_000 + b"}",
        b'{"name": "x", "metadata": ' + b'{"a":' * 10_000 + b"1" + b"}" * 10_001,
        b'{"name": "x", "metadata": ' + b'{"a":' * 40 + b"1" + b"}" * 41,
        b"[" * 1_000_000,
        b'{"name": "x", "nix": ' + b'{"a":' * 10_000 + b"1" + b"}" * 10_001,
    ],
)
async def test_a_body_that_is_no_session(plain: Door, body: bytes) -> None:
    await Talk(plain.server).begin()
    began = time.monotonic()
    told = await refused(plain, "POST", SESSIONS, 400, content=body, headers=JSON)
    assert told["code"] in {"invalid_request", "invalid_metadata"}
    assert time.monotonic() - began < 10
    assert len((await ok(plain, "GET", SESSIONS))["sessions"]) == 1


async def test_the_largest_whole_number_that_is_exact(plain: Door) -> None:
    await Talk(plain.server).begin()
    content = b'{"name": "x", "metadata": {"a": 9007199254740991, "b": -0.1, "c": 1e3}}'
    answer = await plain.http.post(SESSIONS, content=content, headers=JSON)
    assert '"metadata":{"a":9007199254740991,"b":-0.1,"c":1000}' in answer.text


async def test_tool_json_is_kept_to_the_digit_and_deep(plain: Door) -> None:
    talk = await Talk(plain.server).begin()
    deep = "[" * 400 + "1.10" + "]" * 400
    tool = f'{{"n": 123456789012345678901234567890.120, "d": {deep}}}'
    body = f'{{"events": [{{"type":"tool_input","tool_call_id":"c","tool_input": {tool}}}]}}'
    answer = await plain.http.post(f"{EVENTS}:append", content=body, headers=JSON)
    assert answer.status_code == 201, answer.text
    assert (await talk.events())[0].tool_input.tool_input_json == tool
    assert f'"tool_input":{tool}' in (await plain.http.get(EVENTS)).text
    for wrong in ("[" * 10_000 + "]" * 10_000, '{"a": 1, "a": 2}', '{"a": NaN}', "{"):
        body = f'{{"events": [{{"type":"tool_input","tool_call_id":"d","tool_input": {wrong}}}]}}'
        await refused(plain, "POST", f"{EVENTS}:append", 400, content=body, headers=JSON)


async def test_bodies_that_are_too_large_or_of_another_kind(plain: Door) -> None:
    await Talk(plain.server).begin()
    large = b'{"name": "' + b"x" * (9 * MIB) + b'"}'
    told = await refused(plain, "POST", SESSIONS, 413, content=large, headers=JSON)
    assert told["code"] == "payload_too_large"
    for kind in ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data"):
        headers = {"content-type": kind}
        await refused(plain, "POST", SESSIONS, 415, content=b'{"name":"x"}', headers=headers)
    packed = {**JSON, "content-encoding": "gzip"}
    await refused(plain, "POST", SESSIONS, 415, content=b"x", headers=packed)
    await refused(plain, "POST", f"{SESSIONS}/s/upload", 415, json={"a": 1})


async def test_headers_that_are_no_credentials(plain: Door) -> None:
    for name in ("x-api-key", "authorization"):
        for value in (b"\xff\xfe", b"x" * 9_000, "ä".encode()):
            answer = await plain.http.get("/v2/agents", headers={name: value})
            assert answer.status_code == 401, (name, value)
    for wrong in (b"\xff", b"k" * 200, b"", b"a b"):
        key = {"idempotency-key": wrong}
        await refused(plain, "POST", "/v2/agents", 400, json=AGENT, headers=key)


def form(*parts: bytes, end: bool = True) -> tuple[bytes, dict[str, str]]:
    """Return a multipart body of raw parts, and its header."""
    body = b"".join(b"--b\r\n" + part + b"\r\n" for part in parts)
    kind = {"content-type": "multipart/form-data; boundary=b"}
    return body + (b"--b--\r\n" if end else b""), kind


def file(disposition: bytes, content: bytes = b"x") -> bytes:
    return b"content-disposition: form-data; name=file; " + disposition + b"\r\n\r\n" + content


@pytest.mark.parametrize(
    "disposition",
    [
        b'filename="../../etc/passwd"',
        b'filename="a/b"',
        b'filename=".."',
        b'filename=""',
        b'filename="a\\\\b"',
        b'filename="' + b"x" * 3_000 + b'"',
        b'filename="a\x00b"',
        b'filename="a\tb"',
        'filename="a\u202eb"'.encode(),
        b'filename="\xff"',
        b'filename="a"\r\nx: ' + b"y" * 100_000,
        b'filename="a\r\nset-cookie: x=1"',
        b"filename",
    ],
)
async def test_a_filename_that_is_a_trick(plain: Door, disposition: bytes) -> None:
    await Talk(plain.server).begin()
    body, kind = form(file(disposition))
    path = f"{SESSIONS}/s/upload"
    answer = await plain.http.post(path, content=body, headers=kind)
    # A line end in a header begins another header: what is left of the name is one, or none.
    if answer.status_code == 201:
        assert b"\r\n" in disposition
        assert answer.json()["artifacts"][0]["filename"] in {"a", '"a'}
    else:
        assert answer.status_code == 400, answer.text
        assert (await ok(plain, "GET", f"{SESSIONS}/s/artifacts"))["artifacts"] == []


async def test_forms_that_are_broken(plain: Door) -> None:
    await Talk(plain.server).begin()
    good = file(b'filename="a.txt"')
    for path in (f"{SESSIONS}/s/upload", EVENTS):
        for body, kind in (
            form(good, end=False),
            form(),
            (b"", {"content-type": "multipart/form-data; boundary=b"}),
            (b"x", {"content-type": "multipart/form-data"}),
            (b"x", {"content-type": f"multipart/form-data; boundary={'b' * 1_000}"}),
            (b"not a form at all", {"content-type": "multipart/form-data; boundary=b"}),
            form(b"\r\nx"),
            form(b"content-disposition: attachment; name=file\r\n\r\nx"),
            form(good, b'content-disposition: form-data; name="nix"\r\n\r\nx'),
            form(good, b'content-disposition: form-data; name="\xff"\r\n\r\nx'),
            form(b'content-disposition: form-data; name="message"\r\n\r\n\xff'),
        ):
            await refused(plain, "POST", path, 400, content=body, headers=kind)
    assert (await ok(plain, "GET", f"{SESSIONS}/s/artifacts"))["artifacts"] == []


async def test_a_hundred_thousand_parts(plain: Door) -> None:
    await Talk(plain.server).begin()
    for one in (file(b'filename="a"', b""), b"content-disposition: form-data; name=nix\r\n\r\n"):
        body, kind = form(*[one] * 100_000)
        answer = await plain.http.post(f"{SESSIONS}/s/upload", content=body, headers=kind)
        assert answer.status_code in {400, 413, 429}, answer.text
    assert (await ok(plain, "GET", f"{SESSIONS}/s/artifacts"))["artifacts"] == []


async def test_an_upload_that_is_cut_off_leaves_nothing(plain: Door) -> None:
    await Talk(plain.server).begin()
    reader, writer = await asyncio.open_connection("127.0.0.1", plain.port)
    head = (
        f"POST {SESSIONS}/s/upload HTTP/1.1\r\nhost: x\r\ncontent-length: 1000000\r\n"
        "content-type: multipart/form-data; boundary=b\r\n\r\n"
    )
    writer.write(head.encode() + b"--b\r\n" + file(b'filename="a"', bytes(200_000)))
    await writer.drain()

    async def called() -> bool:
        return plain.server.server._calls.running == 1

    await until(called)
    writer.close()

    async def over() -> bool:
        return plain.server.server._calls.running == 0

    await until(over)
    assert (await ok(plain, "GET", f"{SESSIONS}/s/artifacts"))["artifacts"] == []
    del reader


async def test_slow_headers_and_bodies_are_cut_off(
    plain: Door, monkeypatch: pytest.MonkeyPatch
) -> None:
    await Talk(plain.server).begin()
    monkeypatch.setattr(serving, "_HEADERS_TIMEOUT_S", 1)
    options = Options(body_grace_s=0.2, body_rate_bytes_s=1_000_000, drain_deadline_s=2)
    async with open_door(plain.server, options) as door:
        assert await raw(door, b"GET /v2/agents HTTP/1.1\r\nx: ", until_closed=True) == b""
        assert await raw(door, b"", until_closed=True) == b""
        head = "host: x\r\ncontent-length: 100\r\n"
        posts = (
            (f"POST {SESSIONS} HTTP/1.1\r\ncontent-type: application/json\r\n", "{"),
            (
                f"POST {SESSIONS}/s/upload HTTP/1.1\r\n{FORM}\r\n",
                "--b\r\n",
            ),
        )
        for post, begun in posts:
            answer = await raw(door, f"{post}{head}\r\n{begun}".encode(), until_closed=True)
            assert b" 408 " in answer.split(b"\r\n")[0], answer
            assert b'"code":"request_timeout"' in answer


async def test_endless_headers_are_cut_off(plain: Door) -> None:
    lines = b"".join(b"x-%d: %s\r\n" % (n, b"y" * 1_000) for n in range(1_000))
    answer = await raw(plain, b"GET /v2/agents HTTP/1.1\r\n" + lines, until_closed=True)
    assert answer == b"" or b" 400 " in answer.split(b"\r\n")[0]
    url = b"GET /" + b"x" * 500_000
    answer = await raw(plain, url, until_closed=True)
    assert answer == b"" or b" 400 " in answer.split(b"\r\n")[0]


async def test_what_is_not_http(plain: Door) -> None:
    for data in (b"\x00" * 100 + b"\r\n\r\n", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", b"x\r\n\r\n"):
        answer = await raw(plain, data, until_closed=True)
        assert answer == b"" or b" 400 " in answer.split(b"\r\n")[0]
    both = (
        f"POST {SESSIONS} HTTP/1.1\r\nhost: x\r\ncontent-length: 4\r\n"
        "transfer-encoding: chunked\r\n\r\n0\r\n\r\n"
    )
    assert b" 400 " in (await raw(plain, both.encode(), until_closed=True)).split(b"\r\n")[0]


async def test_a_reader_that_stops_holds_up_nobody(plain: Door) -> None:
    talk = await Talk(plain.server).begin()
    reader, writer = await asyncio.open_connection("127.0.0.1", plain.port, limit=1)
    request = f"GET {EVENTS}:watch HTTP/1.1\r\nhost: x\r\n\r\n"
    writer.write(request.encode())
    writer.transport.pause_reading()  # type: ignore[attr-defined] # every transport of sockets has it

    async def watching() -> bool:
        return plain.server.server._calls.running == 1

    await until(watching)
    large = event_pb2.EventDraft(
        custom={"custom_type": "com.example.x", "data_json": json.dumps("x" * 900_000)}
    )
    tracemalloc.start()
    try:
        for _ in range(30):
            await asyncio.wait_for(talk.append(large), 30)
        await ok(plain, "GET", EVENTS)
        now, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    # 27 MB wait for the reader, in the record.
    assert now < 12 * MIB
    assert plain.server.server._calls.running == 1
    writer.transport.abort()

    async def over() -> bool:
        return plain.server.server._calls.running == 0

    await until(over)
    del reader


async def test_twenty_streams_at_once(plain: Door) -> None:
    talk = await Talk(plain.server).begin(TWENTY_DELTAS)
    await asyncio.gather(*(talk.another(f"s{n}").open_session() for n in range(20)))
    body = {"type": "input_message", "content": "x", "stream_response": True}
    answers = await asyncio.gather(
        *(plain.http.post(f"{SESSIONS}/s{n}/events", json=body) for n in range(20))
    )
    assert all(answer.text.count('"type":"end"') == 1 for answer in answers)


VALUES: Any = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(st.characters(categories=None), max_size=8)
    | st.sampled_from(["input_message", "text", "interrupt", "custom", "tool_input", "aev_1"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                ["type", "name", "messages", "content", "events", "metadata", "model", "key"]
            )
            | st.text(max_size=3),
            inner,
            max_size=4,
        )
    ),
    max_leaves=12,
)


BODIES: Any = st.lists(st.tuples(VALUES, st.integers(0, 3)), min_size=5, max_size=5)


@settings(
    max_examples=40,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(bodies=BODIES)
def test_no_json_makes_a_server_error(door_loop: Any, bodies: list[tuple[Any, int]]) -> None:
    loop, door = door_loop

    async def post() -> None:
        paths = ("/v2/agents", SESSIONS, EVENTS, f"{EVENTS}:append")
        for value, which in bodies:
            text = json.dumps(value)
            answer = await door.http.post(paths[which], content=text, headers=JSON)
            assert answer.status_code < 500, (paths[which], text, answer.text)

    loop.run_until_complete(post())
