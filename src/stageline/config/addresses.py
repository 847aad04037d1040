"""Which addresses a URL that an object says may lead to.

A link-local address is where clouds keep what tells a machine who it is: nothing of that is an image registry's token
service or an object store. The environment's own identity endpoints are not judged here.
"""

from __future__ import annotations

import ipaddress
import socket
from urllib.parse import urlsplit

Address = ipaddress.IPv4Address | ipaddress.IPv6Address

METADATA_NAMES = frozenset({"metadata", "metadata.google.internal", "instance-data", "instance-data.ec2.internal"})
METADATA_ADDRESSES = frozenset(map(ipaddress.ip_address, ("fd00:ec2::254", "100.100.100.200", "168.63.129.16")))
"""Of clouds that keep it elsewhere: AWS by IPv6, Alibaba, Azure."""
EMBEDDING = (ipaddress.IPv6Network("64:ff9b::/96"), ipaddress.IPv6Network("::/96"))
"""Networks whose last four bytes are an IPv4 address (RFC 6052, RFC 4291)."""


def plain_address(text: str) -> Address | None:
    """The address that a host is, however it is written (`169.254.1.1`, `0xa9fe0101`, `[::ffff:a9fe:101]`); else None.

    An IPv4 address inside of an IPv6 one comes out as itself.
    """
    host = text.strip("[]").partition("%")[0]
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
    address = plain_address(host)
    if host.lower().rstrip(".") in METADATA_NAMES or (address is not None and is_link_local(address)):
        return f"{url!r:.200} is a link-local address, where a machine's identity is kept"
    return ""


def addresses_of(host: str, port: int) -> list[Address]:
    """The addresses of a host as they are now, in the order in which they are tried.

    OSError where it has none; ValueError for what is no name of a host.
    """
    if not host or not host.isprintable() or " " in host:
        raise ValueError(f"{host!r:.200} is no name of a host")
    address = plain_address(host)
    if address is not None:
        return [address]
    found = (str(info[4][0]) for info in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM))
    known = (plain_address(text) for text in dict.fromkeys(found))
    return [address for address in known if address is not None]
