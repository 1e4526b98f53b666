"""Parameters of agents: checked as far as they are known, and where they go."""

from __future__ import annotations

from typing import Any

import pytest

from hansard_server.agents.models.parameters import check_parameters, request_settings
from hansard_server.domain.errors import InvalidAgentConfiguration


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("temperature", 2.1),
        ("temperature", True),
        ("temperature", "hot"),
        ("top_p", -0.1),
        ("max_tokens", 0),
        ("max_tokens", 1.5),
        ("stop_sequences", "END"),
        ("stop_sequences", [""]),
        ("parallel_tool_calls", "yes"),
        ("extra_body", []),
        ("extra_body", {"stream": False}),
        ("messages", []),
        ("stream", False),
        ("n", 2),
        ("extra_headers", {"authorization": "x"}),
        ("base_url", "http://elsewhere"),
        ("anthropic_thinking", {}),
    ],
)
def test_what_is_refused(name: str, value: Any) -> None:
    with pytest.raises(InvalidAgentConfiguration) as raised:
        check_parameters("openai", {"seed": 1, name: value})
    assert [violation.field for violation in raised.value.violations] == [
        f"model.parameters.{name}"
    ]


def test_google_takes_no_body() -> None:
    for name in ("mirostat", "extra_body"):
        with pytest.raises(InvalidAgentConfiguration):
            check_parameters("google", {name: {}})
    check_parameters("google", {"google_thinking_config": {"include_thoughts": True}, "top_k": 5})


def test_what_is_not_known_goes_into_the_body() -> None:
    parameters = {
        "temperature": 2,
        "top_k": 40,
        "mirostat": 2,
        "openai_user": "u",
        "extra_body": {"min_p": 0.1},
    }
    check_parameters("openai", parameters)
    assert request_settings("openai", parameters) == {
        "temperature": 2,
        "openai_user": "u",
        "extra_body": {"min_p": 0.1, "top_k": 40, "mirostat": 2},
    }
    assert request_settings("anthropic", {"top_k": 4}) == {"top_k": 4}
    assert request_settings("google", {}) == {}
