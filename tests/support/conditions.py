"""What a condition on metadata means, in Python: the databases must say the same."""

from __future__ import annotations

import operator
from collections.abc import Mapping
from typing import Any

from hansard_server.domain.filters import (
    All,
    AnyOf,
    Comparison,
    Condition,
    Not,
    OneOf,
    Operator,
    Path,
    Present,
    Value,
)

_COMPARE = {
    Operator.EQUAL: operator.eq,
    Operator.NOT_EQUAL: operator.ne,
    Operator.LESS: operator.lt,
    Operator.LESS_OR_EQUAL: operator.le,
    Operator.GREATER: operator.gt,
    Operator.GREATER_OR_EQUAL: operator.ge,
}


def holds(condition: Condition, fields: Mapping[str, Any]) -> bool:
    """Tell whether the condition holds for the metadata."""
    return evaluate(condition, fields) is True


def evaluate(condition: Condition, fields: Mapping[str, Any]) -> bool | None:
    """Return true, false, or neither, as SQL does."""
    match condition:
        case All(conditions):
            parts = [evaluate(part, fields) for part in conditions]
            return False if False in parts else None if None in parts else True
        case AnyOf(conditions):
            parts = [evaluate(part, fields) for part in conditions]
            return True if True in parts else None if None in parts else False
        case Not(inner):
            part = evaluate(inner, fields)
            return None if part is None else not part
        case Present(path):
            return _look_up(path, fields) is not None
        case OneOf(path, values):
            return evaluate(
                AnyOf(tuple(Comparison(path, Operator.EQUAL, value) for value in values)), fields
            )
        case Comparison(path, how, value):
            return _compare(_look_up(path, fields), how, value)


def _look_up(path: Path, fields: Any) -> Any:
    for name in path:
        if not isinstance(fields, dict) or name not in fields:
            return None
        fields = fields[name]
    return fields


def _compare(held: Any, how: Operator, value: Value) -> bool | None:
    if isinstance(value, bool) or isinstance(held, bool):
        if not (isinstance(value, bool) and isinstance(held, bool)):
            return None
    elif isinstance(value, str):
        if not isinstance(held, str):
            return None
    elif not isinstance(held, int | float):
        return None
    compared: bool = _COMPARE[how](held, value)
    return compared
