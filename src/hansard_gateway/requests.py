"""Requests of the contract from HTTP: path, query and body, as a binding says."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Any, Final

from google.api import field_behavior_pb2
from google.protobuf.message import Message
from starlette.requests import Request

from hansard.v1 import paging_pb2
from hansard_gateway.contract import Binding, bindings
from hansard_gateway.errors import HttpError, invalid
from hansard_gateway.json_reader import fill, fill_from_query
from hansard_gateway.json_text import Member
from hansard_gateway.naming import LISTED_EVENT_TYPES, json_name, own_fields
from hansard_gateway.upstream import new_request_id

IDEMPOTENCY_HEADER: Final = "idempotency-key"
PAGE_DEFAULT: Final = 10
PAGE_MAX: Final = 100

_NEVER_IN_MASK: Final = frozenset({"etag"})
_NULL_CLEARS: Final = frozenset({"description", "metadata"})
# The documented API's own words for the order of a list.
_ORDERING: Final = {"ListArtifacts": ("sort_by", "order_by")}
_SORTABLE: Final = frozenset({"created_at", "updated_at"})
_ORDERS: Final = {"asc": paging_pb2.SORT_ORDER_ASCENDING, "desc": paging_pb2.SORT_ORDER_DESCENDING}


def build(
    binding: Binding,
    request: Request,
    members: Mapping[str, Member],
    *,
    ignored: frozenset[str] = frozenset(),
) -> Any:
    """Return the request message. `members` are those of the body. Raises HttpError.

    `ignored` names members of the body that stand for something else.
    """
    message = binding.rpc.request()
    query = request.query_params.multi_items()
    if binding.body:
        if query:
            raise invalid(query[0][0], "is not a parameter of this call")
        target = message if binding.body == "*" else getattr(message, binding.body)
        target.SetInParent()
        fill(target, members, ignored=ignored | _outputs(target.DESCRIPTOR))
    else:
        ordering = _ORDERING.get(binding.rpc.name, ())
        fill_from_query(message, query, ignored=ordering)
        _set_order(message, request, ordering)
    for variable in binding.variables:
        name = variable.rpartition(".")[2]
        said = members.get(name)
        value = request.path_params[parameter(variable)]
        if said is not None and said.value not in (None, value):
            raise invalid(name, "is another one in the path")
    set_path(binding, message, request)
    if "page_size" in binding.rpc.request.DESCRIPTOR.fields_by_name:
        _set_page(message, request)
    set_request_id(message, request)
    return message


def set_path(binding: Binding, message: Message, request: Request) -> None:
    """Set the fields that the path names."""
    for variable in binding.variables:
        *parents, name = variable.split(".")
        target: Any = message
        for parent in parents:
            target = getattr(target, parent)
        setattr(target, name, request.path_params[parameter(variable)])


def parameter(variable: str) -> str:
    """Return the name under which the router knows a variable of a template."""
    return variable.replace(".", "__")


def set_request_id(message: Any, request: Request) -> None:
    """Set the request_id: the Idempotency-Key, or a new one. Raises HttpError."""
    if request.method != "POST" or "request_id" not in message.DESCRIPTOR.fields_by_name:
        return
    key = request.headers.get(IDEMPOTENCY_HEADER)
    if key is not None and not (key and key.isascii() and key.isprintable()):
        raise invalid("Idempotency-Key", "must be 1 to 128 printable ASCII characters")
    if key is not None and message.request_id not in {"", key}:
        raise invalid("request_id", "is not the Idempotency-Key of the request")
    message.request_id = key or message.request_id or new_request_id()


def takes_request_id(binding: Binding) -> bool:
    """Tell whether the RPC is one, however often it is sent under the same id."""
    descriptor: Any = binding.rpc.request.DESCRIPTOR
    start = descriptor.fields_by_name.get("start")
    return "request_id" in (start.message_type if start else descriptor).fields_by_name


def set_mask(binding: Binding, message: Any, method: str, members: Mapping[str, Member]) -> bool:
    """Set what an update changes; False when the body names nothing to change.

    PATCH changes what stands in the body, PUT replaces everything that callers set.
    """
    resource = getattr(message, binding.body)
    paths = message.update_mask.paths
    for field in _settable(resource.DESCRIPTOR):
        name = json_name(field)
        if method == "PUT":
            paths.append(field.name)
            continue
        found = members.get(name)
        if found is None or (found.value is None and name not in _NULL_CLEARS):
            continue
        entries = field.message_type is not None and field.message_type.GetOptions().map_entry
        if entries:
            paths.extend(f"{field.name}.{key}" for key in found.value)
        else:
            paths.append(field.name)
    return bool(paths)


def is_update(binding: Binding) -> bool:
    """Tell whether the RPC changes a resource by a mask."""
    return "update_mask" in binding.rpc.request.DESCRIPTOR.fields_by_name and bool(binding.body)


@cache
def getter(binding: Binding) -> Binding | None:
    """Return the binding that gets what this one changes."""
    return next(
        (found for found in bindings() if found.method == "GET" and found.shape == binding.shape),
        None,
    )


def get_request(binding: Binding, changing: Binding, request: Request) -> Any:
    """Return the request that gets what another binding, of the same path, names."""
    message = binding.rpc.request()
    for own, other in zip(binding.variables, changing.variables, strict=True):
        setattr(message, own, request.path_params[parameter(other)])
    return message


def _set_page(message: Any, request: Request) -> None:
    if "limit" in request.query_params and message.page_size < 1:
        raise invalid("limit", "must be at least 1")
    message.page_size = min(message.page_size or PAGE_DEFAULT, PAGE_MAX)
    if "types" in message.DESCRIPTOR.fields_by_name and not message.types:
        message.types.extend(LISTED_EVENT_TYPES)


def _set_order(message: Any, request: Request, ordering: tuple[str, ...]) -> None:
    given = {name: request.query_params[name] for name in ordering if name in request.query_params}
    if given.get("sort_by", "created_at") not in _SORTABLE:
        raise invalid("sort_by", f"must be one of {', '.join(sorted(_SORTABLE))}")
    order = given.get("order_by", "asc")
    if order not in _ORDERS:
        raise invalid("order_by", f"must be one of {', '.join(_ORDERS)}")
    if "order_by" in given:
        message.order = _ORDERS[order]


@cache
def _outputs(descriptor: Any) -> frozenset[str]:
    """Return the members of a resource that only the service sets: a client may send them back."""
    return frozenset(
        json_name(field)
        for field in own_fields(descriptor)
        if field_behavior_pb2.OUTPUT_ONLY in _behaviors(field)
    )


@cache
def _settable(descriptor: Any) -> tuple[Any, ...]:
    kept = {
        field_behavior_pb2.OUTPUT_ONLY,
        field_behavior_pb2.IDENTIFIER,
        field_behavior_pb2.IMMUTABLE,
    }
    return tuple(
        field
        for field in own_fields(descriptor)
        if field.name not in _NEVER_IN_MASK and not kept.intersection(_behaviors(field))
    )


def _behaviors(field: Any) -> list[Any]:
    return list(field.GetOptions().Extensions[field_behavior_pb2.field_behavior])


def check_found(message: Any) -> None:
    """Do nothing, or raise HttpError for the tombstone of an event: over HTTP it is gone."""
    if message.DESCRIPTOR.name == "Event" and message.HasField("deleted_at"):
        raise HttpError("event_not_found", [f"no event {message.id}: it was deleted"])
