"""Keys and ids: made here, and nowhere else."""

from __future__ import annotations

import re
import secrets
import unicodedata

KEY_MAX_CHARACTERS = 50
_KEY = re.compile(rf"[0-9a-zA-Z_-]{{1,{KEY_MAX_CHARACTERS}}}")
_ALPHABET = b"abcdefghijklmnopqrstuvwxyz234567"
# 256 is a multiple of 32: each character is as likely as every other.
_CHARACTER_OF_BYTE = bytes(_ALPHABET[byte % len(_ALPHABET)] for byte in range(256))
_TAIL_CHARACTERS = 6
_UID_CHARACTERS = 20
API_KEY_ID_CHARACTERS = 16
"""Of the random part of an API key's id."""


def is_key(text: str) -> bool:
    """Tell whether the text may be a key of the contract: 1 to 50 characters of a few kinds."""
    return _KEY.fullmatch(text) is not None


def make_agent_key(name: str) -> str:
    """Return a key for an agent called `name`: `agt_<words>_<tail>`, at most 50 characters."""
    return _make_key("agt_", name)


def make_session_key(name: str) -> str:
    """Return a key for a session called `name`: `ase_<words>_<tail>`, at most 50 characters."""
    return _make_key("ase_", name)


def make_corpus_key(name: str) -> str:
    """Return a key for a corpus called `name`: `crp_<words>_<tail>`, at most 50 characters."""
    return _make_key("crp_", name)


def make_document_id() -> str:
    """Return a new id of a document, `doc_…`."""
    return "doc_" + random_tail(_UID_CHARACTERS)


def make_artifact_id(filename: str) -> str:
    """Return an id for a file: `art_<slug>_<tail>`, matching `^art_[a-z0-9_-]+$`."""
    stem = filename.rsplit(".", 1)[0] or filename
    return _make_key("art_", stem)


def make_event_id() -> str:
    """Return a new event id, `aev_…`."""
    return "aev_" + random_tail(_UID_CHARACTERS)


def make_turn_id() -> str:
    """Return a new turn id, `trn_…`."""
    return "trn_" + random_tail(_UID_CHARACTERS)


def make_tool_call_id() -> str:
    """Return a new id of a tool call, `call_…`."""
    return "call_" + random_tail(_UID_CHARACTERS)


def make_api_key_id() -> str:
    """Return a new id of an API key, `key_…`."""
    return "key_" + random_tail(API_KEY_ID_CHARACTERS)


def make_uid() -> str:
    """Return a uid: 20 random characters of 32, 100 bits."""
    return random_tail(_UID_CHARACTERS)


def make_etag() -> str:
    """Return an etag that no other state of any resource has."""
    return random_tail(16)


def random_tail(characters: int) -> str:
    """Return random lower-case letters and digits from the system's secure source."""
    return secrets.token_bytes(characters).translate(_CHARACTER_OF_BYTE).decode()


def _make_key(prefix: str, name: str) -> str:
    # Accents fall away (é is e); what is left of other scripts and symbols is nothing, and the tail
    # alone makes the key.
    plain = unicodedata.normalize("NFKD", name[:1_000]).encode("ascii", "ignore").decode()
    words = re.findall(r"[a-z0-9]+", plain.lower())
    room = KEY_MAX_CHARACTERS - len(prefix) - _TAIL_CHARACTERS - 1
    slug = "_".join(words)[:room].strip("_")
    tail = random_tail(_TAIL_CHARACTERS)
    return f"{prefix}{slug}_{tail}" if slug else f"{prefix}{tail}"
