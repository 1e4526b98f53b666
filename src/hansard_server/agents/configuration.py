"""What an agent's configuration must be, beyond what the contract's own rules say."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from importlib.util import find_spec

from hansard.v1 import agent_pb2
from hansard_server.agents.attempts import INITIAL_BACKOFF_S, MAX_BACKOFF_S
from hansard_server.agents.instructions import find_template_faults
from hansard_server.agents.json_text import NotJson, parse_json, struct_to_json
from hansard_server.agents.metadata_filters import UnusableReference, bind_references
from hansard_server.agents.models.catalog import WITHOUT_SCHEMAS, ModelCatalog
from hansard_server.agents.outside import Outside, UnknownConnection
from hansard_server.agents.overrides import filter_arguments, find_bad_references
from hansard_server.agents.tools.built_in import BUILT_IN_TOOLS
from hansard_server.agents.tools.client_tool import CLIENT_TOOL
from hansard_server.domain.errors import (
    FieldViolation,
    InvalidAgentConfiguration,
    Unimplemented,
)

CheckFilter = Callable[[str], str]
"""Returns what is wrong with a metadata filter, empty for nothing."""


def check_agent(
    agent: agent_pb2.Agent,
    models: ModelCatalog | None = None,
    check_filter: CheckFilter = lambda _: "",
    outside: Outside | None = None,
) -> None:
    """Return when an agent can be configured like this; the contract's rules were checked before.

    `models` is what the server knows; left out: the built-in models; `outside` what it may reach;
    left out: nothing. Raises
    InvalidAgentConfiguration, whose violations name the fields, and Unimplemented for what this
    version does not serve.
    """
    _check_served(agent)
    (models or ModelCatalog()).check(agent.model)
    violations = (
        *_check_retry(agent.model),
        *_check_output(agent),
        *find_template_faults(agent),
        *_check_tools(agent),
        *_check_filters(agent, check_filter),
        *_check_outside(agent, outside or Outside()),
    )
    if violations:
        raise InvalidAgentConfiguration(
            "; ".join(f"{v.field}: {v.description}" for v in violations[:5]), violations=violations
        )


def _check_served(agent: agent_pb2.Agent) -> None:
    for name, configuration in agent.tool_configurations.items():
        path = f"tool_configurations.{name}"
        kind = configuration.WhichOneof("tool")
        if kind == "mcp" and find_spec("mcp") is None:
            raise Unimplemented.of_field(path, "this server was installed without the extra mcp")
        if kind != "mcp" and kind not in BUILT_IN_TOOLS:
            raise Unimplemented.of_field(path, "this server does not have the tool yet")


def _check_retry(model: agent_pb2.Model) -> Iterator[FieldViolation]:
    retry = model.retry
    initial, longest = INITIAL_BACKOFF_S, MAX_BACKOFF_S
    if retry.HasField("initial_backoff"):
        initial = retry.initial_backoff.ToTimedelta().total_seconds()
    if retry.HasField("max_backoff"):
        longest = retry.max_backoff.ToTimedelta().total_seconds()
    if initial > longest:
        yield FieldViolation(
            "model.retry.max_backoff",
            f"must not be less than initial_backoff ({longest:g} s < {initial:g} s)",
        )


def _check_output(agent: agent_pb2.Agent) -> Iterator[FieldViolation]:
    parser = agent.first_step.output_parser
    if not parser.HasField("structured"):
        return
    path = "first_step.output_parser.structured"
    if agent.model.name in WITHOUT_SCHEMAS:
        yield FieldViolation(path, f"{agent.model.name} quotes, and can't answer by a schema")
    from hansard_server.agents.json_schema import UnusableSchema, read_schema  # noqa: PLC0415

    try:
        read_schema(parser.structured.json_schema_json)
    except UnusableSchema as error:
        yield FieldViolation(f"{path}.json_schema_json", str(error))


def _check_tools(agent: agent_pb2.Agent) -> Iterator[FieldViolation]:
    for name in sorted(agent.tool_configurations):
        configuration = agent.tool_configurations[name]
        fault = _fault_of_schema(configuration.client.input_schema_json)
        if fault:
            yield FieldViolation(f"tool_configurations.{name}.client.input_schema_json", fault)
            continue
        # Only its server knows what arguments a tool elsewhere has, only a client what its own.
        tool = BUILT_IN_TOOLS.get(configuration.WhichOneof("tool") or "")
        override = struct_to_json(configuration.argument_override)
        path = f"tool_configurations.{name}.argument_override"
        for argument, value in override.items():
            known = tool.input_schema.get("properties", {}) if tool else {argument}
            if tool is not None and tool.name != CLIENT_TOOL and argument not in known:
                yield FieldViolation(
                    f"{path}.{argument}",
                    f"{tool.name} has no such argument; it has {', '.join(sorted(known))}",
                )
            for where, problem in find_bad_references(value, f"{path}.{argument}"):
                yield FieldViolation(where, problem)


def _check_outside(agent: agent_pb2.Agent, outside: Outside) -> Iterator[FieldViolation]:
    if agent.HasField("remote_runtime"):
        try:
            outside.runtime(agent.remote_runtime.runtime)
        except UnknownConnection as error:
            yield FieldViolation("remote_runtime.runtime", str(error))
    for name in sorted(agent.tool_configurations):
        configuration = agent.tool_configurations[name]
        if configuration.WhichOneof("tool") == "mcp":
            try:
                outside.mcp_server(configuration.mcp.server)
            except UnknownConnection as error:
                yield FieldViolation(f"tool_configurations.{name}.mcp.server", str(error))


def _fault_of_schema(text: str) -> str:
    """Return what is wrong with the schema of a client's tool, empty for nothing."""
    if not text:
        return ""
    # Only agents with such tools need it.
    from hansard_server.agents.tool_schemas import BadSchema, check_schema  # noqa: PLC0415

    try:
        schema = parse_json(text)
        if not isinstance(schema, dict):
            return "must be a JSON object"
        check_schema(schema)
    except (NotJson, BadSchema) as error:
        return f"can't be used: {error}"
    return ""


def _check_filters(agent: agent_pb2.Agent, check_filter: CheckFilter) -> Iterator[FieldViolation]:
    for name in sorted(agent.tool_configurations):
        configuration = agent.tool_configurations[name]
        path = f"tool_configurations.{name}"
        tool = BUILT_IN_TOOLS.get(configuration.WhichOneof("tool") or "")
        if tool is None:
            continue
        override = struct_to_json(configuration.argument_override)
        found = {
            f"{path}.argument_override.{argument}": override[argument]
            for argument in filter_arguments(tool)
            if isinstance(override.get(argument), str)
        }
        search = configuration.corpora_search.query_configuration.search
        for index, corpus in enumerate(search.corpora):
            where = (
                f"{path}.corpora_search.query_configuration.search.corpora[{index}].metadata_filter"
            )
            found[where] = corpus.metadata_filter
            for _, problem in find_bad_references(corpus.metadata_filter, where):
                yield FieldViolation(where, problem)
        for where, text in found.items():
            problem = _fault_of_filter(text, check_filter)
            if problem:
                yield FieldViolation(where, problem)


def _fault_of_filter(text: str, check_filter: CheckFilter) -> str:
    """Return what is wrong with a filter whatever its references name, empty for nothing."""
    problems = []
    # Where a list may stand, no single value can, and the other way round.
    for value in ("x", ["x"]):
        try:
            problem = check_filter(bind_references(text, lambda _, value=value: value))  # type: ignore[misc]
        except UnusableReference as error:
            problem = str(error)
        if not problem:
            return ""
        problems.append(problem)
    return problems[0]
