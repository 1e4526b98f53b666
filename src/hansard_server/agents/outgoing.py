"""Outgoing addresses: what Hansard may call because an agent's configuration says so.

Everything that does so asks the guard for addresses, and connects to those and to nothing else.
"""

from __future__ import annotations

import asyncio
import re
import socket
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from ipaddress import (
    AddressValueError,
    IPv4Address,
    IPv4Network,
    IPv6Address,
    IPv6Network,
    ip_address,
    ip_network,
)

import structlog

from hansard_server.domain.values import dataclass

_log = structlog.get_logger("hansard.outgoing")

Address = IPv4Address | IPv6Address
Resolve = Callable[[str, int], Awaitable[Sequence[str]]]
"""Returns the addresses that a name has. Raises OSError when it has none."""

RESOLVE_TIMEOUT_S = 5.0
DEFAULT_PORT = 443
_PORT_MAX = 65_535
_HOST_MAX_CHARACTERS = 253
_LABEL = re.compile(r"(?!-)[a-z0-9_-]{1,63}(?<!-)")
# What other programs read as a number, and so perhaps as an address: 0x7f000001, 2130706433, 1.
_NUMBER = re.compile(r"[0-9]+|0x[0-9a-f]*")
_URL = re.compile(r"(?P<scheme>[a-z]+)://(?P<authority>[^/?]*)(?P<target>[/?].*)?")
# Printable ASCII but for what programs read differently from each other.
_PLAIN = re.compile(r"[!-\[\]-~]*")

# https://www.iana.org/assignments/iana-ipv4-special-registry: what is not reachable for everybody;
# and one that clouds give to the host of their machines (168.63.129.16).
_V4_NOT_PUBLIC = tuple(
    IPv4Network(text)
    for text in (
        *("0.0.0.0/8", "10.0.0.0/8", "100.64.0.0/10", "127.0.0.0/8", "168.63.129.16/32"),
        *("169.254.0.0/16", "172.16.0.0/12", "192.0.0.0/24", "192.0.2.0/24", "192.88.99.0/24"),
        *("192.168.0.0/16", "198.18.0.0/15", "198.51.100.0/24", "203.0.113.0/24"),
        *("224.0.0.0/4", "240.0.0.0/4"),
    )
)
# https://www.iana.org/assignments/iana-ipv6-special-registry: of IPv6 only this is public, without
# what lies in it for tunnels (Teredo, 6to4), protocols and documentation.
_V6_PUBLIC = IPv6Network("2000::/3")
_V6_NOT_PUBLIC = tuple(
    IPv6Network(text) for text in ("2001::/23", "2001:db8::/32", "2002::/16", "3fff::/20")
)
# Its last 32 bits are the IPv4 address that is reached (RFC 6052).
_V6_TRANSLATED = IPv6Network("64:ff9b::/96")


class AddressRefused(Exception):  # noqa: N818 - reads as what happened
    """The address may not be called; the message names it as the configuration does."""


class AddressUnknown(Exception):  # noqa: N818 - reads as what happened
    """The name has no address."""


class BadAddress(ValueError):  # noqa: N818 - reads as what it is
    """The text is no address, or one that programs read in different ways."""


