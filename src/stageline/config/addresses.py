"""Which addresses a URL that an object says may lead to.

A link-local address is where clouds keep what tells a machine who it is: nothing of that is an image registry's token
service or an object store. The environment's own identity endpoints are not judged here.
"""

from __future__ import annotations

import ipaddress
import socket
from contextlib import suppress
from urllib.parse import unquote, urlsplit

Address = ipaddress.IPv4Address | ipaddress.IPv6Address

METADATA_NAMES = frozenset(
    ("metadata", "metadata.google.internal", "metadata.goog", "instance-data", "instance-data.ec2.internal")
)
METADATA_ADDRESSES = frozenset(
    map(ipaddress.ip_address, ("fd00:ec2::254", "fd20:ce::254", "100.100.100.200", "168.63.129.16", "192.0.0.192"))
)
"""Of clouds that keep it elsewhere: AWS and Google by IPv6, Alibaba, Azure, Oracle."""
EMBEDDING = tuple(map(ipaddress.IPv6Network, ("64:ff9b::/96", "64:ff9b:1::/48", "::ffff:0:0:0/96", "::/96")))
"""Networks whose last four bytes are an IPv4 address (RFC 6052, RFC 8215, RFC 2765, RFC 4291)."""


def plain_address(text: str) -> Address | None:
    """The address that a host is, however it is written (`169.254.1.1`, `0xa9fe0101`, `[::ffff:a9fe:101]`); else None.

    An IPv4 address inside of an IPv6 one comes out as itself.
    """
    host = _as_read(text)
    try:
        address: Address = ipaddress.ip_address(host)
    except ValueError:
        try:  # shorter, octal and hexadecimal forms, as the system reads them
            return ipaddress.IPv4Address(socket.inet_aton(host)) if host.isascii() and host.strip() == host else None
        except (OSError, ValueError):
            return None
    if isinstance(address, ipaddress.IPv6Address):
        inner = address.ipv4_mapped or address.sixtofour
        if inner is not None:
            return inner
        if int(address) > 1 and any(address in network for network in EMBEDDING):
            return ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
    return address


def _as_read(host: str) -> str:
    """A host as programs read it that ask for it: without an IPv6 zone, escapes resolved, other digits and dots of
    Unicode as those of ASCII (RFC 3490), without the dot at its end."""
    if ":" in host:
        return host.strip("[]").partition("%")[0]
    host = unquote(host)
    with suppress(UnicodeError):  # no name of a host either
        host = host.encode("idna").decode("ascii")
    return host.lower().removesuffix(".")


def is_link_local(address: Address) -> bool:
    """Whether it is link-local, or where a cloud keeps a machine's identity."""
    return address.is_link_local or address in METADATA_ADDRESSES


def is_private(address: Address) -> bool:
    """Whether it is no address of the internet: private, loopback, shared, reserved, multicast."""
    return not address.is_global or address.is_multicast


def link_local_fault(url: str) -> str:
    """What is wrong with a URL whose host is written as such an address, or whose port is none; "" for all others.

    Asks no name server.
    """
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname or "", parts.port
    except ValueError as error:
        return f"{url!r:.200} is no URL ({error})"
    if "\\" in url or not url.isprintable():  # where the host ends, programs do not agree on then
        return f"{url!r:.200} is no URL"
    address = plain_address(host)
    if _as_read(host) in METADATA_NAMES or (address is not None and is_link_local(address)):
        return f"{url!r:.200} is a link-local address, where a machine's identity is kept"
    return ""


def addresses_of(host: str, port: int) -> list[Address]:
    """The addresses of a host as they are now, in the order in which they are tried, each as `plain_address` has it.

    OSError where it has none; ValueError for what is no name of a host.
    """
    return [address for _, address in looked_up(host, port)]


def looked_up(host: str, port: int) -> list[tuple[str, Address]]:
    """The same, each after the address by which it is reached: on an IPv6 network that may embed an IPv4 one."""
    if not host or not host.isprintable() or " " in host:
        raise ValueError(f"{host!r:.200} is no name of a host")
    address = plain_address(host)
    if address is not None:
        return [(str(address), address)]
    found = (str(info[4][0]) for info in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM))
    known = ((text, plain_address(text)) for text in dict.fromkeys(found))
    return [(text, address) for text, address in known if address is not None]
