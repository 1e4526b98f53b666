"""Every RPC that is no stream: request from HTTP, call, JSON back."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from starlette.requests import Request
from starlette.responses import Response

from hansard_gateway import bodies
from hansard_gateway.contract import Binding
from hansard_gateway.errors import HttpError
from hansard_gateway.json_reader import read_object
from hansard_gateway.json_text import Member
from hansard_gateway.json_writer import member, to_json
from hansard_gateway.replies import json_reply
from hansard_gateway.requests import (
    build,
    check_found,
    get_request,
    getter,
    is_update,
    set_mask,
)
from hansard_gateway.upstream import Metadata, Upstream, metadata_of

CREATED: Final = 201
NO_CONTENT: Final = 204
_CREATING: Final = ("Create", "Append", "Upload", "Send", "Index")


class Calls:
    """Serves bindings whose RPC takes one message and answers one."""

    def __init__(self, upstream: Upstream) -> None:
        """Call this server."""
        self._upstream = upstream

    async def __call__(self, binding: Binding, request: Request) -> Response:
        """Return the answer. Raises HttpError, ClientGone, grpc.aio.AioRpcError."""
        metadata = metadata_of(request)
        members = await self._members(binding, request)
        message = build(binding, request, members)
        if is_update(binding) and not set_mask(binding, message, request.method, members):
            etag = getattr(message, binding.body).etag
            return await self._unchanged(binding, request, metadata, etag)
        if "next_page_token" in binding.rpc.response.DESCRIPTOR.fields_by_name:
            return json_reply(await self._page(binding, message, metadata))
        answer = await self._upstream.call(binding.rpc, message, metadata)
        if binding.method == "DELETE":
            return Response(status_code=NO_CONTENT)
        if binding.method == "GET":
            check_found(answer)
        return json_reply(to_json(answer), status_of(binding))

    async def _members(self, binding: Binding, request: Request) -> Mapping[str, Member]:
        if not binding.body:
            return {}
        bodies.check_json(request)
        body = await bodies.read(request, self._upstream.options)
        return read_object(body) if body else {}

    async def _unchanged(
        self, binding: Binding, request: Request, metadata: Metadata, etag: str
    ) -> Response:
        """Return the resource as it is: nothing was to be changed. The etag, if any, must match."""
        found = getter(binding)
        if found is None:
            raise LookupError(f"{binding.rpc.path}: nothing gets what it changes")
        message = get_request(found, binding, request)
        resource = await self._upstream.call(found.rpc, message, metadata)
        if etag not in {"", resource.etag}:
            raise HttpError("etag_mismatch", [f"the etag is {resource.etag} now"])
        return json_reply(to_json(resource))

    async def _page(self, binding: Binding, message: Any, metadata: Metadata) -> str:
        """Return a page that has an item unless it is the last: clients stop at an empty one."""
        while True:
            page = await self._upstream.call(binding.rpc, message, metadata)
            field = next(each for each in page.DESCRIPTOR.fields if each.is_repeated)
            shown = [to_json(item) for item in getattr(page, field.name) if not _is_tombstone(item)]
            if shown or not page.next_page_token:
                break
            message.page_token = page.next_page_token
        token = member("page_key", page.next_page_token) if page.next_page_token else ""
        return f'{{"{field.name}":[{",".join(shown)}],"metadata":{{{token}}}}}'


def status_of(binding: Binding) -> int:
    """Return the status of a success."""
    created = binding.method == "POST" and binding.rpc.name.startswith(_CREATING)
    return CREATED if created else 200


def _is_tombstone(item: Any) -> bool:
    return bool(item.DESCRIPTOR.name == "Event" and item.HasField("deleted_at"))
