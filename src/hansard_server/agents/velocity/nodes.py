"""What a parsed template is made of. `at` is an offset in the template, for messages."""

from __future__ import annotations

from hansard_server.domain.values import dataclass


@dataclass(frozen=True, slots=True)
class Text:
    """Text that stands as it is."""

    text: str


@dataclass(frozen=True, slots=True)
class Property:
    """`.name`."""

    name: str


@dataclass(frozen=True, slots=True)
class Index:
    """`[expression]`."""

    expression: Expression


@dataclass(frozen=True, slots=True)
class Method:
    """`.name(arguments)`."""

    name: str
    arguments: tuple[Expression, ...]
    at: int


Step = Property | Index | Method


@dataclass(frozen=True, slots=True)
class Reference:
    """`$name` with its steps; `default` is what stands in for a missing value."""

    name: str
    steps: tuple[Step, ...]
    default: Expression | None
    at: int


@dataclass(frozen=True, slots=True)
class Literal:
    """A string without references, a number, true, false or null."""

    value: str | int | float | bool | None


@dataclass(frozen=True, slots=True)
class Interpolated:
    """A string in double quotes that holds references."""

    parts: tuple[Text | Reference, ...]


@dataclass(frozen=True, slots=True)
class ListOf:
    """`[a, b]`."""

    items: tuple[Expression, ...]


@dataclass(frozen=True, slots=True)
class RangeOf:
    """`[first..last]`."""

    first: Expression
    last: Expression
    at: int


@dataclass(frozen=True, slots=True)
class MapOf:
    """`{key: value}`."""

    pairs: tuple[tuple[Expression, Expression], ...]


@dataclass(frozen=True, slots=True)
class Unary:
    """`!x` or `-x`."""

    operator: str
    operand: Expression
    at: int


@dataclass(frozen=True, slots=True)
class Chain:
    """`first + a - b`: operators of one rank, from left to right, each with its right operand."""

    first: Expression
    rest: tuple[tuple[str, Expression, int], ...]


Expression = Reference | Literal | Interpolated | ListOf | RangeOf | MapOf | Unary | Chain


@dataclass(frozen=True, slots=True)
class Assignment:
    """`#set($name = expression)`."""

    name: str
    expression: Expression
    at: int


@dataclass(frozen=True, slots=True)
class Choice:
    """`#if`, `#elseif`, `#else`: the first branch whose condition holds; None always does."""

    branches: tuple[tuple[Expression | None, Block], ...]
    at: int


@dataclass(frozen=True, slots=True)
class Loop:
    """`#foreach($name in expression)`; `otherwise` when there is nothing."""

    name: str
    expression: Expression
    body: Block
    otherwise: Block
    at: int


@dataclass(frozen=True, slots=True)
class Break:
    """`#break`: leaves the innermost loop; outside of one, the template."""


@dataclass(frozen=True, slots=True)
class Stop:
    """`#stop`: leaves the template."""


Node = Text | Reference | Assignment | Choice | Loop | Break | Stop
Block = tuple[Node, ...]


class TemplateFault(ValueError):  # noqa: N818 - reads as what it says
    """A template can't be read or rendered; says where. `line` and `column` count from 1."""

    def __init__(self, problem: str, source: str, at: int) -> None:
        """Say what is wrong at an offset of the template."""
        self.line = source.count("\n", 0, at) + 1
        self.column = at - source.rfind("\n", 0, at)
        super().__init__(f"line {self.line}, column {self.column}: {problem}")
