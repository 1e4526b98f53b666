"""Limits of a running agent: settings of the server."""

from __future__ import annotations

from hansard_server.agents.api import ModelFailed
from hansard_server.domain.limits import KIB, MIB
from hansard_server.domain.values import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentLimits:
    """How much an agent may do and say in one turn.

    Attributes:
        steps_per_turn: model calls; one more ends the turn FAILED.
        step_max_s: how long a model call may take, its repetitions included, in seconds; then the
            turn ends FAILED.
        model_retries: how often a failed model call is repeated, where the agent does not say.
        calls_per_step: tool calls that one model call may make; one more ends the turn FAILED.
        parallel_calls: tool calls of one turn that run at a time; the others wait.
        tool_max_s: how long a tool may take, in seconds, before its call ends TIMED_OUT.
        action_timeout_s: how long a call waits for an approval or a client's result, in seconds,
            before it is closed as TIMED_OUT; a tool's configuration may say otherwise.
        tool_output_max_bytes: a tool's answer as it is kept in its event; of a larger one the event
            keeps the beginning, and the whole becomes an artifact.
        event_max_bytes: an event as it is stored.
        history_max_bytes: the events that a model gets, together.
        compaction_max_events: events that are summarised at once; of more the oldest.
        compaction_max_bytes: the same in bytes.
        heartbeat_s: how often an agent elsewhere and this server say something at least.
        settle_s: how long a finished text may wait for the model's next part, in seconds, before
            it is written by itself.
    """

    steps_per_turn: int = 64
    step_max_s: float = 600.0
    model_retries: int = 3
    calls_per_step: int = 128
    parallel_calls: int = 16
    tool_max_s: float = 300.0
    action_timeout_s: float = 86_400.0
    tool_output_max_bytes: int = 64 * KIB
    event_max_bytes: int = MIB
    history_max_bytes: int = 4 * MIB
    compaction_max_events: int = 20_000
    compaction_max_bytes: int = 32 * MIB
    heartbeat_s: float = 10.0
    settle_s: float = 0.005

    @property
    def text_max_bytes(self) -> int:
        """What one text, or one JSON, of an event may have: three quarters of the event."""
        return self.event_max_bytes * 3 // 4

    @property
    def provider_data_max_bytes(self) -> int:
        """What a provider may want kept with an event, so that names and ids have room too."""
        return self.event_max_bytes // 8

    def check_provider_data(self, provider_data: bytes) -> None:
        """Raise ModelFailed when what the provider wants back has no room in an event."""
        if len(provider_data) > self.provider_data_max_bytes:
            raise ModelFailed(
                f"The model's provider wants {len(provider_data):,} bytes back; an event keeps at "
                f"most {self.provider_data_max_bytes:,}."
            )
