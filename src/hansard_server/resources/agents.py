"""What one may do with agents."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Literal

from hansard.v1 import agent_pb2, agent_service_pb2
from hansard_server.domain import keys
from hansard_server.domain.access import Caller
from hansard_server.domain.clock import Clock, now_us
from hansard_server.domain.errors import (
    AgentAlreadyExists,
    AgentNotFound,
    DomainError,
    EtagMismatch,
    FieldViolation,
    InvalidRequest,
)
from hansard_server.domain.limits import Limits
from hansard_server.domain.records import AgentRecord, Claim
from hansard_server.repository.api import ReadTx, Store, WriteTx
from hansard_server.resources.agent_views import as_seen, scan_visible
from hansard_server.resources.fingerprints import answer_once, claim_of, first_answer
from hansard_server.resources.listing import ROW_OVERHEAD_BYTES, CreationLists
from hansard_server.resources.masks import read_mask
from hansard_server.resources.metadata import check_struct
from hansard_server.resources.paging import Page, PageTokens

_UPDATABLE = frozenset(
    {
        *("name", "description", "model", "first_step", "tool_configurations"),
        *("compaction", "remote_runtime", "metadata", "enabled"),
    }
)
_TOOLS = "tool_configurations"
_TOOLS_MAX = 128
_Configuration = Literal[
    "model", "first_step", "tool_configurations", "compaction", "remote_runtime"
]
_CONFIGURATION: tuple[_Configuration, ...] = (
    *("model", "first_step", "tool_configurations", "compaction", "remote_runtime"),
)
_KEY_TRIES = 8

CheckConfiguration = Callable[[agent_pb2.Agent], None]
"""Raises InvalidAgentConfiguration or Unimplemented for an agent that could not work."""


class Agents:
    """Creates, gets, lists, updates and deletes agents. Requests keep to the contract's rules."""

    def __init__(
        self,
        store: Store,
        *,
        limits: Limits,
        tokens: PageTokens,
        check_configuration: CheckConfiguration,
        on_delete: Callable[[], None],
        clock: Clock = now_us,
    ) -> None:
        """`on_delete` is called after an agent was deleted: its sessions are still to be."""
        self._store = store
        self._limits = limits
        self._lists = CreationLists(store, tokens, limits)
        self._check_configuration = check_configuration
        self._on_delete = on_delete
        self._clock = clock

    async def create(
        self, tenant: str, request: agent_service_pb2.CreateAgentRequest
    ) -> AgentRecord:
        """Return the new agent, or the first answer to this request_id.

        Raises RequestIdReused, InvalidMetadata, InvalidAgentConfiguration, Unimplemented,
        AgentAlreadyExists.
        """
        if not request.HasField("enabled"):
            request.enabled = True
        agent = agent_pb2.Agent(
            name=request.name,
            description=request.description,
            model=request.model,
            first_step=request.first_step if request.HasField("first_step") else None,
            tool_configurations=request.tool_configurations,
            compaction=request.compaction if request.HasField("compaction") else None,
            remote_runtime=request.remote_runtime if request.HasField("remote_runtime") else None,
            metadata=request.metadata,
            enabled=request.enabled,
        )
        fault = self._find_fault(agent, "")
        claim = claim_of(request.request_id, request)
        if fault is not None and claim is None:
            raise fault
        now = self._clock()
        uid, etag = keys.make_uid(), keys.make_etag()
        stored = _pack(agent)

        def make(tx: WriteTx) -> AgentRecord:
            if fault is not None:
                raise fault
            record = AgentRecord(
                tenant=tenant,
                uid=uid,
                key=_free_key(tx, tenant, request),
                name=agent.name,
                description=agent.description,
                configuration=stored,
                metadata=agent.metadata.SerializeToString(deterministic=True),
                enabled=agent.enabled,
                etag=etag,
                created_at_us=now,
                updated_at_us=now,
            )
            tx.insert_agent(record, claim)
            return record

        # The repeat of a success is a success, whatever has changed since.
        return await self._store.write(
            lambda tx: answer_once(
                partial(_first_agent, tx, tenant, claim), partial(make, tx), AgentAlreadyExists
            )
        )

    async def get(self, caller: Caller, request: agent_service_pb2.GetAgentRequest) -> AgentRecord:
        """Return the agent as the caller sees it. Raises AgentNotFound."""
        agent = await self._store.read(lambda tx: tx.get_agent(caller.tenant, request.agent_key))
        return as_seen(caller, agent)

    async def list(
        self, caller: Caller, request: agent_service_pb2.ListAgentsRequest
    ) -> Page[AgentRecord]:
        """Return a page of the agents that the caller has a role on, as it sees them: conditions
        too are about what it sees. Raises InvalidRequest, InvalidMetadata, InvalidPageToken.
        """
        return await self._lists.list(
            caller.tenant,
            request,
            fetch=lambda tx: scan_visible(tx, caller),
            record=lambda agent: agent,
            size=_size,
        )

    async def update(
        self, tenant: str, request: agent_service_pb2.UpdateAgentRequest
    ) -> AgentRecord:
        """Return the agent with the fields of the mask replaced.

        Raises InvalidRequest, InvalidMetadata, AgentNotFound, EtagMismatch,
        InvalidAgentConfiguration, Unimplemented.
        """
        paths = read_mask(request.update_mask, _UPDATABLE, map_field=_TOOLS)
        body = request.agent
        self._check_structs(body, "agent.", paths)
        configures = any(path.partition(".")[0] in _CONFIGURATION for path in paths)
        now, etag = self._clock(), keys.make_etag()

        def decide(tx: WriteTx) -> AgentRecord:
            record = tx.get_agent(tenant, body.key)
            if body.etag and body.etag != record.etag:
                raise EtagMismatch("the agent has changed since its etag was read")
            changed = _replace_fields(record, body, paths)
            if configures:
                agent = _replace_configuration(record.configuration, body, paths)
                agent.name = changed.name
                self._check_update(agent)
                changed = replace(changed, configuration=_pack(agent))
            changed = replace(changed, etag=etag, updated_at_us=max(now, record.updated_at_us))
            tx.update_agent(changed)
            return changed

        return await self._store.write(decide)

    async def delete(self, tenant: str, request: agent_service_pb2.DeleteAgentRequest) -> None:
        """Delete the agent; its sessions go soon after. Raises AgentNotFound."""
        now = self._clock()

        def decide(tx: WriteTx) -> None:
            tx.delete_agent(tenant, tx.get_agent(tenant, request.agent_key).uid, now)

        await self._store.write(decide)
        self._on_delete()

    def _find_fault(self, agent: agent_pb2.Agent, prefix: str) -> DomainError | None:
        try:
            self._check_structs(agent, prefix, _UPDATABLE)
            self._check_configuration(agent)
        except DomainError as error:
            return error
        return None

    def _check_update(self, agent: agent_pb2.Agent) -> None:
        if len(agent.tool_configurations) > _TOOLS_MAX:
            raise InvalidRequest.of_field(
                f"agent.{_TOOLS}", f"an agent has {_TOOLS_MAX} tools at most"
            )
        try:
            self._check_configuration(agent)
        except DomainError as error:
            raise _in_update(error) from None

    def _check_structs(self, agent: agent_pb2.Agent, prefix: str, paths: frozenset[str]) -> None:
        if "metadata" in paths:
            check_struct(agent.metadata, f"{prefix}metadata", self._limits)
        if "model" in paths:
            check_struct(agent.model.parameters, f"{prefix}model.parameters", self._limits)
        for name, tool in agent.tool_configurations.items():
            if _TOOLS in paths or f"{_TOOLS}.{name}" in paths:
                where = f"{prefix}{_TOOLS}.{name}.argument_override"
                check_struct(tool.argument_override, where, self._limits)
                if tool.HasField("sub_agent"):
                    metadata = tool.sub_agent.sub_agent_configuration.session_metadata
                    where = f"{prefix}{_TOOLS}.{name}.sub_agent.sub_agent_configuration"
                    check_struct(metadata, f"{where}.session_metadata", self._limits)


