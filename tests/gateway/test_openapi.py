"""/openapi.json: what it says is so, by schemathesis; and the page that shows it."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx
import pytest

from hansard_gateway.openapi.document import document
from tests.gateway.test_routes import AGENT, ok
from tests.gateway.test_serve_door import is_ready, serve, wait_for
from tests.support.gateway import Door
from tests.support.venvs import SCHEMATHESIS, bin_of

CHECKS = (
    "no_server_error",
    "status_code_conformance",
    "content_type_conformance",
    "response_headers_conformance",
    "response_schema_conformance",
    "negative_data_rejection",
    "unsupported_method",
    "use_after_free",
)


async def test_the_document_is_served_and_shown(plain: Door) -> None:
    told = await ok(plain, "GET", "/openapi.json")
    assert told == document()
    assert told["openapi"].startswith("3.1")
    shown = await plain.http.get("/docs")
    assert shown.headers["content-type"].startswith("text/html")
    assert "default-src 'none'" in shown.headers["content-security-policy"]
    # Nothing comes from elsewhere, and nothing runs.
    assert not re.search(r"""<script|(src|href)=['"]?(https?:)?//""", shown.text)
    for path in told["paths"]:
        assert path in shown.text


def test_rules_of_the_contract_are_constraints() -> None:
    told: Any = document()
    body = told["paths"]["/v2/agents/{agent_key}/sessions"]["post"]["requestBody"]
    session = body["content"]["application/json"]["schema"]
    assert session["required"] == ["name"]
    assert session["additionalProperties"] == {"type": "null"}
    assert (
        session["properties"]["name"]["minLength"],
        session["properties"]["name"]["maxLength"],
    ) == (1, 255)
    assert session["properties"]["tti_minutes"]["maximum"] == 52_560_000
    events = told["paths"]["/v2/agents/{agent_key}/sessions/{session_key}/events"]["post"]
    inputs = events["requestBody"]["content"]["application/json"]["schema"]["anyOf"]
    assert {one["properties"]["type"]["const"] for one in inputs} >= {"input_message", "interrupt"}
    assert all("stream_response" in one["properties"] for one in inputs)
    refs = set(re.findall(r"#/components/schemas/(\w+)", str(told)))
    assert refs <= set(told["components"]["schemas"])


def run_schemathesis(tmp_path: Path, store_url: str, *more: str) -> int:
    """Return how many cases were tried; an AssertionError when any of them failed."""
    st = bin_of(SCHEMATHESIS) / "st"
    with serve(tmp_path, environment={"HANSARD_STORE": store_url}) as served:
        url = f"http://{served.wait_for('serving')['http']}"
        wait_for(lambda: is_ready(url))
        for key in ("a1", "b2"):
            # What cases find when they hit it.
            httpx.post(f"{url}/v2/agents", json={**AGENT, "key": key}).raise_for_status()
            sessions = f"{url}/v2/agents/{key}/sessions"
            httpx.post(sessions, json={"name": "s", "key": "s1"}).raise_for_status()
            said = {"type": "input_message", "content": "Hello?"}
            httpx.post(f"{sessions}/s1/events", json=said).raise_for_status()
        done = subprocess.run(
            [
                *(str(st), "run", f"{url}/openapi.json", "--checks", ",".join(CHECKS)),
                # A watch has no end to wait for; its tests stand in test_turns.py.
                *("--exclude-operation-id", "WatchEvents"),
                *("--continue-on-failure", "--request-timeout", "60", "--no-color", *more),
            ],
            capture_output=True,
            text=True,
            check=False,
            cwd=tmp_path,
            env={
                **os.environ,
                "SCHEMATHESIS_HOOKS": "schemathesis_hooks",
                "PYTHONPATH": str(Path(__file__).parent),
            },
        )
        assert done.returncode == 0, done.stdout[-20_000:]
        served.send(signal.SIGTERM)
        assert served.wait() == 0
        assert " failed" not in "".join(line for line in served.lines if '"error"' in line)
    found = re.search(r"([0-9]+) generated", done.stdout)
    assert found, done.stdout[-2_000:]
    sys.stdout.write(done.stdout[-1_500:])
    return int(found[1])


def test_schemathesis_finds_nothing(tmp_path: Path, store_url: str) -> None:
    cases = run_schemathesis(tmp_path, store_url, "--phases", "fuzzing", "--max-examples", "4")
    assert cases > 100


@pytest.mark.soak
def test_schemathesis_finds_nothing_in_a_full_run(tmp_path: Path, store_url: str) -> None:
    cases = run_schemathesis(tmp_path, store_url, "--max-examples", "100")
    assert cases > 5_000
