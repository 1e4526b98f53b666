"""What an agent's configuration must be, beyond what the contract's own rules say."""

from __future__ import annotations

from collections.abc import Iterator

from hansard.v1 import agent_pb2
from hansard_server.agents.instructions import find_template_faults
from hansard_server.agents.json_text import struct_to_json
from hansard_server.agents.models.catalog import ModelCatalog
from hansard_server.agents.overrides import find_bad_references
from hansard_server.agents.tools.built_in import BUILT_IN_TOOLS
from hansard_server.domain.errors import (
    FieldViolation,
    InvalidAgentConfiguration,
    Unimplemented,
)

_RETRY_INITIAL_S = 1.0
_RETRY_MAX_S = 30.0


def check_agent(agent: agent_pb2.Agent, models: ModelCatalog | None = None) -> None:
    """Return when an agent can be configured like this; the contract's rules were checked before.

    `models` is what the server knows; left out: the built-in models. Raises
    InvalidAgentConfiguration, whose violations name the fields, and Unimplemented for what this
    version does not serve.
    """
    _check_served(agent)
    (models or ModelCatalog()).check(agent.model)
    violations = (
        *_check_retry(agent.model),
        *find_template_faults(agent),
        *_check_tools(agent),
    )
    if violations:
        raise InvalidAgentConfiguration(
            "; ".join(f"{v.field}: {v.description}" for v in violations[:5]), violations=violations
        )


def _check_served(agent: agent_pb2.Agent) -> None:
    if agent.first_step.output_parser.WhichOneof("parser") == "structured":
        raise Unimplemented.of_field(
            "first_step.output_parser.structured", "this server has no structured output yet"
        )
    for name, configuration in agent.tool_configurations.items():
        path = f"tool_configurations.{name}"
        if configuration.require_approval:
            raise Unimplemented.of_field(
                f"{path}.require_approval", "this server has no approval of tool calls yet"
            )
        if configuration.WhichOneof("tool") not in BUILT_IN_TOOLS:
            raise Unimplemented.of_field(path, "this server does not have the tool yet")


def _check_retry(model: agent_pb2.Model) -> Iterator[FieldViolation]:
    retry = model.retry
    initial, longest = _RETRY_INITIAL_S, _RETRY_MAX_S
    if retry.HasField("initial_backoff"):
        initial = retry.initial_backoff.ToTimedelta().total_seconds()
    if retry.HasField("max_backoff"):
        longest = retry.max_backoff.ToTimedelta().total_seconds()
    if initial > longest:
        yield FieldViolation(
            "model.retry.max_backoff",
            f"must not be less than initial_backoff ({longest:g} s < {initial:g} s)",
        )


def _check_tools(agent: agent_pb2.Agent) -> Iterator[FieldViolation]:
    for name in sorted(agent.tool_configurations):
        configuration = agent.tool_configurations[name]
        tool = BUILT_IN_TOOLS[configuration.WhichOneof("tool") or ""]
        override = struct_to_json(configuration.argument_override)
        path = f"tool_configurations.{name}.argument_override"
        known = tool.input_schema.get("properties", {})
        for argument, value in override.items():
            if argument not in known:
                yield FieldViolation(
                    f"{path}.{argument}",
                    f"{tool.name} has no such argument; it has {', '.join(sorted(known))}",
                )
            for where, problem in find_bad_references(value, f"{path}.{argument}"):
                yield FieldViolation(where, problem)
