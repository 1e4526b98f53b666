"""Statements of rates, and the transactions' methods made of them."""

from __future__ import annotations

from sqlalchemy import Connection, and_, bindparam, delete, insert, select, update

from hansard_server.domain.rates import Lease, Rate, lease
from hansard_server.repository.sql.engine import database_now_us, lock_for_update
from hansard_server.repository.sql.tables import buckets

_OF_SUBJECT = and_(
    buckets.c.tenant == bindparam("of_tenant"), buckets.c.subject == bindparam("of_subject")
)
BUCKET = lock_for_update(
    select(buckets.c.full_at, database_now_us().label("now")).where(_OF_SUBJECT)
)
_NOW = select(database_now_us())
_UPDATE = update(buckets).where(_OF_SUBJECT).values(full_at=bindparam("new_full_at"))
_FORGET = delete(buckets).where(buckets.c.full_at <= database_now_us())


class SqlRateWrites:
    """RateWrites (see repository.rates) on a connection whose transaction others manage."""

    connection: Connection

    def lease_permits(self, tenant: str, subject: str, rate: Rate, wanted: int) -> Lease:
        """Take up to `wanted` permits; see the Protocol."""
        of = {"of_tenant": tenant, "of_subject": subject}
        row = self.connection.execute(BUCKET, of).one_or_none()
        if row is not None:
            leased = lease(rate, row.full_at, row.now, wanted)
            self.connection.execute(_UPDATE, {**of, "new_full_at": leased.full_at_us})
            return leased
        leased = lease(rate, 0, self.connection.execute(_NOW).scalar_one(), wanted)
        # Somebody may be faster: then the store runs this again.
        self.connection.execute(
            insert(buckets),
            {"tenant": tenant, "subject": subject, "full_at": leased.full_at_us},
        )
        return leased

    def forget_full_buckets(self) -> None:
        """Remove what is known of full buckets; see the Protocol."""
        self.connection.execute(_FORGET)
