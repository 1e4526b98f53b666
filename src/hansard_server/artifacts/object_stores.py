"""Opening the object store that a location names: a folder, or the bucket of a cloud."""

from __future__ import annotations

import os
import secrets
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlsplit

import obstore
from obstore.exceptions import (
    BaseError,
    NotFoundError,
    PermissionDeniedError,
    UnauthenticatedError,
)
from obstore.store import LocalStore, ObjectStore, from_url

from hansard_server.domain.values import dataclass

if TYPE_CHECKING:
    from obstore.store import ClientConfig, RetryConfig, S3Config

_S3 = frozenset({"s3", "s3a"})
_CLOUDS = _S3 | {"gs", "az", "azure", "adl", "abfs", "abfss"}
_ENDPOINT_VARIABLES = ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "AWS_ENDPOINT")
_CONNECT_TIMEOUT = timedelta(seconds=5)
_RETRIES: RetryConfig = {"max_retries": 4, "retry_timeout": timedelta(seconds=30)}
_PROBE_RETRIES: RetryConfig = {"max_retries": 2, "retry_timeout": timedelta(seconds=10)}
_PROBE_FOLDER = "probe"
_WORDS_MAX_CHARACTERS = 300


class BadLocation(ValueError):  # noqa: N818 - reads as what it is
    """The location, or an option for it, can't be used; says why, to the operator."""


class Unreachable(Exception):  # noqa: N818 - a state of affairs
    """The bucket can't be written, read or listed; says why, to the operator."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CloudOptions:
    """What S3, or what speaks its language, is reached with; what is empty the environment says.

    Attributes:
        endpoint: its URL, `https://…` or `http://…`.
        region: the bucket's region.
        access_key_id: with `secret_access_key`, the credentials.
        secret_access_key: see there.
    """

    endpoint: str = ""
    region: str = ""
    access_key_id: str = ""
    secret_access_key: str = ""

    def __bool__(self) -> bool:
        """Tell whether any is given."""
        return any((self.endpoint, self.region, self.access_key_id, self.secret_access_key))


@dataclass(frozen=True, slots=True)
class Place:
    """An object store; `root` is its folder when it is on this machine's disk."""

    store: ObjectStore
    root: Path | None = None


def open_place(location: str | Path, options: CloudOptions | None = None) -> Place:
    """Return the object store of a folder (made if missing), a `file://` URL, or a cloud's URL:
    `s3://bucket/prefix`, `gs://bucket/prefix`, `az://container/prefix`. Nothing is connected yet.

    Raises BadLocation, OSError.
    """
    options = options or CloudOptions()
    scheme, separator, _ = str(location).partition("://")
    if not separator or scheme == "file":
        if options:
            raise BadLocation("endpoint, region and credentials are for s3:// alone")
        url = urlsplit(str(location))
        path = unquote(url.path) if scheme == "file" and separator else str(location)
        root = Path(path).absolute()
        root.mkdir(parents=True, exist_ok=True)
        return Place(LocalStore(root), root)
    return Place(_open_cloud(str(location), options, _RETRIES))


async def probe(location: str | Path, options: CloudOptions | None = None) -> None:
    """Return when the location's bucket was written, listed, deleted from; folders are not tried.

    Raises Unreachable.
    """
    scheme, separator, _ = str(location).partition("://")
    if not separator or scheme == "file":
        return
    store = _open_cloud(str(location), options or CloudOptions(), _PROBE_RETRIES)
    path = f"{_PROBE_FOLDER}/{secrets.token_hex(8)}"
    try:
        await obstore.put_async(store, path, b"Hansard may write here.")
        await obstore.list_with_delimiter_async(store, _PROBE_FOLDER)
        await obstore.delete_async(store, path)
    except (BaseError, OSError) as error:
        raise Unreachable(_in_words(error)) from None


def _open_cloud(location: str, options: CloudOptions, retries: RetryConfig) -> ObjectStore:
    url = urlsplit(location)
    if url.scheme not in _CLOUDS and url.scheme != "memory":
        known = ", ".join(f"{scheme}://" for scheme in ("file", "s3", "gs", "az"))
        raise BadLocation(f"can't be a URL of the kind {url.scheme}://; these can: {known}")
    if url.scheme in _CLOUDS and (not url.hostname or url.query or url.fragment or url.password):
        raise BadLocation(f"must be like {url.scheme}://bucket/prefix, and nothing else")
    if options and url.scheme not in _S3:
        raise BadLocation("endpoint, region and credentials are for s3:// alone")
    if options.endpoint and not options.endpoint.startswith(("https://", "http://")):
        raise BadLocation("the endpoint must begin with https:// or http://")
    if bool(options.access_key_id) != bool(options.secret_access_key):
        raise BadLocation("access key id and secret access key go together: give both or none")
    try:
        if url.scheme in _S3:
            return from_url(
                location,
                config=_s3_config(options),
                client_options=_client(options),
                retry_config=retries,
            )
        if url.scheme in _CLOUDS:
            client: ClientConfig = {"connect_timeout": _CONNECT_TIMEOUT}
            return from_url(location, client_options=client, retry_config=retries)
        return from_url(location)
    except (BaseError, ValueError) as error:
        raise BadLocation(f"can't be used: {_in_words(error)}") from None


def _s3_config(options: CloudOptions) -> S3Config:
    config: S3Config = {}
    if options.endpoint:
        config["endpoint"] = options.endpoint
    if options.region:
        config["region"] = options.region
    if options.access_key_id:
        config["access_key_id"] = options.access_key_id
        config["secret_access_key"] = options.secret_access_key
    return config


def _client(options: CloudOptions) -> ClientConfig:
    client: ClientConfig = {"connect_timeout": _CONNECT_TIMEOUT}
    endpoint = options.endpoint or next(filter(None, map(os.environ.get, _ENDPOINT_VARIABLES)), "")
    if endpoint.startswith("http://"):
        # Whoever writes this wants it; obstore asks to be told so a second time.
        client["allow_http"] = True
    return client


def _in_words(error: Exception) -> str:
    if isinstance(error, NotFoundError | FileNotFoundError):
        return "there is no such bucket"
    if isinstance(error, PermissionDeniedError | UnauthenticatedError | PermissionError):
        return "the credentials do not allow to write, list and delete there"
    # Its first line names what was asked of whom; what follows is for who debugs the library.
    return str(error).strip().partition("\n")[0][:_WORDS_MAX_CHARACTERS]
