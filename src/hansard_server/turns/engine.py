"""The engine: runs turns as tasks of their own, and leaves no session busy.

A turn belongs to the process that holds its lease, not to the call that sent its input.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import typing
from collections.abc import Awaitable, Callable
from collections.abc import Set as AbstractSet
from dataclasses import replace

import structlog
from google.rpc import code_pb2, error_details_pb2, status_pb2

from hansard_server.agents.api import TurnContext, TurnRecorder
from hansard_server.domain.errors import (
    AgentProcessingFailed,
    DomainError,
    EventAlreadyExists,
    ModelUnavailable,
    RateLimitExceeded,
    StoreUnavailable,
    TurnNotFound,
)
from hansard_server.domain.keys import random_tail
from hansard_server.domain.records import Claim, TurnRecord, TurnStatus, Usage
from hansard_server.domain.values import dataclass
from hansard_server.failpoints import hit
from hansard_server.repository.api import Change, Store
from hansard_server.repository.commands import (
    ArtifactQuota,
    AwaitCalls,
    Draft,
    ExpireCalls,
    Finished,
    FinishTurn,
    HandOn,
    Lease,
    LeaseLost,
    TakeTurn,
    TurnRef,
    UnreadInput,
)
from hansard_server.turns.feeds import Feeds, SessionFeed
from hansard_server.turns.mirrors import Peers, PeerUnavailable, TurnKey
from hansard_server.turns.patience import outlast
from hansard_server.turns.payloads import (
    close_call,
    expire_call,
    interrupted_payload,
    make_draft,
)
from hansard_server.turns.recorder import HandedOn, Recorder, turn_ref, unwritten, with_new_ids

_log = structlog.get_logger("hansard.turns")

MAX_TAKEOVERS = 3
"""So many times in a row a turn is taken over without a new event; then it ends FAILED."""
INTERRUPT_PATIENCE_S = 2.0
"""An owner that has not ended its turn after this long loses it."""
_OVERLOAD_RETRY_S = 1.0
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
        artifact_quota: what the files of a session together may amount to.
        address: where other processes ask this one about its turns; empty: nowhere.
        max_turns: as many turns run here before inputs are refused.
    """

    lease_s: float
    text_max_bytes: int
    artifact_quota: ArtifactQuota | None = None
    address: str = ""
    max_turns: int = 1_000


@dataclass(frozen=True, slots=True)
class Interruption:
    """Why somebody ends a turn, and the claim of the request that does."""

    reason: str
    claim: Claim | None = None


