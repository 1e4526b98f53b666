"""What one may do with keys, and the tokens that are issued for them."""

from __future__ import annotations

from collections.abc import Callable

from hansard.v1 import access_service_pb2
from hansard_server.access.authorization import forbidden
from hansard_server.access.credentials import Tokens, hash_secret, make_secret
from hansard_server.access.key_cache import unauthorized
from hansard_server.domain import keys
from hansard_server.domain.access import ApiKeyRecord, Caller, Grant, Role
from hansard_server.domain.clock import MICROSECONDS_PER_SECOND, Clock
from hansard_server.domain.errors import AgentNotFound, ApiKeyNotFound, DomainError, InvalidRequest
from hansard_server.domain.values import dataclass
from hansard_server.repository.api import CreationScan, Position, Store, WriteTx
from hansard_server.resources.filters import timestamp_us
from hansard_server.resources.fingerprints import claim_of, first_answer
from hansard_server.resources.paging import (
    Page,
    PageTokens,
    pack_position,
    page_limit,
    query_of,
    scan_page,
    unpack_position,
)

TOKEN_LIFETIME_S = 30 * 60
NO_KEY_ID = "key_" + "a" * keys.API_KEY_ID_CHARACTERS
"""For the tokens of a server without authentication, which lets everybody in with or without."""
_ROW_BYTES = 256
_GRANT_BYTES = 64


@dataclass(frozen=True, slots=True)
class Created:
    """A key, and its secret unless it was created by an earlier request of the same id."""

    key: ApiKeyRecord
    secret: str


@dataclass(frozen=True, slots=True)
class Issued:
    """A token, and from when on it is refused."""

    token: str
    expires_at_us: int


class ApiKeys:
    """Creates, lists and revokes keys, and issues tokens. Requests keep to the contract's rules."""

    def __init__(
        self,
        store: Store,
        *,
        tokens: Tokens,
        page_tokens: PageTokens,
        on_revoke: Callable[[str], None],
        clock: Clock,
    ) -> None:
        """`on_revoke` is called with the id of a key after it was revoked."""
        self._store = store
        self._tokens = tokens
        self._page_tokens = page_tokens
        self._on_revoke = on_revoke
        self._clock = clock

    async def create(
        self, caller: Caller, request: access_service_pb2.CreateApiKeyRequest
    ) -> Created:
        """Return the new key with its secret, or without it the one of this request_id.

        Raises RequestIdReused, InvalidRequest, AgentNotFound, Forbidden.
        """
        now_us = self._clock()
        expires_at_us = None
        if request.HasField("expires_at"):
            expires_at_us = timestamp_us("expires_at", request.expires_at)
        fault = _find_fault(request, expires_at_us, now_us)
        claim = claim_of(request.request_id, request)
        key_id = keys.make_api_key_id()
        secret = make_secret(key_id)

        def decide(tx: WriteTx) -> Created:
            # Authorization comes first, then the claim, then what may have changed since.
            grants = _resolve(tx, caller, request)
            if claim is not None:
                first = first_answer(tx.find_api_key_claim(caller.tenant, claim.request_id), claim)
                if first is not None:
                    return Created(first, "")
            if fault is not None:
                raise fault
            if isinstance(grants, DomainError):
                raise grants
            key = ApiKeyRecord(
                tenant=caller.tenant,
                id=key_id,
                name=request.name,
                secret_sha256=hash_secret(secret),
                grants=grants,
                created_at_us=now_us,
                expires_at_us=expires_at_us,
            )
            tx.insert_api_key(key, claim)
            return Created(key, secret)

        return await self._store.write(decide)

    async def list(
        self, caller: Caller, request: access_service_pb2.ListApiKeysRequest
    ) -> Page[ApiKeyRecord]:
        """Return a page of the keys that the caller manages. Raises InvalidPageToken."""
        query = query_of(caller.tenant, request)
        now_us = self._clock()
        scan = CreationScan(
            limit=page_limit(request.page_size),
            after=unpack_position(self._page_tokens.read(query, request.page_token)),
            descending=True,
        )

        def matches(key: ApiKeyRecord) -> bool:
            return _manages(caller, key) and (request.include_revoked or key.valid_at(now_us))

        found = await self._store.read(
            lambda tx: scan_page(
                lambda part: tx.scan_api_keys(caller.tenant, part),
                scan,
                position=lambda key: Position(key.created_at_us, key.id),
                size=lambda key: _ROW_BYTES + 4 * len(key.name) + _GRANT_BYTES * len(key.grants),
                matches=matches,
            )
        )
        if found.position is None:
            return Page(found.items, "")
        return Page(found.items, self._page_tokens.make(query, pack_position(found.position)))

    async def revoke(
        self, caller: Caller, request: access_service_pb2.RevokeApiKeyRequest
    ) -> ApiKeyRecord:
        """Revoke the key for good, and return it. Raises ApiKeyNotFound."""
        now_us = self._clock()

        def decide(tx: WriteTx) -> ApiKeyRecord:
            key = tx.get_api_key(caller.tenant, request.api_key_id)
            if not _manages(caller, key):
                raise ApiKeyNotFound("There is no such API key.")
            return tx.revoke_api_key(caller.tenant, key.id, now_us)

        revoked = await self._store.write(decide)
        self._on_revoke(revoked.id)
        return revoked

    async def issue_token(
        self, caller: Caller, request: access_service_pb2.IssueTokenRequest
    ) -> Issued:
        """Return a token for the caller's key. Raises Forbidden, Unauthorized."""
        if caller.by_token:
            raise forbidden()
        if request.api_key_id not in {"", caller.key_id} and caller.key_id:
            raise unauthorized()
        expires_at_s = self._clock() // MICROSECONDS_PER_SECOND + TOKEN_LIFETIME_S
        key_id = caller.key_id or request.api_key_id or NO_KEY_ID
        token = self._tokens.sign(key_id, expires_at_s)
        return Issued(token, expires_at_s * MICROSECONDS_PER_SECOND)


