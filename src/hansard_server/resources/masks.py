"""Update masks: which fields a caller replaces. protobuf's own merge would mix maps."""

from __future__ import annotations

import re

from google.protobuf.field_mask_pb2 import FieldMask

from hansard_server.domain.errors import InvalidRequest

_FIELD = "update_mask"
_NAME = re.compile(r"[0-9a-zA-Z_-]{1,64}\Z")
_PATH_SHOWN_CHARACTERS = 64


def read_mask(
    mask: FieldMask, fields: frozenset[str], *, map_field: str | None = None
) -> frozenset[str]:
    """Return the mask's paths: names of `fields`, and `<map_field>.<name>`.

    Raises InvalidRequest for an empty mask and for any other path.
    """
    if not mask.paths:
        raise InvalidRequest.of_field(_FIELD, "must name the fields to replace")
    for path in mask.paths:
        head, dot, name = path.partition(".")
        known = head == map_field and _NAME.match(name) if dot else path in fields
        if not known:
            shown = path[:_PATH_SHOWN_CHARACTERS]
            raise InvalidRequest.of_field(_FIELD, f"there is no field {shown!r} to replace")
    return frozenset(mask.paths)
