"""The client for programs that wait for answers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any, Self, overload

from hansard.v1 import session_pb2
from hansard_client.blocking import BlockingTransport
from hansard_client.channels import (
    DEFAULT_PATIENCE_S,
    DEFAULT_TARGET,
    DEFAULT_TIMEOUT_S,
    Endpoints,
    Tls,
)
from hansard_client.link import Link
from hansard_client.methods import Iterating, Part, Returning, Streaming
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


class Agents(Part[Link]):
    """Agents: who answers in sessions."""

    create = Returning(agents.create)
    create_from = Returning(agents.create_from)
    get = Returning(agents.get)
    list = Iterating(agents.list_)
    update = Returning(agents.update)
    patch = Returning(agents.patch)
    delete = Returning(agents.delete)


class Sessions(Part[Link]):
    """Sessions: conversations with an agent. What happens in one is done by `Hansard.session`."""

    create = Returning(sessions.create)
    get = Returning(sessions.get)
    list = Iterating(sessions.list_)
    update = Returning(sessions.update)
    patch = Returning(sessions.patch)
    delete = Returning(sessions.delete)


class ApiKeys(Part[Link]):
    """API keys: who is let in, and what they may do."""

    create = Returning(api_keys.create)
    list = Iterating(api_keys.list_)
    revoke = Returning(api_keys.revoke)
    issue_token = Returning(api_keys.issue_token)


class Corpora(Part[Link]):
    """Corpora: documents that many sessions search."""

    create = Returning(corpora.create)
    get = Returning(corpora.get)
    list = Iterating(corpora.list_)
    delete = Returning(corpora.delete)
    index = Returning(corpora.index)
    list_documents = Iterating(corpora.list_documents)
    delete_document = Returning(corpora.delete_document)
    search = Returning(corpora.search)


class Events(Part[Place]):
    """Events: the record of a session."""

    get = Returning(events.get)
    list = Iterating(events.list_)
    append = Returning(conversations.append)
    hide = Returning(events.hide)
    unhide = Returning(events.unhide)
    delete = Returning(events.delete)


class Turns(Part[Place]):
    """Turns: what became of inputs."""

    get = Returning(conversations.get_turn)
    list = Iterating(turns.list_)
    cancel = Returning(turns.cancel)
    follow = Streaming(conversations.follow)


class Artifacts(Part[Place]):
    """Artifacts: the files of a session."""

    upload = Returning(artifacts.upload)
    get = Returning(artifacts.get)
    list = Iterating(artifacts.list_)
    download = Iterating(artifacts.download)
    read = Returning(artifacts.read)
    save = Returning(artifacts.save)
    delete = Returning(artifacts.delete)


class Session(Part[Place]):
    """One session. Nothing is asked of the server to make it.

    Attributes:
        agent_key: who answers in it.
        key: its key.
        uid: the incarnation that is meant; empty: whichever has the key.
        events: its record.
        turns: what became of its inputs.
        artifacts: its files.
    """

    get = Returning(sessions.get_this)
    update = Returning(sessions.update_this)
    delete = Returning(sessions.delete_this)
    fork = Returning(sessions.fork)
    send = Streaming(conversations.send)
    stream = Streaming(conversations.stream)
    ask = Returning(conversations.ask)
    submit = Returning(conversations.submit)
    append = Returning(conversations.append)
    interrupt = Returning(conversations.interrupt)
    watch = Iterating(conversations.watch)
    watch_all = Iterating(conversations.watch_all)

    def __init__(self, place: Place) -> None:
        super().__init__(place)
        self.agent_key = place.agent_key
        self.key = place.session_key
        self.uid = place.uid
        self.events = Events(place)
        self.turns = Turns(place)
        self.artifacts = Artifacts(place)


class Hansard:
    """A client; a context manager that closes it. Threads may share it.

    Failures that pass are met by trying again, where that is safe: reads; writes under the
    `request_id` that each of them has; streams, which go on where they broke. What else fails
    raises a `HansardError`.

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
        """Prepare to call; nothing is connected yet.

        Args:
            target: host:port; several (a sequence, or with commas between) are servers of one
                store, of which another is called when one fails.
            api_key: sent with every call. Without `tls` it can be read on the way.
            tls: how the connection is encrypted; True: as gRPC does by itself.
            timeout_s: how long one attempt of a call may take that answers once.
            patience_s: how long failures are met by trying again without anything coming back.
            first_contact_s: the same as long as no server has answered; by default `patience_s`.
            options: gRPC's channel arguments, besides the client's own.

        Raises ValueError.
        """
        self._transport = BlockingTransport(
            Endpoints(target, api_key=api_key, tls=tls, options=options)
        )
        self._link = Link(
            self._transport,
            timeout_s=timeout_s,
            patience_s=patience_s,
            first_contact_s=patience_s if first_contact_s is None else first_contact_s,
        )
        self.agents = Agents(self._link)
        self.sessions = Sessions(self._link)
        self.api_keys = ApiKeys(self._link)
        self.corpora = Corpora(self._link)

    @overload
    def session(self, session: session_pb2.Session, /) -> Session: ...
    @overload
    def session(self, agent_key: str, session_key: str, *, uid: str = "") -> Session: ...
    def session(
        self, agent_key: str | session_pb2.Session, session_key: str = "", *, uid: str = ""
    ) -> Session:
        """Return what works on one session: by its keys, or by the resource.

        With its `uid`, which the resource has, another session that has got the key meanwhile is
        SessionNotFound wherever the contract can tell. Nothing is asked of the server.
        """
        if isinstance(agent_key, str):
            return Session(Place(self._link, agent_key, session_key, uid))
        made = agent_key
        return Session(Place(self._link, made.agent_key, made.key, made.uid))

    @property
    def addresses(self) -> tuple[str, ...]:
        """Where servers are, host:port."""
        return tuple(self._transport.addresses)

    @property
    def closed(self) -> bool:
        """The client is closed."""
        return self._transport.closed

    def close(self) -> None:
        """End what is under way with ClientClosed; from any thread."""
        self._transport.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()
