"""Whether a caller may make a call. Only a refusal looks into the store."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from hansard_server.access.rules import RULES, Need, Rule
from hansard_server.domain.access import Caller, Role
from hansard_server.domain.errors import Forbidden
from hansard_server.repository.api import Store


class Authorizer:
    """Holds calls to the rules."""

    def __init__(self, store: Store, *, rules: Mapping[str, Rule] = RULES) -> None:
        self._store = store
        self._rules = rules

    def rule_of(self, method: str) -> Rule:
        """Return the rule of the call `/<service>/<method>`. Raises Forbidden for none."""
        rule = self._rules.get(method)
        if rule is None:
            raise forbidden()
        return rule

    def check_call(self, caller: Caller, rule: Rule) -> None:
        """Raise Forbidden when the caller may not make the call, whatever the request says."""
        if caller.administrator:
            return
        if rule.need is Need.ADMINISTRATOR:
            raise forbidden()
        if rule.need is Need.ROLE_ON_ANY and not any(
            grant.role in rule.roles for grant in caller.grants.values()
        ):
            raise forbidden()

    async def check_request(self, caller: Caller, rule: Rule, request: Any) -> None:
        """Raise Forbidden when the caller's role on an agent of its tenant is not enough, and
        AgentNotFound, as the store does, when the tenant has no such agent.
        """
        refused = rule.refused_agent(caller, request)
        if refused is not None:
            await self.refuse(caller.tenant, *refused)

    async def refuse(self, tenant: str, agent_key: str, role: Role | None) -> None:
        """Raise what a caller with this role on the agent, which is not enough, is answered."""
        if role is None:
            await self._store.read(lambda tx: tx.get_agent(tenant, agent_key))
        raise forbidden()


def forbidden() -> Forbidden:
    """Return the error of a caller whose roles are not enough."""
    return Forbidden("The key has no role that allows this call.")
