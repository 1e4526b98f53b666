"""Rendering: nodes and values become text, within a budget.

Values are what JSON has. A name is looked up among the variables, and a property among the members
of a map, so that nothing of the program can be reached.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import NoReturn

from hansard_server.agents.json_text import dump_json
from hansard_server.agents.velocity.budget import Budget, BudgetSpent
from hansard_server.agents.velocity.methods import Value, element, find_method
from hansard_server.agents.velocity.nodes import (
    Assignment,
    Block,
    Break,
    Chain,
    Choice,
    Expression,
    Index,
    Interpolated,
    ListOf,
    Literal,
    Loop,
    MapOf,
    Property,
    RangeOf,
    Reference,
    Step,
    Stop,
    TemplateFault,
    Text,
    Unary,
)
from hansard_server.agents.velocity.parser import parse

RANGE_MAX_ITEMS = 10_000
_NUMBER_MAX = 2**63


def render(source: str, values: Mapping[str, Value], budget: Budget | None = None) -> str:
    """Return the template's text; a missing value is an empty one.

    Raises TemplateFault when the template can't be read, does something that can't be done, or
    spends more than the budget.
    """
    renderer = _Renderer(source, values, budget or Budget())
    try:
        renderer.block(parse(source))
    except (_Broken, _Stopped):
        pass
    except BudgetSpent as spent:
        raise TemplateFault(str(spent), source, renderer.at) from None
    return "".join(renderer.output)


class _Broken(Exception):  # noqa: N818 - a jump
    """#break was met."""


class _Stopped(Exception):  # noqa: N818 - a jump
    """#stop was met."""


