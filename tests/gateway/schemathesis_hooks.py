"""Loaded by schemathesis in its own environment: a check that suits a server in the making."""

from __future__ import annotations

import json
from typing import Any

import schemathesis  # type: ignore[import-not-found, unused-ignore]


@schemathesis.check  # type: ignore[untyped-decorator, unused-ignore]
def no_server_error(_context: Any, response: Any, _case: Any) -> None:
    """No 5xx, but for what the contract has and this server says it does not serve."""
    if response.status_code >= 500 and response.status_code != 501:
        raise AssertionError(f"{response.status_code}: {response.text[:300]}")


@schemathesis.hook  # type: ignore[untyped-decorator, unused-ignore]
def filter_body(context: Any, body: Any) -> bool:
    """Leave out forms with files that are meant to be no text: when they are sent, they are."""
    if not context.operation.path.endswith("/upload") or not isinstance(body, dict):
        return True
    files = body.get("file")
    return not any(map(_is_no_text, files)) if isinstance(files, list) else True


def _is_no_text(file: Any) -> bool:
    """Tell whether it is a number, true, false, null, a list or an object, or one as JSON."""
    if not isinstance(file, str):
        return not isinstance(file, bytes)
    try:
        return not isinstance(json.loads(file), str)
    except (ValueError, RecursionError):
        return False
