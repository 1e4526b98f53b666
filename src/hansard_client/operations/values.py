"""Values as callers have them, made into messages; and what names a session."""

from __future__ import annotations

import datetime as dt
import uuid
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias, TypeVar, overload

from google.protobuf.json_format import ParseDict, ParseError
from google.protobuf.message import Message
from google.protobuf.struct_pb2 import Struct
from google.protobuf.timestamp_pb2 import Timestamp

from hansard.v1.paging_pb2 import SORT_ORDER_ASCENDING, SORT_ORDER_DESCENDING, SortOrder
from hansard_client.link import Link

AnyMessage = TypeVar("AnyMessage", bound=Message)

Fields: TypeAlias = Mapping[str, Any]
"""A message as a mapping, with the contract's names of fields and protobuf's JSON for values."""


@dataclass(frozen=True, slots=True)
class Place:
    """A session, and the link to where it is.

    Attributes:
        link: makes the calls.
        agent_key: the agent.
        session_key: the session.
        uid: its incarnation; empty: whichever has the key.
    """

    link: Link
    agent_key: str
    session_key: str
    uid: str = ""

    @property
    def keys(self) -> dict[str, Any]:
        """The fields of a request that name the session."""
        return {"agent_key": self.agent_key, "session_key": self.session_key}

    @property
    def incarnation(self) -> dict[str, Any]:
        """The same and its uid, for the requests that have a field for it."""
        return {**self.keys, "session_uid": self.uid}


def new_request_id() -> str:
    """Return an id under which a call can be repeated safely."""
    return uuid.uuid4().hex


@overload
def to_message(made: AnyMessage, value: AnyMessage | Fields) -> AnyMessage: ...
@overload
def to_message(made: AnyMessage, value: AnyMessage | Fields | None) -> AnyMessage | None: ...
def to_message(made: AnyMessage, value: AnyMessage | Fields | None) -> AnyMessage | None:
    """Return the value as a message: itself, or `made` filled from a mapping.

    Raises ValueError for a mapping that is none of its kind.
    """
    if value is None or isinstance(value, Message):
        return value
    try:
        ParseDict(dict(value), made)
    except (ParseError, TypeError, RecursionError) as error:
        raise ValueError(str(error)) from None
    return made


def to_struct(value: Struct | Fields | None) -> Struct | None:
    """Return the value as a Struct. Raises ValueError for what JSON can't say."""
    return to_message(Struct(), value)


def to_timestamp(value: dt.datetime | None) -> Timestamp | None:
    """Return the moment as a Timestamp. Raises ValueError for one without a time zone."""
    if value is None:
        return None
    if value.tzinfo is None:
        raise ValueError(f"{value}: a moment needs a time zone")
    stamp = Timestamp()
    stamp.FromDatetime(value)
    return stamp


def to_order(*, newest_first: bool | None) -> SortOrder.ValueType:
    """Return the order; None: the list's own."""
    if newest_first is None:
        return SortOrder.SORT_ORDER_UNSPECIFIED
    return SORT_ORDER_DESCENDING if newest_first else SORT_ORDER_ASCENDING


def given(**fields: Any) -> dict[str, Any]:
    """Return the fields that have a value other than None."""
    return {name: value for name, value in fields.items() if value is not None}


def same_fields(one: Message, other: Message, paths: Iterable[str]) -> bool:
    """Tell whether two resources agree in what the paths of an update mask name."""
    for path in paths:
        name, _, entry = path.partition(".")
        ours, theirs = getattr(one, name), getattr(other, name)
        if entry:
            # Looking an absent entry up would make it.
            if (entry in ours) != (entry in theirs) or (
                entry in ours and ours[entry] != theirs[entry]
            ):
                return False
        elif ours != theirs:
            return False
    return True
