"""Fixtures for tests of the client library without a server."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from tests.support.client import Caller


@pytest.fixture(params=["blocking", "asynchronous"])
def call(request: pytest.FixtureRequest) -> Callable[..., Caller[Any]]:
    """Give the maker of clients of one kind: `call(transport)`."""

    def make(transport: Any, **settings: float) -> Caller[Any]:
        return Caller(request.param, transport, **settings)

    return make
