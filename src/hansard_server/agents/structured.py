"""Structured answers: text that must be JSON of the agent's schema."""

from __future__ import annotations

import asyncio
import re

from hansard.v1 import agent_pb2, event_pb2
from hansard_server.agents.api import OutputSchema, TurnRecorder
from hansard_server.agents.json_text import NotJson, check_json, cut_utf8, parse_json, well_formed
from hansard_server.domain.errors import AgentProcessingFailed

# Models like to put JSON into a Markdown fence, whatever they are told.
_FENCED = re.compile(r"\A```[A-Za-z]*[ \t]*\n(.*?)\n?```\Z", re.DOTALL)
_SHOWN_BACK_BYTES = 32 * 1024


def output_schema(agent: agent_pb2.Agent) -> OutputSchema | None:
    """Return the form of the agent's answers; None: texts. Raises AgentProcessingFailed."""
    parser = agent.first_step.output_parser
    if not parser.HasField("structured"):
        return None
    # Only agents with a schema need the library.
    from hansard_server.agents.json_schema import UnusableSchema, read_schema  # noqa: PLC0415

    try:
        schema = read_schema(parser.structured.json_schema_json)
    except UnusableSchema as error:
        # It was checked when the agent was written, maybe by another version.
        raise AgentProcessingFailed(f"the agent's JSON schema can't be used: {error}") from None
    return OutputSchema(name=parser.structured.schema_name, json_schema=schema)


class Misfit(Exception):  # noqa: N818 - reads as what it is
    """The answer does not have the form that it must have; the message says how, for the model."""


async def check_answer(text: str, schema: OutputSchema, *, max_bytes: int) -> str:
    """Return the JSON that an answer is, word for word. Raises Misfit, AgentProcessingFailed."""
    answer = unfenced(well_formed(text))
    if not answer:
        raise Misfit("There is no answer.")
    size = len(answer.encode())
    if size > max_bytes:
        raise Misfit(f"The answer has {size:,} bytes, and may have {max_bytes:,}.")
    from hansard_server.agents.bounded_schemas import NotApplicable, TooMuchWork  # noqa: PLC0415

    try:
        faults = await asyncio.to_thread(_faults, answer, schema)
    except NotJson as error:
        raise Misfit(f"The answer is not JSON: {error}.") from None
    except (TooMuchWork, NotApplicable) as error:
        raise AgentProcessingFailed(
            f"the answer could not be checked against the schema {schema.name}: {error}"
        ) from None
    if faults:
        raise Misfit("The answer does not fit the schema. " + "; ".join(faults))
    return answer


def unfenced(text: str) -> str:
    """Return the text without white space and a Markdown fence around it."""
    text = text.strip()
    fenced = _FENCED.match(text)
    return fenced.group(1).strip() if fenced else text


class HeldAnswer:
    """The answer of a turn whose agent has a schema: held back until it is known to fit.

    For an agent without a schema it holds nothing, and every answer is taken.
    """

    def __init__(
        self, schema: OutputSchema | None, recorder: TurnRecorder, *, max_bytes: int, turn_id: str
    ) -> None:
        """Take answers of `schema`, of `max_bytes` at most, into the record."""
        self.holds = schema is not None
        self.repair: tuple[event_pb2.Event, ...] = ()
        """What the model is told, after the history, of an answer that did not fit."""
        self._schema = schema
        self._recorder = recorder
        self._max_bytes = max_bytes
        self._turn_id = turn_id
        self._pieces: list[str] = []
        self._size = 0

    def begin(self) -> None:
        """Hold nothing any more: another model call begins."""
        self._pieces, self._size = [], 0

    def hold(self, text: str) -> None:
        """Add to the answer; what can't fit any more is not kept."""
        if self._size <= self._max_bytes:
            self._pieces.append(text)
            self._size += len(text)

    def release(self) -> str:
        """Return what is held: it comes with tool calls, and so it is not the answer."""
        text = "".join(self._pieces)
        self.begin()
        return text

    async def take(self) -> bool:
        """Record the answer and return True; False: it does not fit, and may be given once more.

        Raises AgentProcessingFailed when that was so before.
        """
        if self._schema is None:
            return True
        text = self.release()
        try:
            content_json = await check_answer(text, self._schema, max_bytes=self._max_bytes)
        except Misfit as misfit:
            if self.repair:
                raise AgentProcessingFailed(
                    f"the model was told so and gave no answer of the schema "
                    f"{self._schema.name} all the same: {misfit}"
                ) from None
            self.repair = repair_events(text, str(misfit), self._turn_id)
            return False
        self._recorder.add(structured_event(self._schema, content_json))
        return True


def repair_events(answer: str, problem: str, turn_id: str) -> tuple[event_pb2.Event, ...]:
    """Return what a model is told after an answer that does not fit: the answer, and why."""
    said = event_pb2.Event(turn_id=turn_id)
    said.agent_output.content = cut_utf8(answer, _SHOWN_BACK_BYTES) or "…"
    told = event_pb2.Event(turn_id=turn_id)
    told.input_message.messages.add().text.content = (
        f"{problem}\nAnswer again, with JSON that fits the schema and nothing else."
    )
    return said, told


def structured_event(schema: OutputSchema, content_json: str) -> event_pb2.Event:
    """Return the event of an answer that fits."""
    return event_pb2.Event(
        structured_output=event_pb2.StructuredOutput(
            schema_name=schema.name, content_json=content_json
        )
    )


def _faults(answer: str, schema: OutputSchema) -> list[str]:
    from hansard_server.agents.json_schema import find_faults  # noqa: PLC0415

    check_json(answer)
    return find_faults(schema.json_schema, parse_json(answer))
