"""The client for programs on an event loop. What it does is said in `client`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any, Self, overload

from hansard.v1 import session_pb2
from hansard_client.asynchronous import AsyncTransport
from hansard_client.channels import (
    DEFAULT_PATIENCE_S,
    DEFAULT_TARGET,
    DEFAULT_TIMEOUT_S,
    Endpoints,
    Tls,
)
from hansard_client.link import Link
from hansard_client.methods import AsyncIterating, AsyncStreaming, Awaiting, Part
from hansard_client.operations import (
    agents,
    api_keys,
    artifacts,
    conversations,
    corpora,
    events,
    sessions,
    turns,
)
from hansard_client.operations.values import Place


class AsyncAgents(Part[Link]):
    """Agents: who answers in sessions."""

    create = Awaiting(agents.create)
    create_from = Awaiting(agents.create_from)
    get = Awaiting(agents.get)
    list = AsyncIterating(agents.list_)
    update = Awaiting(agents.update)
    patch = Awaiting(agents.patch)
    delete = Awaiting(agents.delete)


class AsyncSessions(Part[Link]):
    """Sessions: conversations with an agent. What happens in one is done by `Hansard.session`."""

    create = Awaiting(sessions.create)
    get = Awaiting(sessions.get)
    list = AsyncIterating(sessions.list_)
    update = Awaiting(sessions.update)
    patch = Awaiting(sessions.patch)
    delete = Awaiting(sessions.delete)


class AsyncApiKeys(Part[Link]):
    """API keys: who is let in, and what they may do."""

    create = Awaiting(api_keys.create)
    list = AsyncIterating(api_keys.list_)
    revoke = Awaiting(api_keys.revoke)
    issue_token = Awaiting(api_keys.issue_token)


class AsyncCorpora(Part[Link]):
    """Corpora: documents that many sessions search."""

    create = Awaiting(corpora.create)
    get = Awaiting(corpora.get)
    list = AsyncIterating(corpora.list_)
    delete = Awaiting(corpora.delete)
    index = Awaiting(corpora.index)
    list_documents = AsyncIterating(corpora.list_documents)
    delete_document = Awaiting(corpora.delete_document)
    search = Awaiting(corpora.search)


class AsyncEvents(Part[Place]):
    """Events: the record of a session."""

    get = Awaiting(events.get)
    list = AsyncIterating(events.list_)
    append = Awaiting(conversations.append)
    hide = Awaiting(events.hide)
    unhide = Awaiting(events.unhide)
    delete = Awaiting(events.delete)


class AsyncTurns(Part[Place]):
    """Turns: what became of inputs."""

    get = Awaiting(conversations.get_turn)
    list = AsyncIterating(turns.list_)
    cancel = Awaiting(turns.cancel)
    follow = AsyncStreaming(conversations.follow)


class AsyncArtifacts(Part[Place]):
    """Artifacts: the files of a session."""

    upload = Awaiting(artifacts.upload)
    get = Awaiting(artifacts.get)
    list = AsyncIterating(artifacts.list_)
    download = AsyncIterating(artifacts.download)
    read = Awaiting(artifacts.read)
    save = Awaiting(artifacts.save)
    delete = Awaiting(artifacts.delete)


class AsyncSession(Part[Place]):
    """One session. Nothing is asked of the server to make it.

    Attributes:
        agent_key: who answers in it.
        key: its key.
        uid: the incarnation that is meant; empty: whichever has the key.
        events: its record.
        turns: what became of its inputs.
        artifacts: its files.
    """

    get = Awaiting(sessions.get_this)
    update = Awaiting(sessions.update_this)
    delete = Awaiting(sessions.delete_this)
    fork = Awaiting(sessions.fork)
    send = AsyncStreaming(conversations.send)
    stream = AsyncStreaming(conversations.stream)
    ask = Awaiting(conversations.ask)
    submit = Awaiting(conversations.submit)
    append = Awaiting(conversations.append)
    interrupt = Awaiting(conversations.interrupt)
    watch = AsyncIterating(conversations.watch)
    watch_all = AsyncIterating(conversations.watch_all)

    def __init__(self, place: Place) -> None:
        super().__init__(place)
        self.agent_key = place.agent_key
        self.key = place.session_key
        self.uid = place.uid
        self.events = AsyncEvents(place)
        self.turns = AsyncTurns(place)
        self.artifacts = AsyncArtifacts(place)


class AsyncHansard:
    """As `Hansard`, for one event loop; an asynchronous context manager that closes it.

    Attributes:
        agents: who answers in sessions.
        sessions: conversations with an agent.
        api_keys: who is let in.
        corpora: documents that many sessions search.
    """

    def __init__(
        self,
        target: str | Sequence[str] = DEFAULT_TARGET,
        *,
        api_key: str | None = None,
        tls: Tls | bool = False,
        timeout_s: float = DEFAULT_TIMEOUT_S,
        patience_s: float = DEFAULT_PATIENCE_S,
        first_contact_s: float | None = None,
        options: Mapping[str, Any] | None = None,
    ) -> None:
        """Prepare to call; as `Hansard`."""
        self._transport = AsyncTransport(
            Endpoints(target, api_key=api_key, tls=tls, options=options)
        )
        self._link = Link(
            self._transport,
            timeout_s=timeout_s,
            patience_s=patience_s,
            first_contact_s=patience_s if first_contact_s is None else first_contact_s,
        )
        self.agents = AsyncAgents(self._link)
        self.sessions = AsyncSessions(self._link)
        self.api_keys = AsyncApiKeys(self._link)
        self.corpora = AsyncCorpora(self._link)

    @overload
    def session(self, session: session_pb2.Session, /) -> AsyncSession: ...
    @overload
    def session(self, agent_key: str, session_key: str, *, uid: str = "") -> AsyncSession: ...
    def session(
        self, agent_key: str | session_pb2.Session, session_key: str = "", *, uid: str = ""
    ) -> AsyncSession:
        """Return what works on one session: by its keys, or by the resource. As `Hansard`."""
        if isinstance(agent_key, str):
            return AsyncSession(Place(self._link, agent_key, session_key, uid))
        made = agent_key
        return AsyncSession(Place(self._link, made.agent_key, made.key, made.uid))

    @property
    def addresses(self) -> tuple[str, ...]:
        """Where servers are, host:port."""
        return tuple(self._transport.addresses)

    @property
    def closed(self) -> bool:
        """The client is closed."""
        return self._transport.closed

    async def close(self) -> None:
        """End what is under way with ClientClosed."""
        await self._transport.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.close()
