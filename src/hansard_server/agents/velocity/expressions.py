"""References and expressions: from text to nodes, in one pass that never goes back far."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager

from hansard_server.agents.velocity.nodes import (
    Chain,
    Expression,
    Index,
    Interpolated,
    ListOf,
    Literal,
    MapOf,
    Method,
    Property,
    RangeOf,
    Reference,
    Step,
    Text,
    Unary,
)
from hansard_server.agents.velocity.scanner import NAME, Scanner

MAX_DEPTH = 32
"""Expressions and blocks inside each other."""
# Whether a `$` begins a reference, and where its name begins.
REFERENCE_START = re.compile(r"\$!?(?:\{!?\s*)?(?=[A-Za-z_])")
_NUMBER = re.compile(r"\d+(?:\.\d+)?(?:[eE][+-]?\d{1,3})?")
_SINGLE_QUOTED = re.compile(r"'([^']*)'")
_DOUBLE_QUOTED = re.compile(r'"(?:[^"\\]|\\.)*+"', re.DOTALL)
_WORDS: dict[str, Literal] = {
    "true": Literal(value=True),
    "false": Literal(value=False),
    "null": Literal(None),
}
_LEVELS: tuple[tuple[tuple[str, str], ...], ...] = (
    (("||", "||"), ("or", "||")),
    (("&&", "&&"), ("and", "&&")),
    (("==", "=="), ("!=", "!="), ("eq", "=="), ("ne", "!=")),
    (
        *(("<=", "<="), (">=", ">="), ("<", "<"), (">", ">")),
        *(("le", "<="), ("ge", ">="), ("lt", "<"), ("gt", ">")),
    ),
    (("+", "+"), ("-", "-")),
    (("*", "*"), ("/", "/"), ("%", "%")),
)
"""Operators from the loosest to the tightest: as they are written, and what they mean."""
_DIGITS_MAX = 18


class ExpressionParser:
    """Reads expressions where a scanner stands."""

    def __init__(self, scanner: Scanner, depth: int = 0) -> None:
        """Read from the scanner, `depth` levels inside other expressions."""
        self._scanner = scanner
        self._depth = depth

    @contextmanager
    def deeper(self) -> Iterator[None]:
        """Count a level. Raises TemplateFault when there are too many."""
        if self._depth == MAX_DEPTH:
            self._scanner.fail(f"more than {MAX_DEPTH} levels inside each other")
        self._depth += 1
        try:
            yield
        finally:
            self._depth -= 1

    def reference(self) -> Reference | None:
        """Return the reference that begins here, None when the `$` is just text."""
        scanner = self._scanner
        at = scanner.at
        opening = scanner.match(REFERENCE_START)
        if opening is None:
            return None
        name = scanner.name("a reference")
        steps = tuple(self._steps())
        default = None
        if "{" in opening:
            scanner.space()
            if scanner.take("|"):
                with self.deeper():
                    default = self.expression()
            scanner.space()
            scanner.expect("}", "the reference ${…}")
        return Reference(name, steps, default, at)

    def _steps(self) -> Iterator[Step]:
        scanner = self._scanner
        while True:
            at = scanner.at
            if scanner.take("."):
                name = scanner.match(NAME)
                if name is None:
                    scanner.at = at  # the dot that ends a sentence
                    return
                if scanner.take("("):
                    with self.deeper():
                        yield Method(name, self._sequence(")", "the method"), at)
                else:
                    yield Property(name)
            elif scanner.take("["):
                with self.deeper():
                    expression = self.expression()
                scanner.space()
                scanner.expect("]", "the index")
                yield Index(expression)
            else:
                return

    def _sequence(self, closing: str, where: str) -> tuple[Expression, ...]:
        """Return expressions with commas in between, up to and past `closing`."""
        scanner = self._scanner
        items: list[Expression] = []
        scanner.space()
        while not scanner.take(closing):
            if items:
                scanner.expect(",", where)
            items.append(self.expression())
            scanner.space()
        return tuple(items)

    def expression(self, level: int = 0) -> Expression:
        """Return the expression that stands here. Raises TemplateFault."""
        if level == len(_LEVELS):
            return self._unary()
        first = self.expression(level + 1)
        rest: list[tuple[str, Expression, int]] = []
        while True:
            self._scanner.space()
            at = self._scanner.at
            operator = self._operator(_LEVELS[level])
            if operator is None:
                return Chain(first, tuple(rest)) if rest else first
            rest.append((operator, self.expression(level + 1), at))

    def _operator(self, operators: tuple[tuple[str, str], ...]) -> str | None:
        scanner = self._scanner
        for written, meant in operators:
            if not scanner.starts(written):
                continue
            if written.isalpha():
                word = NAME.match(scanner.source, scanner.at, scanner.end)
                if word is None or word[0] != written:
                    continue
            scanner.take(written)
            return meant
        return None

    def _unary(self) -> Expression:
        scanner = self._scanner
        scanner.space()
        at = scanner.at
        word = NAME.match(scanner.source, at, scanner.end)
        if word is not None and word[0] == "not":
            scanner.at = word.end()
            operator = "!"
        elif scanner.take("!"):
            operator = "!"
        elif scanner.take("-"):
            operator = "-"
        else:
            return self._primary()
        with self.deeper():
            return Unary(operator, self._unary(), at)

    def _primary(self) -> Expression:
        scanner = self._scanner
        at = scanner.at
        if scanner.starts("$"):
            reference = self.reference()
            if reference is None:
                scanner.fail("a name must follow the $ here")
            return reference
        if scanner.take("("):
            with self.deeper():
                inner = self.expression()
            scanner.space()
            scanner.expect(")", "the parenthesis")
            return inner
        if scanner.take("["):
            with self.deeper():
                return self._list(at)
        if scanner.take("{"):
            with self.deeper():
                return self._map()
        return self._literal()

    def _literal(self) -> Expression:
        scanner = self._scanner
        at = scanner.at
        number = scanner.match(_NUMBER)
        if number is not None:
            if len(number) > _DIGITS_MAX:
                scanner.fail(f"a number has at most {_DIGITS_MAX} digits", at)
            return Literal(int(number) if number.isdecimal() else float(number))
        single = scanner.match(_SINGLE_QUOTED)
        if single is not None:
            return Literal(single[1:-1])
        double = scanner.match(_DOUBLE_QUOTED)
        if double is not None:
            return self._interpolated(at + 1, scanner.at - 1)
        word = NAME.match(scanner.source, at, scanner.end)
        if word is not None and word[0] in _WORDS:
            scanner.at = word.end()
            return _WORDS[word[0]]
        return scanner.fail(
            "a value is needed here: a reference, a number, a string, a list or a map"
        )

    def _list(self, at: int) -> Expression:
        scanner = self._scanner
        scanner.space()
        if scanner.take("]"):
            return ListOf(())
        first = self.expression()
        scanner.space()
        if scanner.take(".."):
            last = self.expression()
            scanner.space()
            scanner.expect("]", "the range")
            return RangeOf(first, last, at)
        if scanner.take("]"):
            return ListOf((first,))
        scanner.expect(",", "the list")
        return ListOf((first, *self._sequence("]", "the list")))

    def _map(self) -> Expression:
        scanner = self._scanner
        pairs: list[tuple[Expression, Expression]] = []
        scanner.space()
        while not scanner.take("}"):
            if pairs:
                scanner.expect(",", "the map")
            key = self.expression()
            scanner.space()
            scanner.expect(":", "the map")
            pairs.append((key, self.expression()))
            scanner.space()
        return MapOf(tuple(pairs))

    def _interpolated(self, start: int, end: int) -> Expression:
        """Return the string between two offsets with its references."""
        outer = self._scanner
        parts: list[Text | Reference] = []
        self._scanner = scanner = Scanner(outer.source, start, end)
        try:
            with self.deeper():
                while not scanner.done:
                    text = scanner.match(_STRING_TEXT)
                    if text is not None:
                        parts.append(Text(_unescape(text)))
                    elif (reference := self.reference()) is not None:
                        parts.append(reference)
                    else:
                        scanner.take("$")
                        parts.append(Text("$"))
        finally:
            self._scanner = outer
        if any(isinstance(part, Reference) for part in parts):
            return Interpolated(tuple(parts))
        return Literal("".join(part.text for part in parts if isinstance(part, Text)))


_STRING_TEXT = re.compile(r"(?:[^$\\]|\\.|\\\Z)++", re.DOTALL)
_ESCAPE = re.compile(r"\\(.)", re.DOTALL)
_ESCAPED = {"n": "\n", "t": "\t", "r": "\r"}


def _unescape(text: str) -> str:
    return _ESCAPE.sub(lambda found: _ESCAPED.get(found[1], found[1]), text)
