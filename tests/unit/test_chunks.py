"""The fast way to a chunk's bytes is held to the plain one: parse, then check."""

from __future__ import annotations

import pytest
from google.protobuf.message import DecodeError
from hypothesis import example, given
from hypothesis import strategies as st
from protovalidate import Validator

from hansard.v1.artifact_service_pb2 import UploadArtifactsRequest, UploadHeader, UploadStart
from hansard_server.domain.limits import UPLOAD_CHUNK_MAX_BYTES
from hansard_server.servicers.chunks import take_chunk

VALIDATOR = Validator()
MESSAGES = st.one_of(
    st.binary(max_size=300).map(lambda chunk: UploadArtifactsRequest(chunk=chunk)),
    st.integers(0, 70_000).map(lambda size: UploadArtifactsRequest(chunk=bytes(size))),
    st.builds(lambda name: UploadArtifactsRequest(header=UploadHeader(filename=name)), st.text()),
    st.builds(lambda key: UploadArtifactsRequest(start=UploadStart(agent_key=key)), st.text()),
).map(UploadArtifactsRequest.SerializeToString)


def plainly(raw: bytes) -> bytes | None:
    """Return what the message holds if it is valid and a chunk."""
    try:
        message = UploadArtifactsRequest.FromString(raw)
    except DecodeError:
        return None
    if VALIDATOR.collect_violations(message, fail_fast=True) or not message.HasField("chunk"):
        return None
    return message.chunk


@given(raw=st.lists(MESSAGES, max_size=2).map(b"".join), cut=st.integers(-3, 3))
@example(raw=b"", cut=0)
@example(raw=b"\x1a\x00", cut=0)
@example(raw=b"\x1a\x80\x00", cut=0)
@example(raw=b"\x1a\x81\x80\x80\x00x", cut=0)
def test_what_is_taken_is_what_parsing_gives(raw: bytes, cut: int) -> None:
    changed = raw[:cut] if cut < 0 else raw + bytes(cut)
    taken = take_chunk(changed)
    if taken is not None:
        assert bytes(taken) == plainly(changed)


@given(head=st.binary(max_size=6), size=st.integers(0, 300))
def test_no_bytes_are_taken_for_another_message(head: bytes, size: int) -> None:
    raw = b"\x1a" + head + bytes(size)
    taken = take_chunk(raw)
    if taken is not None:
        assert bytes(taken) == plainly(raw)


@pytest.mark.parametrize("size", [0, 1, 127, 128, 16_383, 16_384, 256 * 1024])
def test_every_chunk_as_clients_write_it_is_taken(size: int) -> None:
    chunk = b"\xa5" * size
    taken = take_chunk(UploadArtifactsRequest(chunk=chunk).SerializeToString())
    assert taken is not None
    assert bytes(taken) == chunk


def test_the_largest_chunk_is_taken_and_one_past_it_is_left_to_the_rules() -> None:
    largest = UploadArtifactsRequest(chunk=bytes(UPLOAD_CHUNK_MAX_BYTES)).SerializeToString()
    taken = take_chunk(largest)
    assert taken is not None
    assert len(taken) == UPLOAD_CHUNK_MAX_BYTES
    larger = UploadArtifactsRequest(chunk=bytes(UPLOAD_CHUNK_MAX_BYTES + 1)).SerializeToString()
    assert take_chunk(larger) is None
    assert plainly(larger) is None


@given(header=st.text(max_size=20))
def test_nothing_else_is_taken(header: str) -> None:
    for message in (
        UploadArtifactsRequest(header=UploadHeader(filename=header)),
        UploadArtifactsRequest(start=UploadStart(agent_key=header)),
        UploadArtifactsRequest(),
    ):
        assert take_chunk(message.SerializeToString()) is None