@dataclass(frozen=True, slots=True)
class Url:
    """A URL whose parts nobody can read differently.

    Attributes:
        host: a name in lower case, or an address, IPv6 without brackets.
        target: path and query; empty: none.
    """

    scheme: str
    host: str
    port: int
    target: str = ""

    @property
    def authority(self) -> str:
        """Host and port, IPv6 in brackets."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    def __str__(self) -> str:
        return f"{self.scheme}://{self.authority}{self.target}"


@dataclass(frozen=True, slots=True)
class Rule:
    """A line of the allow-list.

    Attributes:
        host: a name, `*.` and a name for all below it, or `*` for every name; empty: see `network`.
        network: addresses, those too that are not public.
        port: None: every port.
    """

    host: str = ""
    network: IPv4Network | IPv6Network | None = None
    port: int | None = DEFAULT_PORT

    def has_address(self, address: Address, port: int) -> bool:
        """Tell whether it is a rule of addresses that holds for this one."""
        return self.network is not None and self._has_port(port) and address in self.network

    def has_host(self, host: str, port: int) -> bool:
        """Tell whether it is a rule of names that holds for this one."""
        if not self.host or not self._has_port(port):
            return False
        if self.host.startswith("*."):
            return host.endswith(self.host[1:])
        return self.host in ("*", host)

    def _has_port(self, port: int) -> bool:
        return self.port is None or self.port == port


def parse_rules(text: str) -> tuple[Rule, ...]:
    """Return the rules of an allow-list, separated by commas or spaces. Raises BadAddress."""
    return tuple(_parse_rule(word) for word in re.split(r"[,\s]+", text) if word)


def rule_of(url: Url) -> Rule:
    """Return the rule that allows just what the URL names."""
    host = parse_host(url.host)
    if isinstance(host, str):
        return Rule(host=host, port=url.port)
    return Rule(network=ip_network(unwrap(host)), port=url.port)


def parse_url(text: str, schemes: Mapping[str, int | None]) -> Url:
    """Return the URL; `schemes` gives the default port of each that is possible, None: none.

    Raises BadAddress, also for user names, fragments and what programs read in different ways.
    """
    match = _URL.fullmatch(text) if _PLAIN.fullmatch(text) else None
    if match is None or "#" in text:
        raise BadAddress("is no plain URL")
    scheme, authority = match["scheme"], match["authority"]
    if scheme not in schemes:
        raise BadAddress(f"must begin with {' or '.join(f'{name}://' for name in schemes)}")
    if "@" in authority:
        raise BadAddress("must hold no user name and no password")
    host, port = _split_port(authority)
    known_port = schemes[scheme] if port is None else port
    if known_port is None:
        raise BadAddress("must name a port")
    return Url(scheme, str(parse_host(host)), known_port, match["target"] or "")


def parse_host(text: str) -> Address | str:
    """Return an address, or a name in lower case and without the dot of the root.

    Raises BadAddress for IPv6 addresses with a zone, for IPv4 addresses in any form but that of
    four decimal numbers, and for what is no name.
    """
    bare = text[1:-1] if text.startswith("[") and text.endswith("]") else text
    if bare is not text or ":" in bare:
        try:
            return IPv6Address("" if "%" in bare else bare)
        except AddressValueError:
            raise BadAddress("is no IPv6 address") from None
    host = text.lower().removesuffix(".")
    labels = host.split(".")
    if len(host) > _HOST_MAX_CHARACTERS or not all(_LABEL.fullmatch(label) for label in labels):
        raise BadAddress("has no host name in ASCII")
    if not _NUMBER.fullmatch(labels[-1]):
        return host
    try:
        return IPv4Address(text)
    except AddressValueError:
        raise BadAddress("has no IPv4 address in the usual form") from None


def unwrap(address: Address) -> Address:
    """Return the IPv4 address that an IPv6 address stands for, else the address itself."""
    if isinstance(address, IPv4Address):
        return address
    if address.ipv4_mapped is not None:
        return address.ipv4_mapped
    if address in _V6_TRANSLATED:
        return IPv4Address(int(address) & 0xFFFF_FFFF)
    return address


def is_public(address: Address) -> bool:
    """Tell whether the address, unwrapped before, is one that everybody reaches."""
    if isinstance(address, IPv4Address):
        return not any(address in network for network in _V4_NOT_PUBLIC)
    return address in _V6_PUBLIC and not any(address in network for network in _V6_NOT_PUBLIC)


async def resolve_by_system(host: str, port: int) -> Sequence[str]:
    """Return the addresses that this machine knows of a name. Raises OSError."""
    loop = asyncio.get_running_loop()
    found = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM, proto=socket.IPPROTO_TCP)
    return list(dict.fromkeys(str(address[0]) for *_, address in found))


class OutgoingGuard:
    """Knows what may be called. Without rules that is nothing."""

    def __init__(self, rules: Iterable[Rule] = (), *, resolve: Resolve = resolve_by_system) -> None:
        """Allow what one of the rules does."""
        self._rules = tuple(rules)
        self._resolve = resolve

    def find_fault(self, url: Url) -> str:
        """Return why the URL can't be called, whatever addresses its name has; empty: it may be."""
        host = parse_host(url.host)
        if isinstance(host, str):
            by_address = any(rule.network is not None for rule in self._rules)
            allowed = by_address or self._has_host(host, url.port)
        else:
            allowed = self._may_call(host, str(host), url.port)
        return "" if allowed else _refusal(url.host, url.port)

    async def addresses(self, host: str, port: int) -> tuple[str, ...]:
        """Return the addresses to connect to, looked up once. All of them may be called.

        Raises AddressRefused when one of them may not, AddressUnknown when there is none.
        """
        try:
            parsed = parse_host(host)
        except BadAddress as error:
            raise AddressRefused(f"{host[:_HOST_MAX_CHARACTERS]!r} {error}") from None
        name = str(parsed)
        found = await self._look_up(parsed, port)
        for address in found:
            if not self._may_call(address, name, port):
                _log.warning("address_refused", host=name, port=port, address=str(address))
                # Without the address: what names mean inside is nobody's business.
                raise AddressRefused(_refusal(name, port))
        return tuple(str(address) for address in found)

    async def _look_up(self, host: Address | str, port: int) -> list[Address]:
        if not isinstance(host, str):
            return [host]
        # A name that nothing allows is not even looked up: names can carry words away.
        if not self._has_host(host, port) and not any(rule.network for rule in self._rules):
            raise AddressRefused(_refusal(host, port))
        try:
            async with asyncio.timeout(RESOLVE_TIMEOUT_S):
                texts = await self._resolve(host, port)
            # One with a zone is refused as the link-local address that it is.
            found = [ip_address(text.partition("%")[0]) for text in texts]
        except (OSError, ValueError):
            found = []
        if not found:
            raise AddressUnknown(f"{host} is not known")
        return found

    def _may_call(self, address: Address, host: str, port: int) -> bool:
        reached = unwrap(address)
        if any(rule.has_address(reached, port) for rule in self._rules):
            return True
        return is_public(reached) and self._has_host(host, port)

    def _has_host(self, host: str, port: int) -> bool:
        return any(rule.has_host(host, port) for rule in self._rules)


