"""What rendering may cost, counted while it happens."""

from __future__ import annotations

import time

MAX_STEPS = 100_000
"""Nodes that are looked at; texts count by their length too."""
MAX_OUTPUT_CHARACTERS = 256 * 1024
MAX_TIME_S = 0.1
MAX_PARTS = 20_000
MAX_LEVELS = 32
_CHARACTERS_PER_STEP = 64
_STEPS_BETWEEN_LOOKS = 16


class BudgetSpent(Exception):  # noqa: N818 - reads as what happened
    """A template does more than it may; says what."""


class Budget:
    """Counts steps, output and time of all templates that are rendered together."""

    def __init__(self, max_time_s: float = MAX_TIME_S) -> None:
        """Begin with everything to spend."""
        self._steps_left = MAX_STEPS
        self._output_left = MAX_OUTPUT_CHARACTERS
        self._deadline = time.monotonic() + max_time_s
        self._look_at = MAX_STEPS - _STEPS_BETWEEN_LOOKS

    def spend(self, characters: int = 0) -> None:
        """Count a step, and what it does with a text. Raises BudgetSpent."""
        self._steps_left -= 1 + characters // _CHARACTERS_PER_STEP
        if self._steps_left < 0:
            raise BudgetSpent("it takes too many steps")
        if self._steps_left < self._look_at:
            self._look_at = self._steps_left - _STEPS_BETWEEN_LOOKS
            if time.monotonic() > self._deadline:
                raise BudgetSpent("it takes too long")

    def weigh(self, value: object) -> None:
        """Count all that a value holds, each part as often as it would be written.

        Raises BudgetSpent for one with more parts or levels than a template may make.
        """
        waiting = [(value, 0)]
        parts = 0
        while waiting:
            part, level = waiting.pop()
            parts += 1
            if parts > MAX_PARTS or level > MAX_LEVELS:
                raise BudgetSpent(
                    f"a value has more than {MAX_PARTS:,} parts, or {MAX_LEVELS} levels"
                )
            self.spend(len(part) if isinstance(part, str) else 0)
            if isinstance(part, dict):
                waiting.extend((member, level + 1) for member in part.values())
            elif isinstance(part, list | range):
                waiting.extend((item, level + 1) for item in part)

    def write(self, characters: int) -> None:
        """Count output. Raises BudgetSpent."""
        self._output_left -= characters
        if self._output_left < 0:
            raise BudgetSpent(f"it writes more than {MAX_OUTPUT_CHARACTERS:,} characters")

    def hold(self, characters: int) -> None:
        """Count a text that is made. Raises BudgetSpent for one that no output could hold."""
        if characters > MAX_OUTPUT_CHARACTERS:
            raise BudgetSpent(f"a text has more than {MAX_OUTPUT_CHARACTERS:,} characters")
        self.spend(characters)
