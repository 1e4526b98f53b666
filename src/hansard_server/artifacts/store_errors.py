"""What goes wrong with an object store, in the words of this service."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import structlog
from obstore.exceptions import BaseError

from hansard_server.domain.errors import StoreUnavailable

_RETRY_AFTER_S = 5.0

_log = structlog.get_logger(__name__)


class BlobMissing(Exception):  # noqa: N818 - reads as what it is
    """The object store has no such bytes."""


@contextmanager
def store_errors(*, missing_is_fine: bool = False) -> Iterator[None]:
    """Raise StoreUnavailable for what the object store raises; BlobMissing for what is not there,
    or nothing where that is fine.
    """
    try:
        yield
    except FileNotFoundError as error:
        if not missing_is_fine:
            raise BlobMissing from error
    except (BaseError, OSError) as error:
        raise _unavailable(error) from error


@contextmanager
def disk_errors() -> Iterator[None]:
    """Raise StoreUnavailable for what writing to this machine's disk raises."""
    try:
        yield
    except OSError as error:
        raise _unavailable(error) from error


def _unavailable(error: Exception) -> StoreUnavailable:
    # Its words name paths and hosts: they are for the log alone.
    _log.error("object store failed", exc_info=error)
    return StoreUnavailable("The artifact store does not answer.", retry_after_s=_RETRY_AFTER_S)
