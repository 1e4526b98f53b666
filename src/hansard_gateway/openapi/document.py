"""The API document: OpenAPI 3.1, from the bindings of the contract.

https://spec.openapis.org/oas/v3.1.1
"""

from __future__ import annotations

from functools import cache
from importlib import metadata
from typing import Any, Final

from hansard_gateway.calls import NO_CONTENT, status_of
from hansard_gateway.contract import Binding, bindings
from hansard_gateway.errors import STATUSES
from hansard_gateway.naming import json_name, own_fields
from hansard_gateway.oauth import GRANT, TOKEN_PATHS
from hansard_gateway.openapi.comments import comments
from hansard_gateway.openapi.rules import Schema, of_string
from hansard_gateway.openapi.schemas import REF, Mode, Schemas
from hansard_gateway.requests import (
    IDEMPOTENCY_HEADER,
    PAGE_DEFAULT,
    PAGE_MAX,
    is_update,
    takes_request_id,
)

_JSON: Final = "application/json"
_FORM: Final = "multipart/form-data"
# A stream of frames: some tools check the whole of it against the schema, others each frame.
_SSE: Final = "text/event-stream"
_BINARY: Final = "application/octet-stream"
_ERRORS: Final = {
    "400": "Something in the request is wrong; `field_errors` names it.",
    "401": "No credentials, or none that are valid.",
    "403": "The credentials do not allow it.",
    "404": "It does not exist, or not for the caller.",
    "409": "It is there already, is busy, or changed meanwhile.",
    "422": "The state of the agent or the session does not allow it.",
    "429": "Too much; `retry-after` says when to come back.",
    "503": "The server does not answer, or is stopping; `retry-after` says when to come back.",
}
_FILES: Final[Schema] = {
    "type": "array",
    "items": {"type": "string", "contentMediaType": _BINARY},
    "minItems": 1,
}
_UPLOAD: Final[Schema] = {"type": "object", "properties": {"file": _FILES}, "required": ["file"]}
_FORM_INPUT: Final[Schema] = {
    "type": "object",
    "properties": {
        "message": {"type": "string", "description": "What is said about the files."},
        "files": _FILES,
        "stream_response": {"type": "string", "enum": ["true", "false"]},
    },
}


@cache
def document() -> dict[str, Any]:
    """Return the document."""
    schemas = Schemas()
    paths: dict[str, dict[str, Any]] = {}
    for binding in bindings():
        path = _path(binding)
        paths.setdefault(path, {})[binding.method.lower()] = _operation(binding, schemas)
    for path in TOKEN_PATHS:
        paths[path] = {"post": _token(path)}
    for path, words in (("/healthz", "The gateway lives."), ("/readyz", "Calls are served.")):
        paths[path] = {"get": _health(path, words)}
    tags = sorted({binding.rpc.service for binding in bindings()})
    return {
        "openapi": "3.1.1",
        "info": {
            "title": "Hansard",
            "version": metadata.version("hansard"),
            "description": "Sessions, turns and events of AI agents as a durable record.",
        },
        "tags": [{"name": tag, "description": _said(f"hansard.v1.{tag}")} for tag in tags],
        "paths": dict(sorted(paths.items())),
        "components": {
            "schemas": {**dict(sorted(schemas.components.items())), **_own_schemas()},
            "securitySchemes": {
                "api_key": {"type": "apiKey", "in": "header", "name": "x-api-key"},
                "bearer": {"type": "http", "scheme": "bearer"},
            },
        },
        "security": [{"api_key": []}, {"bearer": []}, {}],
    }


def _operation(binding: Binding, schemas: Schemas) -> dict[str, Any]:
    rpc = binding.rpc
    said = _said(f"hansard.v1.{rpc.service}.{rpc.name}")
    operation: dict[str, Any] = {
        "operationId": _operation_id(binding),
        "tags": [rpc.service],
        "summary": said.partition(". ")[0].rstrip("."),
        "description": said,
        "parameters": _parameters(binding, schemas),
        "responses": {**_success(binding, schemas), **_failures()},
    }
    body = _body(binding, schemas)
    if body:
        operation["requestBody"] = body
    return operation


