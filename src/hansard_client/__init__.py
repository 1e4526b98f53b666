"""The client library of Hansard: sessions of agents, over failures and restarts of servers.

    from hansard_client import Hansard

    with Hansard("127.0.0.1:50051") as hansard:
        session = hansard.session("support", "order-12345")
        for event in session.send("Within how many days may goods be returned?"):
            print(event.sequence, event.WhichOneof("payload"))

`AsyncHansard` is the same for an event loop. Resources and events are the messages of the contract,
`hansard.v1`. `errors` has an exception for each of its reasons.
"""

from hansard_client.async_client import AsyncHansard
from hansard_client.channels import Tls
from hansard_client.client import Hansard
from hansard_client.errors import (
    ClientClosed,
    Conflict,
    HansardError,
    InvalidArgument,
    NotFound,
    ResourceExhausted,
    SessionBusy,
    SessionNotFound,
    Unavailable,
)
from hansard_client.files import File
from hansard_client.inputs import approve, message, reject, tool_output
from hansard_client.items import (
    Accepted,
    Answer,
    CaughtUp,
    Changed,
    Delta,
    Queued,
    RequiresAction,
    TurnEnd,
    TurnItem,
    Void,
    WatchItem,
)
from hansard_client.methods import AsyncTurnStream, TurnStream

__all__ = [
    "Accepted",
    "Answer",
    "AsyncHansard",
    "AsyncTurnStream",
    "CaughtUp",
    "Changed",
    "ClientClosed",
    "Conflict",
    "Delta",
    "File",
    "Hansard",
    "HansardError",
    "InvalidArgument",
    "NotFound",
    "Queued",
    "RequiresAction",
    "ResourceExhausted",
    "SessionBusy",
    "SessionNotFound",
    "Tls",
    "TurnEnd",
    "TurnItem",
    "TurnStream",
    "Unavailable",
    "Void",
    "WatchItem",
    "approve",
    "message",
    "reject",
    "tool_output",
]
