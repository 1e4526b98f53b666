"""Sub-agents: turns that an agent's calls begin in sessions of their own, and that end with them.

Session and turn of a call have names that follow from it, so that the call, run again by whoever
takes its turn over, finds what it began.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import hashlib
from collections.abc import Awaitable, Callable, Coroutine, Iterable
from functools import partial
from typing import Any

import structlog

from hansard.v1 import agent_pb2, event_pb2, session_pb2, turn_pb2
from hansard_server.agents.api import SubAgentAnswer, SubAgentTask, ToolError
from hansard_server.agents.json_text import NotJson, parse_json
from hansard_server.agents.tools.sub_agent import SUB_AGENT
from hansard_server.domain.clock import Clock, now_us
from hansard_server.domain.errors import DomainError, SessionNotFound, TurnNotFound
from hansard_server.domain.keys import make_etag, make_event_id, make_uid
from hansard_server.domain.limits import PAGE_MAX_BYTES, SCAN_MAX_ROWS, Limits
from hansard_server.domain.records import (
    Claim,
    EventRecord,
    EventType,
    SessionRecord,
    TurnRecord,
    TurnStatus,
)
from hansard_server.domain.values import dataclass
from hansard_server.repository.api import EventScan, ReadTx, Store, WriteTx
from hansard_server.repository.commands import (
    AcceptInput,
    CancelQueued,
    Draft,
    Finished,
    SessionName,
    WhenBusy,
)
from hansard_server.turns.engine import Interruption, TurnEngine
from hansard_server.turns.feeds import Feeds
from hansard_server.turns.mirrors import TurnKey
from hansard_server.turns.patience import outlast

_log = structlog.get_logger("hansard.turns")

_TURN_PREFIX = "trn_sub_"
_NAME_MAX_CHARACTERS = 255
_LOOK_EVERY_S = 5.0
_CALLS_MAX = 256
_ENDED = Interruption("the turn that had called the agent was ended")
_TOO_LATE = Interruption("the call had no more time")
_ANSWERS = frozenset({EventType.AGENT_OUTPUT, EventType.STRUCTURED_OUTPUT})
_PERSISTENT = agent_pb2.SUB_AGENT_SESSION_MODE_PERSISTENT


@dataclass(frozen=True, slots=True, kw_only=True)
class SubAgentSettings:
    """Settings of sub-agents.

    Attributes:
        max_depth: so many sessions may be above one.
        max_calls: so many calls of sub-agents a turn may make.
        max_s: how long a call may take unless its configuration says otherwise, in seconds.
    """

    max_depth: int
    max_calls: int
    max_s: float


@dataclass(frozen=True, slots=True)
class _Begun:
    """A turn that a call began, or joined."""

    name: SessionName
    turn: TurnRecord


class AllSubAgents:
    """The sub-agents of all sessions."""

    def __init__(
        self,
        store: Store,
        feeds: Feeds,
        *,
        limits: Limits,
        settings: SubAgentSettings,
        clock: Clock = now_us,
    ) -> None:
        """Keep sessions in `store`, follow them by `feeds`; `bind` comes before the first call."""
        self.store = store
        self.feeds = feeds
        self.limits = limits
        self.settings = settings
        self.clock = clock
        self._engine: TurnEngine | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._watch: asyncio.Task[None] | None = None

    @property
    def engine(self) -> TurnEngine:
        """Who runs the turns."""
        assert self._engine is not None  # noqa: S101 - see bind
        return self._engine

    def bind(self, engine: TurnEngine) -> Callable[[], Awaitable[None]]:
        """Run turns by the engine, and end them with its own; return what closes this."""
        self._engine = engine
        engine.on_ended = self._on_ended
        self._watch = asyncio.create_task(self._end_orphans_by_and_by(), name="sub-agents-orphans")
        return self._close

    def of_session(self, session: SessionRecord) -> SessionSubAgents:
        """Return those that the session's agent has."""
        return SessionSubAgents(self, session)

    async def _close(self) -> None:
        """Return when what was to be ended has been."""
        if self._watch is not None:
            self._watch.cancel()
            await asyncio.wait([self._watch])
        if self._tasks:
            await asyncio.wait(self._tasks)

    def later(self, work: Coroutine[Any, Any, None]) -> None:
        """Do the work without anybody waiting for it."""
        task = asyncio.create_task(work, name="sub-agents")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _on_ended(self, finished: Finished) -> None:
        closed = set(_closed_calls(finished.events))
        if closed:
            self.later(self._stop_calls(finished.turn, closed))

    async def _end_orphans_by_and_by(self) -> None:
        """End turns of calls whose own turn ended with nobody left to say so; look now and then."""
        while True:
            await asyncio.sleep(_LOOK_EVERY_S)
            try:
                await self._end_orphans()
            except DomainError as error:
                _log.warning("orphans_not_ended", reason=error.reason)
            except Exception:  # noqa: BLE001 - logged with its traceback; the next round tries again
                _log.exception("orphans_not_ended")

    async def _end_orphans(self) -> None:
        for tenant, session_uid, turn_id in self.engine.turn_keys:
            if turn_id.startswith(_TURN_PREFIX):
                find = partial(_find_orphan, place=(tenant, session_uid, turn_id))
                orphan = await self.store.read(find)
                if orphan is not None:
                    _log.info("orphan_ended", turn_id=turn_id)
                    await self.engine.interrupt(orphan, _ENDED)

    async def _stop_calls(self, turn: TurnRecord, call_ids: set[str]) -> None:
        """End what the calls of a turn that has ended began."""
        scan = EventScan(
            limit=_CALLS_MAX,
            max_bytes=PAGE_MAX_BYTES,
            max_rows=SCAN_MAX_ROWS,
            descending=True,
            types=frozenset({EventType.TOOL_INPUT}),
            turn_id=turn.id,
            include_hidden=True,
        )

        def read(tx: ReadTx) -> tuple[SessionRecord, agent_pb2.Agent, tuple[EventRecord, ...]]:
            session = tx.get_session_by_uid(turn.tenant, turn.session_uid)
            agent = tx.get_agent_by_uid(turn.tenant, session.agent_uid)
            events = tx.scan_events(turn.tenant, turn.session_uid, scan).events
            return session, agent_pb2.Agent.FromString(agent.configuration), tuple(events)

        try:
            session, agent, events = await outlast(lambda: self.store.read(read))
            mine = self.of_session(session)
            for event in events:
                call = event_pb2.Event.FromString(event.payload).tool_input
                if call.tool_call_id in call_ids:
                    await mine.stop(_task_of(call, agent), _ENDED)
        except DomainError as error:
            _log.warning("sub_agents_not_ended", turn_id=turn.id, reason=error.reason)