def _operation_id(binding: Binding) -> str:
    name = binding.rpc.name
    first = next(each for each in bindings() if each.rpc is binding.rpc)
    return name if first is binding else f"{name}By{binding.method.title()}"


def _path(binding: Binding) -> str:
    """Return the path, its variables named alike in all methods."""
    path = binding.template
    for variable in binding.variables:
        path = path.replace(f"{{{variable}}}", f"{{{_variable(variable)}}}")
    return path


def _variable(variable: str) -> str:
    """Return `agent_key` for `agent_key`, `agent.key`, `session.agent_key`, `start.agent_key`."""
    parent, _, name = variable.rpartition(".")
    return f"{parent}_key" if name == "key" else name


def _parameters(binding: Binding, schemas: Schemas) -> list[dict[str, Any]]:
    parameters = [_path_parameter(binding, variable) for variable in binding.variables]
    descriptor: Any = binding.rpc.request.DESCRIPTOR
    named = {variable.split(".")[0] for variable in binding.variables}
    if not binding.body:
        parameters += [
            _query_parameter(field, schemas)
            for field in own_fields(descriptor)
            if field.name not in named
        ]
    if binding.rpc.name == "ListArtifacts":
        parameters += [
            _in_query("sort_by", {"type": "string", "enum": ["created_at", "updated_at"]}),
            _in_query("order_by", {"type": "string", "enum": ["asc", "desc"]}),
        ]
    if binding.method == "POST" and takes_request_id(binding):
        said = "Makes the request one, however often it is sent."
        schema = {"type": "string", "pattern": "^[!-~]{1,128}$"}
        parameters.append(_in_header(IDEMPOTENCY_HEADER, schema, said))
    if binding.rpc.name == "WatchEvents":
        said = "The id of the last frame that was seen: `<session uid>.<sequence>`."
        parameters.append(_in_header("last-event-id", {"type": "string"}, said))
    if binding.rpc.name == "DownloadArtifact":
        for name in ("range", "if-none-match", "if-range"):
            parameters.append(_in_header(name, {"type": "string"}, "As in RFC 9110."))
    return parameters


def _path_parameter(binding: Binding, variable: str) -> dict[str, Any]:
    *parents, name = variable.split(".")
    descriptor: Any = binding.rpc.request.DESCRIPTOR
    for parent in parents:
        descriptor = descriptor.fields_by_name[parent].message_type
    field = descriptor.fields_by_name[name]
    return {
        "name": _variable(variable),
        "in": "path",
        "required": True,
        "description": _said(field.full_name),
        "schema": {"type": "string", **of_string(field)},
    }


def _query_parameter(field: Any, schemas: Schemas) -> dict[str, Any]:
    name = json_name(field)
    if name == "limit":
        said = f"How many at most. Default: {PAGE_DEFAULT}; more than {PAGE_MAX} is {PAGE_MAX}."
        most = (1 << 31) - 1
        return _in_query(name, {"type": "integer", "minimum": 1, "maximum": most}, said)
    schema = schemas._any(field, Mode.REQUEST)  # noqa: SLF001 - one module in two files
    if schema.get("type") == ["integer", "string"]:
        schema = {**schema, "type": "integer"}
        del schema["pattern"]
    parameter = _in_query(name, schema, _said(field.full_name))
    if schema.get("type") == "object":
        # An object in a query is its JSON.
        parameter["content"] = {_JSON: {"schema": parameter.pop("schema")}}
    return parameter


def _in_query(name: str, schema: Schema, said: str = "") -> dict[str, Any]:
    return {"name": name, "in": "query", "description": said, "schema": schema}


