"""Answers that are JSON, and what every answer carries."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Final

from starlette.requests import Request
from starlette.responses import Response

from hansard_gateway.errors import HttpError

REQUEST_ID_HEADER: Final = "x-request-id"


def json_reply(body: str, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    """Return an answer of JSON text."""
    return Response(body, status, headers, media_type="application/json")


def error_reply(request: Request, error: HttpError) -> Response:
    """Return the error as an answer."""
    body = json.dumps(error.body(request.state.request_id), separators=(",", ":"))
    return json_reply(body, error.status, error.all_headers())
