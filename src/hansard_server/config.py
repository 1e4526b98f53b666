"""Settings of the server: each has one name, unit, default and description, here and nowhere else.

A value comes from a flag, else the environment (`HANSARD_<NAME>`), else the TOML file, else the
default.
"""

from __future__ import annotations

import ipaddress
import json
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal, Self, cast

from pydantic import Field, SecretStr, ValidationError, field_validator, model_validator
from pydantic_settings import (
    BaseSettings,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    TomlConfigSettingsSource,
)
from pydantic_settings.exceptions import SettingsError

from hansard_server.agents.models.settings import DUMP_SECRETS, ModelSettings, check_model_names
from hansard_server.domain.limits import KIB, MIB, Limits
from hansard_server.domain.values import dataclass

ENVIRONMENT_PREFIX = "HANSARD_"
_PORT_MAX = 65_535
_OFF = frozenset({"", "off"})


class ConfigurationMistake(Exception):  # noqa: N818 - reads as what it is
    """The settings can't be used; the message is one line for the operator."""


def _setting(
    default: Any,
    description: str,
    *,
    unit: str = "",
    ge: float | None = None,
    le: float | None = None,
) -> Any:
    return Field(default, description=description, ge=ge, le=le, json_schema_extra={"unit": unit})


_PER_SECOND: dict[str, Any] = {"unit": "1/s", "ge": 0, "le": 1_000_000}