class SessionSubAgents:
    """An agents.api.SubAgents: those of one session."""

    def __init__(self, parts: AllSubAgents, session: SessionRecord) -> None:
        self._parts = parts
        self._session = session

    async def run(self, task: SubAgentTask) -> SubAgentAnswer:
        """Return the answer; see the Protocol."""
        configuration = task.configuration
        max_s = self._parts.settings.max_s
        if configuration.HasField("timeout"):
            max_s = configuration.timeout.ToTimedelta().total_seconds()
        await self._check_budget(task)
        begun = await self._begin(task)
        try:
            async with asyncio.timeout(max_s):
                turn = await self._follow(begun)
        except TimeoutError:
            await self._end(begun.name, begun.turn.id, _TOO_LATE)
            raise TimeoutError(f"The agent did not answer within {max_s:g} s.") from None
        except asyncio.CancelledError:
            self._parts.later(self._end_with_session(begun))
            raise
        return await self._answer(begun, turn)

    async def stop(self, task: SubAgentTask, interruption: Interruption) -> None:
        """End the turn that the call began, if it did and it has not ended."""
        await self._end(self._name_of(task), self._turn_id(task.tool_call_id), interruption)

    async def _check_budget(self, task: SubAgentTask) -> None:
        """Raise ToolError when the turn had made as many calls before this one as it may."""
        # Told from the record, so that a call that is run again has the place that it had.
        earlier = await self._parts.store.read(lambda tx: self._count_earlier(tx, task))
        max_calls = self._parts.settings.max_calls
        if earlier >= max_calls:
            raise ToolError(
                f"A turn may make {max_calls} calls of sub-agents, and this would be one more."
            )

    def _count_earlier(self, tx: ReadTx, task: SubAgentTask) -> int:
        """Return how many calls of sub-agents the running turn has made before this one."""
        place = (self._session.tenant, self._session.uid)
        turn_id = tx.read_pulses([place])[place].turn_id
        if turn_id is None:
            return 0
        count = 0
        after: int | None = max(tx.get_turn(*place, turn_id).first_sequence - 1, 0)
        while after is not None:
            scan = EventScan(
                limit=_CALLS_MAX,
                max_bytes=PAGE_MAX_BYTES,
                max_rows=SCAN_MAX_ROWS,
                after_sequence=after,
                types=frozenset({EventType.TOOL_INPUT}),
                turn_id=turn_id,
                include_hidden=True,
            )
            page = tx.scan_events(*place, scan)
            for event in page.events:
                call = event_pb2.Event.FromString(event.payload).tool_input
                if call.tool_call_id == task.tool_call_id:
                    return count
                count += call.tool_name == SUB_AGENT
            after = page.resume_at
        return count

    async def _begin(self, task: SubAgentTask) -> _Begun:
        record = await self._parts.store.write(lambda tx: self._ensure_session(tx, task))
        name = SessionName(
            tenant=record.tenant,
            agent_key=task.configuration.agent_key,
            session_key=record.key,
            uid=record.uid,
        )
        message = event_pb2.InputMessage()
        message.messages.add().text.content = task.message
        payload = turn_pb2.TurnInput(input_message=message).SerializeToString()
        engine, limits = self._parts.engine, self._parts.limits
        accepted = await self._parts.store.submit(
            AcceptInput(
                session=name,
                turn_id=self._turn_id(task.tool_call_id),
                input=Draft(id=make_event_id(), type=EventType.INPUT_MESSAGE, payload=payload),
                when_busy=WhenBusy.QUEUE,
                queue_max_inputs=limits.queue_max_inputs,
                max_events=limits.session_max_events,
                lease=engine.lease,
                claim=Claim(
                    f"sub-agent/{self._session.uid}/{task.tool_call_id}",
                    hashlib.sha256(payload).digest(),
                ),
                fault=engine.overload,
            )
        )
        if accepted.input_event is not None:
            engine.start(accepted.turn)
        return _Begun(name, accepted.turn)

    def _ensure_session(self, tx: WriteTx, task: SubAgentTask) -> SessionRecord:
        """Return the session of the call, making it if need be."""
        session, name = self._session, self._name_of(task)
        try:
            uid = tx.resolve_session(name).uid
        except SessionNotFound:
            if task.session_key:
                raise ToolError(f"There is no session {task.session_key!r}.") from None
        else:
            found = tx.get_session_by_uid(session.tenant, uid)
            if _parent_of(found).session_uid != session.uid:
                raise ToolError(f"The session {name.session_key!r} is not one of this tool's.")
            return found
        depth = _parent_of(session).depth + 1
        if depth > self._parts.settings.max_depth:
            raise ToolError(
                f"Sub-agents may be {self._parts.settings.max_depth} levels deep, and this would "
                "be one more."
            )
        record = self._make_record(tx, task, name, depth)
        tx.insert_session(record, None)
        return record

    def _make_record(
        self, tx: WriteTx, task: SubAgentTask, name: SessionName, depth: int
    ) -> SessionRecord:
        session = self._session
        parent = session_pb2.SessionParent(
            agent_key=session.agent_key,
            session_key=session.key,
            session_uid=session.uid,
            tool_call_id=task.tool_call_id,
            depth=depth,
        )
        now = self._parts.clock()
        return SessionRecord(
            tenant=session.tenant,
            uid=make_uid(),
            agent_uid=tx.get_agent(session.tenant, name.agent_key).uid,
            agent_key=name.agent_key,
            key=name.session_key,
            name=f"{task.name}: {task.message}"[:_NAME_MAX_CHARACTERS],
            description="",
            metadata=task.configuration.session_metadata.SerializeToString(deterministic=True),
            enabled=True,
            tti_minutes=task.tti_minutes,
            parent=parent.SerializeToString(deterministic=True),
            etag=make_etag(),
            created_at_us=now,
            updated_at_us=now,
        )

    async def _follow(self, begun: _Begun) -> TurnRecord:
        """Return the turn when it has ended, wherever it runs."""
        where = (begun.turn.tenant, begun.turn.session_uid)
        with self._parts.feeds.use(*where) as feed:
            while True:
                turn = await outlast(
                    lambda: self._parts.store.read(lambda tx: tx.get_turn(*where, begun.turn.id))
                )
                loop = asyncio.get_running_loop()
                look_at = loop.time() + _LOOK_EVERY_S
                while not turn.status.ended and loop.time() < look_at:
                    version = feed.version
                    turn = feed.turns.get(turn.id, turn)
                    if feed.deleted:
                        raise SessionNotFound("The session of the agent was deleted.")
                    if not turn.status.ended:
                        with contextlib.suppress(TimeoutError):
                            async with asyncio.timeout_at(look_at):
                                await feed.wait(version)
                if turn.status.ended:
                    return turn

    async def _answer(self, begun: _Begun, turn: TurnRecord) -> SubAgentAnswer:
        where = f"(session {begun.name.session_key}, turn {turn.id})"
        if turn.status is TurnStatus.INTERRUPTED:
            raise ToolError(f"The agent was interrupted {where}.")
        if turn.status is TurnStatus.FAILED:
            said = turn_pb2.Turn()
            said.error.MergeFromString(turn.error)
            raise ToolError(f"The agent failed {where}: {said.error.message}")
        scan = EventScan(
            limit=1,
            max_bytes=PAGE_MAX_BYTES,
            max_rows=SCAN_MAX_ROWS,
            descending=True,
            types=_ANSWERS,
            turn_id=turn.id,
            include_hidden=True,
        )
        page = await outlast(
            lambda: self._parts.store.read(
                lambda tx: tx.scan_events(turn.tenant, turn.session_uid, scan)
            )
        )
        text = ""
        for event in page.events:
            message = event_pb2.Event.FromString(event.payload)
            text = message.agent_output.content or message.structured_output.content_json
        return SubAgentAnswer(session_key=begun.name.session_key, turn_id=turn.id, text=text)

    async def _end_with_session(self, begun: _Begun) -> None:
        """End the turn if the caller's session was deleted; other ends are told by the engine."""
        session = (self._session.tenant, self._session.uid)
        pulses = await outlast(lambda: self._parts.store.read(lambda tx: tx.read_pulses([session])))
        pulse = pulses.get(session)
        if pulse is None or pulse.deleted:
            await self._end(begun.name, begun.turn.id, _ENDED)

    async def _end(self, name: SessionName, turn_id: str, interruption: Interruption) -> None:
        with contextlib.suppress(SessionNotFound, TurnNotFound):
            turn = await self._parts.store.submit(CancelQueued(session=name, turn_id=turn_id))
            await self._parts.engine.interrupt(turn, interruption)

    def _name_of(self, task: SubAgentTask) -> SessionName:
        persistent = task.configuration.session_mode == _PERSISTENT
        made_for = f"all/{task.name}" if persistent else f"call/{task.tool_call_id}"
        return SessionName(
            tenant=self._session.tenant,
            agent_key=task.configuration.agent_key,
            session_key=task.session_key or f"ase_sub_{self._digest(made_for)}",
        )

    def _turn_id(self, tool_call_id: str) -> str:
        return _turn_id(self._session.uid, tool_call_id)

    def _digest(self, what: str) -> str:
        return _digest(self._session.uid, what)


