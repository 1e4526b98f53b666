"""The model catalog: which model a name means."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache

from hansard.v1 import agent_pb2
from hansard_server.agents.api import Model
from hansard_server.agents.json_text import struct_to_json
from hansard_server.agents.models.provided import ProvidedModel
from hansard_server.agents.models.settings import FAMILY_SUFFIX, ModelSettings
from hansard_server.domain.errors import InvalidAgentConfiguration, ModelUnavailable

BUILT_IN_PREFIX = "hansard/"


@cache
def _extractive() -> Model:
    # Large, and a start should not wait for what no agent may have.
    from hansard_server.agents.models.extractive import ExtractiveModel  # noqa: PLC0415

    return ExtractiveModel()


@cache
def _scripted() -> Model:
    from hansard_server.agents.models.scripted import ScriptedModel  # noqa: PLC0415

    return ScriptedModel()


BUILT_IN: Mapping[str, Callable[[], Model]] = {
    "hansard/extractive": _extractive,
    "hansard/scripted": _scripted,
}
"""Each is made when it is asked for."""
_FAMILY_MEMBERS_MAX = 256

WITHOUT_SCHEMAS = frozenset({"hansard/extractive"})
"""Models that give no answers of a JSON schema."""


class ModelCatalog:
    """The models that the server has: the built-in ones, and those of its settings."""

    def __init__(
        self,
        models: Mapping[str, Model] | None = None,
        provided: Mapping[str, ModelSettings] | None = None,
    ) -> None:
        """Make a catalog of the built-in models, of these, by name, and of those that the setting
        `models` names.
        """
        self._models = models or {}
        self._provided: dict[str, ProvidedModel] = {}
        self._families: dict[str, ModelSettings] = {}
        for name, settings in (provided or {}).items():
            if name.endswith(FAMILY_SUFFIX):
                self._families[name.removesuffix("*")] = settings
            else:
                self._provided[name] = ProvidedModel(name, settings.model or name, settings)

    def get(self, name: str) -> Model:
        """Return the model. Raises ModelUnavailable."""
        model = self._find(name)
        if model is None:
            raise ModelUnavailable(
                f"This server does not know the model {name!r}. It knows: {self._names()}."
            )
        return model

    def check(self, model: agent_pb2.Model) -> None:
        """Raise InvalidAgentConfiguration when an agent can't have this model.

        A name that the server doesn't know is accepted, since another server, or this one with
        other settings, may know it; under `hansard/` nobody else can.
        """
        known = self._find(model.name)
        if known is not None:
            known.check_parameters(struct_to_json(model.parameters))
        elif model.name.startswith(BUILT_IN_PREFIX):
            raise InvalidAgentConfiguration.of_field(
                "model.name", f"there is no model {model.name!r}; there are {self._names()}"
            )

    async def close(self) -> None:
        """Close the connections to providers."""
        for model in self._provided.values():
            await model.close()

    def _find(self, name: str) -> Model | None:
        make = BUILT_IN.get(name)
        if make is not None:
            return make()
        return self._models.get(name) or self._provided.get(name) or self._member(name)

    def _member(self, name: str) -> Model | None:
        """Return the model of a family, the longest prefix first."""
        for prefix in sorted(self._families, key=len, reverse=True):
            if name.startswith(prefix) and len(name) > len(prefix):
                model = ProvidedModel(name, name.removeprefix(prefix), self._families[prefix])
                # Names come from callers, so not all that were ever given are kept.
                if len(self._provided) < _FAMILY_MEMBERS_MAX + len(self._families):
                    self._provided[name] = model
                return model
        return None

    def _names(self) -> str:
        families = [f"{prefix}*" for prefix in self._families]
        return ", ".join(sorted({*BUILT_IN, *self._models, *self._provided, *families}))
