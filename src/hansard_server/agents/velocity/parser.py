"""Templates: from text to nodes, following the Velocity Template Language 2.

Source: https://velocity.apache.org/engine/2.4/vtl-reference.html. What reads files or runs text
(#include, #parse, #evaluate) and what defines directives (#macro, #define) is refused.
"""

from __future__ import annotations

import re
from functools import lru_cache

from hansard_server.agents.velocity.expressions import ExpressionParser
from hansard_server.agents.velocity.nodes import (
    Assignment,
    Block,
    Break,
    Choice,
    Expression,
    Loop,
    Node,
    Stop,
    Text,
)
from hansard_server.agents.velocity.scanner import Scanner

_PLAIN = re.compile(r"[^\\$#]++")
_ESCAPED = re.compile(r"\\[$#\\]")
_DIRECTIVE = re.compile(r"#(?:\{([A-Za-z]+)\}|([A-Za-z]+))")
_LINE_COMMENT = re.compile(r"##[^\n]*\n?")
_BLOCK_COMMENT = re.compile(r"#\*.*?\*#", re.DOTALL)
_UNPARSED = re.compile(r"#\[\[(.*?)\]\]#", re.DOTALL)
_REST_OF_LINE = re.compile(r"[ \t]*(?:\r?\n|\Z)")
_REFUSED = frozenset({"include", "parse", "evaluate", "macro", "define"})
_KNOWN = frozenset({"set", "if", "elseif", "else", "end", "foreach", "break", "stop"})
_PARSED_KEPT = 256


@lru_cache(maxsize=_PARSED_KEPT)
def parse(source: str) -> Block:
    """Return the template's nodes. Raises TemplateFault, which says where it can't be read."""
    parser = _Parser(source)
    block, ended_by = parser.block()
    if ended_by is not None:
        parser.scanner.fail(f"#{ended_by} has no #if or #foreach before it", parser.directive_at)
    return block


class _Parser:
    """Reads one template."""

    def __init__(self, source: str) -> None:
        self.scanner = Scanner(source)
        self.directive_at = 0
        self._ended_head: tuple[str, Expression] | None = None
        self._expressions = ExpressionParser(self.scanner)

    def block(self) -> tuple[Block, str | None]:
        """Return what stands up to a directive that ends blocks, and that one's name."""
        nodes: list[Node] = []
        texts: list[str] = []

        def flush() -> None:
            text = "".join(texts)
            texts.clear()
            if text:
                nodes.append(Text(text))

        while not self.scanner.done:
            text = self._text()
            if text is not None:
                texts.append(text)
                continue
            if self.scanner.starts("$"):
                reference = self._expressions.reference()
                if reference is None:
                    self.scanner.take("$")
                    texts.append("$")
                else:
                    flush()
                    nodes.append(reference)
                continue
            name = self._directive()
            if name is None:
                self.scanner.take("#")
                texts.append("#")
                continue
            head = self._head(name)
            if self._stands_alone():
                texts[-1:] = [texts[-1].rstrip(" \t")] if texts else []
            flush()
            if name in {"end", "else", "elseif"}:
                self._ended_head = head
                return tuple(nodes), name
            nodes.append(self._whole(name, head))
        flush()
        return tuple(nodes), None

    def _text(self) -> str | None:
        """Return the plain text that stands here; None when something else does."""
        scanner = self.scanner
        plain = scanner.match(_PLAIN)
        if plain is not None:
            return plain
        escaped = scanner.match(_ESCAPED)
        if escaped is not None:
            return escaped[1:]
        if scanner.take("\\"):
            return "\\"
        if scanner.match(_LINE_COMMENT) is not None:
            return ""
        for opening, pattern in (("#*", _BLOCK_COMMENT), ("#[[", _UNPARSED)):
            if scanner.starts(opening):
                found = scanner.match(pattern)
                if found is None:
                    scanner.fail(f"{opening} is not closed")
                return "" if opening == "#*" else found[3:-3]
        return None

    def _directive(self) -> str | None:
        """Go past `#name` of a directive, and return the name; None when the `#` is just text."""
        scanner = self.scanner
        at = scanner.at
        found = _DIRECTIVE.match(scanner.source, at, scanner.end)
        name = None if found is None else (found[1] or found[2])
        if found is None or name is None:
            return None
        if name in _REFUSED:
            scanner.fail(f"#{name} is not available in templates")
        if name not in _KNOWN:
            return None
        scanner.at = found.end()
        self.directive_at = at
        return name

    def _head(self, name: str) -> tuple[str, Expression] | None:
        """Return what stands in the directive's parentheses: a variable's name, and a value."""
        if name not in {"set", "if", "elseif", "foreach"}:
            return None
        scanner, expressions = self.scanner, self._expressions
        scanner.space()
        scanner.expect("(", f"#{name}")
        scanner.space()
        variable = ""
        if name in {"set", "foreach"}:
            scanner.expect("$", f"#{name}")
            braced = scanner.take("{")
            variable = scanner.name(f"#{name}")
            if braced:
                scanner.expect("}", f"#{name}")
            scanner.space()
            if name == "set" and not scanner.starts("="):
                scanner.fail("#set needs '=' here; only a variable can be set")
            scanner.expect("=" if name == "set" else "in", f"#{name}")
        value = expressions.expression()
        scanner.space()
        scanner.expect(")", f"#{name}")
        return variable, value

    def _stands_alone(self) -> bool:
        """Return whether the directive has its line for itself; go past the line's end then."""
        source, before = self.scanner.source, self.directive_at
        while before and source[before - 1] in " \t":
            before -= 1
        if before and source[before - 1] != "\n":
            return False
        return self.scanner.match(_REST_OF_LINE) is not None

    def _whole(self, name: str, head: tuple[str, Expression] | None) -> Node:
        """Return the node of a directive whose head has been read."""
        at = self.directive_at
        match name, head:
            case "set", (variable, value):
                return Assignment(variable, value, at)
            case "if", (_, condition):
                with self._expressions.deeper():
                    return self._choice(condition, at)
            case "foreach", (variable, value):
                with self._expressions.deeper():
                    return self._loop(variable, value, at)
            case "break", _:
                return Break()
            case _:
                return Stop()

    def _choice(self, condition: Expression, at: int) -> Choice:
        branches: list[tuple[Expression | None, Block]] = []
        current: Expression | None = condition
        while True:
            body, ended_by = self._body("if", at)
            branches.append((current, body))
            if ended_by == "end":
                return Choice(tuple(branches), at)
            if current is None:
                self.scanner.fail("nothing but #end may follow #else", self.directive_at)
            current = self._ended_head[1] if self._ended_head else None

    def _loop(self, variable: str, value: Expression, at: int) -> Loop:
        body, ended_by = self._body("foreach", at)
        otherwise: Block = ()
        if ended_by == "else":
            otherwise, ended_by = self._body("foreach", at)
        if ended_by != "end":
            self.scanner.fail(f"#foreach needs #end before #{ended_by}", self.directive_at)
        return Loop(variable, value, body, otherwise, at)

    def _body(self, name: str, at: int) -> tuple[Block, str]:
        body, ended_by = self.block()
        if ended_by is None:
            self.scanner.fail(f"#{name} has no #end", at)
        return body, ended_by
