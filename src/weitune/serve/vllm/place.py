"""Which requests name this server and come from no other site's page: their Host and Origin headers.

A page of another site can reach a server on the reader's machine in two ways: it posts there directly, and the browser
names the page in Origin; or its own name is made to point there (DNS rebinding), and the browser names it in Host.

vLLM imports a copy of this file, so it imports nothing but the standard library.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Container, Sequence
from dataclasses import dataclass
from urllib.parse import urlsplit

ALL = "*"
"""Stands for every site."""
HOST, ORIGIN = "host_not_allowed", "origin_not_allowed"


@dataclass(frozen=True, slots=True)
class Place:
    """Where a server may be asked for, and from where."""

    bound_to: str
    """The address that the server listens at"""
    hosts: Container[str]
    """Other names under which it may be asked for"""
    origins: Container[str]
    """Web sites whose pages may use it, or :data:`ALL`"""

    def refusal(self, hosts: Sequence[str], origins: Sequence[str]) -> str | None:
        """Return the code of the error for a request with these headers, or None if it is in order."""
        if len(hosts) != 1 or not self._knows(hosts[0]):
            return HOST
        own = all(allows(self.origins, origin) or _address(origin) == hosts[0] for origin in origins)
        return None if own else ORIGIN

    def _knows(self, host: str) -> bool:
        """Return whether the server may be asked for as ``host`` (with or without a port)."""
        try:
            name = (urlsplit(f"//{host}").hostname or "").rstrip(".")
        except ValueError:
            return False
        if name in self.hosts or name in {"localhost", self.bound_to.lower()}:
            return True
        try:
            address = ipaddress.ip_address(name)
        except ValueError:
            return False
        # DNS rebinding needs a name: an address in the Host header was typed by somebody who meant this server.
        return address.is_loopback or not is_loopback(self.bound_to)


def allows(allowed: Container[str], origin: str) -> bool:
    """Return whether pages of ``origin`` may use the server."""
    return origin in allowed or ALL in allowed


def is_loopback(address: str) -> bool:
    """Return whether only this machine can reach a server that listens at ``address``."""
    if address.lower() == "localhost":
        return True
    try:
        return ipaddress.ip_address(address).is_loopback
    except ValueError:
        return False


def _address(origin: str) -> str | None:
    """Return host and port of an origin; None if it is malformed."""
    try:
        return urlsplit(origin).netloc
    except ValueError:
        return None
