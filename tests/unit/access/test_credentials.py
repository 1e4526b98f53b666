"""Keys and tokens as text: what is read, and that nothing that differs by a bit is."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator

import pytest

from hansard_server.access.authentication import read_credential
from hansard_server.access.credentials import Tokens, hash_secret, make_secret, read_key
from hansard_server.domain.errors import Unauthorized
from hansard_server.domain.keys import make_api_key_id

# Always the same, since they stand in the names of tests.
KEY_ID = "key_" + "a2" * 8
SECRET = "hsk_" + "a2" * 8 + "_" + "b3" * 26
TOKENS = Tokens(b"s" * 32)
EXPIRES_S = 2_000_000_000
TOKEN = TOKENS.sign(KEY_ID, EXPIRES_S)


def one_bit_off(text: str) -> Iterator[str]:
    raw = text.encode()
    for place in range(len(raw)):
        for bit in range(8):
            changed = bytearray(raw)
            changed[place] ^= 1 << bit
            yield changed.decode("latin-1")


def test_key_is_read_as_it_was_made() -> None:
    presented = read_key(SECRET)
    assert presented is not None
    assert presented.key_id == KEY_ID
    assert presented.secret_sha256 == hashlib.sha256(SECRET.encode()).digest()
    made = make_secret(make_api_key_id())
    assert read_key(made) is not None
    assert len(made) == len(SECRET)


def test_key_that_is_one_bit_off_is_another() -> None:
    for text in one_bit_off(SECRET):
        presented = read_key(text)
        if presented is not None and presented.key_id == KEY_ID:
            assert presented.secret_sha256 != hash_secret(SECRET)


@pytest.mark.parametrize(
    "text",
    [
        *("", "hsk_", "Bearer", SECRET[:-1], SECRET[1:], SECRET * 2, f"{SECRET} {SECRET}"),
        *(f"{SECRET},{SECRET}", f"{SECRET}\n", f" {SECRET}", SECRET.upper(), f"{SECRET}x"),
        *(SECRET.replace("_", "-"), "hsk_" + "ä" * 69, "x" * 100_000, TOKEN),
    ],
)
def test_what_does_not_look_like_a_key_is_none(text: str) -> None:
    assert read_key(text) is None


def test_token_is_read_until_it_expires() -> None:
    assert TOKENS.read(TOKEN, EXPIRES_S - 1) == KEY_ID
    assert TOKENS.read(TOKEN, EXPIRES_S) is None
    assert Tokens(b"t" * 32).read(TOKEN, EXPIRES_S - 1) is None


def test_token_that_is_one_bit_off_is_none() -> None:
    for text in one_bit_off(TOKEN):
        assert TOKENS.read(text, 0) is None, text


@pytest.mark.parametrize(
    "text",
    [
        *("", "hst_", TOKEN[:-1], TOKEN[1:], TOKEN * 2, f"{TOKEN}\n", TOKEN.upper(), SECRET),
        TOKEN.replace(str(EXPIRES_S), f"0{EXPIRES_S}"),
        TOKEN.replace(str(EXPIRES_S), str(EXPIRES_S + 1)),
        TOKEN.replace(str(EXPIRES_S), "٢" * 10),
    ],
)
def test_what_nobody_signed_is_none(text: str) -> None:
    assert TOKENS.read(text, 0) is None


BEARER = ("authorization", f"Bearer {SECRET}")
API_KEY = ("x-api-key", SECRET)


@pytest.mark.parametrize(
    "metadata",
    [
        *([BEARER], [API_KEY], [BEARER, API_KEY], [("user-agent", "x"), API_KEY]),
        [("authorization", f"bearer {SECRET}")],
        [("authorization", f"BEARER {SECRET}")],
    ],
)
def test_credential_is_found(metadata: list[tuple[str, str]]) -> None:
    assert read_credential(metadata) == SECRET


@pytest.mark.parametrize(
    "metadata",
    [
        *([], [("authorization", "")], [("authorization", SECRET)], [BEARER, BEARER]),
        *([API_KEY, API_KEY], [("authorization", f"Basic {SECRET}")], [("x-api-key", b"x")]),
        [BEARER, ("x-api-key", SECRET + "x")],
        [API_KEY, ("authorization", f"Basic {SECRET}")],
        [BEARER, ("authorization", "Bearer other")],
        [("authorization", b"Bearer x")],
    ],
)
def test_credentials_that_are_missing_or_disagree_are_refused(
    metadata: list[tuple[str, str | bytes]],
) -> None:
    with pytest.raises(Unauthorized):
        read_credential(metadata)
