"""Statements of keys, tenants and secrets, and the transactions' methods made of them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

from sqlalchemy import Connection, and_, bindparam, delete, insert, or_, select, update

from hansard_server.domain.access import ApiKeyRecord, Grant, Role
from hansard_server.domain.errors import ApiKeyNotFound
from hansard_server.domain.records import Claim, Claimed
from hansard_server.repository.api import CreationScan
from hansard_server.repository.sql.keysets import encode_keys, select_by_keys
from hansard_server.repository.sql.rows import AnyRow, claim_values
from hansard_server.repository.sql.scans import by_creation, scan_values
from hansard_server.repository.sql.tables import agents, api_keys, roles, secrets, tenants

TENANT = select(tenants).where(tenants.c.key == bindparam("tenant"))
API_KEY = select(api_keys).where(
    api_keys.c.tenant == bindparam("tenant"), api_keys.c.id == bindparam("key_id")
)
API_KEYS_BY_ID = select_by_keys(*api_keys.c, source=api_keys, keys=[api_keys.c.id])
API_KEY_CLAIM = select(api_keys).where(
    api_keys.c.tenant == bindparam("tenant"), api_keys.c.request_id == bindparam("request_id")
)
API_KEYS = select(api_keys).where(api_keys.c.tenant == bindparam("tenant"))
ROLES_OF_KEYS = select_by_keys(*roles.c, source=roles, keys=[roles.c.tenant, roles.c.api_key_id])
AGENTS_BY_UID = select_by_keys(
    *agents.c, source=agents, keys=[agents.c.tenant, agents.c.uid]
).where(agents.c.deleted_at.is_(None))
SECRET = select(secrets.c.value).where(secrets.c.name == bindparam("name"))

_OF_KEY = and_(api_keys.c.tenant == bindparam("of_tenant"), api_keys.c.id == bindparam("of_id"))
_REVOKE = (
    update(api_keys)
    .where(_OF_KEY, api_keys.c.revoked_at.is_(None))
    .values(revoked_at=bindparam("now"))
)
_NOTE_USE = (
    update(api_keys)
    .where(
        _OF_KEY,
        or_(api_keys.c.last_used_at.is_(None), api_keys.c.last_used_at < bindparam("used_at")),
    )
    .values(last_used_at=bindparam("used_at"))
)
_DELETE_ROLES = delete(roles).where(
    roles.c.tenant == bindparam("of_tenant"), roles.c.agent_uid == bindparam("of_agent")
)


class SqlAccessReads:
    """AccessReads (see repository.access) on a connection whose transaction others manage."""

    connection: Connection

    def has_tenant(self, tenant: str) -> bool:
        """Tell whether the tenant was made."""
        return self.connection.execute(TENANT, {"tenant": tenant}).one_or_none() is not None

    def find_api_keys(self, key_ids: Collection[str]) -> dict[str, ApiKeyRecord]:
        """Return those keys that exist, of every tenant, by id."""
        keys = encode_keys({(key_id,) for key_id in key_ids})
        rows = self.connection.execute(API_KEYS_BY_ID, keys).all()
        return {key.id: key for key in self._with_grants(rows)}

    def get_api_key(self, tenant: str, key_id: str) -> ApiKeyRecord:
        """Return the key. Raises ApiKeyNotFound."""
        rows = self.connection.execute(API_KEY, {"tenant": tenant, "key_id": key_id}).all()
        for key in self._with_grants(rows):
            return key
        raise ApiKeyNotFound("There is no such API key.")

    def find_api_key_claim(self, tenant: str, request_id: str) -> Claimed[ApiKeyRecord] | None:
        """Return what CreateApiKey made under this request_id, as it is now."""
        values = {"tenant": tenant, "request_id": request_id}
        rows = self.connection.execute(API_KEY_CLAIM, values).all()
        for row, key in zip(rows, self._with_grants(rows), strict=True):
            return Claimed(row.fingerprint, key)
        return None

    def scan_api_keys(self, tenant: str, scan: CreationScan) -> Sequence[ApiKeyRecord]:
        """Return at most `scan.limit` keys; Position.uid is the key's id."""
        wanted = by_creation(API_KEYS, scan, api_keys.c.created_at, api_keys.c.id)
        values = {"tenant": tenant, **scan_values(scan)}
        return self._with_grants(self.connection.execute(wanted, values).all())

    def _with_grants(self, rows: Sequence[AnyRow]) -> list[ApiKeyRecord]:
        if not rows:
            return []
        keys = encode_keys({(row.tenant, row.id) for row in rows})
        granted = self.connection.execute(ROLES_OF_KEYS, keys).all()
        named = {(row.tenant, row.agent_uid) for row in granted if row.agent_uid}
        agent_keys = {"": ""}
        if named:
            found = self.connection.execute(AGENTS_BY_UID, encode_keys(named)).all()
            agent_keys |= {row.uid: row.key for row in found}
        grants: defaultdict[tuple[str, str], list[Grant]] = defaultdict(list)
        for row in granted:
            if row.agent_uid in agent_keys:
                grant = Grant(Role(row.role), row.agent_uid, agent_keys[row.agent_uid])
                grants[row.tenant, row.api_key_id].append(grant)
        return [_record(row, grants[row.tenant, row.id]) for row in rows]


