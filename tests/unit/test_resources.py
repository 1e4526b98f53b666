"""The pure parts of lists and updates: pages, tokens, masks, fingerprints, free-form objects."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import pytest
from google.protobuf.field_mask_pb2 import FieldMask
from google.protobuf.timestamp_pb2 import Timestamp
from hypothesis import given
from hypothesis import strategies as st

from hansard.v1 import agent_service_pb2, session_service_pb2
from hansard_server.domain.errors import DomainError, InvalidPageToken, RequestIdReused
from hansard_server.domain.limits import PAGE_MAX_BYTES
from hansard_server.domain.records import Claim, Claimed
from hansard_server.repository.api import CreationScan, Position
from hansard_server.resources.filters import timestamp_us
from hansard_server.resources.fingerprints import claim_of, fingerprint, first_answer
from hansard_server.resources.masks import read_mask
from hansard_server.resources.paging import (
    PageTokens,
    Query,
    pack_position,
    query_of,
    scan_page,
    unpack_position,
)

Create = session_service_pb2.CreateSessionRequest


@dataclass(frozen=True)
class Row:
    number: int
    size: int
    wanted: bool


@given(
    rows=st.lists(st.tuples(st.sampled_from([1, 2**19, 2**21, 2**22]), st.booleans()), max_size=60),
    limit=st.integers(1, 20),
    scan_max=st.integers(1, 30),
)
def test_pages_together_are_the_list(
    rows: list[tuple[int, bool]], limit: int, scan_max: int
) -> None:
    table = [Row(number, size, wanted) for number, (size, wanted) in enumerate(rows)]
    fetched: list[Sequence[Row]] = []

    def fetch(scan: CreationScan) -> Sequence[Row]:
        start = 0 if scan.after is None else scan.after.created_at_us + 1
        found = table[start : start + scan.limit]
        fetched.append(found)
        return found

    after: Position | None = None
    found: list[Row] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("hansard_server.resources.paging.SCAN_MAX_ROWS", scan_max)
        for _ in range(len(table) + 2):
            fetched.clear()
            page = scan_page(
                fetch,
                CreationScan(limit=limit, after=after),
                position=lambda row: Position(row.number, "u"),
                size=lambda row: row.size,
                matches=lambda row: row.wanted,
            )
            assert len(page.items) <= limit
            assert sum(map(len, fetched)) <= scan_max
            assert len(page.items) <= 1 or sum(i.size for i in page.items) <= PAGE_MAX_BYTES
            found += page.items
            after = page.position
            if after is None:
                break
    assert after is None
    assert found == [row for row in table if row.wanted]


@given(position=st.binary(max_size=100), content=st.binary(max_size=40), index=st.integers(0))
def test_token_is_read_by_its_query_alone(position: bytes, content: bytes, index: int) -> None:
    tokens = PageTokens(b"secret")
    query = Query("t", "m", content)
    token = tokens.make(query, position)
    assert tokens.read(query, token) == position
    for other in (Query("u", "m", content), Query("t", "n", content), Query("t", "m", b"x" * 41)):
        with pytest.raises(InvalidPageToken):
            tokens.read(other, token)
    with pytest.raises(InvalidPageToken):
        PageTokens(b"other").read(query, token)
    place = index % len(token)
    swapped = "A" if token[place] != "A" else "B"
    with pytest.raises(InvalidPageToken):
        tokens.read(query, token[:place] + swapped + token[place + 1 :])


@given(created=st.integers(-(2**63), 2**63 - 1), uid=st.text(alphabet="abc019", max_size=20))
def test_position_comes_back(created: int, uid: str) -> None:
    position = Position(created, uid)
    assert unpack_position(pack_position(position)) == position


def test_query_is_all_but_token_and_size() -> None:
    request = agent_service_pb2.ListAgentsRequest(filter="x", page_size=1, page_token="t")
    same = agent_service_pb2.ListAgentsRequest(filter="x")
    assert query_of("t", request) == query_of("t", same)
    assert query_of("t", same) != query_of("t", agent_service_pb2.ListAgentsRequest())
    assert request.page_token == "t"


def test_fingerprint_is_of_the_content() -> None:
    request = Create(name="x", metadata={"a": 1, "b": 2}, request_id="1")
    other = Create(name="x", metadata={"b": 2, "a": 1}, request_id="2")
    assert fingerprint(request, "request_id") == fingerprint(other, "request_id")
    assert fingerprint(request) != fingerprint(other)
    unknown = Create.FromString(request.SerializeToString() + b"\x98\x06\x01")
    assert fingerprint(unknown) == fingerprint(request)
    other.name = "y"
    assert fingerprint(request, "request_id") != fingerprint(other, "request_id")
    assert claim_of("", request) is None


def test_claim_gives_its_first_answer_to_the_same_content() -> None:
    claim = Claim("r", b"1" * 32)
    assert first_answer(None, claim) is None
    assert first_answer(Claimed(b"1" * 32, "answer"), claim) == "answer"
    with pytest.raises(RequestIdReused):
        first_answer(Claimed(b"2" * 32, "answer"), claim)


def test_mask_is_a_set_of_known_paths() -> None:
    fields = frozenset({"name", "tools"})
    mask = FieldMask(paths=["name", "tools.a", "name"])
    assert read_mask(mask, fields, map_field="tools") == {"name", "tools.a"}
    for paths in ([], ["x"], ["tools.a.b"], ["tools."], [".a"], ["name.a"], ["tools.a\n"]):
        with pytest.raises(DomainError):
            read_mask(FieldMask(paths=paths), fields, map_field="tools")
    with pytest.raises(DomainError):
        read_mask(FieldMask(paths=["tools.a"]), fields)


@pytest.mark.parametrize(
    ("seconds", "nanos", "expected"),
    [(0, 0, 0), (1, 1, 1_000_001), (1, 1_000, 1_000_001), (1, 999_999_999, 2_000_000)],
)
def test_time_is_rounded_up_to_microseconds(seconds: int, nanos: int, expected: int) -> None:
    assert timestamp_us("f", Timestamp(seconds=seconds, nanos=nanos)) == expected
