"""MIME types: made out from a file's first bytes and its name, when nobody has said."""

from __future__ import annotations

import codecs
import mimetypes
import re
from functools import cache

import puremagic

from hansard_server.domain.limits import KIB

HEAD_BYTES = 16 * KIB
UNKNOWN = "application/octet-stream"
TEXT = "text/plain"
# As the uploader could have given it: what is made out here must not be worse.
_WELL_FORMED = re.compile(r"[0-9a-z!#$&^_.+-]+/[0-9a-z!#$&^_.+-]+")
_CONTROL = re.compile(r"[\x00-\x08\x0e-\x1a\x1c-\x1f\x7f]")
_TEXT_TYPES = re.compile(
    r"text/.*|message/.*|image/svg\+xml|.*[/+](?:json|xml|yaml|javascript|toml|sql|x-sh|rtf)"
)
_TEXT_BEGINNINGS = (("%PDF-", "application/pdf"), ("{\\rtf", "application/rtf"))
_MARKUP_BEGINNINGS = (
    (re.compile(r"\s*(?:<!doctype html|<html)\b", re.IGNORECASE), "text/html"),
    (re.compile(r"\s*(?:<\?xml[^>]*\?>\s*)?(?:<!--.*?-->\s*)*<svg\b", re.DOTALL), "image/svg+xml"),
    (re.compile(r"\s*<\?xml\b"), "application/xml"),
)
_ZIP_BEGINNING = b"PK\x03\x04"
# What puremagic calls by an older name than the registered one.
_REGISTERED = {"application/x-gzip": "application/gzip", "image/x-ms-bmp": "image/bmp"}
# What the standard library does not know everywhere, and people upload to agents.
_SUFFIXES = (
    ("text/markdown", ".md"),
    ("text/markdown", ".markdown"),
    ("application/yaml", ".yaml"),
    ("application/yaml", ".yml"),
    ("application/toml", ".toml"),
    ("application/jsonl", ".jsonl"),
    ("text/csv", ".csv"),
    ("text/tab-separated-values", ".tsv"),
    ("text/x-log", ".log"),
    ("application/epub+zip", ".epub"),
    ("application/vnd.oasis.opendocument.presentation", ".odp"),
    ("application/vnd.oasis.opendocument.spreadsheet", ".ods"),
    ("application/vnd.oasis.opendocument.text", ".odt"),
    ("application/vnd.openxmlformats-officedocument.presentationml.presentation", ".pptx"),
    ("application/vnd.openxmlformats-officedocument.spreadsheetml.sheet", ".xlsx"),
    ("application/vnd.openxmlformats-officedocument.wordprocessingml.document", ".docx"),
)


def sniff(head: bytes, filename: str) -> str:
    """Return the MIME type of a file that begins with `head` (up to 16 KiB).

    Text is told from the bytes, which text by the name's suffix; other formats by their signatures;
    what is nothing known is `application/octet-stream`.
    """
    text = as_text(head)
    by_name = _by_name(filename)
    if text is None:
        return _by_signature(head, filename) or _unless_text(by_name) or UNKNOWN
    for beginning, mime_type in _TEXT_BEGINNINGS:
        if text.startswith(beginning):
            return mime_type
    if by_name is not None and _TEXT_TYPES.fullmatch(by_name):
        return by_name
    for pattern, mime_type in _MARKUP_BEGINNINGS:
        if pattern.match(text):
            return mime_type
    return TEXT


def as_text(head: bytes) -> str | None:
    """Return the beginning of a file as UTF-8 text; None when it is none. Empty is text."""
    decoder = codecs.getincrementaldecoder("utf-8-sig")()
    try:
        text = decoder.decode(head)  # a character cut at the end is no fault
    except UnicodeDecodeError:
        return None
    return None if _CONTROL.search(text) else text


@cache
def _mime_types() -> mimetypes.MimeTypes:
    # It reads the system's own lists.
    known = mimetypes.MimeTypes()
    for mime_type, suffix in _SUFFIXES:
        known.add_type(mime_type, suffix)
    return known


def _by_name(filename: str) -> str | None:
    _, dot, suffix = filename.rpartition(".")
    if not dot:
        return None
    mime_type, encoding = _mime_types().guess_type(f"x.{suffix}")
    if encoding is not None:
        return f"application/{encoding}"
    return mime_type if mime_type and _WELL_FORMED.fullmatch(mime_type) else None


def _unless_text(mime_type: str | None) -> str | None:
    return None if mime_type is None or _TEXT_TYPES.fullmatch(mime_type) else mime_type


def _by_signature(head: bytes, filename: str) -> str | None:
    if head.startswith(_ZIP_BEGINNING):
        # Documents and packages of many kinds are zip files: only the name tells which.
        return _unless_text(_by_name(filename)) or "application/zip"
    try:
        mime_type = puremagic.from_string(head, mime=True)
    except (puremagic.PureError, ValueError):
        return None
    mime_type = _REGISTERED.get(mime_type, mime_type)
    return mime_type if _WELL_FORMED.fullmatch(mime_type) else None
