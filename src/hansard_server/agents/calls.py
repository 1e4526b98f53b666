"""Tool calls of one step: from what the model asked for to what goes on record."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Mapping, Sequence

import structlog

from hansard.v1 import artifact_pb2, event_pb2
from hansard_server.agents.api import (
    Json,
    MadeFile,
    ModelFailed,
    ScriptedResult,
    ToolCall,
    ToolContext,
    ToolError,
    ToolResult,
    TurnContext,
    TurnRecorder,
)
from hansard_server.agents.json_text import NotJson, cut_utf8, dump_json, parse_json, well_formed
from hansard_server.agents.limits import AgentLimits
from hansard_server.agents.overrides import (
    UnresolvedReference,
    filter_arguments,
    resolve_overrides,
)
from hansard_server.agents.tools.catalog import AgentTool, ToolCatalog
from hansard_server.agents.tools.client_tool import CLIENT_TOOL
from hansard_server.agents.tools.sub_agent import SUB_AGENT
from hansard_server.domain.errors import AgentProcessingFailed, DomainError, QuotaExceeded
from hansard_server.domain.keys import make_tool_call_id
from hansard_server.domain.limits import KIB
from hansard_server.domain.records import AwaitedCall, PendingCall, PendingKind
from hansard_server.domain.values import dataclass

_NAME_MAX_CHARACTERS = 255
_PROBLEMS_SHOWN = 5
_PIECE_BYTES = 256 * KIB

_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordedCall:
    """A call whose tool_input goes on record.

    Attributes:
        arguments_json: as it is recorded.
        problem: why the call can't be run, known before it is tried.
        asked: what came of asking somebody about it, if that was done.
    """

    tool_call_id: str
    name: str
    tool_name: str
    arguments_json: str
    provider_data: bytes = b""
    scripted_result: ScriptedResult | None = None
    problem: str | None = None
    asked: PendingCall | None = None

    def to_input(self) -> event_pb2.Event:
        """Return the call's tool_input."""
        return event_pb2.Event(
            tool_input=event_pb2.ToolInput(
                tool_call_id=self.tool_call_id,
                tool_configuration_name=self.name,
                tool_name=self.tool_name,
                tool_input_json=self.arguments_json,
                provider_data=self.provider_data,
            )
        )

    def to_output(
        self, output_json: str, outcome: event_pb2.ToolOutcome.ValueType
    ) -> event_pb2.Event:
        """Return the call's tool_output; every outcome but COMPLETED is an error."""
        return event_pb2.Event(
            tool_output=event_pb2.ToolOutput(
                tool_call_id=self.tool_call_id,
                tool_configuration_name=self.name,
                tool_name=self.tool_name,
                tool_output_json=output_json,
                error=outcome != event_pb2.TOOL_OUTCOME_COMPLETED,
                outcome=outcome,
            )
        )

    def to_error(
        self,
        message: str,
        outcome: event_pb2.ToolOutcome.ValueType = event_pb2.TOOL_OUTCOME_FAILED,
    ) -> event_pb2.Event:
        """Return a tool_output that says what went wrong."""
        return self.to_output(dump_json({"error": message}), outcome)


class _CannotBeRun(Exception):  # noqa: N818 - reads as what happened
    """The agent's configuration asks for something that is not there: the turn can't go on."""


