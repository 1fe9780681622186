"""The forms of a listening address that uWSGI knows, and which of them need a warning."""

from __future__ import annotations

import re
from ipaddress import ip_address

from wsgimaster.settings import Address, Family, Protocol

LONGEST_PATH = 107  # bytes; sun_path holds 108 with the closing NUL


def parse_address(text: str, protocol: Protocol, abstract: bool) -> tuple[Address, str]:
    """Return (address, note) for an address as it was written; raises ValueError with what was expected.

    `/path` or any text without a colon, `@name`, `:port`, `host:port`, `[v6]:port`, `fd://N`.
    abstract: paths are names in the abstract namespace, too (uWSGI's `abstract-socket`).
    """
    if not text:
        raise ValueError("expected an address such as /run/app.sock, :8000 or 127.0.0.1:3031")
    if text == "::" or text.startswith("="):
        raise ValueError(f"{text!r} (inherited and shared sockets) isn't served yet, write the address itself")
    if text.startswith("fd://"):
        return _inherited(text, protocol), ""
    if text.startswith(("@", "\\0")):
        return _local(text, text.removeprefix("@").removeprefix("\\0"), protocol, True), ""
    if ":" not in text:
        return _local(text, text, protocol, abstract), ""
    return _tcp(text, protocol)


def _inherited(text: str, protocol: Protocol) -> Address:
    number = text.removeprefix("fd://")
    if not re.fullmatch("[0-9]{1,6}", number):
        raise ValueError(f"expected fd://N with the number of an open descriptor, found {text!r}")
    return Address(protocol=protocol, family=Family.INHERITED, name=text, fd=int(number))


def _local(text: str, path: str, protocol: Protocol, abstract: bool) -> Address:
    if not path or len(path.encode(errors="surrogateescape")) > LONGEST_PATH:
        raise ValueError(f"expected a path of 1 to {LONGEST_PATH} bytes, found {text[:120]!r}")
    family = Family.ABSTRACT if abstract else Family.UNIX
    return Address(protocol=protocol, family=family, name=text, path=path)


def _tcp(text: str, protocol: Protocol) -> tuple[Address, str]:
    host, _, port = text.rpartition(":")
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
    elif ":" in host:
        raise ValueError(f"expected host:port, an IPv6 address goes in brackets: [{host}]:{port}")
    if "*" in host:
        raise ValueError(f"choosing an interface by pattern isn't served yet, write its address, found {text!r}")
    digits = re.match("[0-9]*", port)
    number = digits[0] if digits else ""
    if port and not number:
        raise ValueError(f"expected a port number after the colon, found {text!r}")
    if len(number) > 6 or int(number or "0") > 65535:
        raise ValueError(f"expected a port of at most 65535, found {text[:120]!r}")
    tail = port[len(number) :]
    note = f"{text!r}: only {number} at the start of {port!r} counts" if tail.strip() else ""
    name = text.removesuffix(tail) if tail else text
    return Address(protocol=protocol, family=Family.TCP, name=name, host=host, port=int(number or "0")), note


def is_public(address: Address) -> bool:
    """Return whether an address can be reached from other machines, as far as its text says."""
    if address.family is not Family.TCP or address.host == "localhost":
        return False
    try:
        return not ip_address(address.host).is_loopback
    except ValueError:
        return True
