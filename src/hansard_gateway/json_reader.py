"""Messages of the contract from JSON and from queries, along their descriptors."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Mapping
from typing import Any, Final

from google.protobuf.message import Message

from hansard_gateway.errors import HttpError, invalid
from hansard_gateway.json_text import Digits, Member, NotJson, parse
from hansard_gateway.naming import (
    discriminated,
    is_raw,
    json_name,
    own_fields,
)
from hansard_gateway.scalars import fill_known, fill_struct, to_field

_TYPE: Final = "type"
_INVALID_CONTENT: Final = "invalid_message_content"
_KEY_SHOWN_CHARACTERS: Final = 64


def read_object(data: bytes) -> dict[str, Member]:
    """Return the members of the body, which must be a JSON object. Raises HttpError."""
    try:
        body = parse(data)
    except NotJson as error:
        raise HttpError("invalid_request", [f"the body {error}"]) from None
    if not isinstance(body.value, dict):
        raise HttpError("invalid_request", ["the body must be a JSON object"])
    return body.members()


def fill(
    message: Message,
    members: Mapping[str, Member],
    path: str = "",
    *,
    ignored: Collection[str] = (),
) -> None:
    """Fill the message from the members of an object. Null counts as absent. Raises HttpError.

    `ignored` names members that stand for something else.
    """
    descriptor: Any = message.DESCRIPTOR
    by_name = {json_name(field): field for field in own_fields(descriptor)}
    flattened = discriminated(descriptor)
    rest: dict[str, Member] = {}
    for name, member in members.items():
        field = by_name.get(name)
        if name in ignored or member.value is None:
            continue
        if field is not None:
            set_field(message, field, member, _join(path, name))
        else:
            rest[name] = member
    if flattened is not None:
        _fill_flattened(message, flattened, rest, path)
    elif rest:
        raise invalid(_join(path, _shown(next(iter(rest)))), "is not known here")


def set_field(message: Any, field: Any, member: Member, path: str) -> None:
    """Set one field of the message from its JSON value. Raises HttpError."""
    if field.message_type is not None and field.message_type.GetOptions().map_entry:
        _set_map(message, field, member, path)
    elif field.is_repeated:
        if not isinstance(member.value, list):
            raise invalid(path, "must be an array")
        target = getattr(message, field.name)
        for index, item in enumerate(member.items()):
            at = f"{path}[{index}]"
            if field.message_type is None:
                target.append(to_field(field, item.value, at))
            else:
                _fill_message(target.add(), field, item, at)
    elif field.message_type is not None:
        _fill_message(getattr(message, field.name), field, member, path)
    elif is_raw(field):
        setattr(message, field.name, _raw(member, path))
    else:
        setattr(message, field.name, to_field(field, member.value, path))


def _set_map(message: Any, field: Any, member: Member, path: str) -> None:
    if not isinstance(member.value, dict):
        raise invalid(path, "must be an object")
    target = getattr(message, field.name)
    kind = field.message_type.fields_by_name["value"]
    for key, item in member.members().items():
        # In a change, null removes an entry; to the message it is absent everywhere.
        if item.value is None:
            continue
        at = _join(path, _shown(key))
        name = to_field(field.message_type.fields_by_name["key"], key, at)
        if kind.message_type is None:
            target[name] = to_field(kind, item.value, at)
        else:
            _fill_message(target[name], kind, item, at)


def _fill_message(target: Any, field: Any, member: Member, path: str) -> None:
    if fill_known(target, field, member.value, path):
        return
    if not isinstance(member.value, dict):
        raise invalid(path, "must be an object")
    target.SetInParent()
    fill(target, member.members(), path)


def _fill_flattened(
    message: Message, flattened: Any, members: dict[str, Member], path: str
) -> None:
    """Set the member of a flattened oneof that `type` names, from what stands beside it."""
    kind = members.pop(_TYPE, None)
    at = _join(path, _TYPE)
    if kind is None:
        if members:
            name = next(iter(members))
            known = any(
                name == json_name(field)
                for choice in flattened.fields
                if choice.message_type is not None
                for field in own_fields(choice.message_type)
            )
            if known:
                raise invalid(at, "is missing")
            raise invalid(_join(path, _shown(name)), "is not known here")
        return
    choices = {field.name: field for field in flattened.fields}
    field = choices.get(kind.value) if isinstance(kind.value, str) else None
    if field is None:
        raise invalid(at, f"must be one of {', '.join(choices)}")
    target = getattr(message, field.name)
    target.SetInParent()
    fill(target, members, path)


def fill_from_query(
    message: Message, query: Iterable[tuple[str, str]], *, ignored: Collection[str] = ()
) -> None:
    """Fill the message from a query's parameters. Raises HttpError."""
    descriptor: Any = message.DESCRIPTOR
    by_name = {json_name(field): field for field in own_fields(descriptor)}
    seen: set[str] = set()
    for name, text in query:
        if name in ignored:
            continue
        field = by_name.get(name)
        if field is None:
            raise invalid(_shown(name), "is not a parameter of this call")
        if name in seen and not field.is_repeated:
            raise invalid(name, "is given twice")
        seen.add(name)
        _set_from_text(message, field, text, name)


def _set_from_text(message: Any, field: Any, text: str, name: str) -> None:
    if field.message_type is not None:
        target = getattr(message, field.name)
        if text.startswith("{"):
            try:
                fill_struct(target, parse(text.encode(errors="surrogatepass")).value, name)
            except NotJson as error:
                raise invalid(name, str(error)) from None
            except AttributeError:
                raise invalid(name, "must not be an object") from None
        elif not fill_known(target, field, text, name):
            raise invalid(name, "can't be given in a query")
        return
    value: Any = text
    if field.type == field.TYPE_BOOL:
        value = {"true": True, "false": False}.get(text, text)
    elif field.type in {field.TYPE_DOUBLE, field.TYPE_FLOAT}:
        try:
            float(text)
        except ValueError:
            raise invalid(name, "must be a number") from None
        value = Digits(text)
    if field.is_repeated:
        getattr(message, field.name).append(to_field(field, value, name))
    else:
        setattr(message, field.name, to_field(field, value, name))


def _raw(member: Member, path: str) -> str:
    """Return the JSON verbatim, as the contract keeps it."""
    raw = member.raw
    try:
        raw.encode()
    except UnicodeEncodeError:  # pragma: no cover - the body was UTF-8
        raise invalid(path, "is not text", code=_INVALID_CONTENT) from None
    return raw


def _join(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name


def _shown(key: str) -> str:
    """Return a caller's key as it may stand in a message."""
    return json.dumps(key[:_KEY_SHOWN_CHARACTERS])[1:-1]