def _first_agent(tx: ReadTx, tenant: str, claim: Claim | None) -> AgentRecord | None:
    if claim is None:
        return None
    return first_answer(tx.find_agent_claim(tenant, claim.request_id), claim)


def _free_key(tx: WriteTx, tenant: str, request: agent_service_pb2.CreateAgentRequest) -> str:
    if request.key:
        if _is_taken(tx, tenant, request.key):
            raise AgentAlreadyExists(f"there is an agent {request.key} already")
        return request.key
    for _ in range(_KEY_TRIES):
        key = keys.make_agent_key(request.name)
        if not _is_taken(tx, tenant, key):
            return key
    raise AgentAlreadyExists("no free key was found for this name; name one")


def _is_taken(tx: WriteTx, tenant: str, key: str) -> bool:
    try:
        tx.get_agent(tenant, key)
    except AgentNotFound:
        return False
    return True


def _pack(agent: agent_pb2.Agent) -> bytes:
    stored = agent_pb2.Agent(
        model=agent.model if agent.HasField("model") else None,
        first_step=agent.first_step if agent.HasField("first_step") else None,
        tool_configurations=agent.tool_configurations,
        compaction=agent.compaction if agent.HasField("compaction") else None,
        remote_runtime=agent.remote_runtime if agent.HasField("remote_runtime") else None,
    )
    return stored.SerializeToString(deterministic=True)


