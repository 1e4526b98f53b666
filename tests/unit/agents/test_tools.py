"""artifact_read and artifact_grep, against what Python itself makes of the same bytes."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hansard.v1 import agent_pb2, session_pb2
from hansard_server.agents.api import Json, ToolContext, ToolError
from hansard_server.agents.calls import check_arguments
from hansard_server.agents.tools.built_in import BUILT_IN_TOOLS
from hansard_server.agents.tools.lines import KEPT_LINE_MAX_BYTES, LineSplitter
from hansard_server.domain.errors import ArtifactNotFound
from tests.support.agents import MemoryFiles, NoCorpora


async def use(name: str, files: MemoryFiles, **arguments: Any) -> Any:
    tool = BUILT_IN_TOOLS[name]
    check_arguments(arguments, tool.input_schema)
    context = ToolContext(
        files=files,
        corpora=NoCorpora(),
        agent=agent_pb2.Agent(),
        session=session_pb2.Session(),
        configuration=agent_pb2.ToolConfiguration(),
        tool_call_id="call_1",
    )
    return await tool.run(arguments, context)


def python_lines(data: bytes) -> list[str]:
    """Split as editors do: a newline at the very end ends the last line."""
    lines = data.split(b"\n")
    if not lines[-1]:
        lines.pop()
    return [line.removesuffix(b"\r").decode("utf-8", "replace") for line in lines]


def texts(result: Mapping[str, Json]) -> list[str]:
    return [line["text"] for line in result["lines"]]


DATA = st.lists(st.sampled_from([b"a", b"b", b"\n", b"\r", b"\r\n", "é€".encode(), b"\xff"]))


@given(DATA, st.integers(1, 9))
async def test_read_splits_as_python_does(pieces: list[bytes], chunk: int) -> None:
    data = b"".join(pieces) + b"abcdefgh" * 200
    result = await use("artifact_read", MemoryFiles({"a": data}, chunk), artifact_id="art_a")
    assert texts(result) == python_lines(data)
    assert [line["line"] for line in result["lines"]] == list(range(1, len(texts(result)) + 1))
    assert result["next_line"] is None


@given(
    DATA, st.integers(1, 9), st.sampled_from(["a", "b$", "^a", "[^b]", "é.", "^$", "a*", "\ufffd"])
)
async def test_grep_finds_what_python_finds(pieces: list[bytes], chunk: int, pattern: str) -> None:
    data = b"".join(pieces) + b"\n".join([b"zyxwvu"] * 50) * 6
    result = await use(
        "artifact_grep", MemoryFiles({"a": data}, chunk), pattern=pattern, max_matches=500
    )
    lines = python_lines(data)
    expected = [number for number, line in enumerate(lines, 1) if re.search(pattern, line)]
    assert [match["line"] for match in result["matches"]] == expected
    assert [match["text"] for match in result["matches"]] == [lines[n - 1] for n in expected]


@given(st.binary(max_size=200), st.integers(1, 20), st.integers(0, 10))
def test_a_splitter_keeps_no_more_of_a_line_than_it_may(data: bytes, chunk: int, most: int) -> None:
    splitter = LineSplitter(most)
    lines: list[bytes] = []
    for start in range(0, len(data), chunk):
        lines += splitter.feed(data[start : start + chunk])
    lines += splitter.finish()
    expected = data.split(b"\n")
    if not expected[-1]:
        expected.pop()
    assert lines == [line[: most + 1] for line in expected]


LINES = "".join(f"line {number}\n" for number in range(1, 2_001)).encode()


@pytest.mark.parametrize(
    ("arguments", "first", "last", "following"),
    [
        ({}, 1, 200, 201),
        ({"start_line": 11, "line_count": 5}, 11, 15, 16),
        ({"start_line": 1_990, "line_count": 100}, 1_990, 2_000, None),
        ({"start_line": 2_000, "line_count": 1}, 2_000, 2_000, None),
        ({"line_count": 1_000}, 1, 1_000, 1_001),
    ],
)
async def test_read_a_window(
    arguments: dict[str, int], first: int, last: int, following: int | None
) -> None:
    result = await use("artifact_read", MemoryFiles({"a": LINES}), artifact_id="art_a", **arguments)
    assert texts(result) == [f"line {number}" for number in range(first, last + 1)]
    assert result["next_line"] == following


async def test_read_stops_reading_when_it_has_what_it_wants() -> None:
    files = MemoryFiles({"a": LINES * 100}, chunk_bytes=1_000)
    await use("artifact_read", files, artifact_id="art_a", line_count=10)
    assert files.bytes_read <= 10_000


async def test_read_says_where_the_file_ends() -> None:
    files = MemoryFiles({"a": b"one\ntwo", "empty": b""})
    with pytest.raises(ToolError, match="has 2 lines, so none from line 3 on"):
        await use("artifact_read", files, artifact_id="art_a", start_line=3)
    assert texts(await use("artifact_read", files, artifact_id="art_empty")) == []
    with pytest.raises(ArtifactNotFound):
        await use("artifact_read", files, artifact_id="art_none")


async def test_what_a_read_answers_is_bounded() -> None:
    files = MemoryFiles({"a": (b"x" * 1_999 + b"\n") * 1_000, "b": b"y" * 5_000_000}, 65_536)
    result = await use("artifact_read", files, artifact_id="art_a", line_count=1_000)
    assert 30 < len(texts(result)) < 40
    assert result["next_line"] == len(texts(result)) + 1
    result = await use("artifact_read", files, artifact_id="art_b")
    assert result["lines"] == [{"line": 1, "text": "y" * 2_000, "cut": True}]


@pytest.mark.parametrize("data", [b"\0\1\2" * 50, b"%PDF-1.7 text", b"\xff\xfe" * 100])
async def test_binary_files_are_refused(data: bytes) -> None:
    files = MemoryFiles({"ok.txt": b"needle"})
    binary = files.add("b.bin", data, "application/pdf")
    with pytest.raises(ToolError, match=r"b.bin \(art_b_bin\) is not UTF-8 text but application/p"):
        await use("artifact_read", files, artifact_id=binary)
    with pytest.raises(ToolError, match="only text"):
        await use("artifact_grep", files, pattern="x", artifact_id=binary)
    result = await use("artifact_grep", files, pattern="needle")
    assert result["files_searched"] == 1
    assert [skipped["artifact_id"] for skipped in result["files_skipped"]] == [binary]
    assert len(result["matches"]) == 1


async def test_grep_shows_the_lines_around() -> None:
    files = MemoryFiles({"a": b"1\n2\n3 x\n4 x\n5\n6\n"})
    result = await use("artifact_grep", files, pattern="x", context_lines=2)
    first, second = result["matches"]
    assert (first["before"], first["line"], first["after"]) == (["1", "2"], 3, ["4 x", "5"])
    assert (second["before"], second["line"], second["after"]) == (["2", "3 x"], 4, ["5", "6"])


async def test_grep_is_bounded() -> None:
    files = MemoryFiles({"a": b"x\n" * 1_000}, 100)
    result = await use("artifact_grep", files, pattern="x")
    assert (len(result["matches"]), result["more"]) == (50, True)
    assert files.bytes_read < 1_000
    result = await use("artifact_grep", MemoryFiles({"a": b"x\n" * 50}), pattern="x")
    assert (len(result["matches"]), result["more"]) == (50, False)
    long = MemoryFiles({"a": (b"x" * 2_000 + b"\n") * 400})
    result = await use("artifact_grep", long, pattern="x", max_matches=500)
    assert 60 < len(result["matches"]) < 70
    assert result["more"]


async def test_of_a_very_long_line_the_beginning_is_searched() -> None:
    long = b"a" * KEPT_LINE_MAX_BYTES
    files = MemoryFiles({"a": long + b"needle\nneedle\n"}, 10_000)
    result = await use("artifact_grep", files, pattern="needle")
    assert [match["line"] for match in result["matches"]] == [2]
    result = await use("artifact_grep", files, pattern="^a")
    assert result["matches"][0]["cut"]


async def test_newest_files_first_or_one_alone() -> None:
    files = MemoryFiles({"old.txt": b"Key", "new.txt": b"key"})
    result = await use("artifact_grep", files, pattern="key", ignore_case=True)
    assert [match["filename"] for match in result["matches"]] == ["new.txt", "old.txt"]
    assert len((await use("artifact_grep", files, pattern="key"))["matches"]) == 1
    result = await use("artifact_grep", files, pattern="(?i)key", artifact_id="art_old_txt")
    assert [match["filename"] for match in result["matches"]] == ["old.txt"]


@pytest.mark.parametrize("pattern", ["(", "a{1001}", r"(a)\1", "(?=a)", "*", "[z-a]"])
async def test_a_bad_pattern_is_the_models_to_mend(pattern: str) -> None:
    with pytest.raises(ToolError, match="RE2"):
        await use("artifact_grep", MemoryFiles({"a": b"a"}), pattern=pattern)


async def test_a_hostile_pattern_takes_linear_time() -> None:
    files = MemoryFiles({"a": b"a" * 60_000}, 60_000)
    result = await use("artifact_grep", files, pattern="(a*)*(a|aa)+$b")
    assert result["matches"] == []


@pytest.mark.parametrize(
    "arguments",
    [{}, {"pattern": ""}, {"pattern": "x" * 1_001}, {"pattern": "a", "max_matches": 501}],
)
async def test_arguments_are_checked(arguments: dict[str, Any]) -> None:
    with pytest.raises(ToolError, match="don't fit"):
        await use("artifact_grep", MemoryFiles(), **arguments)


def test_names_are_the_contracts() -> None:
    fields = agent_pb2.ToolConfiguration.DESCRIPTOR.oneofs_by_name["tool"].fields
    assert {*BUILT_IN_TOOLS, "mcp"} == {field.name for field in fields}