def _in_header(name: str, schema: Schema, said: str) -> dict[str, Any]:
    return {"name": name, "in": "header", "description": said, "schema": schema}


def _body(binding: Binding, schemas: Schemas) -> dict[str, Any]:
    if not binding.body:
        return {}
    if binding.rpc.client_streaming:
        return {"required": True, "content": {_FORM: {"schema": _UPLOAD}}}
    descriptor: Any = binding.rpc.request.DESCRIPTOR
    if binding.body == "*":
        schema = schemas.message(descriptor, Mode.REQUEST)
    else:
        mode = Mode.CHANGE if binding.method == "PATCH" else Mode.REQUEST
        schema = schemas.ref(descriptor.fields_by_name[binding.body].message_type, mode)
    if binding.body == "*":
        _leave_to_path(schema, set(binding.variables))
    content: dict[str, Any] = {_JSON: {"schema": schema}}
    if binding.rpc.name == "SendEvent":
        _add_own_members(schema)
        content[_FORM] = {"schema": _FORM_INPUT}
    needed = "anyOf" in schema or "required" in schema
    return {"required": needed and not is_update(binding), "content": content}


def _leave_to_path(schema: Schema, variables: set[str]) -> None:
    """What the path says the body need not, and may only say alike."""
    for variant in schema.get("anyOf", [schema]):
        for variable in variables:
            variant["properties"].pop(variable, None)
        needed = [name for name in variant.get("required", ()) if name not in variables]
        variant.pop("required", None)
        if needed:
            variant["required"] = needed


def _add_own_members(schema: Schema) -> None:
    own: Schema = {
        "stream_response": {
            "type": ["boolean", "null"],
            "description": "The turn is answered as server-sent events, as it happens.",
        },
        "behavior": {
            "type": ["string", "null"],
            "enum": ["steer", "follow_up", None],
            "description": "What is done while a turn is unfinished.",
        },
    }
    for variant in schema["anyOf"]:
        variant["properties"].update(own)
    message = next(each for each in schema["anyOf"] if each["title"] == "input_message")
    properties = {**message["properties"], "content": {"type": "string", "minLength": 1}}
    del properties["messages"]
    short = {"title": "input_message, the short form", "required": ["type", "content"]}
    schema["anyOf"].append({**message, **short, "properties": properties})


def _success(binding: Binding, schemas: Schemas) -> dict[str, Any]:
    rpc = binding.rpc
    if binding.method == "DELETE":
        return {str(NO_CONTENT): {"description": "It is deleted."}}
    status, descriptor = str(status_of(binding)), rpc.response.DESCRIPTOR
    if rpc.name == "SendEvent":
        schemas.ref(_event(descriptor), Mode.REPLY)
        schemas.ref(_turn(descriptor), Mode.REPLY)
        said = "The turn, whatever became of it; its input is stored."
        content = _content(f"{REF}TurnResponse") | {_SSE: {"schema": {}}}
        return {status: {"description": said, "content": content}}
    if rpc.name == "DownloadArtifact":
        whole: dict[str, Any] = {"*/*": {"schema": {}}}
        return {
            "200": {"description": "All bytes.", "content": whole},
            "206": {"description": "The range.", "content": whole},
            "304": {"description": "The client has them."},
            "416": {"description": "There is no such range.", "content": _content(f"{REF}Error")},
        }
    if rpc.server_streaming:
        said = "Frames of JSON, each with a `type`; see the server's HTTP guide."
        return {status: {"description": said, "content": {_SSE: {"schema": {}}}}}
    said = _said(descriptor.full_name) or "It is done."
    if "next_page_token" in descriptor.fields_by_name:
        content = {_JSON: {"schema": _page(descriptor, schemas)}}
    else:
        content = {_JSON: {"schema": schemas.ref(descriptor, Mode.REPLY)}}
    return {status: {"description": said, "content": content}}