def _replace_fields(
    record: AgentRecord, body: agent_pb2.Agent, paths: frozenset[str]
) -> AgentRecord:
    return replace(
        record,
        name=body.name if "name" in paths else record.name,
        description=body.description if "description" in paths else record.description,
        metadata=body.metadata.SerializeToString(deterministic=True)
        if "metadata" in paths
        else record.metadata,
        enabled=(body.enabled or not body.HasField("enabled"))
        if "enabled" in paths
        else record.enabled,
    )


def _replace_configuration(
    stored: bytes, body: agent_pb2.Agent, paths: frozenset[str]
) -> agent_pb2.Agent:
    agent = agent_pb2.Agent.FromString(stored)
    for field in _CONFIGURATION:
        if field in paths:
            agent.ClearField(field)
    if "model" in paths and body.HasField("model"):
        agent.model.CopyFrom(body.model)
    if "first_step" in paths and body.HasField("first_step"):
        agent.first_step.CopyFrom(body.first_step)
    if "compaction" in paths and body.HasField("compaction"):
        agent.compaction.CopyFrom(body.compaction)
    if "remote_runtime" in paths and body.HasField("remote_runtime"):
        agent.remote_runtime.CopyFrom(body.remote_runtime)
    named = {path.partition(".")[2] for path in paths if "." in path}
    for name in named - set(body.tool_configurations):
        agent.tool_configurations.pop(name, None)
    for name, tool in body.tool_configurations.items():
        if _TOOLS in paths or name in named:
            agent.tool_configurations[name].CopyFrom(tool)
    return agent


def _in_update(error: DomainError) -> DomainError:
    """Return the error with the paths that its fields have in UpdateAgentRequest."""
    violations = tuple(
        FieldViolation(f"agent.{violation.field}", violation.description)
        for violation in error.violations
    )
    return type(error)(error.message, violations=violations, metadata=error.metadata)


def _size(agent: AgentRecord) -> int:
    texts = 4 * (len(agent.name) + len(agent.description))
    return texts + len(agent.configuration) + len(agent.metadata) + ROW_OVERHEAD_BYTES
