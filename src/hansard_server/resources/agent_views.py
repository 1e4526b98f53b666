"""What a caller sees of agents: which of them, and how much."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from hansard_server.domain.access import Caller, Role
from hansard_server.domain.records import AgentRecord
from hansard_server.repository.api import CreationScan, ReadTx


def as_seen(caller: Caller, agent: AgentRecord) -> AgentRecord:
    """Return the agent without what the caller may not see: an agent_user sees no configuration,
    nor metadata, which may hold anything, nor the etag, which is for those who change it.
    """
    if caller.role_on(agent.key) is Role.AGENT_USER:
        return replace(agent, configuration=b"", metadata=b"", etag="")
    return agent


def scan_visible(tx: ReadTx, caller: Caller) -> Callable[[CreationScan], Sequence[AgentRecord]]:
    """Return the scan of the agents that the caller has a role on, as it sees them."""
    if caller.administrator:
        return lambda scan: tx.scan_agents(caller.tenant, scan)
    uids = {grant.agent_uid for grant in caller.grants.values()}
    # A key has few grants, the tenant may have many agents: they are read by uid, not scanned.
    agents = sorted(tx.get_agents(caller.tenant, uids), key=_place) if uids else []

    def fetch(scan: CreationScan) -> Sequence[AgentRecord]:
        found = [as_seen(caller, agent) for agent in agents if _in_scan(agent, scan)]
        return (found[::-1] if scan.descending else found)[: scan.limit]

    return fetch


def _place(agent: AgentRecord) -> tuple[int, str]:
    return agent.created_at_us, agent.uid


def _in_scan(agent: AgentRecord, scan: CreationScan) -> bool:
    if scan.after is not None:
        here, there = _place(agent), (scan.after.created_at_us, scan.after.uid)
        if here >= there if scan.descending else here <= there:
            return False
    if scan.created_from_us is not None and agent.created_at_us < scan.created_from_us:
        return False
    return scan.created_before_us is None or agent.created_at_us < scan.created_before_us