class SqlAccessWrites(SqlAccessReads):
    """AccessWrites (see repository.access), as SqlAccessReads."""

    def insert_tenant(self, tenant: str, now_us: int) -> bool:
        """Make the tenant. False: there it was already."""
        if self.has_tenant(tenant):
            return False
        self.connection.execute(insert(tenants), {"key": tenant, "created_at": now_us})
        return True

    def insert_api_key(self, key: ApiKeyRecord, claim: Claim | None) -> None:
        """Write a new key. An IntegrityError says that its id or claim was taken meanwhile."""
        values = {
            "tenant": key.tenant,
            "id": key.id,
            "name": key.name,
            "secret_sha256": key.secret_sha256,
            "created_at": key.created_at_us,
            "expires_at": key.expires_at_us,
        }
        self.connection.execute(insert(api_keys), values | claim_values(claim))
        granted = [
            {
                "tenant": key.tenant,
                "api_key_id": key.id,
                "agent_uid": grant.agent_uid,
                "role": int(grant.role),
            }
            for grant in key.grants
        ]
        if granted:
            self.connection.execute(insert(roles), granted)

    def revoke_api_key(self, tenant: str, key_id: str, now_us: int) -> ApiKeyRecord:
        """Revoke the key for good, and return it. Raises ApiKeyNotFound."""
        values = {"of_tenant": tenant, "of_id": key_id, "now": now_us}
        self.connection.execute(_REVOKE, values)
        return self.get_api_key(tenant, key_id)

    def note_api_key_use(self, used_at_us: Mapping[tuple[str, str], int]) -> None:
        """Note when keys were used last; an earlier time changes nothing."""
        # In one order everywhere, so that no two servers wait for each other.
        values = [
            {"of_tenant": tenant, "of_id": key_id, "used_at": used_at}
            for (tenant, key_id), used_at in sorted(used_at_us.items())
        ]
        if values:
            self.connection.execute(_NOTE_USE, values)

    def ensure_secret(self, name: str, value: bytes) -> bytes:
        """Return the service's secret of that name; if there is none, it is `value` from now on."""
        found: bytes | None = self.connection.execute(SECRET, {"name": name}).scalar_one_or_none()
        if found is not None:
            return found
        self.connection.execute(insert(secrets), {"name": name, "value": value})
        return value

    def _delete_roles_on(self, tenant: str, agent_uid: str) -> None:
        self.connection.execute(_DELETE_ROLES, {"of_tenant": tenant, "of_agent": agent_uid})


def _record(row: AnyRow, grants: Iterable[Grant]) -> ApiKeyRecord:
    values: dict[str, Any] = {
        "tenant": row.tenant,
        "id": row.id,
        "name": row.name,
        "secret_sha256": row.secret_sha256,
        "grants": tuple(sorted(grants, key=lambda grant: grant.agent_key)),
        "created_at_us": row.created_at,
        "expires_at_us": row.expires_at,
        "last_used_at_us": row.last_used_at,
        "revoked_at_us": row.revoked_at,
    }
    return ApiKeyRecord(**values)