def _event(descriptor: Any) -> Any:
    return descriptor.fields_by_name["event"].message_type


def _turn(descriptor: Any) -> Any:
    return descriptor.fields_by_name["turn_end"].message_type.fields_by_name["turn"].message_type


def _page(descriptor: Any, schemas: Schemas) -> Schema:
    field = next(each for each in descriptor.fields if each.is_repeated)
    item = schemas.ref(field.message_type, Mode.REPLY)
    return {
        "type": "object",
        "properties": {
            field.name: {"type": "array", "items": item},
            "metadata": {
                "type": "object",
                "properties": {"page_key": {"type": "string", "description": "For the next page."}},
            },
        },
        "required": [field.name, "metadata"],
    }


def _failures() -> dict[str, Any]:
    content = _content(f"{REF}Error")
    named = {status: {"description": said, "content": content} for status, said in _ERRORS.items()}
    return {**named, "default": {"description": "Any other failure.", "content": content}}


def _content(ref: str) -> dict[str, Any]:
    return {_JSON: {"schema": {"$ref": ref}}}


def _health(path: str, words: str) -> dict[str, Any]:
    schema = {"type": "object", "properties": {"status": {"type": "string"}}}
    content = {_JSON: {"schema": schema}}
    return {
        "operationId": path.strip("/"),
        "summary": words,
        "security": [{}],
        "responses": {
            "200": {"description": words, "content": content},
            "503": {"description": "Not now.", "content": content},
        },
    }


def _token(path: str) -> dict[str, Any]:
    texts = {"type": "string", "minLength": 1}
    client: Schema = {
        "type": "object",
        "properties": {
            "client_id": {**texts, "description": "The key's id."},
            "client_secret": {**texts, "description": "The key."},
            "grant_type": {"type": "string", "enum": [GRANT]},
        },
        "required": ["client_id", "client_secret"],
    }
    token: Schema = {
        "type": "object",
        "properties": {
            "access_token": {"type": "string"},
            "token_type": {"type": "string"},
            "expires_in": {"type": "integer", "description": "In seconds."},
        },
        "required": ["access_token", "token_type", "expires_in"],
    }
    words = "Issues a token for a key: OAuth client credentials."
    properties = {**client["properties"], "grant_type": {"enum": [GRANT, None]}}
    content = {
        "application/x-www-form-urlencoded": {"schema": client},
        # Some clients send no grant_type here; null is the same.
        _JSON: {"schema": {**client, "properties": properties}},
    }
    return {
        "operationId": "IssueTokenBy" + path.split("/")[1].title(),
        "tags": ["AccessService"],
        "summary": words.rstrip("."),
        "description": words,
        "security": [{}],
        "requestBody": {"required": True, "content": content},
        "responses": {
            "200": {"description": "The token.", "content": {_JSON: {"schema": token}}},
            **_failures(),
        },
    }


def _own_schemas() -> dict[str, Schema]:
    texts = {"type": "array", "items": {"type": "string"}}
    return {
        "Error": {
            "type": "object",
            "description": "Why a request failed.",
            "properties": {
                "code": {"type": "string", "enum": sorted({*STATUSES, "internal"})},
                "messages": {**texts, "minItems": 1},
                "field_errors": {"type": "object", "additionalProperties": {"type": "string"}},
                "request_id": {"type": "string", "description": "Also in the server's log."},
            },
            "required": ["code", "messages", "request_id"],
        },
        "TurnResponse": {
            "type": "object",
            "description": "A turn: its events, and how it ended.",
            "properties": {
                "events": {"type": "array", "items": {"$ref": f"{REF}Event"}},
                "session_key": {"type": "string"},
                "turn": {"anyOf": [{"$ref": f"{REF}Turn"}, {"type": "object"}, {"type": "null"}]},
            },
            "required": ["events", "session_key"],
        },
    }


def _said(full_name: str) -> str:
    return comments().get(full_name, "")