class Settings(BaseSettings):
    """All settings; see `describe` for the table of the README."""

    # `load` makes a class of it, whose schema would be the second.
    model_config: ClassVar[SettingsConfigDict] = SettingsConfigDict(
        env_prefix=ENVIRONMENT_PREFIX,
        extra="forbid",
        frozen=True,
        env_ignore_empty=True,
        defer_build=True,
    )

    listen: str = _setting(
        "127.0.0.1:50051",
        "Where calls are taken. Port 0: a free one, which the log names.",
        unit="host:port",
    )
    http_listen: str = _setting(
        "127.0.0.1:8080",
        "Where HTTP is served; `off`: nowhere. The default port, when it is taken, is left alone.",
        unit="host:port",
    )
    http_cors_origins: str = _setting(
        "",
        "Web origins whose pages may call over HTTP, separated by commas; none: CORS is off.",
    )
    insecure: bool = _setting(
        default=False,
        description="No authentication: whoever reaches the port may do everything.",
    )
    api_key_cache_s: float = _setting(
        5.0,
        "How long a key that was revoked at another server may still be taken here.",
        unit="s",
        ge=0.05,
        le=600,
    )
    tls_certificate: Path | None = _setting(
        None,
        "The server's certificate and those that vouch for it. With it calls are taken over TLS "
        "alone. The three files are read again when they change.",
        unit="PEM file",
    )
    tls_key: Path | None = _setting(
        None, "The certificate's private key, not encrypted.", unit="PEM file"
    )
    tls_client_ca: Path | None = _setting(
        None,
        "Authorities of clients: every client must show a certificate of one of them.",
        unit="PEM file",
    )
    data_dir: Path = _setting(Path("hansard-data"), "Folder of all that has no place of its own.")
    store: str = _setting(
        "",
        "Database: sqlite:///<path> or postgresql://…. Default: hansard.db in the data folder.",
        unit="URL",
    )
    artifacts: str = _setting(
        "",
        "Where the bytes of artifacts are kept: a folder, s3://bucket/prefix, gs:// or az://. "
        "Default: artifacts in the data folder.",
        unit="folder or URL",
    )
    artifacts_endpoint: str = _setting(
        "",
        "Where S3, or what speaks its language, is. Default: AWS_ENDPOINT_URL, else Amazon's.",
        unit="URL",
    )
    artifacts_region: str = _setting(
        "", "The region of the S3 bucket. Default: AWS_REGION, else us-east-1."
    )
    artifacts_access_key_id: str = _setting(
        "",
        "Credentials for S3. Default: AWS_ACCESS_KEY_ID, else what the machine has; those of "
        "gs:// and az:// come from the environment alone.",
    )
    artifacts_secret_access_key: SecretStr = _setting(
        SecretStr(""), "The secret of that key. Default: AWS_SECRET_ACCESS_KEY."
    )
    log_level: Literal["debug", "info", "warning", "error"] = _setting(
        "info", "What is logged at least: debug, info, warning or error."
    )
    reuse_port: bool = _setting(
        default=False,
        description="Share the port with other processes of this machine (PostgreSQL only).",
    )
    workers: int = _setting(
        1,
        "Processes that share the port; more than one need PostgreSQL.",
        unit="processes",
        ge=1,
        le=256,
    )
    page_token_secret: SecretStr = _setting(
        SecretStr(""),
        "Authenticates page tokens; the same for all replicas, 16 characters at least. Default: "
        "made once, page-token.key in the data folder.",
    )
    drain_deadline_s: float = _setting(
        20.0, "A stopping server is gone after this time.", unit="s", ge=0.1, le=3_600
    )
    drain_notice_s: float = _setting(
        0.0,
        "A stopping server still answers calls (with SERVER_SHUTTING_DOWN) for at least this time, "
        "so that load balancers see its health.",
        unit="s",
        ge=0,
        le=3_600,
    )
    health_interval_s: float = _setting(
        2.0, "How often the store is checked for the health service.", unit="s", ge=0.01, le=3_600
    )
    sweep_interval_s: float = _setting(
        30.0,
        "How often expired sessions are deleted, and deleted rows removed.",
        unit="s",
        ge=0.01,
        le=86_400,
    )
    artifact_sweep_interval_s: float = _setting(
        300.0,
        "How often expired artifacts are deleted, and bytes looked for that nobody refers to.",
        unit="s",
        ge=0.01,
        le=86_400,
    )
    artifact_grace_s: float = _setting(
        3_600.0,
        "How long bytes are kept to which no artifact refers any more.",
        unit="s",
        ge=0.01,
        le=2_592_000,
    )
    upload_max_s: float = _setting(
        3_600.0,
        "Longest upload. The bytes of one whose server was killed are looked at after this time.",
        unit="s",
        ge=0.1,
        le=86_400,
    )
    keep_deleted_s: float = _setting(
        86_400.0,
        "How long the request ids of deleted agents and sessions are remembered.",
        unit="s",
        ge=0,
        le=31_536_000,
    )
    lease_s: float = _setting(
        30.0,
        "How long a turn is left to a server that gives no sign of life.",
        unit="s",
        ge=1,
        le=3_600,
    )
    action_timeout_s: float = _setting(
        86_400.0,
        "How long a turn waits for an approval or for a client's tool, unless the tool's "
        "configuration says otherwise.",
        unit="s",
        ge=0.1,
        le=31_536_000,
    )
    sub_agent_max_s: float = _setting(
        1_800.0,
        "How long a call of a sub-agent may take, unless the tool's configuration says otherwise.",
        unit="s",
        ge=0.1,
        le=604_800,
    )
    sub_agent_max_depth: int = _setting(
        3,
        "So many levels deep sub-agents may have sub-agents.",
        unit="levels",
        ge=0,
        le=16,
    )
    sub_agent_max_calls: int = _setting(
        32,
        "How many calls of sub-agents a turn may make; one more is an error.",
        unit="calls",
        ge=0,
        le=1_000,
    )
    poll_floor_s: float = _setting(
        5.0,
        "How often a server looks into the store for news of the sessions that are followed, since "
        "a hint may be lost.",
        unit="s",
        ge=0.05,
        le=600,
    )
    stall_s: float = _setting(
        60.0,
        "A stream whose client has taken nothing for so long is ended, with the place to go on "
        "from. 0: never.",
        unit="s",
        ge=0,
        le=86_400,
    )
    peer_listen: str = _setting(
        "127.0.0.1:0",
        "Where other replicas ask this one about its turns (PostgreSQL only): a private address. "
        "Port 0: a free one.",
        unit="host:port",
    )
    peer_host: str = _setting(
        "",
        "The host by which other replicas reach `peer_listen`. Default: the host that it names.",
        unit="host",
    )
    request_max_bytes: int = _setting(
        4 * MIB, "Largest request message.", unit="bytes", ge=KIB, le=512 * MIB
    )
    metadata_max_bytes: int = _setting(
        64 * KIB, "Largest metadata, serialized.", unit="bytes", ge=0, le=MIB
    )
    metadata_max_depth: int = _setting(
        16, "Deepest metadata; the object itself is level 1.", unit="levels", ge=1, le=32
    )
    input_max_bytes: int = _setting(
        MIB, "Most text in one input.", unit="bytes", ge=KIB, le=256 * MIB
    )
    event_max_bytes: int = _setting(
        MIB, "Largest event, as stored.", unit="bytes", ge=KIB, le=256 * MIB
    )
    artifact_max_bytes: int = _setting(512 * MIB, "Largest artifact.", unit="bytes", ge=0)
    session_artifacts_max_bytes: int = _setting(
        2 * 1024 * MIB, "The artifacts of one session together.", unit="bytes", ge=0
    )
    session_artifacts_max_files: int = _setting(
        1_000, "Artifacts of one session.", unit="files", ge=0
    )
    queue_max_inputs: int = _setting(
        16, "Inputs that may wait in one session.", unit="inputs", ge=0, le=10_000
    )
    document_max_bytes: int = _setting(
        MIB, "Largest text of a document in a corpus.", unit="bytes", ge=KIB, le=64 * MIB
    )

    outgoing_allow: str = _setting(
        "",
        "What may be called because an agent's configuration names it, separated by commas: "
        "`mcp.example.com`, `*.example.com:8443`, `10.1.0.0/16:*`, `*`. Without a port: 443. What "
        "is not public (private, loopback, link-local addresses) is called when a range of "
        "addresses has it. Default: nothing.",
    )
    connections: Path | None = _setting(
        None,
        "What agents may name instead of a URL, with its secrets: MCP servers and agents elsewhere "
        "([TOOLS.md](docs/TOOLS.md)).",
        unit="TOML file",
    )
    runtime_heartbeat_s: float = _setting(
        10.0,
        "How often an agent elsewhere must say something; after three times as long it is called "
        "again.",
        unit="s",
        ge=0.1,
        le=600,
    )

    session_max_events: int = _setting(
        0, "Events of one session; a turn that runs may go beyond. 0: any.", unit="events", ge=0
    )
    process_max_calls: int = _setting(
        1_000,
        "Calls that this process serves at a time, streams until their first response among them, "
        "and those that wait to be looked at; past that, calls are refused and told when to come "
        "again.",
        unit="calls",
        ge=1,
        le=1_000_000,
    )
    process_max_streams: int = _setting(
        20_000, "Streams of responses that this process serves.", unit="streams", ge=1, le=1_000_000
    )
    process_max_turns: int = _setting(
        1_000,
        "Turns that this process runs at a time; past that, input messages are refused.",
        unit="turns",
        ge=1,
        le=1_000_000,
    )
    process_max_uploads: int = _setting(
        100, "Uploads that this process takes at a time.", unit="uploads", ge=1, le=100_000
    )
    key_max_calls: int = _setting(
        1_000, "Calls that one key makes at a time, in each process.", unit="calls", ge=1
    )
    key_max_streams: int = _setting(
        10_000, "Streams that one key has open, in each process.", unit="streams", ge=1
    )
    key_max_calls_per_s: float = _setting(
        0.0, "Calls of one key, over all processes. 0: as many as it makes.", **_PER_SECOND
    )
    agent_max_sessions_per_s: float = _setting(
        100.0, "Sessions that are created of one agent, over all processes. 0: any.", **_PER_SECOND
    )
    agent_max_inputs_per_s: float = _setting(
        0.0, "Input messages that one agent is sent, over all processes. 0: any.", **_PER_SECOND
    )
    connection_max_streams: int = _setting(
        10_000,
        "Calls and streams at a time on one connection; clients hold further ones back.",
        unit="streams",
        ge=1,
        le=1_000_000,
    )
    connection_idle_s: float = _setting(
        900.0,
        "A connection without a call is closed after this time; clients open another when needed.",
        unit="s",
        ge=1,
        le=31_536_000,
    )

    models: dict[str, ModelSettings] = Field(
        default_factory=dict,
        description="The models of providers, by the names that agents give: see docs/MODELS.md.",
        json_schema_extra={"unit": "JSON"},
    )
    model_step_max_s: float = _setting(
        600.0,
        "How long a model call may take, its repetitions included, before its turn ends FAILED.",
        unit="s",
        ge=0.1,
        le=86_400,
    )
    turn_max_steps: int = _setting(
        64,
        "Model calls of one turn; it ends FAILED when its agent wants more.",
        unit="calls",
        ge=1,
        le=10_000,
    )
    model_max_retries: int = _setting(
        3,
        "How often a model call that failed is repeated, for agents that say nothing else.",
        unit="times",
        ge=0,
        le=10,
    )

    @field_validator("models")
    @classmethod
    def _check_models(cls, value: dict[str, ModelSettings]) -> dict[str, ModelSettings]:
        check_model_names(value)
        return value

    @field_validator("listen", "peer_listen")
    @classmethod
    def _check_listen(cls, value: str) -> str:
        split_listen(value)
        return value

    @field_validator("http_listen")
    @classmethod
    def _check_http_listen(cls, value: str) -> str:
        if value not in _OFF:
            split_listen(value)
        return value

    @field_validator("page_token_secret")
    @classmethod
    def _check_secret(cls, value: SecretStr) -> SecretStr:
        if 0 < len(value.get_secret_value()) < 16:  # noqa: PLR2004 - the description names it
            raise ValueError("must have 16 characters at least")
        return value

    @model_validator(mode="after")
    def _check_tls(self) -> Self:
        if (self.tls_certificate is None) != (self.tls_key is None):
            raise ValueError("tls_certificate and tls_key go together: give both or none")
        if self.tls_client_ca is not None and self.tls_certificate is None:
            raise ValueError("tls_client_ca needs tls_certificate and tls_key")
        return self

    @property
    def store_url(self) -> str:
        """The database's URL."""
        return self.store or f"sqlite:///{self.data_dir / 'hansard.db'}"

    @property
    def serves_http(self) -> bool:
        """Whether there is an HTTP door."""
        return self.http_listen not in _OFF

    @property
    def cors_origins(self) -> list[str]:
        """The web origins that may call over HTTP."""
        return [origin for part in self.http_cors_origins.split(",") if (origin := part.strip())]

    @property
    def artifacts_url(self) -> str:
        """Where artifacts are kept: a folder, or a URL."""
        return self.artifacts or str(self.data_dir / "artifacts")

    @property
    def limits(self) -> Limits:
        """The limits among the settings."""
        return Limits(**{name: getattr(self, name) for name in Limits.__dataclass_fields__})

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,  # noqa: ARG003 - the library's signature
        file_secret_settings: PydanticBaseSettingsSource,  # noqa: ARG003
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Return the sources, the strongest first; pydantic-settings calls this."""
        return init_settings, env_settings, TomlConfigSettingsSource(settings_cls)


@dataclass(frozen=True, slots=True)
class SettingDescription:
    """One row of the README's table."""

    name: str
    environment: str
    unit: str
    default: str
    description: str