def _refusal(host: str, port: int) -> str:
    return f"{host} port {port} is not on the list of what this server may call"


def _parse_rule(word: str) -> Rule:
    text, port = _split_port(word, any_port=True)
    bare = text.removeprefix("[").removesuffix("]")
    try:
        network = ip_network(bare, strict=False)
    except ValueError:
        if "/" in text or "[" in text:
            raise BadAddress(f"{word!r} is no range of addresses") from None
    else:
        return Rule(network=network, port=port)
    if text == "*":
        return Rule(host="*", port=port)
    try:
        host = parse_host(text.removeprefix("*."))
    except BadAddress as error:
        raise BadAddress(f"{word!r} {error}") from None
    return Rule(host=f"*.{host}" if text.startswith("*.") else str(host), port=port)


def _split_port(authority: str, *, any_port: bool = False) -> tuple[str, int | None]:
    """Return host and port; with `any_port` None stands for `*`, and 443 for no port at all."""
    nothing = DEFAULT_PORT if any_port else None
    if authority.count(":") > 1 and not authority.startswith("["):
        if any_port:
            return authority, nothing
        raise BadAddress("must have its IPv6 address in brackets")
    host, colon, port = authority.rpartition(":")
    if not colon or port.endswith("]"):
        return authority, nothing
    if any_port and port == "*":
        return host, None
    if not re.fullmatch(r"[0-9]{1,5}", port) or not 0 < int(port) <= _PORT_MAX:
        raise BadAddress(f"has no port {port[:10]!r}")
    return host, int(port)
