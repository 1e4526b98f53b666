"""What a file is, from its bytes and its name."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hansard_server.artifacts.mime import HEAD_BYTES, sniff

DOCX = "application/vnd.openxmlformats-officedocument.wordprocessingml.document"
PNG = b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR\0\0\0\1\0\0\0\1\x08\2\0\0\0"


@pytest.mark.parametrize(
    ("head", "filename", "mime_type"),
    [
        (b"", "empty", "text/plain"),
        (b"", "empty.csv", "text/csv"),
        (b"hello", "notes", "text/plain"),
        (b"hello", "notes.txt", "text/plain"),
        (b"# Title", "README.md", "text/markdown"),
        (b'{"a": 1}', "a.JSON", "application/json"),
        (b"a: 1", "a.yml", "application/yaml"),
        ("\ufeffgrüße".encode(), "a.txt", "text/plain"),
        (b"<!doctype html><p>", "page", "text/html"),
        (b"<?xml version='1.0'?><svg xmlns='x'/>", "picture", "image/svg+xml"),
        (b"<?xml version='1.0'?><a/>", "a.bin", "application/xml"),
        # Signatures that are words too must not make pictures and songs of texts.
        (b"BM is what the label says", "label", "text/plain"),
        (b"ID3 tags are explained here", "tags.txt", "text/plain"),
        (b"%PDF-1.7 all of it in ASCII", "a.txt", "application/pdf"),
        (b"%PDF-1.7\n%\xe2\xe3\xcf\xd3\n", "a", "application/pdf"),
        (PNG, "a.txt", "image/png"),
        (b"\xff\xd8\xff\xe0\0\x10JFIF\0", "photo", "image/jpeg"),
        (b"GIF89a\1\0\1\0\0\0\0", "a", "image/gif"),
        (b"\x1f\x8b\x08\0\0\0\0\0\0\3", "a.gz", "application/gzip"),
        (b"PK\3\4" + bytes(40), "a.docx", DOCX),
        (b"PK\3\4" + bytes(40), "a.txt", "application/zip"),
        (b"PK\3\4" + bytes(40), "a", "application/zip"),
        (b"\0\1\2\3\4\xff\xfe\xfd", "data.json", "application/octet-stream"),
        (b"\0\1\2\3\4\xff\xfe\xfd", "data", "application/octet-stream"),
        ("é".encode() * HEAD_BYTES, "cut.txt", "text/plain"),
    ],
)
def test_known_files(head: bytes, filename: str, mime_type: str) -> None:
    assert sniff(head[: HEAD_BYTES - 1], filename) == mime_type


@given(st.binary(max_size=200), st.text(min_size=1, max_size=30))
def test_any_file_gets_a_well_formed_type(head: bytes, filename: str) -> None:
    assert re.fullmatch(r"[0-9a-z!#$&^_.+-]+/[0-9a-z!#$&^_.+-]+", sniff(head, filename))
