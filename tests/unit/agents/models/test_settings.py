"""The setting `models`: what it takes, and that its secrets stay with it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from hansard.v1 import agent_pb2
from hansard_server.agents.models.catalog import ModelCatalog
from hansard_server.agents.models.settings import ModelSettings
from hansard_server.config import ConfigurationMistake, dump, load
from hansard_server.domain.errors import InvalidAgentConfiguration, ModelUnavailable

KEY = "sk-private-1234567890"


def entry(**fields: Any) -> dict[str, Any]:
    return {"provider": "openai", **fields}


def test_from_the_environment_and_from_a_file(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    file = tmp_path / "hansard.toml"
    file.write_text('[models."local/llama"]\nprovider = "openai"\nbase_url = "http://h:1/v1"\n')
    assert load({}, file).models["local/llama"].base_url == "http://h:1/v1"
    monkeypatch.setenv("HANSARD_MODELS", json.dumps({"gpt": entry(context_tokens=9)}))
    assert load({}).models["gpt"].context_tokens == 9


@pytest.mark.parametrize(
    ("models", "where"),
    [
        ({"a": entry(api_key=KEY, colour="red")}, "models.a.colour"),
        ({"a": entry(api_key=KEY, base_url="ftp://x")}, "models.a.base_url"),
        ({"a": entry(base_url=f"http://user:{KEY}@x")}, "models.a.base_url"),
        ({"a": entry(api_key=KEY, key_env="OTHER")}, "models.a"),
        ({"a": {"provider": KEY}}, "models.a.provider"),
        ({"hansard/x": entry()}, "models"),
        ({"a*": entry()}, "models"),
        ({"a/*": entry(model="b")}, "models"),
        ({"a b": entry()}, "models"),
    ],
)
def test_mistakes_are_named_and_show_no_secret(models: dict[str, Any], where: str) -> None:
    with pytest.raises(ConfigurationMistake) as raised:
        load({"models": models})
    assert str(raised.value).startswith(f"{where}: ")
    assert KEY not in str(raised.value)


def test_secrets_are_shown_only_to_processes_of_this_server() -> None:
    settings = load({"models": {"a": entry(api_key=KEY, headers={"x-key": KEY})}})
    assert KEY not in repr(settings)
    assert KEY not in settings.model_dump_json()
    assert load(json.loads(dump(settings))).models == settings.models


def test_where_a_key_comes_from() -> None:
    variables = {"OPENAI_API_KEY": "usual", "MINE": "mine"}

    def key(**fields: Any) -> str:
        return ModelSettings.model_validate(entry(**fields)).find_key(variables)

    assert key() == "usual"
    assert key(api_key=KEY) == KEY
    assert key(key_env="MINE") == "mine"
    # A server elsewhere is not handed the key of OpenAI.
    assert key(base_url="http://h/v1") == ""


def test_names_and_families() -> None:
    provided = {name: ModelSettings.model_validate(entry()) for name in ("gpt", "o/*", "o/big/*")}
    catalog = ModelCatalog(provided=provided)
    assert catalog.get("gpt") is catalog.get("gpt")
    assert catalog.get("o/x") is catalog.get("o/x")
    for name in ("o/", "other", "gpt2"):
        with pytest.raises(ModelUnavailable, match=r"gpt, hansard/.*o/\*"):
            catalog.get(name)
    bad = agent_pb2.Model(name="o/x")
    bad.parameters.update({"temperature": 9})
    with pytest.raises(InvalidAgentConfiguration):
        catalog.check(bad)
    catalog.check(agent_pb2.Model(name="known/elsewhere"))
