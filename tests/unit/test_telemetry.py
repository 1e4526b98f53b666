"""The line of a call, made by hand, is the line that structlog makes."""

from __future__ import annotations

import asyncio
import json
from dataclasses import fields

import pytest
import structlog
from hypothesis import given
from hypothesis import strategies as st

from hansard_server import telemetry
from hansard_server.telemetry import EndedCall

TEXT = st.text(max_size=20)
CALLS = st.builds(
    EndedCall,
    method=TEXT,
    code=TEXT,
    reason=st.none() | TEXT,
    duration_ms=st.floats(0, 1e9).map(lambda ms: round(ms, 2)),
    request_id=TEXT,
    peer=TEXT,
    tenant=st.none() | TEXT,
    key_id=st.none() | TEXT,
)


def structlog_line(call: EndedCall, capsys: pytest.CaptureFixture[str]) -> str:
    capsys.readouterr()
    structlog.get_logger("hansard.access").info(
        "call", **{field.name: getattr(call, field.name) for field in fields(call)}
    )
    return capsys.readouterr().err


def test_line_is_the_one_of_structlog(capsys: pytest.CaptureFixture[str]) -> None:
    telemetry.configure()

    @given(CALLS)
    def check(call: EndedCall) -> None:
        line = structlog_line(call, capsys)
        assert call.line(json.loads(line)["timestamp"]) + "\n" == line

    check()


CALL = EndedCall(
    method="/s/m",
    code="OK",
    reason=None,
    duration_ms=0.5,
    request_id="r",
    peer="ipv4:1",
    tenant="t",
    key_id=None,
)


async def test_lines_of_a_round_are_all_written(capsys: pytest.CaptureFixture[str]) -> None:
    telemetry.configure()
    telemetry.log_call(CALL)
    telemetry.log_call(CALL)
    await asyncio.sleep(0)
    telemetry.log_call(CALL)
    await asyncio.sleep(0)
    lines = capsys.readouterr().err.splitlines()
    assert [json.loads(line)["event"] for line in lines] == ["call"] * 3
    known = structlog_line(CALL, capsys)
    times = [json.loads(line)["timestamp"] for line in (*lines, known)]
    assert sorted(times) == times
    assert {len(time) for time in times} <= {len("2026-01-01T00:00:00.000000Z"), 20}


@pytest.mark.parametrize(
    ("level", "quiet", "written"),
    [
        ("debug", True, "debug"),
        ("debug", False, "info"),
        ("info", True, None),
        ("info", False, "info"),
        ("warning", False, None),
    ],
)
async def test_levels(
    capsys: pytest.CaptureFixture[str], level: str, *, quiet: bool, written: str | None
) -> None:
    telemetry.configure(level)
    telemetry.log_call(CALL, quiet=quiet)
    await asyncio.sleep(0)
    lines = capsys.readouterr().err.splitlines()
    assert [json.loads(line)["level"] for line in lines] == ([written] if written else [])
