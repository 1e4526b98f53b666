"""The two interceptors that decide who comes in: who it is, before anything is read of the request,
and whether the caller may make this call, once it is known what it is about.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

from hansard_server.access.authentication import Authenticator
from hansard_server.access.authorization import Authorizer
from hansard_server.access.key_cache import unauthorized
from hansard_server.access.rules import Need, Rule
from hansard_server.domain.access import EVERYBODY, Caller
from hansard_server.servicers.caller import CALLER
from hansard_server.servicers.interceptors import Call, Proceed


class Authentication:
    """Sets `call.caller` and CALLER: from here on it is known who calls, or the call is refused."""

    name = "authentication"

    def __init__(self, authenticator: Authenticator | None, authorizer: Authorizer) -> None:
        """Without an authenticator everybody is an administrator of the default tenant."""
        self._authenticator = authenticator
        self._authorizer = authorizer

    async def __call__(self, call: Call, proceed: Proceed) -> Any:
        """Serve the call. Raises Unauthorized, Forbidden, StoreUnavailable.

        A stream ends with Unauthorized when its key ends.
        """
        rule = self._authorizer.rule_of(call.method.name)
        if rule.need is Need.NOTHING:
            return await proceed(call)
        if self._authenticator is None:
            _enter(call, EVERYBODY)
            return await proceed(call)
        identity = await self._authenticator.identify(call.metadata)
        _enter(call, identity.caller)
        self._authorizer.check_call(identity.caller, rule)
        if not (call.method.request_streaming or call.method.response_streaming):
            return await proceed(call)
        scope = asyncio.timeout(None)
        try:
            async with scope:
                with self._authenticator.keys.hold(identity.known, scope):
                    return await proceed(call)
        except TimeoutError:
            if scope.expired():
                raise unauthorized() from None
            raise


class Authorization:
    """Holds the parsed request to the rule of its call: the innermost interceptor."""

    name = "authorization"

    def __init__(self, authorizer: Authorizer) -> None:
        self._authorizer = authorizer

    async def __call__(self, call: Call, proceed: Proceed) -> Any:
        """Serve the call. Raises Forbidden, AgentNotFound."""
        rule = self._authorizer.rule_of(call.method.name)
        caller = call.caller
        if caller is not None and rule.agents:
            if call.method.request_streaming:
                call.request = self._check_each(caller, rule, call.request)
            else:
                await self._authorizer.check_request(caller, rule, call.request)
        return await proceed(call)

    async def _check_each(
        self, caller: Caller, rule: Rule, requests: AsyncIterator[Any]
    ) -> AsyncIterator[Any]:
        async for request in requests:
            if not isinstance(request, memoryview):
                await self._authorizer.check_request(caller, rule, request)
            yield request


def _enter(call: Call, caller: Caller) -> None:
    call.caller = caller
    CALLER.set(caller)
