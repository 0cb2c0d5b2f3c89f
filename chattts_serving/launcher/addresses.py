"""Names and addresses of machines: what a user may write, and how tritonserver and its callers write it."""

from __future__ import annotations

import ipaddress
import socket

from chattts_serving.errors import ConfigError

LOOPBACK = "127.0.0.1"


def resolved(host: str) -> str:
    """The address of `host`, an address or a name; IPv4 where it has both.

    tritonserver takes a name for 255.255.255.255.

    Raises:
        ConfigError: it has none, or one that needs the name of a network interface.
    """
    try:
        found = socket.getaddrinfo(host or None, None, type=socket.SOCK_STREAM) if host else []
    except (OSError, UnicodeError):
        found = []
    addresses = [str(one[4][0]) for one in sorted(found, key=lambda one: one[0] != socket.AF_INET)]
    if not addresses:
        raise ConfigError(f"--host is '{host}'; allowed is an address of this machine, or a name that leads to one")
    if "%" in addresses[0]:
        raise ConfigError(f"--host is '{host}', an address of one network interface; allowed is one without %")
    return addresses[0]


def joined(address: str, port: int) -> str:
    """ "ADDRESS:PORT" as URLs have it: an IPv6 address stands in brackets."""
    return f"[{address}]:{port}" if ":" in address else f"{address}:{port}"


def is_loopback(address: str) -> bool:
    """Whether nobody but this machine reaches `address`, which is no name."""
    return ipaddress.ip_address(address).is_loopback


def to_call(address: str) -> str:
    """Where this machine reaches what listens on `address`, which may stand for all addresses."""
    if not ipaddress.ip_address(address).is_unspecified:
        return address
    return "::1" if ":" in address else LOOPBACK


def of_http(address: str) -> str:
    """`address` as tritonserver's flags for HTTP and metrics take it."""
    return f"ipv6:{address}" if ":" in address else address


def of_grpc(address: str) -> str:
    """`address` as tritonserver's flag for gRPC takes it."""
    return f"[{address}]" if ":" in address else address