def _find_fault(
    request: access_service_pb2.CreateApiKeyRequest, expires_at_us: int | None, now_us: int
) -> DomainError | None:
    named = [grant.agent_key for grant in request.roles]
    for place, agent_key in enumerate(named):
        if agent_key in named[:place]:
            return InvalidRequest.of_field(
                f"roles[{place}].agent_key", "the key has another role on the same agent"
            )
    if expires_at_us is not None and expires_at_us <= now_us:
        return InvalidRequest.of_field("expires_at", "must lie ahead")
    return None


def _resolve(
    tx: WriteTx, caller: Caller, request: access_service_pb2.CreateApiKeyRequest
) -> tuple[Grant, ...] | AgentNotFound:
    """Return the grants, or the error of an agent that is not there. Raises Forbidden."""
    grants = []
    missing = None
    for asked in request.roles:
        role = Role(asked.role)
        if role is Role.ADMINISTRATOR:
            if not caller.administrator:
                raise forbidden()
            grants.append(Grant(role))
            continue
        try:
            agent = tx.get_agent(caller.tenant, asked.agent_key)
        except AgentNotFound as error:
            missing = error
            continue
        if not _administers(caller, Grant(role, agent.uid, agent.key)):
            raise forbidden()
        grants.append(Grant(role, agent.uid, agent.key))
    return missing or tuple(grants)


def _administers(caller: Caller, grant: Grant) -> bool:
    if caller.administrator:
        return True
    own = caller.grants.get(grant.agent_key)
    return own is not None and own == Grant(
        Role.AGENT_ADMINISTRATOR, grant.agent_uid, grant.agent_key
    )


def _manages(caller: Caller, key: ApiKeyRecord) -> bool:
    if caller.administrator:
        return True
    return bool(key.grants) and all(_administers(caller, grant) for grant in key.grants)
