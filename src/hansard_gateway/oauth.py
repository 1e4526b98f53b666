"""OAuth client credentials: a key id and its key are exchanged for a token.

The documented API's clients send a form, or JSON without a grant_type; both are taken.
https://www.rfc-editor.org/rfc/rfc6749#section-4.4
"""

from __future__ import annotations

import base64
import binascii
import time
from typing import Any, Final
from urllib.parse import parse_qsl, unquote_plus

from starlette.requests import Request
from starlette.responses import Response

from hansard.v1 import access_service_pb2
from hansard_gateway import bodies
from hansard_gateway.contract import rpcs
from hansard_gateway.errors import HttpError, invalid
from hansard_gateway.json_reader import read_object
from hansard_gateway.json_writer import member
from hansard_gateway.replies import json_reply
from hansard_gateway.upstream import Upstream

TOKEN_PATHS: Final = ("/oauth2/token", "/oauth/token")

_FORM: Final = "application/x-www-form-urlencoded"
GRANT: Final = "client_credentials"
_FIELDS_MAX: Final = 32
_SECRET_MAX_CHARACTERS: Final = 1_024
_NO_STORE: Final = {"cache-control": "no-store", "pragma": "no-cache"}


class OAuth:
    """Serves the token endpoint."""

    def __init__(self, upstream: Upstream) -> None:
        """Ask this server for tokens."""
        self._upstream = upstream
        self._rpc = next(rpc for rpc in rpcs() if rpc.name == "IssueToken")

    async def __call__(self, request: Request) -> Response:
        """Return a token. Raises HttpError, ClientGone, grpc.aio.AioRpcError."""
        given = await self._read(request)
        if given.get("grant_type", GRANT) != GRANT:
            raise invalid("grant_type", f"must be {GRANT}")
        client, secret = given.get("client_id", ""), given.get("client_secret", "")
        for name, value in (("client_id", client), ("client_secret", secret)):
            if not value:
                raise invalid(name, "is missing")
        if not secret.isascii() or not secret.isprintable() or len(secret) > _SECRET_MAX_CHARACTERS:
            raise HttpError("unauthorized", ["the credentials are not valid"])
        answer = await self._upstream.call(
            self._rpc,
            access_service_pb2.IssueTokenRequest(api_key_id=client),
            (("authorization", f"Bearer {secret}"),),
        )
        left_s = max(0, int(answer.expires_at.seconds - time.time()))
        told = [
            member("access_token", answer.token),
            member("token_type", "Bearer"),
            member("expires_in", left_s),
        ]
        return json_reply("{" + ",".join(told) + "}", headers=_NO_STORE)

    async def _read(self, request: Request) -> dict[str, str]:
        body = await bodies.read(request, self._upstream.options)
        if bodies.media_type(request) == bodies.JSON_TYPE:
            members = read_object(body)
            given: dict[str, Any] = {
                name: each.value for name, each in members.items() if each.value is not None
            }
            for name, value in given.items():
                if type(value) is not str:
                    raise invalid(name[:64], "must be a string")
        elif bodies.media_type(request) == _FORM:
            given = _read_form(body)
        else:
            kinds = f"{_FORM} or {bodies.JSON_TYPE}"
            raise HttpError("unsupported_media_type", [f"the body must be {kinds}"])
        return {**_basic(request.headers.get("authorization", "")), **given}


def _read_form(body: bytes) -> dict[str, str]:
    try:
        pairs = parse_qsl(
            body.decode(), keep_blank_values=True, errors="strict", max_num_fields=_FIELDS_MAX
        )
    except ValueError:
        raise HttpError("invalid_request", ["the body is no form"]) from None
    given = dict(pairs)
    if len(given) != len(pairs):
        raise HttpError("invalid_request", ["the body has a field twice"])
    return given


def _basic(header: str) -> dict[str, str]:
    """Return the client of a Basic header, as RFC 6749, 2.3.1 has it."""
    scheme, _, credentials = header.partition(" ")
    if scheme.lower() != "basic":
        return {}
    try:
        client, _, secret = base64.b64decode(credentials, validate=True).decode().partition(":")
    except (binascii.Error, ValueError):
        raise HttpError("unauthorized", ["the credentials are not valid"]) from None
    return {"client_id": unquote_plus(client), "client_secret": unquote_plus(secret)}
