"""Blobs in SQL: sharing them, and the transactions' methods of the sweep.

Whoever locks blobs does so last, in the order of their digests, which is that of their keys.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace
from functools import cache
from typing import Any

from sqlalchemy import Connection, and_, bindparam, delete, exists, select, tuple_, update

from hansard_server.domain.records import ArtifactRecord
from hansard_server.repository.blobs import BlobName, BlobUse
from hansard_server.repository.sql.engine import lock_for_update
from hansard_server.repository.sql.keysets import encode_keys, key_part, key_rows, select_by_keys
from hansard_server.repository.sql.tables import artifacts, blobs

_NAME = (blobs.c.tenant, blobs.c.key)
_REFERENCED = exists().where(
    artifacts.c.tenant == blobs.c.tenant, artifacts.c.blob_key == blobs.c.key
)
_SCAN = (
    select(*_NAME, blobs.c.unreferenced_since, _REFERENCED.label("referenced"))
    .where(tuple_(*_NAME) > tuple_(bindparam("after_tenant"), bindparam("after_key")))
    .order_by(*_NAME)
    .limit(bindparam("limit"))
)
_KNOWN = select_by_keys(blobs.c.key, source=blobs, keys=_NAME)
_LOCKED = lock_for_update(
    select_by_keys(*_NAME, blobs.c.unreferenced_since, source=blobs, keys=_NAME).order_by(*_NAME),
    of=blobs,
)
_USED = select_by_keys(*_NAME, source=blobs, keys=_NAME).where(_REFERENCED)
_SHARED = select_by_keys(
    blobs.c.tenant,
    blobs.c.shared_as,
    blobs.c.key,
    source=blobs,
    keys=(blobs.c.tenant, blobs.c.shared_as),
)
_ROWS = key_rows()
_LOCKED_OF_ARTIFACTS = lock_for_update(
    select(blobs.c.key)
    .select_from(
        _ROWS.join(
            artifacts,
            and_(
                artifacts.c.tenant == key_part(_ROWS, 0, artifacts.c.tenant.type),
                artifacts.c.session_uid == key_part(_ROWS, 1, artifacts.c.session_uid.type),
                artifacts.c.id == key_part(_ROWS, 2, artifacts.c.id.type),
            ),
        ).join(
            blobs, and_(blobs.c.tenant == artifacts.c.tenant, blobs.c.key == artifacts.c.blob_key)
        )
    )
    .order_by(blobs.c.key),
    of=blobs,
)
_THIS = (blobs.c.tenant == bindparam("of_tenant"), blobs.c.key == bindparam("of_key"))
_MARK = update(blobs).where(*_THIS).values(shared_as=None, unreferenced_since=bindparam("now"))
_UNMARK = update(blobs).where(*_THIS).values(unreferenced_since=None)
_REMOVE = delete(blobs).where(*_THIS)


# Both dialects have the same two methods, which the type checker would not see of either.
def _insert(dialect: str) -> Any:
    # That of the other database need not be there.
    if dialect == "sqlite":
        from sqlalchemy.dialects.sqlite import insert  # noqa: PLC0415
    else:
        from sqlalchemy.dialects.postgresql import insert  # type: ignore[assignment]  # noqa: PLC0415
    return insert(blobs)


@cache
def _share(dialect: str) -> Any:
    # What is there is written over with itself: so its row is locked, or waited for, in one
    # statement.
    return _insert(dialect).on_conflict_do_update(
        index_elements=[blobs.c.tenant, blobs.c.shared_as],
        set_={"shared_as": blobs.c.shared_as},
    )


@cache
def _adopt(dialect: str) -> Any:
    return _insert(dialect).on_conflict_do_nothing(index_elements=list(_NAME))


def share_blobs(connection: Connection, made: Sequence[ArtifactRecord]) -> Sequence[ArtifactRecord]:
    """Return new artifacts with the blobs that they refer to; these are locked until the commit."""
    if not made:
        return made
    own: dict[tuple[str, str], ArtifactRecord] = {}
    for artifact in made:
        own.setdefault(_digest(artifact), artifact)
    rows = [
        {
            "tenant": tenant,
            "key": artifact.blob_key,
            "shared_as": digest,
            "created_at": artifact.created_at_us,
        }
        for (tenant, digest), artifact in sorted(own.items(), key=lambda item: item[0])
    ]
    connection.execute(_share(connection.dialect.name), rows)
    found = connection.execute(_SHARED, encode_keys(own)).all()
    keys = {(row.tenant, row.shared_as): row.key for row in found}
    return [replace(artifact, blob_key=keys[_digest(artifact)]) for artifact in made]


def lock_blobs_of_artifacts(
    connection: Connection, tenant: str, session_uid: str, ids: Collection[str]
) -> None:
    """Lock the blobs of these artifacts until the commit: the sweep waits, and looks again."""
    named = encode_keys((tenant, session_uid, id_) for id_ in ids)
    connection.execute(_LOCKED_OF_ARTIFACTS, named).all()


class SqlBlobReads:
    """BlobReads (see repository.blobs) on a connection whose transaction others manage."""

    connection: Connection

    def scan_blobs(self, after: BlobName, limit: int) -> Sequence[BlobUse]:
        """Return blobs in the order of their names; see the Protocol."""
        values = {"after_tenant": after[0], "after_key": after[1], "limit": limit}
        return [
            BlobUse((row.tenant, row.key), bool(row.referenced), row.unreferenced_since)
            for row in self.connection.execute(_SCAN, values)
        ]

    def find_unknown_blobs(self, tenant: str, keys: Sequence[str]) -> set[str]:
        """Return those of the keys that are no blob of the tenant."""
        named = {(tenant, key) for key in keys}
        return set(keys) - set(self.connection.scalars(_KNOWN, encode_keys(named)))


class SqlBlobWrites:
    """BlobWrites (see repository.blobs) on a connection whose transaction others manage."""

    connection: Connection

    def settle_blobs(
        self, names: Sequence[BlobName], now_us: int, *, before_us: int
    ) -> Sequence[BlobName]:
        """Mark, unmark and remove blobs under their locks; see the Protocol."""
        named = encode_keys(set(names))
        locked = self.connection.execute(_LOCKED, named).all()
        # In a statement of its own: one that waits for locks looks at what was before it waited.
        used = {(row.tenant, row.key) for row in self.connection.execute(_USED, named)}
        marked, unmarked, removed = [], [], []
        for row in locked:
            name, since = (row.tenant, row.key), row.unreferenced_since
            if name in used:
                if since is not None:
                    unmarked.append(name)
            elif since is None:
                marked.append(name)
            elif since <= before_us:
                removed.append(name)
        self._change(_MARK, marked, now=now_us)
        self._change(_UNMARK, unmarked)
        self._change(_REMOVE, removed)
        return removed

    def adopt_blobs(self, tenant: str, keys: Sequence[str], now_us: int) -> None:
        """Make marked blobs of bytes that have none; see the Protocol."""
        rows = [
            {"tenant": tenant, "key": key, "created_at": now_us, "unreferenced_since": now_us}
            for key in sorted(keys)
        ]
        if rows:
            self.connection.execute(_adopt(self.connection.dialect.name), rows)

    def _change(self, statement: Any, names: Sequence[BlobName], **values: int) -> None:
        if names:
            rows = [{"of_tenant": tenant, "of_key": key, **values} for tenant, key in names]
            self.connection.execute(statement, rows)


def _digest(artifact: ArtifactRecord) -> tuple[str, str]:
    return artifact.tenant, artifact.sha256.hex()
