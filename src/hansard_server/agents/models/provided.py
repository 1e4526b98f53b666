"""A model of the settings. Its provider's libraries are loaded by the first call."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from typing import TYPE_CHECKING

from hansard_server.agents.api import Json, ModelFailed, ModelRequest, Part
from hansard_server.agents.models.parameters import check_parameters
from hansard_server.agents.models.settings import ModelSettings

if TYPE_CHECKING:
    from hansard_server.agents.models.providers.model import ProviderCaller

_NO_EXTRA = "This server was installed without the extra `models`: pip install 'hansard[models]'."


class ProvidedModel:
    """Implements api.Model for one entry of the setting `models`."""

    def __init__(self, name: str, model_name: str, settings: ModelSettings) -> None:
        """Make the model that agents call `name` and the provider `model_name`."""
        self._name = name
        self._model_name = model_name
        self._settings = settings
        self._caller: ProviderCaller | None = None

    @property
    def context_tokens(self) -> int | None:
        """How many tokens the model takes, as the settings say."""
        return self._settings.context_tokens

    def check_parameters(self, parameters: Mapping[str, Json]) -> None:
        """Raise InvalidAgentConfiguration for parameters that the provider can't be given."""
        check_parameters(self._settings.provider, parameters)

    async def respond(self, request: ModelRequest) -> AsyncGenerator[Part]:
        """Yield the answer's parts; see the Protocol."""
        caller = await self._open()
        async with aclosing(caller.respond(request)) as parts:
            async for part in parts:
                yield part

    async def close(self) -> None:
        """Close the connections to the provider."""
        caller, self._caller = self._caller, None
        if caller is not None:
            await caller.close()

    async def _open(self) -> ProviderCaller:
        if self._caller is None:
            try:
                from hansard_server.agents.models.providers.model import (  # noqa: PLC0415 - only now
                    ProviderCaller,
                )
            except ModuleNotFoundError:
                raise ModelFailed(_NO_EXTRA) from None
            self._caller = ProviderCaller(self._name, self._model_name, self._settings)
        return self._caller
