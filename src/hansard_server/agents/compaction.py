"""Compaction: the beginning of a conversation becomes a summary, which the agent's model makes."""

from __future__ import annotations

from collections.abc import Sequence

import structlog

from hansard.v1 import agent_pb2, event_pb2, turn_pb2
from hansard_server.agents.api import (
    ModelFailed,
    Reach,
    Recent,
    TurnContext,
    TurnRecorder,
)
from hansard_server.agents.history import Unit, is_compaction, model_units
from hansard_server.agents.limits import AgentLimits
from hansard_server.agents.summaries import SummaryMaker
from hansard_server.domain.errors import AgentProcessingFailed, ModelUnavailable
from hansard_server.domain.keys import random_tail
from hansard_server.domain.values import dataclass

_log = structlog.get_logger("hansard.agents")

_KEEP_INPUTS = 2
_LEAST_SHARE = 0.1
"""Less than this part of the threshold is not worth a summary."""
_KEY_CHARACTERS = 12


@dataclass(frozen=True, slots=True)
class Chosen:
    """What is to be summarised: units, and everything that is hidden with them."""

    units: tuple[Unit, ...]
    hides: tuple[int, ...]

    @property
    def turns(self) -> int:
        """How many turns the units are of, turns that compacted not counted."""
        told = (event for unit in self.units if not is_compaction(unit) for event in unit)
        return len({event.turn_id for event in told if event.turn_id})


class Compactor:
    """Summarises what was said before the running turn, and hides it."""

    def __init__(
        self,
        context: TurnContext,
        recorder: TurnRecorder,
        limits: AgentLimits,
        summaries: SummaryMaker,
    ) -> None:
        """Make one for the turn with this context; `summaries` asks the agent's model."""
        self._context = context
        self._recorder = recorder
        self._limits = limits
        self._summaries = summaries

    async def compact(self, request: turn_pb2.Compact) -> None:
        """Do what a caller has asked for; nothing when there is nothing to summarise.

        The event waits in the recorder when this returns. Raises AgentProcessingFailed,
        EventNotFound.
        """
        settings = self._settings
        recent = await self._recorder.history(Reach(max_bytes=self._limits.history_max_bytes))
        if not recent.events:
            return
        keep = 0
        anchor: int | None = None
        if request.up_to_event_id:
            anchor = await self._recorder.find_sequence(request.up_to_event_id)
        elif settings.HasField("keep_recent_inputs"):
            keep = settings.keep_recent_inputs
        end = find_kept(recent, keep)
        chosen = await self._choose(end, anchor)
        if chosen is None:
            return
        try:
            await self._write(chosen, request.message or settings.message)
        except ModelFailed as error:
            raise AgentProcessingFailed(f"the summary could not be made: {error}") from error

    async def compact_older(
        self, events: Sequence[event_pb2.Event], *, whole: bool, least_tokens: float
    ) -> bool:
        """Summarise what lies before the running turn, as the agent's settings say.

        `events` are the newest ones. Return whether it was done: not when that is less than a part
        of `least_tokens`, nor when the model can't summarise it.
        """
        own = [event.sequence for event in events if event.turn_id == self._context.turn_id]
        first = own[0] if own else events[-1].sequence + 1
        older = [event for event in events if event.sequence < first]
        settings = self._settings
        keep = _KEEP_INPUTS
        if settings.HasField("keep_recent_inputs"):
            keep = settings.keep_recent_inputs
        end = min(find_kept(Recent(older, whole), keep), first) if older else first
        chosen = await self._choose(end, None)
        if chosen is None or self._summaries.count(chosen.units) < least_tokens * _LEAST_SHARE:
            return False
        try:
            await self._write(chosen, settings.message)
        except (ModelFailed, ModelUnavailable) as error:
            _log.warning("compaction_failed", turn_id=self._context.turn_id, reason=str(error))
            return False
        await self._recorder.flush()
        return True

    @property
    def _settings(self) -> agent_pb2.CompactionSettings:
        return self._context.agent.compaction

    async def _choose(self, end: int, anchor: int | None) -> Chosen | None:
        """Return the oldest units before the sequence `end`; none begins after `anchor`."""
        through = end - 1
        if anchor is not None:
            # The rest of a step that the anchor lies in.
            through = min(through, anchor + self._limits.calls_per_step * 4)
        past = await self._recorder.past(
            through=through,
            max_events=self._limits.compaction_max_events,
            max_bytes=self._limits.compaction_max_bytes,
        )
        return choose_units(past.events, through if anchor is None else anchor)

    async def _write(self, chosen: Chosen, wish: str) -> None:
        summary, summarised = await self._summaries.make(chosen.units, wish)
        if summarised < len(chosen.units):
            # It takes more calls than a turn may make: the rest is for another time.
            chosen = _cut(chosen, summarised)
        self._recorder.add(
            event_pb2.Event(
                compaction=event_pb2.Compaction(
                    turns_compacted=chosen.turns,
                    events_compacted=len(chosen.hides),
                    summary_text=summary,
                    summary_key=f"sum_{random_tail(_KEY_CHARACTERS)}",
                )
            ),
            hides=chosen.hides,
        )


def find_kept(recent: Recent, keep_inputs: int) -> int:
    """Return the sequence from which on nothing is summarised: of the newest `keep_inputs` inputs,
    or of the first one that nobody has answered.
    """
    events = recent.events
    inputs = [event.sequence for event in events if event.HasField("input_message")]
    kept = events[-1].sequence + 1
    if keep_inputs:
        kept = inputs[-keep_inputs] if len(inputs) >= keep_inputs else events[0].sequence
    answers = [
        event.sequence
        for event in events
        if event.HasField("agent_output") or event.HasField("structured_output")
    ]
    unanswered = [sequence for sequence in inputs if not answers or sequence > answers[-1]]
    return min([kept, *unanswered[:1]])


def choose_units(events: Sequence[event_pb2.Event], anchor: int) -> Chosen | None:
    """Return what of the events is summarised, up to the anchor's step; None: nothing new."""
    units = tuple(unit for unit in model_units(events) if min(_sequences(unit)) <= anchor)
    if all(map(is_compaction, units)):
        return None
    return _chosen(units, events)


def _chosen(units: tuple[Unit, ...], events: Sequence[event_pb2.Event]) -> Chosen:
    hides = {sequence for unit in units for sequence in _sequences(unit)}
    last = max(hides)
    # It was told to people about what is summarised now.
    hides |= {
        event.sequence
        for event in events
        if event.HasField("context_limit_exceeded") and event.sequence < last
    }
    return Chosen(units, tuple(sorted(hides)))


def _cut(chosen: Chosen, count: int) -> Chosen:
    units = chosen.units[:count]
    return Chosen(units, tuple(sorted(s for unit in units for s in _sequences(unit))))


def _sequences(unit: Unit) -> list[int]:
    return [event.sequence for event in unit]
