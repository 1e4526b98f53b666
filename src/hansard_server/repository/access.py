"""The seam of the store, as far as keys, tenants and the service's own secrets go.

A key says of which tenant its caller is: `find_api_keys` is asked before that is known. Secrets
belong to the service, not to a tenant.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Protocol

from hansard_server.domain.access import ApiKeyRecord
from hansard_server.domain.records import Claim, Claimed

if TYPE_CHECKING:
    from hansard_server.repository.api import CreationScan


class AccessReads(Protocol):
    """What a ReadTx reads of keys and tenants."""

    def has_tenant(self, tenant: str) -> bool:
        """Tell whether the tenant was made."""
        ...

    def find_api_keys(self, key_ids: Collection[str]) -> dict[str, ApiKeyRecord]:
        """Return those keys that exist, of every tenant, by id; revoked and expired ones too."""
        ...

    def get_api_key(self, tenant: str, key_id: str) -> ApiKeyRecord:
        """Return the key. Raises ApiKeyNotFound."""
        ...

    def find_api_key_claim(self, tenant: str, request_id: str) -> Claimed[ApiKeyRecord] | None:
        """Return what CreateApiKey made under this request_id, as it is now."""
        ...

    def scan_api_keys(self, tenant: str, scan: CreationScan) -> Sequence[ApiKeyRecord]:
        """Return at most `scan.limit` keys; Position.uid is the key's id."""
        ...


class AccessWrites(Protocol):
    """What a WriteTx writes of keys, tenants and secrets."""

    def insert_tenant(self, tenant: str, now_us: int) -> bool:
        """Make the tenant. False: there it was already."""
        ...

    def insert_api_key(self, key: ApiKeyRecord, claim: Claim | None) -> None:
        """Write a new key and its grants; the claim as insert_agent."""
        ...

    def revoke_api_key(self, tenant: str, key_id: str, now_us: int) -> ApiKeyRecord:
        """Revoke the key for good, and return it; a revoked one stays as it is.

        Raises ApiKeyNotFound.
        """
        ...

    def note_api_key_use(self, used_at_us: Mapping[tuple[str, str], int]) -> None:
        """Note when keys, (tenant, id) each, were used last; an earlier time changes nothing."""
        ...

    def ensure_secret(self, name: str, value: bytes) -> bytes:
        """Return the service's secret of that name; if there is none, it is `value` from now on."""
        ...
