"""The engine: runs turns as tasks of their own, and leaves no session busy.

A turn belongs to the process that holds its lease, not to the call that sent its input.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

import structlog
from google.rpc import code_pb2, error_details_pb2, status_pb2

from hansard_server.agents.api import TurnContext, TurnRecorder
from hansard_server.domain.errors import (
    AgentProcessingFailed,
    DomainError,
    ModelUnavailable,
    ServerShuttingDown,
    StoreUnavailable,
)
from hansard_server.domain.keys import random_tail
from hansard_server.domain.records import TurnRecord, TurnStatus, Usage
from hansard_server.repository.api import Change, Store
from hansard_server.repository.commands import (
    Finished,
    FinishTurn,
    Lease,
    LeaseLost,
    StartNext,
    TakeTurn,
)
from hansard_server.turns.feeds import Feeds, SessionUid
from hansard_server.turns.payloads import close_call
from hansard_server.turns.recorder import Recorder, turn_ref

_log = structlog.get_logger("hansard.turns")

_RECOVERY_BATCH = 100
_FINISH_RETRY_FIRST_S = 0.1
_FINISH_RETRY_MAX_S = 2.0

RunAgent = Callable[[TurnContext, TurnRecorder], Awaitable[None]]
"""Answers a turn's input: agents.loop.run_agent with its models, tools and limits."""
LoadContext = Callable[[TurnRecord], Awaitable[TurnContext]]
"""Returns what a turn runs under, as it is now. Raises domain errors."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineSettings:
    """Settings of the engine.

    Attributes:
        lease_s: how long a turn is left to an owner that gives no sign of life.
        text_max_bytes: a text that grows larger becomes several events.
        recovery_interval_s: how often turns and queues are looked for that nobody serves.
    """

    lease_s: float
    text_max_bytes: int
    recovery_interval_s: float = 5.0


class TurnEngine:
    """Runs turns. `owner` names this process in leases."""

    def __init__(
        self,
        store: Store,
        feeds: Feeds,
        *,
        run_agent: RunAgent,
        load_context: LoadContext,
        settings: EngineSettings,
        alone: bool,
    ) -> None:
        """Make an engine that runs nothing yet.

        `alone`: no other process uses the store, so that every running turn that is not this
        engine's has lost its owner.
        """
        self.owner = secrets.token_hex(8)
        self._store = store
        self._feeds = feeds
        self._run_agent = run_agent
        self._load_context = load_context
        self._settings = settings
        self._alone = alone
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._sessions: dict[SessionUid, str] = {}
        self._lost: set[str] = set()
        self._keeper: asyncio.Task[None] | None = None
        self._draining = False

    @property
    def lease(self) -> Lease:
        """The lease under which this process runs turns."""
        return Lease(owner=self.owner, duration_s=self._settings.lease_s)

    @property
    def running(self) -> int:
        """How many turns run in this process."""
        return len(self._tasks)

    async def open(self) -> None:
        """End what an earlier process left unfinished, and begin to keep leases and queues."""
        await self.recover(at_start=True)
        self._keeper = asyncio.create_task(self._keep(), name="turn-keeper")

    def begin_drain(self) -> None:
        """Start no waiting turn any more."""
        self._draining = True

    async def drain(self, deadline_s: float) -> None:
        """Let running turns come to their end until the deadline; then end them FAILED.

        Waiting turns stay as they are: the next process starts them.
        """
        self.begin_drain()
        if self._tasks:
            await asyncio.wait(self._tasks.values(), timeout=max(deadline_s, 0))
        for task in list(self._tasks.values()):
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks.values())
        if self._keeper is not None:
            self._keeper.cancel()
            await asyncio.wait([self._keeper])

    def start(self, turn: TurnRecord) -> None:
        """Run a turn whose lease this process was just given."""
        session = (turn.tenant, turn.session_uid)
        task = asyncio.create_task(self._run(turn), name=f"turn-{turn.id}")
        self._tasks[turn.id] = task
        self._sessions[session] = turn.id

        def forget(_: asyncio.Task[None]) -> None:
            del self._tasks[turn.id]
            self._lost.discard(turn.id)
            # The next turn of the session may have begun by now.
            if self._sessions.get(session) == turn.id:
                del self._sessions[session]

        task.add_done_callback(forget)

    def on_change(self, change: Change) -> None:
        """Stop working for a session that was deleted; to be given to Store.listen."""
        if not change.deleted:
            return
        turn_id = self._sessions.get((change.tenant, change.session_uid))
        if turn_id is not None:
            self._lost.add(turn_id)
            self._tasks[turn_id].cancel()

    async def recover(self, *, at_start: bool = False) -> None:
        """End turns that have lost their owner, and start what waits where nothing runs."""
        expired_only = not (at_start and self._alone)
        found: Sequence[object] = [None] * _RECOVERY_BATCH
        while len(found) == _RECOVERY_BATCH:
            found = turns = await self._store.read(
                lambda tx: tx.find_unfinished_turns(_RECOVERY_BATCH, expired_only=expired_only)
            )
            abandoned = [turn for turn in turns if turn.id not in self._tasks]
            await asyncio.gather(
                *(self._end_abandoned(turn, force=not expired_only) for turn in abandoned)
            )
            if not abandoned:
                break
        found = [None] * _RECOVERY_BATCH
        while len(found) == _RECOVERY_BATCH:
            found = queues = await self._store.read(lambda tx: tx.find_idle_queues(_RECOVERY_BATCH))
            await asyncio.gather(*(self._start_next(*session) for session in queues))

    async def _start_next(self, tenant: str, session_uid: str) -> None:
        next_turn = await self._store.submit(
            StartNext(tenant=tenant, session_uid=session_uid, lease=self.lease)
        )
        if next_turn is not None:
            self.start(next_turn)

    async def _keep(self) -> None:
        """Renew the leases, and look for turns and queues that nobody serves."""
        interval_s = min(self._settings.lease_s / 3, self._settings.recovery_interval_s)
        while True:
            await asyncio.sleep(interval_s)
            try:
                await self._renew_leases()
                if not self._draining:
                    await self.recover()
            except StoreUnavailable:
                _log.warning("turn_keeper_waits", reason=StoreUnavailable.reason)
            except Exception:  # noqa: BLE001 - logged with its traceback; the next round tries again
                _log.exception("turn_keeper_failed")

    async def _renew_leases(self) -> None:
        # Of the turns that do run here, and no others: a lease that this process was given without
        # hearing of it must run out.
        running = [(*session, turn_id) for session, turn_id in self._sessions.items()]
        if running:
            lease_s = self._settings.lease_s
            await self._store.write(lambda tx: tx.renew_leases(self.owner, running, lease_s))

    async def _end_abandoned(self, turn: TurnRecord, *, force: bool) -> None:
        try:
            taken = await self._store.submit(
                TakeTurn(
                    tenant=turn.tenant,
                    session_uid=turn.session_uid,
                    turn_id=turn.id,
                    lease=self.lease,
                    force=force,
                )
            )
        except LeaseLost:
            return
        msg = "the server stopped while the turn was running"
        await self._finish(taken, None, TurnStatus.FAILED, AgentProcessingFailed(msg))

    async def _run(self, turn: TurnRecord) -> None:
        with self._feeds.use(turn.tenant, turn.session_uid) as feed:
            recorder = Recorder(
                self._store, feed, turn, text_max_bytes=self._settings.text_max_bytes
            )
            status = TurnStatus.FAILED
            error: DomainError | None = None
            try:
                await self._run_agent(await self._load_context(turn), recorder)
                status = TurnStatus.COMPLETED
            except LeaseLost:
                _log.info("turn_lost", turn_id=turn.id)
                return
            except asyncio.CancelledError:
                if turn.id in self._lost:
                    return
                error = ServerShuttingDown("the server stopped while the turn was running")
            except DomainError as failure:
                error = failure
            except Exception:  # noqa: BLE001 - the turn says so, and the log has the traceback
                log_id = random_tail(12)
                _log.exception("turn_failed", turn_id=turn.id, log_id=log_id)
                error = AgentProcessingFailed(f"the agent failed; the log has it under {log_id}")
            try:
                await self._finish(turn, recorder, status, error)
            except LeaseLost:
                _log.info("turn_lost", turn_id=turn.id)
            finally:
                if feed.text is not None and feed.text.turn_id == turn.id:
                    feed.text = None
                    feed.wake()

    async def _finish(
        self,
        turn: TurnRecord,
        recorder: Recorder | None,
        status: TurnStatus,
        error: DomainError | None,
    ) -> None:
        if recorder is not None:
            # A text that the model did not come to end is stored as readers have seen it.
            recorder.end_text(partial=error is not None)
            drafts, usage = recorder.take()
        else:
            drafts, usage = (), Usage()
        command = FinishTurn(
            turn=turn_ref(turn),
            status=status,
            close_call=close_call,
            lease=self.lease,
            drafts=drafts,
            usage=usage,
            error=b"" if error is None else error_status(error).SerializeToString(),
            start_next=not self._draining,
        )
        finished = await self._submit_end(command)
        if finished.next_turn is not None:
            self.start(finished.next_turn)

    async def _submit_end(self, command: FinishTurn) -> Finished:
        # A turn must end: nobody else would do it while this process holds the lease.
        retry_s = _FINISH_RETRY_FIRST_S
        while True:
            try:
                return await self._store.submit(command)
            except StoreUnavailable:
                _log.warning("turn_end_waits", turn_id=command.turn.turn_id)
                await asyncio.sleep(retry_s)
                retry_s = min(retry_s * 2, _FINISH_RETRY_MAX_S)


_CODES: dict[type[DomainError], int] = {
    ModelUnavailable: code_pb2.UNAVAILABLE,
    ServerShuttingDown: code_pb2.UNAVAILABLE,
    StoreUnavailable: code_pb2.UNAVAILABLE,
}


def error_status(error: DomainError) -> status_pb2.Status:
    """Return the error as it stands in Turn.error."""
    status = status_pb2.Status(
        code=_CODES.get(type(error), code_pb2.INTERNAL), message=error.message
    )
    info = error_details_pb2.ErrorInfo(
        reason=error.reason, domain="hansard", metadata=error.metadata
    )
    status.details.add().Pack(info)
    return status
