"""Instructions: what the agent is told before the conversation."""

from __future__ import annotations

from hansard.v1 import agent_pb2, session_pb2


def render_instructions(
    agent: agent_pb2.Agent,
    session: session_pb2.Session,  # noqa: ARG001 - what templates will speak of
) -> tuple[str, ...]:
    """Return the texts of the agent's instructions in order: the templates as they stand."""
    return tuple(
        instruction.inline.template
        for instruction in agent.first_step.instructions
        if instruction.WhichOneof("instruction") == "inline" and instruction.inline.template
    )
