"""Who calls, and what keys and roles are."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import field
from enum import IntEnum

from hansard_server.domain.values import dataclass

DEFAULT_TENANT = "default"
"""The tenant that the first start makes, and that of everybody where there is no authentication."""


class Role(IntEnum):
    """What a key may do; the values are the contract's."""

    ADMINISTRATOR = 1
    AGENT_ADMINISTRATOR = 2
    AGENT_DEVELOPER = 3
    AGENT_VIEWER = 4
    AGENT_USER = 5


@dataclass(frozen=True, slots=True)
class Grant:
    """A role, and the agent that it is on: uid and key are empty for an administrator."""

    role: Role
    agent_uid: str = ""
    agent_key: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class ApiKeyRecord:
    """A key, but for its secret, of which there is the SHA-256 alone (32 bytes).

    `grants` has only those on agents that exist.
    """

    tenant: str
    id: str
    name: str
    secret_sha256: bytes
    grants: tuple[Grant, ...]
    created_at_us: int
    expires_at_us: int | None = None
    last_used_at_us: int | None = None
    revoked_at_us: int | None = None

    def valid_at(self, now_us: int) -> bool:
        """Tell whether the key lets anybody in."""
        expired = self.expires_at_us is not None and self.expires_at_us <= now_us
        return self.revoked_at_us is None and not expired


@dataclass(frozen=True, slots=True, kw_only=True)
class Caller:
    """On whose behalf a call is made.

    Attributes:
        key_id: names the key that let the caller in; empty where there is no authentication.
        administrator: may do everything in the tenant.
        grants: the roles on agents, by the agent's key.
        by_token: came with a token, not with the key itself.
    """

    tenant: str
    key_id: str = ""
    administrator: bool = False
    grants: Mapping[str, Grant] = field(default_factory=dict)
    by_token: bool = False

    def role_on(self, agent_key: str) -> Role | None:
        """Return the caller's role on the agent, None for none."""
        if self.administrator:
            return Role.ADMINISTRATOR
        grant = self.grants.get(agent_key)
        return None if grant is None else grant.role


def caller_of(key: ApiKeyRecord, *, by_token: bool = False) -> Caller:
    """Return who calls with the key."""
    return Caller(
        tenant=key.tenant,
        key_id=key.id,
        administrator=any(grant.role is Role.ADMINISTRATOR for grant in key.grants),
        grants={grant.agent_key: grant for grant in key.grants if grant.agent_key},
        by_token=by_token,
    )


EVERYBODY = Caller(tenant=DEFAULT_TENANT, administrator=True)
"""Who calls where there is no authentication."""
