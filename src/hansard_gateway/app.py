"""The ASGI application: routes from the contract's descriptors, and the few that stand beside."""

from __future__ import annotations

import json
import logging
import re
import secrets
from collections.abc import Awaitable, Callable
from typing import Any, Final

import grpc.aio
from starlette.applications import Starlette
from starlette.convertors import StringConvertor, register_url_convertor
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from hansard.v1.access_service_pb2 import IssueTokenRequest
from hansard_gateway import bodies
from hansard_gateway.calls import Calls
from hansard_gateway.content import Artifacts, Bytes, Content
from hansard_gateway.contract import Binding, bindings
from hansard_gateway.errors import HttpError, draining, from_grpc
from hansard_gateway.health import Health
from hansard_gateway.oauth import TOKEN_PATHS, OAuth
from hansard_gateway.openapi import page
from hansard_gateway.openapi.document import document
from hansard_gateway.replies import REQUEST_ID_HEADER, error_reply, json_reply
from hansard_gateway.requests import parameter
from hansard_gateway.settings import Options
from hansard_gateway.turns import Turns
from hansard_gateway.uploads import MULTIPART_TYPE, FormTurns, Uploads
from hansard_gateway.upstream import Stopping, Upstream
from hansard_gateway.watch import Streams, Watches

Serve = Callable[[Binding, Request], Awaitable[Any]]

_log = logging.getLogger("hansard.gateway")

# What the documented API has and this server does not: a clear no instead of a missing page.
_NOT_SERVED: Final = (
    "/v2/agents/{agent_key}/identity",
    "/v2/agents/{agent_key}/schedules",
    "/v2/agents/{agent_key}/schedules/{rest:path}",
    "/v2/instructions",
    "/v2/instructions/{rest:path}",
    "/v2/tool_servers",
    "/v2/tool_servers/{rest:path}",
    "/v2/tools",
    "/v2/tools/{rest:path}",
)
_METHODS: Final = ("GET", "POST", "PUT", "PATCH", "DELETE")
_VARIABLE: Final = re.compile(r"\{([a-z0-9_.]+)\}")
# Keys need none of them; decoded, they would change which route a path is.
_PATH_TRICKS: Final = re.compile(rb"%(2f|5c|00)", re.IGNORECASE)


class KeyConvertor(StringConvertor):
    """A key in a path: it ends where a verb begins (`/turns/trn_1:cancel`)."""

    regex = "[^/:]+"


register_url_convertor("key", KeyConvertor())


def create_app(upstream: Upstream) -> ASGIApp:
    """Return the application; it calls the server by `upstream`."""
    options, stopping = upstream.options, upstream.stopping
    serve = _handlers(upstream)
    health = Health(upstream)
    oauth = OAuth(upstream)

    async def issue_token(request: Request) -> Any:
        return await _answer(request, oauth(request), IssueTokenRequest.DESCRIPTOR)

    routes = [
        _route("/healthz", {"GET": health.live}),
        _route("/readyz", {"GET": health.ready}),
        _route("/openapi.json", {"GET": _openapi}),
        _route("/docs", {"GET": _docs}),
        *(_route(path, {"POST": issue_token}) for path in TOKEN_PATHS),
        *_bound_routes(serve),
        *(_route(path, dict.fromkeys(_METHODS, _not_served)) for path in _NOT_SERVED),
    ]
    app = Starlette(
        routes=routes,
        exception_handlers={HTTPException: _no_route, Exception: _fault},
    )
    app.router.redirect_slashes = False
    front: ASGIApp = Front(app, options, stopping)
    if options.cors_origins:
        front = CORSMiddleware(
            front,
            allow_origins=options.cors_origins,
            allow_methods=["GET", "HEAD", *_METHODS[1:]],
            allow_headers=["*"],
            expose_headers=[REQUEST_ID_HEADER, "etag", "retry-after", "content-range"],
        )
    return front


def _handlers(upstream: Upstream) -> Callable[[Binding], Serve]:
    """Return who serves which binding: a few RPCs have more to them over HTTP."""
    by_name = {binding.rpc.name: binding for binding in bindings()}
    calls, streams, uploads = Calls(upstream), Streams(upstream), Uploads(upstream)
    turns = Turns(upstream)
    form_turns = FormTurns(upstream, turns, by_name["UploadArtifacts"])

    async def send_event(binding: Binding, request: Request) -> Any:
        form = bodies.media_type(request) == MULTIPART_TYPE
        return await (form_turns if form else turns)(binding, request)

    named: dict[str, Serve] = {
        "SendEvent": send_event,
        "WatchEvents": Watches(upstream),
        "GetArtifact": Artifacts(upstream, by_name["DownloadArtifact"]),
        "DownloadArtifact": Content(upstream, by_name["GetArtifact"]),
        "UploadArtifacts": uploads,
    }

    def serve(binding: Binding) -> Serve:
        rpc = binding.rpc
        return named.get(rpc.name) or (streams if rpc.server_streaming else calls)

    return serve


