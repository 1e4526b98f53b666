"""`hansard keys`: who is let in."""

from __future__ import annotations

import datetime as dt
from typing import Annotated

import typer

from hansard.v1.access_pb2 import ApiKey, Role, RoleGrant
from hansard_client.commands.common import LIMIT_DEFAULT, Caller, Limit, Mistake, Yes, command
from hansard_client.commands.rendering import Column, moment

app = typer.Typer(help="Keys: who is let in.", no_args_is_help=True)

_PREFIX = "ROLE_"
_ROLES = {
    value.name.removeprefix(_PREFIX).lower(): value.number
    for value in Role.DESCRIPTOR.values
    if value.number
}


def _role(text: str) -> RoleGrant:
    name, _, agent = text.partition(":")
    number = _ROLES.get(name)
    if number is None:
        raise Mistake(f"--role {text}: the role must be one of {', '.join(_ROLES)}")
    if (number == Role.ROLE_ADMINISTRATOR) == bool(agent):
        raise Mistake(
            f"--role {text}: must be administrator, or a role on an agent, <role>:<agent>"
        )
    return RoleGrant(role=Role.ValueType(number), agent_key=agent)


def _roles(key: ApiKey) -> str:
    shown = []
    for grant in key.roles:
        name = Role.Name(grant.role).removeprefix(_PREFIX).lower()
        shown.append(f"{name}:{grant.agent_key}" if grant.agent_key else name)
    return ", ".join(shown)


_COLUMNS = (
    Column("ID", lambda key: key.id, whole=True),
    Column("NAME", lambda key: key.name),
    Column("ROLES", _roles),
    Column("CREATED", lambda key: moment(key.created_at)),
    Column("EXPIRES", lambda key: moment(key.expires_at) if key.HasField("expires_at") else ""),
    Column("USED", lambda key: moment(key.last_used_at) if key.HasField("last_used_at") else ""),
    Column("REVOKED", lambda key: moment(key.revoked_at) if key.HasField("revoked_at") else ""),
)


def _list(
    caller: Caller,
    *,
    every: Annotated[bool, typer.Option("--all", help="Revoked and expired ones too.")] = False,
    limit: Limit = LIMIT_DEFAULT,
) -> None:
    """List keys, the newest first, without their secrets."""
    keys = caller.hansard.api_keys.list(include_revoked=every, limit=limit or None)
    caller.show(_COLUMNS, keys, limit=limit)


def _create(
    caller: Caller,
    name: Annotated[str, typer.Argument(help="What people call it.")],
    *,
    role: Annotated[
        list[str],
        typer.Option(
            help="administrator, or <role>:<agent> with agent_administrator, agent_developer, "
            "agent_viewer or agent_user; may be repeated."
        ),
    ],
    expires_in_days: Annotated[
        float, typer.Option(help="When it expires; 0: never.", min=0, max=36_500)
    ] = 0,
) -> None:
    """Create a key and print it. It is shown this once."""
    expires_at = None
    if expires_in_days:
        expires_at = dt.datetime.now(dt.UTC) + dt.timedelta(days=expires_in_days)
    made = caller.hansard.api_keys.create(
        name=name, roles=[_role(text) for text in role], expires_at=expires_at
    )
    if caller.as_json:
        caller.show_one(made)
        return
    caller.out.print(made.secret, soft_wrap=True)
    caller.say(f"Created: {made.id}. The key is shown this once.")


def _revoke(
    caller: Caller,
    key_id: Annotated[str, typer.Argument(metavar="ID", help="The key's id, key_…")],
    *,
    yes: Yes = False,
) -> None:
    """Revoke a key for good, with the tokens that were issued for it."""
    caller.confirm(f"Whoever uses the key {key_id} will be refused.", yes=yes)
    caller.hansard.api_keys.revoke(key_id)
    caller.say(f"Revoked: {key_id}")


command(app, "list")(_list)
command(app, "create")(_create)
command(app, "revoke", json=False)(_revoke)