def describe() -> list[SettingDescription]:
    """Return all settings, in the order in which they stand above."""
    rows = []
    for name, field in Settings.model_fields.items():
        extra = field.json_schema_extra
        unit = str(extra.get("unit", "")) if isinstance(extra, dict) else ""
        unset = field.default is None or isinstance(field.default, SecretStr)
        unset = unset or field.default_factory is not None
        default = "" if unset else str(field.default)
        if isinstance(field.default, bool):
            default = default.lower()
        environment = ENVIRONMENT_PREFIX + name.upper()
        rows.append(SettingDescription(name, environment, unit, default, field.description or ""))
    return rows


def load(flags: Mapping[str, object], config: Path | None = None) -> Settings:
    """Return the settings of flags, environment and file. Raises ConfigurationMistake."""
    if config is not None:
        _check_file(config)

    class FromFile(Settings):
        model_config = SettingsConfigDict(toml_file=config)

    try:
        return FromFile(**cast("Any", dict(flags)))
    except ValidationError as error:
        raise ConfigurationMistake(_one_line(error)) from None
    except SettingsError as error:
        raise ConfigurationMistake(str(error).splitlines()[0]) from None


def dump(settings: Settings) -> bytes:
    """Return what was set, secrets too, as a line of JSON: for another process of this server."""
    values = settings.model_dump(mode="json", exclude_unset=True, context={DUMP_SECRETS: True})
    for name in settings.model_fields_set:
        value = getattr(settings, name)
        if isinstance(value, SecretStr):
            values[name] = value.get_secret_value()
    return json.dumps(values).encode()