class ToolRunner:
    """Runs the tool calls of one turn."""

    def __init__(self, context: TurnContext, tools: ToolCatalog, limits: AgentLimits) -> None:
        """Make a runner for the turn with this context."""
        self._context = context
        self._limits = limits
        self._tools = tools.tools_of(context.agent)
        self._places = asyncio.Semaphore(limits.parallel_calls)

    @property
    def tools(self) -> Mapping[str, AgentTool]:
        """The agent's tools, by configuration name."""
        return self._tools

    def open(self, call: ToolCall, earlier: int = 0) -> RecordedCall:
        """Return the call as it goes on record, under an id of its own.

        `earlier` counts the calls of the step before it. Raises ModelFailed when they are too many.
        """
        if earlier == self._limits.calls_per_step:
            raise ModelFailed(f"The model made more than {earlier} tool calls in one answer.")
        name = well_formed(call.name)[:_NAME_MAX_CHARACTERS]
        tool = self._tools.get(name)
        arguments_json, problem = self._recordable(call.arguments_json)
        return RecordedCall(
            tool_call_id=make_tool_call_id(),
            name=name,
            tool_name=tool.tool.name if tool else name,
            arguments_json=arguments_json,
            provider_data=call.provider_data,
            scripted_result=call.scripted_result,
            problem=problem,
        )

    def awaits(self, call: RecordedCall) -> AwaitedCall | None:
        """Return what somebody has to be asked about the call before it can be answered, if so.

        None for a call that fails in any case, or whose tool needs nobody.
        """
        tool = self._tools.get(call.name)
        if tool is None or call.problem is not None or call.scripted_result is not None:
            return None
        kind = PendingKind.CLIENT_TOOL if tool.tool.name == CLIENT_TOOL else None
        if tool.configuration.require_approval and call.asked is None:
            kind = PendingKind.APPROVAL
        if kind is None:
            return None
        try:
            _, fixed = self._arguments(call, tool)
        except (ToolError, _CannotBeRun):
            return None
        timeout_s = self._limits.action_timeout_s
        if tool.configuration.HasField("action_timeout"):
            timeout_s = tool.configuration.action_timeout.ToTimedelta().total_seconds()
        return AwaitedCall(
            tool_call_id=call.tool_call_id,
            kind=kind,
            timeout_s=timeout_s,
            override_json=dump_json(fixed) if fixed else "",
        )

    async def run(self, calls: Sequence[RecordedCall], recorder: TurnRecorder) -> None:
        """Run the calls side by side, and record their outputs in the order of the calls.

        Raises AgentProcessingFailed when a call's overrides refer to what is not there.

        An output is written as soon as those before it are there. Cancelled, it cancels the tools
        and returns when they have ended.
        """
        tasks = [asyncio.create_task(self._answer(call)) for call in calls]
        try:
            for call, task in zip(calls, tasks, strict=True):
                if recorder.waiting and not task.done():
                    await recorder.flush()
                answer = await task
                if answer.files:
                    await self._add_with_files(call, answer, recorder)
                    continue
                for event in answer.events:
                    recorder.add(event)
            await recorder.flush()
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _add_with_files(
        self, call: RecordedCall, answer: _Answer, recorder: TurnRecorder
    ) -> None:
        """Write an answer by itself: its files may be refused, and no other may go with them."""
        await recorder.flush()
        for event in answer.events:
            recorder.add(event)
        recorder.add(_upload_event(answer.files), answer.files)
        try:
            await recorder.flush()
        except QuotaExceeded as error:
            recorder.add(call.to_error(error.message))

    async def _answer(self, call: RecordedCall) -> _Answer:
        if call.problem is not None:
            return _Answer((call.to_error(call.problem),))
        if call.scripted_result is not None:
            return _Answer((await self._scripted(call, call.scripted_result),))
        async with self._places:
            try:
                async with asyncio.timeout(self._max_s(call)):
                    result = await self._result(call)
                    return await self._completed(call, result)
            except _CannotBeRun as error:
                raise AgentProcessingFailed(str(error)) from None
            except Exception as error:  # noqa: BLE001
                # A tool's fault must not end the turn: the model may know another way.
                return _Answer((self._error_output(call, error),))

    def _max_s(self, call: RecordedCall) -> float | None:
        tool = self._tools.get(call.name)
        # A sub-agent's time is its configuration's, and it is ended when that is over.
        keeps_time = tool is not None and tool.tool.name == SUB_AGENT
        return None if keeps_time else self._limits.tool_max_s

    def _error_output(self, call: RecordedCall, error: Exception) -> event_pb2.Event:
        match error:
            case TimeoutError():
                return call.to_error(
                    str(error) or f"The tool did not answer within {self._limits.tool_max_s:g} s.",
                    event_pb2.TOOL_OUTCOME_TIMED_OUT,
                )
            case ToolError():
                message = str(error)
            case DomainError():
                message = error.message
            case _:
                # Its words may be anybody's; they belong in the log.
                _log.error(
                    "tool failed",
                    tool=call.tool_name,
                    tool_call_id=call.tool_call_id,
                    exc_info=error,
                )
                message = f"The tool {call.name!r} failed unexpectedly."
        return call.to_error(cut_utf8(message, self._limits.text_max_bytes // 8))

    async def _scripted(self, call: RecordedCall, scripted: ScriptedResult) -> event_pb2.Event:
        await asyncio.sleep(scripted.pause_s)
        if not scripted.error:
            output_json = fit_output(scripted.output_json, self._limits.text_max_bytes)
            return call.to_output(output_json, event_pb2.TOOL_OUTCOME_COMPLETED)
        return call.to_output(scripted.output_json, event_pb2.TOOL_OUTCOME_FAILED)

    async def _result(self, call: RecordedCall) -> Json | ToolResult:
        tool = self._tools.get(call.name)
        if tool is None:
            names = ", ".join(sorted(self._tools)) or "none"
            raise ToolError(f"There is no tool {call.name!r}. Tools: {names}.")
        arguments, _ = self._arguments(call, tool)
        try:
            return await tool.tool.run(arguments, self._context_of(call, tool))
        except UnresolvedReference as error:
            raise self._cannot_be_run(call, error) from None

    def _arguments(
        self, call: RecordedCall, tool: AgentTool
    ) -> tuple[dict[str, Json], dict[str, Json]]:
        """Return the arguments, checked, and those of them that the configuration fixes."""
        arguments = parse_json(call.arguments_json)
        if not isinstance(arguments, dict):
            raise ToolError("The arguments must be a JSON object.")
        try:
            fixed = self._fixed(call, tool)
        except UnresolvedReference as error:
            raise self._cannot_be_run(call, error) from None
        # What the configuration fixes, the model can't change.
        arguments = {**arguments, **fixed}
        check_arguments(arguments, tool.tool.input_schema)
        return arguments, fixed

    def _fixed(self, call: RecordedCall, tool: AgentTool) -> dict[str, Json]:
        if call.asked is not None:
            # What somebody was shown is what runs.
            fixed: dict[str, Json] = parse_json(call.asked.override_json or "{}")
            return fixed
        context = self._context
        names = filter_arguments(tool.tool)
        return resolve_overrides(tool.override, context.agent, context.session, names)

    @staticmethod
    def _cannot_be_run(call: RecordedCall, error: UnresolvedReference) -> _CannotBeRun:
        # Nothing that the model could do would help.
        return _CannotBeRun(f"the tool {call.name!r} can't be run: {error} (in its configuration)")

    def _context_of(self, call: RecordedCall, tool: AgentTool) -> ToolContext:
        context = self._context
        return ToolContext(
            files=context.files,
            corpora=context.corpora,
            agent=context.agent,
            session=context.session,
            configuration=tool.configuration,
            tool_call_id=call.tool_call_id,
            name=call.name,
            sub_agents=context.sub_agents,
        )

    def _recordable(self, arguments_json: str) -> tuple[str, str | None]:
        """Return the arguments as the record can hold them, and what is wrong with them."""
        text = well_formed(arguments_json)
        size, limit = len(text.encode()), self._limits.text_max_bytes
        if size > limit:
            beginning = _fitting_string(text, limit)
            return beginning, f"The arguments have {size} bytes; at most {limit} are possible."
        try:
            parse_json(text)
        except NotJson as error:
            # The record holds JSON only: what is not becomes a JSON string, word for word.
            return _fitting_string(text, limit), f"The arguments are not JSON: {error}"
        return text, None

    async def _completed(self, call: RecordedCall, result: Json | ToolResult) -> _Answer:
        """Return the answer; what is too large for an event becomes a file, with its beginning."""
        if not isinstance(result, ToolResult):
            result = ToolResult(output=result)
        output_json, files = dump_json(result.output), result.files
        limit = self._limits.tool_output_max_bytes
        whole: artifact_pb2.ArtifactReference | None = None
        if len(output_json.encode()) > limit:
            made = await self._context.files.make_file(
                f"{call.name}-output.json",
                _pieces(output_json.encode()),
                mime_type="application/json",
                description=f"The whole answer of the tool {call.name}.",
            )
            files = (*files, made)
            whole = _reference(made)
            output_json = fit_output(output_json, limit, whole.artifact_id)
        output = call.to_output(output_json, event_pb2.TOOL_OUTCOME_COMPLETED)
        if whole is not None:
            output.tool_output.offloaded_artifact.CopyFrom(whole)
        return _Answer((output, *result.events), files)


@dataclass(frozen=True, slots=True)
class _Answer:
    """What a call came to: its output, what follows it, and the files that come with it."""

    events: tuple[event_pb2.Event, ...]
    files: tuple[MadeFile, ...] = ()


def _upload_event(files: Sequence[MadeFile]) -> event_pb2.Event:
    upload = event_pb2.ArtifactUpload(artifacts=map(_reference, files))
    return event_pb2.Event(artifact_upload=upload)


def _reference(file: MadeFile) -> artifact_pb2.ArtifactReference:
    return artifact_pb2.ArtifactReference(
        artifact_id=file.artifact.artifact_id,
        filename=file.artifact.filename,
        mime_type=file.artifact.mime_type,
        size_bytes=file.artifact.size_bytes,
    )


async def _pieces(data: bytes) -> AsyncIterator[bytes]:
    for start in range(0, len(data), _PIECE_BYTES):
        yield data[start : start + _PIECE_BYTES]


def fit_output(output_json: str, max_bytes: int, artifact_id: str = "") -> str:
    """Return the JSON, or when it is larger than `max_bytes` an object with its beginning.

    `artifact_id`: where the whole of it is.
    """
    size = len(output_json) if output_json.isascii() else len(output_json.encode())
    if size <= max_bytes:
        return output_json
    room = max_bytes // 2
    while True:
        cut = dump_json(
            {
                "truncated": True,
                "size_bytes": size,
                **({"artifact_id": artifact_id} if artifact_id else {}),
                "beginning": cut_utf8(output_json, room),
            }
        )
        if len(cut.encode()) <= max_bytes or not room:
            return cut
        room //= 2


def _fitting_string(text: str, max_bytes: int) -> str:
    room = max_bytes
    while True:
        string = dump_json(cut_utf8(text, room))
        if len(string.encode()) <= max_bytes or not room:
            return string
        room //= 2


def check_arguments(arguments: Mapping[str, Json], schema: Mapping[str, Json]) -> None:
    """Raise ToolError, naming what is wrong, when the arguments break the tool's schema."""
    # Only agents with tools need it.
    from hansard_server.agents.tool_schemas import BadSchema, find_errors  # noqa: PLC0415

    try:
        errors = find_errors(arguments, schema)
    except BadSchema as error:
        raise ToolError(f"The arguments can't be checked by the tool's schema: {error}.") from None
    if not errors:
        return
    problems = [
        f"{re.sub('^[$][.]?', '', error.json_path) or 'arguments'}: {error.message[:300]}"
        for error in errors[:_PROBLEMS_SHOWN]
    ]
    raise ToolError("The arguments don't fit the tool. " + "; ".join(problems))
