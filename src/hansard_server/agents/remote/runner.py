"""The runner of agents elsewhere: calls them, from the last stored event, until the turn ends."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence

import grpc
import grpc.aio
import structlog

from hansard.runtime.v1 import agent_runtime_service_pb2_grpc as runtime_grpc
from hansard.v1 import event_pb2
from hansard_server.agents.api import ModelInterrupted, Reach, TurnContext, TurnRecorder
from hansard_server.agents.attempts import Backoff
from hansard_server.agents.calls import ToolRunner
from hansard_server.agents.connections import Runtime
from hansard_server.agents.history import model_history
from hansard_server.agents.instructions import Rendered, render_templates
from hansard_server.agents.limits import AgentLimits
from hansard_server.agents.outgoing import AddressRefused, AddressUnknown
from hansard_server.agents.outside import Outside, UnknownConnection
from hansard_server.agents.remote.channel import Dial, dial_by_grpc, metadata_of, open_channel
from hansard_server.agents.remote.conversation import Conversation
from hansard_server.agents.remote.drafts import Drafts
from hansard_server.agents.remote.telling import tell
from hansard_server.agents.resume import close_open_calls, count_steps
from hansard_server.agents.tools.catalog import ToolCatalog, describe_tools
from hansard_server.domain.errors import AgentProcessingFailed, ModelUnavailable
from hansard_server.domain.limits import KIB

DEADLINE_S = 3_600.0
_CONNECT_S = 10.0
_READY = grpc.ChannelConnectivity.READY
_UNREACHED = "The agent elsewhere can't be reached."

_log = structlog.get_logger("hansard.remote")


async def run_remote(
    context: TurnContext,
    recorder: TurnRecorder,
    *,
    tools: ToolCatalog,
    outside: Outside,
    limits: AgentLimits,
    dial: Dial = dial_by_grpc,
) -> None:
    """Have the agent's runtime answer the turn's input; see run_agent.

    Raises ModelUnavailable when the runtime can't be reached as often as the agent's retry policy
    says, AgentProcessingFailed when it can't go on, breaks the protocol or takes too long.
    """
    turn = _Turn(context, recorder, tools, outside, limits, dial)
    await turn.run()


class _Turn:
    """A turn that an agent elsewhere answers."""

    def __init__(
        self,
        context: TurnContext,
        recorder: TurnRecorder,
        tools: ToolCatalog,
        outside: Outside,
        limits: AgentLimits,
        dial: Dial,
    ) -> None:
        self._context = context
        self._recorder = recorder
        self._runner = ToolRunner(context, tools, limits)
        self._outside = outside
        self._limits = limits
        self._dial = dial
        remote = context.agent.remote_runtime
        allowed_s = DEADLINE_S
        if remote.HasField("deadline"):
            allowed_s = remote.deadline.ToTimedelta().total_seconds()
        self._deadline = time.monotonic() + allowed_s

    async def run(self) -> None:
        """Call the runtime until the turn has ended, or waits for somebody."""
        runtime = self._runtime()
        rendered = await render_templates(self._context, self._runner.tools)
        backoff = Backoff.of(self._context.agent.model.retry, self._limits)
        failures, progress = 0, -1
        while True:
            events = await self._events()
            if events is None:
                return
            # What was stored since the last failure makes it a new one.
            stored = events[-1].sequence if events else 0
            failures = failures if stored == progress else 0
            try:
                await self._call(runtime, rendered, events)
            except ModelInterrupted as error:
                failures, progress = failures + 1, stored
                await self._wait(backoff, failures, error)
                self._recorder.drop_text()
            else:
                return

    def _runtime(self) -> Runtime:
        try:
            return self._outside.runtime(self._context.agent.remote_runtime.runtime)
        except UnknownConnection as error:
            raise AgentProcessingFailed(f"The agent elsewhere can't be called: {error}.") from None

    async def _events(self) -> Sequence[event_pb2.Event] | None:
        """Return the newest events, no call of the turn open; None: somebody has to be asked."""
        events = await self._read()
        closed = await close_open_calls(events, self._runner, self._recorder)
        if closed is None:
            return None
        return await self._read() if closed else events

    async def _read(self) -> Sequence[event_pb2.Event]:
        reach = Reach(max_bytes=self._limits.history_max_bytes)
        return (await self._recorder.history(reach)).events

    async def _call(
        self, runtime: Runtime, rendered: Rendered, events: Sequence[event_pb2.Event]
    ) -> None:
        limits, context = self._limits, self._context
        max_bytes = 2 * limits.event_max_bytes + 64 * KIB
        guard = self._outside.guard
        try:
            async with open_channel(
                guard, runtime, message_max_bytes=max_bytes, dial=self._dial
            ) as channel:
                await _connected(channel)
                call = runtime_grpc.AgentRuntimeServiceStub(channel).RunTurn(
                    metadata=metadata_of(runtime)
                )
                conversation = Conversation(
                    call,
                    self._recorder,
                    self._runner,
                    Drafts(context.agent, context.files, limits),
                    limits,
                    deadline=self._deadline,
                    steps=count_steps(events),
                    heard=events[-1].sequence if events else 0,
                )
                await conversation.run(
                    tell(
                        context,
                        turn_id=context.turn_id,
                        instructions=rendered.instructions,
                        tools=describe_tools(self._runner.tools, rendered.descriptions),
                        history=model_history(events).events,
                        heartbeat_s=limits.heartbeat_s,
                        deadline_s=max(0.0, self._deadline - time.monotonic()),
                    )
                )
        except AddressRefused as error:
            raise AgentProcessingFailed(f"The agent elsewhere can't be called: {error}.") from None
        except AddressUnknown as error:
            raise ModelInterrupted(f"The agent elsewhere can't be called: {error}.") from None
        except OSError:
            _log.exception("runtime_unusable", runtime=context.agent.remote_runtime.runtime)
            raise AgentProcessingFailed(
                "The agent elsewhere can't be called as configured."
            ) from None

    async def _wait(self, backoff: Backoff, failures: int, error: ModelInterrupted) -> None:
        if failures > backoff.max_retries:
            raise ModelUnavailable(str(error)) from error
        wait_s = backoff.wait_s(failures - 1, None)
        if time.monotonic() + wait_s >= self._deadline:
            raise ModelUnavailable(f"{error} It has no time left for another try.") from error
        _log.info(
            "runtime_called_again", failures=failures, wait_s=round(wait_s, 3), why=str(error)
        )
        await asyncio.sleep(wait_s)


async def _connected(channel: grpc.aio.Channel) -> None:
    """Return when the channel is connected. Raises ModelInterrupted at the first failure."""
    try:
        async with asyncio.timeout(_CONNECT_S):
            while (state := channel.get_state(try_to_connect=True)) is not _READY:
                if state is grpc.ChannelConnectivity.TRANSIENT_FAILURE:
                    raise ModelInterrupted(_UNREACHED)
                await channel.wait_for_state_change(state)
    except TimeoutError:
        raise ModelInterrupted(_UNREACHED) from None
