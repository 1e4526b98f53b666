"""Settings of the models that providers serve: who, where, and with which key."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from typing import Any, ClassVar, Literal, Self
from urllib.parse import urlsplit

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SecretStr,
    SerializationInfo,
    field_serializer,
    field_validator,
    model_validator,
)

FAMILY_SUFFIX = "/*"
"""Ends the name of a setting that stands for all models of a provider: `openai/*`."""
DUMP_SECRETS = "hansard_secrets"
"""In the context of a dump: secrets come as they are, for another process of this server."""
_NAME = re.compile(r"[^\s\0]{1,255}")
_USUAL_KEYS = {
    "openai": "OPENAI_API_KEY",
    "anthropic": "ANTHROPIC_API_KEY",
    "google": "GOOGLE_API_KEY",
}
Provider = Literal["openai", "anthropic", "google"]


class ModelSettings(BaseModel):
    """One entry of the setting `models`."""

    model_config: ClassVar[ConfigDict] = ConfigDict(
        extra="forbid", frozen=True, protected_namespaces=(), defer_build=True
    )

    provider: Provider = Field(
        description="Whose interface it speaks: `openai` (chat completions, which most servers "
        "have), `anthropic` or `google`."
    )
    model: str = Field(
        "", max_length=255, description="The provider's name of the model. Default: the entry's."
    )
    base_url: str = Field("", description="Where the provider is. Default: its own address.")
    api_key: SecretStr = Field(SecretStr(""), description="The key.")
    key_env: str = Field(
        "",
        description="The variable of the environment that holds the key. Default, when there is "
        "neither a key nor a base_url: the provider's usual one.",
    )
    headers: dict[str, SecretStr] = Field(
        default_factory=dict, description="More headers of each request."
    )
    parameters: dict[str, Any] = Field(
        default_factory=dict, description="Parameters of agents that say nothing else."
    )
    context_tokens: int | None = Field(
        None, ge=1, le=100_000_000, description="How many tokens the model takes. Default: unknown."
    )
    vision: bool | None = Field(
        None,
        description="The model takes images. Default: only at the providers' own addresses.",
    )
    native_schema: bool | None = Field(
        None,
        description="The provider holds answers to a JSON schema by itself; else the model is told "
        "of it. Default: as far as it is known of the model.",
    )
    timeout_s: float = Field(
        120.0, gt=0, le=3_600, description="How long it may be silent, before and in an answer."
    )
    connect_timeout_s: float = Field(10.0, gt=0, le=600, description="How long connecting takes.")

    @field_validator("base_url")
    @classmethod
    def _check_base_url(cls, value: str) -> str:
        if not value:
            return value
        parts = urlsplit(value)
        if parts.scheme not in {"http", "https"} or not parts.hostname:
            raise ValueError("must be http://… or https://…")
        if "@" in parts.netloc or parts.query or parts.fragment:
            raise ValueError("must hold no user, password, query or fragment; a key is api_key")
        return value

    @model_validator(mode="after")
    def _check_key(self) -> Self:
        if self.key_env and self.api_key.get_secret_value():
            raise ValueError("api_key and key_env: give one of them")
        return self

    @field_serializer("api_key", "headers", mode="wrap", when_used="json")
    def _dump_secrets(self, value: Any, handler: Any, info: SerializationInfo) -> Any:
        if not (isinstance(info.context, dict) and info.context.get(DUMP_SECRETS)):
            return handler(value)
        if isinstance(value, SecretStr):
            return value.get_secret_value()
        return {name: secret.get_secret_value() for name, secret in value.items()}

    @property
    def key_variable(self) -> str:
        """The variable of the environment that holds the key; empty: it is not there."""
        if self.key_env or self.api_key.get_secret_value() or self.base_url:
            return self.key_env
        return _USUAL_KEYS[self.provider]

    def find_key(self, environment: Mapping[str, str] | None = None) -> str:
        """Return the key, empty when there is none."""
        variables = os.environ if environment is None else environment
        return self.api_key.get_secret_value() or variables.get(self.key_variable, "")

    @property
    def sees_images(self) -> bool:
        """Whether the model takes images, as far as it is known."""
        return self.vision if self.vision is not None else not self.base_url


def check_model_names(models: Mapping[str, ModelSettings]) -> None:
    """Raise ValueError for a name that no agent could give, or that is built in."""
    for name, model in models.items():
        if not _NAME.fullmatch(name) or name.startswith("hansard/"):
            raise ValueError(f"{name!r} can't be the name of a model")
        if "*" in name.removesuffix(FAMILY_SUFFIX):
            raise ValueError(f"{name!r}: a * may only end a name, as in openai/*")
        if name.endswith(FAMILY_SUFFIX) and model.model:
            raise ValueError(f"{name!r} stands for many models, so `model` can't name one")
