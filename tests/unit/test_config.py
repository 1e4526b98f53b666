"""Settings: where a value comes from, and what mistakes say."""

from __future__ import annotations

from pathlib import Path

import pytest

from hansard_server.config import (
    ConfigurationMistake,
    Settings,
    describe,
    find_exposures,
    is_loopback,
    load,
    split_listen,
)
from hansard_server.domain.limits import Limits


def test_flag_beats_environment_beats_file_beats_default(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "hansard.toml"
    file.write_text('listen = "127.0.0.1:3"\nqueue_max_inputs = 3\nmetadata_max_depth = 3\n')
    monkeypatch.setenv("HANSARD_LISTEN", "127.0.0.1:2")
    monkeypatch.setenv("HANSARD_QUEUE_MAX_INPUTS", "2")
    settings = load({"listen": "127.0.0.1:1"}, file)
    assert settings.listen == "127.0.0.1:1"
    assert settings.queue_max_inputs == 2
    assert settings.metadata_max_depth == 3
    assert settings.request_max_bytes == Limits().request_max_bytes


def test_limits_have_the_contract_as_their_default() -> None:
    assert load({}).limits == Limits()


def test_default_places_follow_the_data_folder() -> None:
    settings = load({"data_dir": "/d"})
    assert settings.store_url == "sqlite:////d/hansard.db"
    assert settings.artifacts_url == "/d/artifacts"
    settings = load({"store": "postgresql://h/d", "artifacts": "s3://b"})
    assert (settings.store_url, settings.artifacts_url) == ("postgresql://h/d", "s3://b")


def test_every_setting_is_described() -> None:
    rows = describe()
    assert [row.name for row in rows] == list(Settings.model_fields)
    for row in rows:
        assert row.description
        assert row.environment == f"HANSARD_{row.name.upper()}"
    rates = {row.name: row.unit for row in rows if row.name.endswith("_per_s")}
    assert set(rates.values()) == {"1/s"}
    times = {row.unit for row in rows if row.name.endswith("_s") and row.name not in rates}
    assert times == {"s"}
    assert {row.unit for row in rows if row.name.endswith("_bytes")} == {"bytes"}


@pytest.mark.parametrize("text", ["x = ", "nothing = 1", 'queue_max_inputs = "many"', "\xff"])
def test_bad_file_is_a_mistake(tmp_path: Path, text: str) -> None:
    file = tmp_path / "hansard.toml"
    file.write_bytes(text.encode("latin-1"))
    with pytest.raises(ConfigurationMistake) as raised:
        load({}, file)
    assert "\n" not in str(raised.value)


def test_mistake_does_not_show_the_value() -> None:
    with pytest.raises(ConfigurationMistake) as raised:
        load({"page_token_secret": "hunter2"})
    assert "hunter2" not in str(raised.value)
    assert "16 characters" in str(raised.value)


@pytest.mark.parametrize(
    ("listen", "expected"),
    [("127.0.0.1:0", ("127.0.0.1", 0)), ("[::1]:65535", ("::1", 65535)), ("h:1", ("h", 1))],
)
def test_listen_is_split(listen: str, expected: tuple[str, int]) -> None:
    assert split_listen(listen) == expected


@pytest.mark.parametrize("listen", ["", "h", ":1", "h:", "h:x", "h:65536", "h:-1", "h:\u0661"])
def test_bad_listen_is_refused(listen: str) -> None:
    with pytest.raises(ValueError, match="host:port"):
        split_listen(listen)
    with pytest.raises(ConfigurationMistake, match="listen: must be host:port"):
        load({"listen": listen})


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        *(("localhost", True), ("127.0.0.1", True), ("127.8.9.1", True), ("::1", True)),
        *(("0.0.0.0", False), ("::", False), ("10.0.0.1", False), ("example.org", False)),  # noqa: S104 - that is what is warned of
    ],
)
def test_exposure_is_told(host: str, *, expected: bool) -> None:
    assert is_loopback(host) is expected
    listen = f"[{host}]:1" if ":" in host else f"{host}:1"
    tls = {"tls_certificate": "c", "tls_key": "k"}

    def told(**settings: object) -> list[str]:
        return find_exposures(load({"listen": listen, "http_listen": "off", **settings}))

    if expected:
        assert told(insecure=True) == told() == []
        return
    assert ["authentication" in words for words in told(insecure=True)] == [True, False]
    assert ["TLS" in words for words in told()] == [True]
    assert told(**tls) == []
    assert len(told(**tls, insecure=True)) == 1
    assert told(**tls, insecure=True, tls_client_ca="a") == []
    [warning] = told(**tls, http_listen=listen)
    assert warning.startswith("http_listen: ")
