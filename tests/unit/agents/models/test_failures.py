"""Failures of providers: what they mean for a turn, and what they must not show."""

from __future__ import annotations

import httpx2
import pytest
from pydantic_ai.exceptions import (
    ContentFilterError,
    ModelAPIError,
    ModelHTTPError,
    UnexpectedModelBehavior,
    UserError,
)

from hansard_server.agents.api import ContextOverflow, ModelFailed, ModelInterrupted
from hansard_server.agents.models.providers.failures import Failures

KEY = "sk-live-abcdefghijklmnopqrstuvwxyz012345"
FAILURES = Failures("gpt", (KEY, "another-secret-of-a-header"))


def http(status: int, message: str = "so it is", **headers: str) -> ModelHTTPError:
    return ModelHTTPError(status, "m", body={"message": message}, headers=headers)


@pytest.mark.parametrize("status", [408, 409, 425, 429, 500, 502, 503, 529])
def test_what_may_pass_is_tried_again(status: int) -> None:
    failure = FAILURES.of(http(status))
    assert isinstance(failure, ModelInterrupted)
    assert str(failure) == f"gpt: HTTP {status}: so it is"


@pytest.mark.parametrize("status", [400, 401, 403, 404, 413, 422])
def test_what_will_not_pass_is_not(status: int) -> None:
    failure = FAILURES.of(http(status))
    assert type(failure) is ModelFailed


@pytest.mark.parametrize(
    ("error", "passes"),
    [
        (httpx2.ConnectError("refused"), True),
        (httpx2.ReadTimeout("silent"), True),
        (httpx2.RemoteProtocolError("cut"), True),
        (ModelAPIError("m", "cut"), True),
        (UnexpectedModelBehavior("nothing in it"), True),
        (KeyError("delta"), True),
        (ContentFilterError("held back"), False),
        (UserError("no such setting"), False),
    ],
)
def test_other_failures(error: Exception, passes: bool) -> None:  # noqa: FBT001 - a table
    assert isinstance(FAILURES.of(error), ModelInterrupted) is passes


def test_ours_stay_as_they_are() -> None:
    ours = ContextOverflow("too much", context_limit=7)
    assert FAILURES.of(ours) is ours


@pytest.mark.parametrize(
    "text",
    [
        f"Incorrect API key provided: {KEY}.",
        f"Incorrect API key provided: {KEY[:7]}***{KEY[-4:]}.",
        f"header x: another-secret-of-a-header, key ...{KEY[-6:]}",
        "key AIzaSyA1234567890abcdefghijklmnop is not valid",
        "Authorization: Bearer abc.def.ghi",
    ],
)
def test_no_key_is_shown(text: str) -> None:
    shown = str(FAILURES.of(http(401, text)))
    assert "[redacted]" in shown
    for part in (KEY[:7], KEY[-6:], KEY[-4:], "another-secret", "AIzaSyA", "abc.def"):
        assert part not in shown


def test_messages_are_short_and_on_one_line() -> None:
    shown = str(FAILURES.of(http(500, "a\n\tb " + "x" * 10_000)))
    assert shown.startswith("gpt: HTTP 500: a b x")
    assert len(shown) < 600


def test_a_strange_error_says_nothing_of_what_was_sent() -> None:
    assert "private" not in str(FAILURES.of(KeyError("private words")))
