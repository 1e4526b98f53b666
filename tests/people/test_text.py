"""Text from others is shown, and never obeyed."""

from __future__ import annotations

import json
import re

from hypothesis import given
from hypothesis import strategies as st

from hansard_client.commands.text import as_utf8, json_safe, one_line, plain

UNSAFE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\u2028\ud800-\udfff]")


@given(st.text())
def test_nothing_unsafe_is_left(text: str) -> None:
    assert not UNSAFE.search(plain(text))
    assert not re.search(r"[\n\t]", one_line(text))
    assert len(one_line(text, 10)) <= 10


@given(st.recursive(st.text(), lambda inner: st.dictionaries(st.text(), inner, max_size=3)))
def test_json_stays_the_same_value(value: object) -> None:
    document = json_safe(json.dumps(value, ensure_ascii=False))
    assert not UNSAFE.search(document)
    assert json.loads(document) == value


def test_examples() -> None:
    assert plain("a\x1b[31mb\r\nc\td\x7f\x9b") == "a␛[31mb\nc\td␡\\u009b"
    assert one_line("a\n  b", 0) == "a b"
    assert one_line("abcdef", 4) == "abc…"
    assert as_utf8("a\udcffb") == "a\ufffdb"
