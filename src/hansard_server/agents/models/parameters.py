"""Parameters of agents for models of providers: what is known is checked, the rest handed on."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from hansard_server.agents.api import Json
from hansard_server.domain.errors import FieldViolation, InvalidAgentConfiguration

TOKENS_MAX = 10_000_000
_TEMPERATURE_MAX = 2.0
_PENALTY_MAX = 2.0

Check = Callable[[Json], str]
"""Returns what is wrong with a value, empty for nothing."""


def _number(least: float, most: float) -> Check:
    def check(value: Json) -> str:
        if isinstance(value, bool) or not isinstance(value, int | float):
            return "must be a number"
        return "" if least <= value <= most else f"must be {least:,} to {most:,}"

    return check


def _whole(least: int, most: int) -> Check:
    def check(value: Json) -> str:
        if isinstance(value, bool) or not isinstance(value, int):
            return "must be a whole number"
        return "" if least <= value <= most else f"must be {least:,} to {most:,}"

    return check


def _is(kind: type, words: str) -> Check:
    return lambda value: "" if isinstance(value, kind) else f"must be {words}"


def _texts(value: Json) -> str:
    if isinstance(value, list) and all(isinstance(item, str) and item for item in value):
        return ""
    return "must be a list of texts"


def _extra_body(value: Json) -> str:
    if not isinstance(value, Mapping):
        return "must be an object"
    ours = sorted(_OURS & value.keys())
    return f"{ours[0]} is the server's business" if ours else ""


# The names of pydantic-ai's settings, which are those of most providers.
_KNOWN: Mapping[str, Check] = {
    "max_tokens": _whole(1, TOKENS_MAX),
    "temperature": _number(0, _TEMPERATURE_MAX),
    "top_p": _number(0, 1),
    "top_k": _whole(1, TOKENS_MAX),
    "seed": _whole(-(2**53), 2**53),
    "presence_penalty": _number(-_PENALTY_MAX, _PENALTY_MAX),
    "frequency_penalty": _number(-_PENALTY_MAX, _PENALTY_MAX),
    "logit_bias": _is(Mapping, "an object"),
    "stop_sequences": _texts,
    "parallel_tool_calls": _is(bool, "true or false"),
    "thinking": lambda value: (
        "" if isinstance(value, bool | str) else "must be true, false or low…"
    ),
    "service_tier": _is(str, "a text"),
    "cache": lambda _: "",
    "extra_body": _extra_body,
}
# Decided by the agent, its history and the settings of the server.
_OURS = frozenset(
    {
        *("messages", "model", "stream", "stream_options", "tools", "system", "contents", "n"),
        *("extra_headers", "timeout", "request_timeout", "first_event_timeout", "max_retries"),
        *("api_key", "base_url", "functions", "response_format", "output_config"),
        *("systemInstruction", "system_instruction", "tool_choice", "toolConfig", "store"),
    }
)
# OpenAI itself lacks it, so the library leaves it out; most other servers have it.
_FOR_BODY = frozenset({("openai", "top_k")})
_PREFIXES = {"openai": "openai_", "anthropic": "anthropic_", "google": "google_"}


def check_parameters(provider: str, parameters: Mapping[str, Json]) -> None:
    """Raise InvalidAgentConfiguration, naming each parameter that the provider can't be given."""
    violations = tuple(
        FieldViolation(f"model.parameters.{name}", problem)
        for name, value in parameters.items()
        if (problem := _problem(provider, name, value))
    )
    if violations:
        raise InvalidAgentConfiguration(
            "; ".join(f"{v.field}: {v.description}" for v in violations[:5]), violations=violations
        )


def _problem(provider: str, name: str, value: Json) -> str:
    if name in _OURS:
        return "is the server's business, not a parameter"
    if provider == "google" and name == "extra_body":
        return "can't be sent to Google; there are google_… parameters"
    check = _KNOWN.get(name)
    if check is not None:
        return check(value)
    if provider == "google" and not name.startswith(_PREFIXES[provider]):
        return "is not known; there are google_… parameters"
    others = {prefix for known, prefix in _PREFIXES.items() if known != provider}
    if name.startswith(tuple(others)):
        return f"is of another provider than {provider}"
    return ""


def request_settings(provider: str, parameters: Mapping[str, Json]) -> dict[str, Any]:
    """Return pydantic-ai's settings of one request; what they don't know goes into the body."""
    settings: dict[str, Any] = {}
    body = dict(parameters.get("extra_body", {}))
    for name, value in parameters.items():
        if name == "extra_body":
            continue
        if (name in _KNOWN and (provider, name) not in _FOR_BODY) or name.startswith(
            _PREFIXES[provider]
        ):
            settings[name] = value
        else:
            body[name] = value
    if body:
        settings["extra_body"] = body
    return settings
