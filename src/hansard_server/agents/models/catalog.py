"""The model catalog: which model a name means."""

from __future__ import annotations

from collections.abc import Mapping

from hansard.v1 import agent_pb2
from hansard_server.agents.api import Model
from hansard_server.agents.json_text import struct_to_json
from hansard_server.agents.models.extractive import ExtractiveModel
from hansard_server.agents.models.scripted import ScriptedModel
from hansard_server.domain.errors import InvalidAgentConfiguration, ModelUnavailable

BUILT_IN_PREFIX = "hansard/"
BUILT_IN: Mapping[str, Model] = {
    "hansard/extractive": ExtractiveModel(),
    "hansard/scripted": ScriptedModel(),
}


class ModelCatalog:
    """The models that the server has: the built-in ones, and those of its settings."""

    def __init__(self, models: Mapping[str, Model] | None = None) -> None:
        """Make a catalog of the built-in models and of these, by name."""
        self._models = {**(models or {}), **BUILT_IN}

    def get(self, name: str) -> Model:
        """Return the model. Raises ModelUnavailable."""
        model = self._models.get(name)
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
        known = self._models.get(model.name)
        if known is not None:
            known.check_parameters(struct_to_json(model.parameters))
        elif model.name.startswith(BUILT_IN_PREFIX):
            raise InvalidAgentConfiguration.of_field(
                "model.name", f"there is no model {model.name!r}; there are {self._names()}"
            )

    def _names(self) -> str:
        return ", ".join(sorted(self._models))