def find_exposures(settings: Settings) -> list[str]:
    """Return what the operator should know of who can reach the server; nothing when all is well.

    With `tls_client_ca` only those get through whose certificate one of its authorities signed.
    """
    found = []
    nobody_known = "without authentication: whoever reaches it may do everything"
    in_clear = "without TLS: whoever sees the traffic sees keys and content"
    if not is_loopback(split_listen(settings.listen)[0]):
        where = f"listen: {settings.listen} is open to other machines"
        if settings.insecure and settings.tls_client_ca is None:
            found.append(f"{where} {nobody_known}")
        if settings.tls_certificate is None:
            found.append(f"{where} {in_clear}")
    if settings.serves_http and not is_loopback(split_listen(settings.http_listen)[0]):
        where = f"http_listen: {settings.http_listen} is open to other machines"
        if settings.insecure:
            found.append(f"{where} {nobody_known}")
        found.append(f"{where} {in_clear}")
    return found


def split_listen(listen: str) -> tuple[str, int]:
    """Return host and port of `host:port`. Raises ValueError."""
    host, colon, port = listen.rpartition(":")
    if not colon or not host or not port.isascii() or not port.isdigit() or int(port) > _PORT_MAX:
        raise ValueError("must be host:port, such as 127.0.0.1:50051")
    return host.removeprefix("[").removesuffix("]"), int(port)


def is_loopback(host: str) -> bool:
    """Tell whether only this machine reaches the host."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _check_file(path: Path) -> None:
    try:
        tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigurationMistake(f"config: {path}: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigurationMistake(f"config: {path}: {error}") from None


def _one_line(error: ValidationError) -> str:
    # Never the value: it may be a password.
    return "; ".join(
        ": ".join(
            filter(None, (_place(problem["loc"]), _in_words(problem["type"], problem["msg"])))
        )
        for problem in error.errors(include_input=False, include_url=False, include_context=False)
    )


def _place(location: tuple[int | str, ...]) -> str:
    # Empty for what is wrong with several settings together.
    return ".".join(str(part) for part in location)


def _in_words(kind: str, message: str) -> str:
    if kind == "extra_forbidden":
        return "there is no such setting"
    return message.removeprefix("Value error, ").removeprefix("Input ")
