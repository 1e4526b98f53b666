"""Request bodies as they come in: no larger and no slower than is taken."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from typing import Final

from starlette.requests import Request

from hansard_gateway.errors import HttpError
from hansard_gateway.settings import Options

JSON_TYPE: Final = "application/json"


class ClientGone(Exception):  # noqa: N818 - reads as what happened
    """The client has closed its connection; there is nobody to answer."""


def media_type(request: Request) -> str:
    """Return the body's media type, in lower case and without parameters."""
    return request.headers.get("content-type", "").partition(";")[0].strip().lower()


def check_json(request: Request) -> None:
    """Do nothing, or raise HttpError for a body that says it is no JSON."""
    _check_encoding(request)
    kind = media_type(request)
    if kind and kind != JSON_TYPE and not kind.endswith("+json"):
        raise HttpError("unsupported_media_type", [f"the body must be {JSON_TYPE}"])


async def read(request: Request, options: Options) -> bytes:
    """Return the whole body. Raises HttpError, ClientGone."""
    most = options.body_max_bytes
    length = request.headers.get("content-length", "0")
    if length.isdigit() and int(length) > most:
        raise _too_large(most)
    body = bytearray()
    async for chunk in receive(request, options):
        body += chunk
        if len(body) > most:
            raise _too_large(most)
    return bytes(body)


async def receive(request: Request, options: Options) -> AsyncGenerator[bytes, None]:
    """Yield the body's pieces. Raises HttpError when it comes too slowly, ClientGone.

    Only the time that is waited for the client counts, not what whoever reads takes.
    """
    _check_encoding(request)
    loop = asyncio.get_running_loop()
    waited_s, received = 0.0, 0
    while True:
        began = loop.time()
        left_s = options.body_grace_s + received / options.body_rate_bytes_s - waited_s
        try:
            async with asyncio.timeout(left_s):
                message = await request.receive()
        except TimeoutError:
            raise HttpError(
                "request_timeout",
                ["the body came too slowly"],
                headers={"connection": "close"},
            ) from None
        waited_s += loop.time() - began
        if message["type"] == "http.disconnect":
            raise ClientGone
        chunk = message.get("body", b"")
        received += len(chunk)
        if chunk:
            yield chunk
        if not message.get("more_body", False):
            return


def _check_encoding(request: Request) -> None:
    if request.headers.get("content-encoding", "identity").lower() != "identity":
        raise HttpError("unsupported_media_type", ["the body must not be compressed"])


def _too_large(most: int) -> HttpError:
    return HttpError("payload_too_large", [f"the body is larger than {most} bytes"])
