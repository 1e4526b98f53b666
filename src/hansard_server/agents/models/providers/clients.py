"""The clients of providers: pydantic-ai's models, over an HTTP client of ours."""

from __future__ import annotations

import asyncio
import logging
from urllib.parse import urlsplit

import httpx2
from pydantic_ai.models import Model
from pydantic_ai.profiles import ModelProfile

from hansard_server.agents.models.providers.rules import ProviderRules
from hansard_server.agents.models.settings import ModelSettings
from hansard_server.domain.values import dataclass

# They say what they send; at their lower levels it may be a key.
_TALKATIVE = ("openai", "anthropic", "httpx", "httpx2", "httpcore", "httpcore2", "google_genai")
_NO_KEY = "none"
_OPENAI_URL = "https://api.openai.com/v1"
_ANTHROPIC_URL = "https://api.anthropic.com"
_CONNECTIONS_MAX = 1_000
_IDLE_CONNECTIONS_MAX = 20


@dataclass(frozen=True, slots=True)
class ProviderClient:
    """A model of a provider that can be called, and how it is spoken to.

    `native_schema`: the provider holds answers to a JSON schema; `schema_beside_tools`: of an agent
    with tools too.
    """

    model: Model
    rules: ProviderRules
    native_schema: bool
    schema_beside_tools: bool
    http: httpx2.AsyncClient


def rules_of(settings: ModelSettings) -> ProviderRules:
    """Return how the provider of these settings is spoken to."""
    provider: str = settings.provider
    if provider == "openai" and settings.base_url:
        provider = f"openai-compatible/{urlsplit(settings.base_url).netloc}"
    return ProviderRules(
        provider=provider,
        sees_images=settings.sees_images,
        takes_image_detail=settings.provider == "openai",
        reasoning_of_turn_only=settings.provider == "openai",
        marks_errors=settings.provider == "anthropic",
        outputs_are_objects=settings.provider == "google",
    )


async def open_client(
    settings: ModelSettings,
    model_name: str,
    key: str,
    transport: httpx2.AsyncBaseTransport | None = None,
) -> ProviderClient:
    """Return a client for the provider's model of this name; `http` is to be closed.

    The clients' own repetitions are off: the agent loop repeats, since it knows what is on record.
    """
    for name in _TALKATIVE:
        logging.getLogger(name).setLevel(logging.WARNING)
    headers = {name: value.get_secret_value() for name, value in settings.headers.items()}
    http = httpx2.AsyncClient(
        timeout=httpx2.Timeout(settings.timeout_s, connect=settings.connect_timeout_s),
        limits=httpx2.Limits(
            max_connections=_CONNECTIONS_MAX, max_keepalive_connections=_IDLE_CONNECTIONS_MAX
        ),
        headers=headers,
        transport=transport,
    )
    rules = rules_of(settings)
    try:
        # The libraries take a second to come in, and the loop has other work.
        make = {"openai": _openai, "anthropic": _anthropic, "google": _google}[settings.provider]
        model = await asyncio.to_thread(make, settings, model_name, key or _NO_KEY, http, rules)
    except BaseException:
        await http.aclose()
        raise
    native = settings.native_schema
    if native is None:
        native = bool(model.profile.get("supports_json_schema_output"))
    beside_tools = settings.provider != "google" or bool(
        model.profile.get("google_supports_tool_combination")
    )
    return ProviderClient(model, rules, native, beside_tools, http)


def _openai(
    settings: ModelSettings,
    model_name: str,
    key: str,
    http: httpx2.AsyncClient,
    rules: ProviderRules,
) -> Model:
    from openai import AsyncOpenAI  # noqa: PLC0415 - only the provider in use is loaded
    from pydantic_ai.models.openai import OpenAIChatModel  # noqa: PLC0415
    from pydantic_ai.profiles.openai import OpenAIModelProfile  # noqa: PLC0415
    from pydantic_ai.providers.openai import OpenAIProvider  # noqa: PLC0415
    from pydantic_ai.providers.openai_compatible import OpenAICompatibleProvider  # noqa: PLC0415

    client = AsyncOpenAI(
        api_key=key,
        base_url=settings.base_url or _OPENAI_URL,
        organization="",
        project="",
        max_retries=0,
        timeout=http.timeout,
        http_client=http,
    )
    whole = OpenAIModelProfile(openai_chat_streaming_requires_finish_reason=True)
    if not settings.base_url:
        provider = OpenAIProvider(openai_client=client)
        return OpenAIChatModel(model_name, provider=provider, profile=whole)
    plain: ModelProfile = OpenAIModelProfile(
        openai_chat_streaming_requires_finish_reason=True,
        openai_chat_supports_max_completion_tokens=False,
    )
    server = OpenAICompatibleProvider(rules.provider, openai_client=client)
    return OpenAIChatModel(model_name, provider=server, profile=plain)


def _anthropic(
    settings: ModelSettings, model_name: str, key: str, http: httpx2.AsyncClient, _: ProviderRules
) -> Model:
    from anthropic import AsyncAnthropic  # noqa: PLC0415
    from pydantic_ai.models.anthropic import AnthropicModel  # noqa: PLC0415
    from pydantic_ai.providers.anthropic import AnthropicProvider  # noqa: PLC0415

    client = AsyncAnthropic(
        api_key=key,
        base_url=settings.base_url or _ANTHROPIC_URL,
        max_retries=0,
        timeout=http.timeout,
        http_client=http,
    )
    return AnthropicModel(model_name, provider=AnthropicProvider(anthropic_client=client))


def _google(
    settings: ModelSettings, model_name: str, key: str, http: httpx2.AsyncClient, _: ProviderRules
) -> Model:
    from pydantic_ai.models.google import GoogleModel  # noqa: PLC0415
    from pydantic_ai.providers.google import GoogleProvider  # noqa: PLC0415

    provider = GoogleProvider(api_key=key, http_client=http, base_url=settings.base_url or None)
    return GoogleModel(model_name, provider=provider)