def _turn_id(caller_uid: str, tool_call_id: str) -> str:
    """Return the id of the turn that a call in the caller's session begins."""
    return _TURN_PREFIX + _digest(caller_uid, f"turn/{tool_call_id}")


def _digest(caller_uid: str, what: str) -> str:
    digest = hashlib.sha256(f"{caller_uid}/{what}".encode()).digest()
    return base64.b32encode(digest[:15]).decode().lower()


def _find_orphan(tx: ReadTx, place: TurnKey) -> TurnRecord | None:
    """Return the turn that a call began if it has not ended, and the call is open no more."""
    tenant, session_uid, turn_id = place
    try:
        turn = tx.get_turn(*place)
        caller = (tenant, _parent_of(tx.get_session_by_uid(tenant, session_uid)).session_uid)
    except (SessionNotFound, TurnNotFound):
        return None
    if turn.status.ended:
        return None
    pulse = tx.read_pulses([caller]).get(caller)
    if pulse is None or pulse.deleted or pulse.turn_id is None:
        return turn
    open_calls = tx.get_turn(*caller, pulse.turn_id).open_calls
    called = any(_turn_id(caller[1], call.tool_call_id) == turn_id for call in open_calls)
    return None if called else turn


def _parent_of(session: SessionRecord) -> session_pb2.SessionParent:
    return session_pb2.SessionParent.FromString(session.parent or b"")


def _closed_calls(events: Iterable[EventRecord]) -> Iterable[str]:
    """Yield the calls of sub-agents that the end of a turn has closed."""
    for event in events:
        if event.type is EventType.TOOL_OUTPUT:
            output = event_pb2.Event.FromString(event.payload).tool_output
            interrupted = output.outcome == event_pb2.TOOL_OUTCOME_INTERRUPTED
            if output.tool_name == SUB_AGENT and interrupted:
                yield output.tool_call_id


def _task_of(call: event_pb2.ToolInput, agent: agent_pb2.Agent) -> SubAgentTask:
    """Return what the call asked for, as far as it says where."""
    try:
        arguments = parse_json(call.tool_input_json)
    except NotJson:
        arguments = None
    named = arguments.get("session_key", "") if isinstance(arguments, dict) else ""
    name = call.tool_configuration_name
    return SubAgentTask(
        tool_call_id=call.tool_call_id,
        name=name,
        configuration=agent.tool_configurations[name].sub_agent.sub_agent_configuration,
        message="",
        session_key=named if isinstance(named, str) else "",
    )