@dataclass(slots=True, eq=False)
class RunningTurn:
    """A turn that this process works on.

    `agent` may be cancelled; `task`, which ends the turn whatever becomes of the agent, may not.
    """

    turn: TurnRecord
    recorder: Recorder | None = None
    agent: asyncio.Future[None] | None = None
    task: asyncio.Task[None] | None = None
    interruption: Interruption | None = None
    lost: bool = False

    def give_up(self) -> None:
        """Stop: the turn is in other hands."""
        self.lost = True
        self.stop_agent()

    def stop_agent(self) -> None:
        """Cancel what the agent does."""
        if self.agent is not None:
            self.agent.cancel()


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
        peers: Peers | None = None,
    ) -> None:
        """Make an engine that runs nothing yet; `peers` are asked about turns elsewhere."""
        self.owner = secrets.token_hex(8)
        self.on_given_up: Callable[[], None] = lambda: None
        """Called when this process leaves a turn or a queue to others."""
        self.on_ended: Callable[[Finished], None] = lambda _: None
        """Called when this process has ended a turn."""
        self._store = store
        self._feeds = feeds
        self._run_agent = run_agent
        self._load_context = load_context
        self._settings = settings
        self._peers = peers
        self._running: dict[str, RunningTurn] = {}
        self._draining = False
        self._closed = False

    @property
    def lease(self) -> Lease:
        """The lease under which this process runs turns."""
        settings = self._settings
        return Lease(owner=self.owner, duration_s=settings.lease_s, address=settings.address)

    @property
    def overload(self) -> RateLimitExceeded | None:
        """Why another input can't be taken now; None while there is room for its turn.

        Turns that wait or are taken over run in any case: there are only so many of them.
        """
        if len(self._running) < self._settings.max_turns:
            return None
        return RateLimitExceeded(
            "the server runs as many turns as it can at a time; come again later",
            retry_after_s=_OVERLOAD_RETRY_S,
        )

    @property
    def draining(self) -> bool:
        """Whether this process is about to stop."""
        return self._draining

    @property
    def turn_ids(self) -> AbstractSet[str]:
        """The turns that this process works on."""
        return self._running.keys()

    @property
    def turn_keys(self) -> AbstractSet[TurnKey]:
        """The same turns, with their sessions."""
        turns = (running.turn for running in self._running.values())
        return {(turn.tenant, turn.session_uid, turn.id) for turn in turns}

    @property
    def leased(self) -> list[TurnKey]:
        """The turns whose leases this process needs."""
        turns = [running.turn for running in self._running.values() if not running.lost]
        return [(turn.tenant, turn.session_uid, turn.id) for turn in turns]

    def begin_drain(self) -> None:
        """Start no waiting turn any more, and hand each running one on after its current step."""
        self._draining = True
        for running in self._running.values():
            if running.recorder is not None:
                running.recorder.hand_on()

    async def drain(self, deadline_s: float) -> None:
        """Return when no turn runs here; what runs at the deadline is handed on as it is."""
        self.begin_drain()
        await self._wait_for_turns(max(deadline_s, 0))
        for running in list(self._running.values()):
            running.stop_agent()
        await self._wait_for_turns(None)
        self._closed = True

    def start(self, turn: TurnRecord) -> None:
        """Run a turn whose lease this process was just given."""
        if self._closed:
            # Too late to do anything about it here: its lease runs out.
            return
        known = self._running.get(turn.id)
        if known is not None and known.turn.fence > turn.fence:
            # It was taken up already, before it was heard that it starts.
            return
        running = self._running[turn.id] = RunningTurn(turn)
        running.task = asyncio.create_task(self._run(running), name=f"turn-{turn.id}")

    async def interrupt(self, turn: TurnRecord, interruption: Interruption) -> None:
        """End a running turn: by its owner, this process or another, else by taking it from there;
        one that waits for somebody: at once.

        Does nothing when the turn has ended meanwhile.
        """
        where = (turn.tenant, turn.session_uid, turn.id)
        while not turn.status.ended:
            # It may begin to wait, or go on, before it is reached.
            with contextlib.suppress(LeaseLost):
                await self._interrupt_once(turn, interruption)
            try:
                turn = await self._store.read(lambda tx: tx.get_turn(*where))
            except TurnNotFound:
                # Its session was deleted, and has been purged.
                return

    async def _interrupt_once(self, turn: TurnRecord, interruption: Interruption) -> None:
        if turn.status is TurnStatus.REQUIRES_ACTION:
            await self._end(turn, TurnStatus.INTERRUPTED, None, (), Usage(), interruption)
            return
        if turn.id in self._running:
            if await self.interrupt_here(turn.id, interruption):
                return
        elif await self._ask_owner(turn, interruption):
            return
        taken = await self._take(turn, force=True)
        await self._end(taken, TurnStatus.INTERRUPTED, None, (), Usage(), interruption)

    async def interrupt_here(self, turn_id: str, interruption: Interruption) -> bool:
        """End a turn that runs here; return whether it ended in time. If not, it is given up."""
        running = self._running.get(turn_id)
        if running is None or running.task is None:
            return False
        running.interruption = running.interruption or interruption
        running.stop_agent()
        await asyncio.wait([running.task], timeout=INTERRUPT_PATIENCE_S)
        if running.task.done():
            return True
        running.lost = True
        return False

    async def _ask_owner(self, turn: TurnRecord, interruption: Interruption) -> bool:
        """Have the process that runs the turn end it; return whether it did."""
        if self._peers is None:
            return False
        session = (turn.tenant, turn.session_uid)
        pulse = (await self._store.read(lambda tx: tx.read_pulses([session]))).get(session)
        if pulse is None or pulse.turn_id != turn.id:
            return False
        address = pulse.owner_address
        if address in {"", self._settings.address}:
            return False
        try:
            async with asyncio.timeout(INTERRUPT_PATIENCE_S):
                await self._peers.interrupt_turn(
                    address, (*session, turn.id), interruption.reason, interruption.claim
                )
        except (PeerUnavailable, TimeoutError):
            _log.info("interrupt_by_force", turn_id=turn.id)
            return False
        return True

    def on_change(self, change: Change) -> None:
        """Stop working for a session that was deleted, and on turns that others have taken.

        To be given to Store.listen.
        """
        if change.deleted:
            for running in self._running.values():
                turn = running.turn
                if (turn.tenant, turn.session_uid) == (change.tenant, change.session_uid):
                    running.give_up()
        for turn in change.turns:
            mine = self._running.get(turn.id)
            if mine is not None and turn.fence > mine.turn.fence:
                mine.give_up()

    async def _wait_for_turns(self, timeout_s: float | None) -> None:
        tasks = [running.task for running in self._running.values() if running.task is not None]
        if tasks:
            await asyncio.wait(tasks, timeout=timeout_s)

    async def _take(self, turn: TurnRecord, *, force: bool) -> TurnRecord:
        return await self._store.submit(
            TakeTurn(
                tenant=turn.tenant,
                session_uid=turn.session_uid,
                turn_id=turn.id,
                lease=self.lease,
                force=force,
            )
        )

    async def take_over(self, turn: TurnRecord, *, force: bool) -> None:
        """Go on with a turn from its last stored event; nothing happens if it is not to be had."""
        with contextlib.suppress(LeaseLost):
            taken = await self._take(turn, force=force)
            hit("turn.taken")
            _log.info("turn_taken_over", turn_id=turn.id, attempt=taken.attempt)
            if taken.attempt <= 1 + MAX_TAKEOVERS:
                self.start(taken)
                return
            error = AgentProcessingFailed(
                f"{MAX_TAKEOVERS} servers in a row stopped while the turn was running"
            )
            await self._end(taken, TurnStatus.FAILED, error, (), Usage(), None)

    async def expire(self, tenant: str, session_uid: str, turn_id: str) -> None:
        """Close what a turn has waited for too long; it goes on here when nothing else is awaited.

        Nothing happens when another process has done so already.
        """
        turn = await self._store.submit(
            ExpireCalls(
                tenant=tenant,
                session_uid=session_uid,
                turn_id=turn_id,
                close=expire_call,
                lease=self.lease,
            )
        )
        if turn is not None:
            self.start(turn)

    async def _run(self, running: RunningTurn) -> None:
        turn = running.turn
        with self._feeds.use(turn.tenant, turn.session_uid) as feed:
            # A feed that nobody had in use does not know where its texts will stand.
            feed.put_turn(turn)
            try:
                await self._run_to_its_end(running, feed)
            except LeaseLost:
                _log.info("turn_lost", turn_id=turn.id)
            except Exception:  # noqa: BLE001 - logged with its traceback; the lease runs out
                _log.exception("turn_abandoned", turn_id=turn.id)
            finally:
                # Else it has been given to this process again, and runs anew.
                if self._running.get(turn.id) is running:
                    del self._running[turn.id]
                    if feed.text is not None and feed.text.turn_id == turn.id:
                        feed.text = None
                # Peers who follow the turn here have to look elsewhere.
                feed.wake()

    async def _run_to_its_end(self, running: RunningTurn, feed: SessionFeed) -> None:
        turn = running.turn
        recorder = running.recorder = Recorder(
            self._store,
            feed,
            turn,
            text_max_bytes=self._settings.text_max_bytes,
            artifact_quota=self._settings.artifact_quota,
        )
        if self._draining:
            recorder.hand_on()
        while True:
            status, error = await self._answer(running, recorder)
            if status is None:
                await self._hand_on(turn, recorder)
                return
            if status is TurnStatus.COMPLETED and recorder.awaited:
                if running.interruption is None:
                    await self._wait_for_action(turn, recorder)
                    return
                status = TurnStatus.INTERRUPTED
            # A text that the model did not come to end is stored as readers have seen it.
            recorder.end_text(partial=status is not TurnStatus.COMPLETED)
            read_sequence = recorder.read_sequence
            drafts, usage = recorder.take()
            try:
                await self._end(
                    turn, status, error, drafts, usage, running.interruption, read_sequence
                )
            except UnreadInput:
                # The agent goes on with what was put into the turn meanwhile.
                recorder.put_back(drafts, usage)
            else:
                return

    async def _hand_on(self, turn: TurnRecord, recorder: Recorder) -> None:
        drafts, usage = recorder.take()
        command = HandOn(turn=turn_ref(turn), drafts=drafts, usage=usage)
        try:
            await self._store.submit(command)
        except EventAlreadyExists:
            drafts = await self._still_to_write(turn_ref(turn), drafts)
            await self._store.submit(replace(command, drafts=drafts))
        _log.info("turn_handed_on", turn_id=turn.id)
        self.on_given_up()

    async def _wait_for_action(self, turn: TurnRecord, recorder: Recorder) -> None:
        drafts, usage = recorder.take()
        command = AwaitCalls(
            turn=turn_ref(turn), calls=recorder.awaited, drafts=drafts, usage=usage
        )
        await self._submit_end(command)
        _log.info("turn_requires_action", turn_id=turn.id, calls=len(command.calls))

    async def _answer(
        self, running: RunningTurn, recorder: Recorder
    ) -> tuple[TurnStatus | None, DomainError | None]:
        """Let the agent work; return how the turn ends, None for one that is handed on.

        Raises LeaseLost.
        """
        turn = running.turn
        running.agent = asyncio.ensure_future(self._work(turn, recorder))
        if running.lost or running.interruption is not None:
            # That came when there was no agent to cancel.
            running.agent.cancel()
        try:
            await running.agent
        except HandedOn:
            return None, None
        except asyncio.CancelledError:
            if not running.agent.cancelled():
                running.agent.cancel()
                raise
            if running.lost:
                raise LeaseLost from None
            if running.interruption is not None:
                return TurnStatus.INTERRUPTED, None
            recorder.drop_text()
            return None, None
        except LeaseLost:
            raise
        except DomainError as failure:
            return TurnStatus.FAILED, failure
        except Exception:  # noqa: BLE001 - the turn says so, and the log has the traceback
            log_id = random_tail(12)
            _log.exception("turn_failed", turn_id=turn.id, log_id=log_id)
            return TurnStatus.FAILED, AgentProcessingFailed(
                f"the agent failed; the log has it under {log_id}"
            )
        return TurnStatus.COMPLETED, None

    async def _work(self, turn: TurnRecord, recorder: Recorder) -> None:
        context = await outlast(lambda: self._load_context(turn))
        await self._run_agent(context, recorder)

    async def _end(
        self,
        turn: TurnRecord,
        status: TurnStatus,
        error: DomainError | None,
        drafts: tuple[Draft, ...],
        usage: Usage,
        interruption: Interruption | None,
        read_sequence: int | None = None,
    ) -> None:
        """End the turn, and run the next one. Raises LeaseLost, UnreadInput."""
        claim = None
        if status is TurnStatus.INTERRUPTED and interruption is not None:
            drafts = (*drafts, make_draft(interrupted_payload(interruption.reason)))
            claim = interruption.claim
        command = FinishTurn(
            turn=turn_ref(turn),
            status=status,
            close_call=close_call,
            lease=self.lease,
            drafts=drafts,
            usage=usage,
            error=b"" if error is None else error_status(error).SerializeToString(),
            start_next=not self._draining,
            read_sequence=read_sequence,
            claim=claim,
            waiting=turn.status is TurnStatus.REQUIRES_ACTION,
        )
        finished = await self._submit_end(command)
        hit("turn.ended")
        self.on_ended(finished)
        if finished.next_turn is not None:
            self.start(finished.next_turn)
        elif self._draining:
            # Something may wait in the session.
            self.on_given_up()

    @typing.overload
    async def _submit_end(self, command: FinishTurn) -> Finished: ...
    @typing.overload
    async def _submit_end(self, command: AwaitCalls) -> TurnRecord: ...
    async def _submit_end(self, command: FinishTurn | AwaitCalls) -> Finished | TurnRecord:
        # A turn must end, or wait: nobody else would do it while this process holds the lease.
        retry_s = _FINISH_RETRY_FIRST_S
        while True:
            try:
                return await self._store.submit(command)
            except StoreUnavailable:
                _log.warning("turn_end_waits", turn_id=command.turn.turn_id)
                await asyncio.sleep(retry_s)
                retry_s = min(retry_s * 2, _FINISH_RETRY_MAX_S)
            except EventAlreadyExists:
                drafts = await self._still_to_write(command.turn, command.drafts)
                command = replace(command, drafts=drafts)

    async def _still_to_write(self, turn: TurnRef, drafts: tuple[Draft, ...]) -> tuple[Draft, ...]:
        """Return what is left of drafts some of whose ids are taken."""
        # Some of it is there from a step that nobody heard of; or an id is somebody else's.
        left = await unwritten(self._store, turn, drafts)
        return with_new_ids(left) if len(left) == len(drafts) else left


_CODES: dict[type[DomainError], int] = {
    ModelUnavailable: code_pb2.UNAVAILABLE,
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