class _Renderer:
    """Renders one template."""

    def __init__(self, source: str, values: Mapping[str, Value], budget: Budget) -> None:
        self.output: list[str] = []
        self.at = 0
        self._source = source
        self._variables = dict(values)
        self._budget = budget

    # Nodes ----------------------------------------------------------------------------------------

    def block(self, nodes: Block) -> None:
        """Write a block's text."""
        for node in nodes:
            self._budget.spend()
            match node:
                case Text(text):
                    self._write(text)
                case Reference():
                    self.at = node.at
                    self._write(self._as_text(self._look_up(node)))
                case Assignment():
                    self.at = node.at
                    self._variables[node.name] = self._value(node.expression)
                case Choice():
                    self._choose(node)
                case Loop():
                    self._repeat(node)
                case Break():
                    raise _Broken
                case Stop():
                    raise _Stopped

    def _choose(self, node: Choice) -> None:
        for condition, body in node.branches:
            self.at = node.at
            if condition is None or _holds(self._value(condition)):
                self.block(body)
                return

    def _repeat(self, node: Loop) -> None:
        self.at = node.at
        items = self._value(node.expression)
        if isinstance(items, dict):
            items = list(items.values())
        if not isinstance(items, list | range) or not items:
            self.block(node.otherwise)
            return
        kept = {name: self._variables.get(name) for name in (node.name, "foreach", "velocityCount")}
        last = len(items) - 1
        try:
            for index, item in enumerate(items):
                self._budget.spend()
                self._variables[node.name] = item
                self._variables["velocityCount"] = index + 1
                self._variables["foreach"] = {
                    "index": index,
                    "count": index + 1,
                    "first": index == 0,
                    "last": index == last,
                    "hasNext": index < last,
                }
                self.block(node.body)
        except _Broken:
            pass
        finally:
            self._variables.update(kept)

    def _write(self, text: str) -> None:
        self._budget.write(len(text))
        self.output.append(text)

    # Expressions ----------------------------------------------------------------------------------

    def _value(self, expression: Expression) -> Value:  # noqa: PLR0911 - one for each kind
        self._budget.spend()
        match expression:
            case Literal(value):
                return value
            case Reference():
                return self._look_up(expression)
            case Chain():
                return self._chain(expression)
            case Unary():
                return self._unary(expression)
            case Interpolated(parts):
                return self._join(
                    part.text if isinstance(part, Text) else self._as_text(self._look_up(part))
                    for part in parts
                )
            case RangeOf():
                return self._range(expression)
            case ListOf() | MapOf():
                return self._collect(expression)

    def _collect(self, expression: ListOf | MapOf) -> Value:
        made: Value
        if isinstance(expression, ListOf):
            made = [self._value(item) for item in expression.items]
        else:
            made = {self._as_text(self._value(k)): self._value(v) for k, v in expression.pairs}
        # What holds another twice would double with each step.
        self._budget.weigh(made)
        return made

    def _look_up(self, reference: Reference) -> Value:
        self._budget.spend()
        value = self._variables.get(reference.name)
        for step in reference.steps:
            if value is None:
                break
            value = self._step(value, step)
        if value is None and reference.default is not None:
            return self._value(reference.default)
        return value

    def _step(self, value: Value, step: Step) -> Value:
        self._budget.spend()
        if isinstance(step, Property):
            return value.get(step.name) if isinstance(value, dict) else None
        if isinstance(step, Index):
            return element(value, self._value(step.expression))
        method = find_method(value, step.name, len(step.arguments))
        if method is None:
            self._fail(
                f"there is no method {step.name} with {len(step.arguments)} arguments", step.at
            )
        arguments = [self._value(argument) for argument in step.arguments]
        self._budget.weigh(value)
        self._budget.weigh(arguments)
        return method(value, *arguments)

    def _unary(self, expression: Unary) -> Value:
        value = self._value(expression.operand)
        if expression.operator == "!":
            return not _holds(value)
        return -value if _is_number(value) else None

    def _range(self, expression: RangeOf) -> Value:
        first, last = self._value(expression.first), self._value(expression.last)
        if type(first) is not int or type(last) is not int:
            return None
        if abs(last - first) >= RANGE_MAX_ITEMS:
            self._fail(f"a range has at most {RANGE_MAX_ITEMS:,} items", expression.at)
        return range(first, last + 1) if first <= last else range(first, last - 1, -1)

    def _chain(self, chain: Chain) -> Value:
        value = self._value(chain.first)
        for operator, operand, at in chain.rest:
            self.at = at
            if operator in {"&&", "||"}:
                if _holds(value) == (operator == "||"):
                    value = operator == "||"
                    continue
                value = _holds(self._value(operand))
            else:
                value = self._binary(operator, value, self._value(operand))
        return value

    def _binary(self, operator: str, left: Value, right: Value) -> Value:
        if operator in {"==", "!="}:
            return self._equal(left, right) == (operator == "==")
        if operator in _COMPARISONS:
            both_texts = isinstance(left, str) and isinstance(right, str)
            comparable = both_texts or (_is_number(left) and _is_number(right))
            return comparable and _COMPARISONS[operator](left, right)
        if operator == "+" and (isinstance(left, str) or isinstance(right, str)):
            return self._join((self._as_text(left), self._as_text(right)))
        return _calculate(operator, left, right)

    def _equal(self, left: Value, right: Value) -> bool:
        if left is None or right is None:
            return left is right
        self._budget.weigh(left)
        self._budget.weigh(right)
        if type(left) is type(right) or (_is_number(left) and _is_number(right)):
            return bool(left == right)
        if isinstance(left, list | dict | range) or isinstance(right, list | dict | range):
            return False
        # As Velocity does: what is of different kinds is compared as it would be written.
        return self._as_text(left) == self._as_text(right)

    def _join(self, texts: Iterable[str]) -> str:
        parts: list[str] = []
        length = 0
        for text in texts:
            length += len(text)
            self._budget.hold(length)
            parts.append(text)
        return "".join(parts)

    def _as_text(self, value: Value) -> str:
        if value is None:
            return ""
        if isinstance(value, str):
            return value
        if isinstance(value, bool):
            return "true" if value else "false"
        if isinstance(value, int | float):
            return repr(value)
        self._budget.weigh(value)
        text = dump_json(list(value) if isinstance(value, range) else value)
        self._budget.hold(len(text))
        return text

    def _fail(self, problem: str, at: int) -> NoReturn:
        raise TemplateFault(problem, self._source, at)


def _holds(value: Value) -> bool:
    """Return whether a condition holds: not for null, false, 0 and what is empty."""
    return bool(value)


def _is_number(value: Value) -> bool:
    return type(value) is int or type(value) is float


def _calculate(operator: str, left: Value, right: Value) -> Value:
    """Return the number; null when there is none, or none that fits 64 bits."""
    if not (_is_number(left) and _is_number(right)):
        return None
    try:
        result = _ARITHMETIC[operator](left, right)
    except (ZeroDivisionError, OverflowError):
        return None
    return result if -_NUMBER_MAX <= result < _NUMBER_MAX else None


def _divide(left: float, right: float) -> float:
    if type(left) is int and type(right) is int:
        # Towards zero, as Java does.
        quotient = abs(left) // abs(right)
        return quotient if (left < 0) == (right < 0) else -quotient
    return left / right


def _remainder(left: float, right: float) -> float:
    return left - _divide(left, right) * right if type(left) is int else left % right


_COMPARISONS: dict[str, Callable[[Value, Value], bool]] = {
    "<": lambda left, right: left < right,
    ">": lambda left, right: left > right,
    "<=": lambda left, right: left <= right,
    ">=": lambda left, right: left >= right,
}
_ARITHMETIC: dict[str, Callable[[Value, Value], float]] = {
    "+": lambda left, right: left + right,
    "-": lambda left, right: left - right,
    "*": lambda left, right: left * right,
    "/": _divide,
    "%": _remainder,
}
