"""Loaded by schemathesis in its own environment: a check that suits a server in the making."""

from __future__ import annotations

from typing import Any

import schemathesis  # type: ignore[import-not-found, unused-ignore]


@schemathesis.check  # type: ignore[untyped-decorator, unused-ignore]
def no_server_error(_context: Any, response: Any, _case: Any) -> None:
    """No 5xx, but for what the contract has and this server says it does not serve."""
    if response.status_code >= 500 and response.status_code != 501:
        raise AssertionError(f"{response.status_code}: {response.text[:300]}")