def _bound_routes(serve: Callable[[Binding], Serve]) -> list[Route]:
    by_path: dict[str, dict[str, Any]] = {}
    for binding in bindings():
        path = _VARIABLE.sub(lambda found: f"{{{parameter(found[1])}:key}}", binding.template)
        # One path may name its variables differently in its methods.
        same = next((known for known in by_path if _shape(known) == _shape(path)), path)
        methods = by_path.setdefault(same, {})
        methods[binding.method] = _endpoint(binding, serve(binding), same, path)
        if binding.rpc.name == "DownloadArtifact":
            methods["HEAD"] = methods["GET"]
    # A path without variables in a place goes before one with a variable there.
    ordered = sorted(by_path.items(), key=lambda item: _shape(item[0]).replace("{}", "~"))
    return [_route(path, methods) for path, methods in ordered]


def _shape(path: str) -> str:
    return re.sub(r"\{[a-z0-9_]+:key\}", "{}", path)


def _endpoint(binding: Binding, serve: Serve, known: str, own: str) -> Any:
    names = dict(zip(_names(known), _names(own), strict=True))

    async def endpoint(request: Request) -> Any:
        request.scope["path_params"] = {
            names[name]: value for name, value in request.path_params.items()
        }
        body = binding.body.strip("*")
        return await _answer(request, serve(binding, request), binding.rpc.request.DESCRIPTOR, body)

    return endpoint


async def _answer(
    request: Request, serving: Awaitable[Any], descriptor: Any, body: str = ""
) -> Any:
    """Return the answer, also when it is an error."""
    try:
        answer = await serving
        if isinstance(answer, Bytes):
            await answer.open()
    except HttpError as error:
        return error_reply(request, error)
    except grpc.aio.AioRpcError as error:
        return error_reply(request, from_grpc(error, descriptor, body))
    except bodies.ClientGone:
        return Response(status_code=499)
    return answer


def _names(path: str) -> list[str]:
    return re.findall(r"\{([a-z0-9_]+):key\}", path)


def _route(path: str, methods: dict[str, Any]) -> Route:
    async def endpoint(request: Request) -> Any:
        return await methods[request.method](request)

    route = Route(path, endpoint, methods=list(methods))
    if route.methods is not None and "HEAD" not in methods:
        # Starlette answers HEAD wherever it answers GET; a stream would never end.
        route.methods.discard("HEAD")
    return route


async def _openapi(_request: Request) -> Response:
    return json_reply(json.dumps(document()))


async def _docs(_request: Request) -> Response:
    return Response(page.page(), headers=page.HEADERS, media_type="text/html")


async def _not_served(request: Request) -> Response:
    words = "this server does not serve it"
    return error_reply(request, HttpError("unimplemented", [words]))


async def _no_route(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)  # noqa: S101 - registered for it alone
    if error.status_code == 405:  # noqa: PLR2004
        allowed = dict(error.headers or {})
        words = f"{request.method} is not served here"
        return error_reply(request, HttpError("method_not_allowed", [words], headers=allowed))
    return error_reply(request, HttpError("not_found", ["there is nothing at this path"]))


async def _fault(request: Request, _error: Exception) -> Response:
    words = f"the gateway failed; its log has {request.state.request_id}"
    return error_reply(request, HttpError("internal", [words]))


class Front:
    """What comes before any route: ids, a stopping gateway, paths and origins that are tricks."""

    def __init__(self, app: ASGIApp, options: Options, stopping: Stopping) -> None:
        """Stand before `app`."""
        self._app = app
        self._origins = frozenset(options.cors_origins)
        self._stopping = stopping

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request_id = f"req_{secrets.token_hex(8)}"
        scope.setdefault("state", {})["request_id"] = request_id

        async def send_with_id(message: Message) -> None:
            if message["type"] == "http.response.start":
                header = (REQUEST_ID_HEADER.encode(), request_id.encode())
                message["headers"] = [*message.get("headers", ()), header]
            await send(message)

        refused = self._refuse(scope)
        if refused is not None:
            reply = error_reply(Request(scope), refused)
            await reply(scope, receive, send_with_id)
            return
        try:
            await self._app(scope, receive, send_with_id)
        except Exception:
            # Raised again, so that an answer that has begun is cut off and not taken for whole.
            _log.exception("request %s failed", request_id)
            raise

    def _refuse(self, scope: Scope) -> HttpError | None:
        if self._stopping.begun:
            error = draining()
            error.headers = {"connection": "close"}
            return error
        if _PATH_TRICKS.search(scope.get("raw_path") or b""):
            return HttpError("not_found", ["there is nothing at this path"])
        headers = dict(scope["headers"])
        origin = headers.get(b"origin", b"").decode("latin-1")
        host = headers.get(b"host", b"").decode("latin-1")
        # A page of another site could send forms to a server on its reader's machine.
        own = not origin or origin.partition("://")[2] == host
        if own or origin in self._origins or "*" in self._origins:
            return None
        return HttpError("forbidden", ["the origin of the page is not allowed"])
