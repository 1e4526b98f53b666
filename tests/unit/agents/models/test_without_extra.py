"""A plain install: nothing of providers is loaded until one is called, and then it says so."""

from __future__ import annotations

import subprocess
import sys
from textwrap import dedent


def run(program: str) -> str:
    """Return what a new Python process with this program prints."""
    done = subprocess.run(
        [sys.executable, "-c", dedent(program)], capture_output=True, text=True, check=True
    )
    return done.stdout.strip()


def test_a_server_with_models_loads_no_library_of_theirs() -> None:
    loaded = run("""
        import sys
        from hansard_server import app
        from hansard_server.agents.models.catalog import ModelCatalog
        from hansard_server.agents.models.settings import ModelSettings
        ModelCatalog(provided={"m": ModelSettings(provider="openai")}).get("m")
        libraries = {"pydantic_ai", "openai", "anthropic", "google.genai", "httpx2"}
        print(sorted(libraries & sys.modules.keys()))
    """)
    assert loaded == "[]"


def test_without_the_extra_a_turn_says_what_is_missing() -> None:
    said = run("""
        import asyncio, sys
        sys.modules["pydantic_ai"] = None
        from hansard_server.agents.api import ModelFailed, ModelRequest
        from hansard_server.agents.models.catalog import ModelCatalog
        from hansard_server.agents.models.settings import ModelSettings
        model = ModelCatalog(provided={"m": ModelSettings(provider="openai")}).get("m")
        request = ModelRequest(step=0, instructions=(), history=(), tools=(), parameters={})
        async def call():
            try:
                async for _ in model.respond(request):
                    pass
            except ModelFailed as error:
                print(error)
        asyncio.run(call())
    """)
    assert "pip install 'hansard[models]'" in said
