"""A place in a template's text, and what may stand there. It only goes forward."""

from __future__ import annotations

import re
from typing import NoReturn

from hansard_server.agents.velocity.nodes import TemplateFault

NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
SPACE = re.compile(r"\s*")


class Scanner:
    """Reads a template from `at` to `end`."""

    def __init__(self, source: str, at: int = 0, end: int | None = None) -> None:
        """Begin at an offset, and see nothing from `end` on."""
        self.source = source
        self.at = at
        self.end = len(source) if end is None else end

    @property
    def done(self) -> bool:
        """Whether the end has been reached."""
        return self.at >= self.end

    def starts(self, text: str) -> bool:
        """Return whether the text stands here."""
        return self.source.startswith(text, self.at, self.end)

    def take(self, text: str) -> bool:
        """Go past the text if it stands here; return whether it did."""
        if not self.starts(text):
            return False
        self.at += len(text)
        return True

    def match(self, pattern: re.Pattern[str]) -> str | None:
        """Go past what the pattern matches here, and return it."""
        found = pattern.match(self.source, self.at, self.end)
        if found is None:
            return None
        self.at = found.end()
        return found[0]

    def space(self) -> None:
        """Go past white space."""
        self.match(SPACE)

    def expect(self, text: str, where: str) -> None:
        """Go past the text. Raises TemplateFault when something else stands here."""
        if not self.take(text):
            self.fail(f"{where} needs {text!r} here")

    def name(self, where: str) -> str:
        """Go past a name, and return it. Raises TemplateFault when there is none."""
        found = self.match(NAME)
        if found is None:
            self.fail(f"{where} needs a name here")
        return found

    def fail(self, problem: str, at: int | None = None) -> NoReturn:
        """Raise TemplateFault, here or at an offset."""
        raise TemplateFault(problem, self.source, self.at if at is None else at)
