"""From the text of one option to its value, by the option's kind; as loose as uWSGI, but not in silence.

A reader gets the text (None: the command line gave none) and returns (value, note): the note is what a person
should know ("" nothing). What can't be read is a ValueError that says what was expected.
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Callable
from dataclasses import dataclass
from ipaddress import ip_network

from wsgimaster import hooks
from wsgimaster.config.addresses import parse_address
from wsgimaster.config.daemons import read_daemon
from wsgimaster.config.options import Kind, Option
from wsgimaster.config.system import System
from wsgimaster.settings import Peer, Protocol, Tls

INLINE_COMMENT = re.compile(r"(?:^|[ \t])[;#]")
LOOKS_OFF = re.compile(r"(?i)(?:false|off|no|0+|none|null|disabled?|never|n|f)\b")
USUAL_KEEPALIVE = 75
TLS_KEYS = {"crt": "cert", "clientca": "client_ca", "address": "addr"}  # other names of theirs
LOOKS_ON = ("true", "1", "yes", "on")
# A C int, and so many MiB that their bytes fit a resource limit; the others are 64 bits wide.
LARGEST = {Kind.INT: 2**31 - 1, Kind.SIGNED: 2**31 - 1, Kind.MEGABYTES: 2**43 - 1}

Value = object
Read = tuple[Value, str]


@dataclass(frozen=True)
class Context:
    """What reading a value depends on besides its text."""

    system: System
    cwd: str
    protocol: Protocol = Protocol.UWSGI  # `protocol`: what plain `socket` speaks
    abstract: bool = False  # `abstract-socket`: paths are names in the abstract namespace


def is_on(text: str | None) -> bool:
    """Return what a flag means: everything but false, off, no (in any case) and a bare 0 is true."""
    return text is None or (text.lower() not in ("false", "off", "no") and text != "0")


def read_flag(option: Option, text: str | None, _: Context) -> Read:
    on = is_on(text)
    odd = on and text is not None and LOOKS_OFF.match(text)
    note = f"{shortened(text)} counts as true, only false, off, no and 0 are false" if odd else ""
    return (not on if option.kind is Kind.CLEARED else on), note


def read_number(option: Option, text: str | None, _: Context) -> Read:
    return loose_number(option.kind, text)


def loose_number(kind: Kind, text: str | None) -> tuple[int, str]:
    """Read the digits at the start, as C's atoi: '4x' is 4, text is 0; no value at all is 1."""
    if text is None:
        return 1, ""
    match = re.match(r"\s*([+-]?)([0-9]*)", text)
    sign, digits = (match[1], match[2]) if match else ("", "")
    if sign == "-" and digits.strip("0") and kind is not Kind.SIGNED:
        raise ValueError(f"must not be negative, found {shortened(text)}")
    largest = LARGEST.get(kind, 2**64 - 1)
    significant = digits.lstrip("0") or "0"
    if len(significant) > 20 or int(significant) > largest:
        raise ValueError(f"must be at most {largest}, found {shortened(text)}")
    number = int(significant) * (-1 if sign == "-" else 1)
    if not digits:
        return number, f"{shortened(text)} is no number and counts as 0"
    tail = text[match.end() if match else 0 :]
    odd = tail.strip() and tail.lstrip()[0] not in ";#"
    return number, f"{shortened(text)} counts as {number}" if odd else ""


def read_u16(option: Option, text: str | None, _: Context) -> Read:
    number, note = loose_number(option.kind, text)
    return (number, note) if number <= 65535 else (65535, f"{number} counts as 65535, the most there is")


def read_megabytes(option: Option, text: str | None, _: Context) -> Read:
    """Read a number of MiB; return bytes, or None for 0 (off)."""
    number, note = loose_number(option.kind, text)
    return number * 1024 * 1024 or None, note


def read_milliseconds(option: Option, text: str | None, _: Context) -> Read:
    """Read a number of milliseconds; return seconds."""
    number, note = loose_number(option.kind, text)
    return number / 1000, note


def read_octal(_: Option, text: str | None, __: Context) -> Read:
    if text is None or not re.fullmatch(r"0?[0-7]{1,3}", text):
        raise ValueError(f"expected octal digits such as 022, found {shortened(text)}")
    return int(text, 8), ""


def read_mode(_: Option, text: str | None, __: Context) -> Read:
    """Read the permissions of a socket: three octal digits; nothing or 1 is 666."""
    if text in (None, "", "1"):
        return 0o666, ""
    if not re.fullmatch("[0-7]{3}", text or ""):
        raise ValueError(f"expected three octal digits such as 660, found {shortened(text)}")
    return int(text or "", 8), ""


def read_text(_: Option, text: str | None, __: Context) -> Read:
    return text or "", ""


def read_spaced(_: Option, text: str | None, __: Context) -> Read:
    return f"{text or ''} ", ""


def read_file_name(_: Option, text: str | None, __: Context) -> Read:
    if not text:
        raise ValueError("expected the name of a file")
    return (
        text,
        f"takes the name of a file: {shortened(text)} becomes one" if text.lower() in LOOKS_ON else "",
    )


def read_log_file(option: Option, text: str | None, context: Context) -> Read:
    if text and ":" in text:
        raise ValueError(f"logging to a UDP address isn't served yet, expected a file, found {shortened(text)}")
    return read_file_name(option, text, context)


def read_sockets(option: Option, text: str | None, context: Context) -> Read:
    protocol = context.protocol if option.names[0] == "socket" else Protocol.HTTP
    if option.names[0] == "uwsgi-socket":
        protocol = Protocol.UWSGI
    address, note = parse_address(text or "", protocol, context.abstract)
    return (address.model_copy(update={"buffers": option.names[0] == "http"}),), note


def read_tls_sockets(option: Option, text: str | None, context: Context) -> Read:
    """Read `addr,cert,key[,ciphers[,ca]]`, or for `https2` a list of key=value; a ca with ! before it is demanded."""
    if option.names[0] == "https2":
        found = dict.fromkeys(("addr", "cert", "key", "ciphers", "client_ca"), "")
        for pair in (text or "").split(","):
            name, _, value = pair.partition("=")
            name = TLS_KEYS.get(name, name)
            if name not in found:
                raise ValueError(f"expected {', '.join(found)}, each with = and a value, found {shortened(pair)}")
            found[name] = value
        words = list(found.values())
    else:
        words = (text or "").split(",")
    if not 3 <= len(words) <= 5 or not all(words[:3]):
        raise ValueError(f"expected addr,cert,key[,ciphers[,ca]] with PEM files, found {shortened(text)}")
    where, certificate, key, ciphers, ca = [*words, "", ""][:5]
    certificate, key = (posixpath.join(context.cwd, path) for path in (certificate, key))
    required, ca = ca.startswith("!"), ca.removeprefix("!")
    if required and not ca:
        raise ValueError(f"expected the file of an authority after the !, found {shortened(text)}")
    tls = Tls(
        certificate=certificate,
        key=key,
        ciphers=ciphers,
        ca=posixpath.join(context.cwd, ca) if ca else "",
        required=required,
    )
    address, note = parse_address(where, Protocol.HTTP, context.abstract)
    return (address.model_copy(update={"buffers": option.names[0] != "https-socket", "tls": tls}),), note


def read_keepalive(option: Option, text: str | None, _: Context) -> Read:
    """Read seconds, or a switch: as for uWSGI, on or 1 is the usual time."""
    number, note = loose_number(option.kind, text) if (text or "")[:1].isdigit() else (int(is_on(text)), "")
    return (USUAL_KEEPALIVE if number == 1 else number), note


def read_networks(option: Option, text: str | None, _: Context) -> Read:
    """Read networks in CIDR form, separated by commas or spaces; a single address is a network of one."""
    networks: list[Peer] = []
    for word in re.split(r"[,\s]+", text or ""):
        if not word:
            continue
        if word == "unix" and option.names[0] == "forwarded-allow":
            networks.append("unix")
            continue
        try:
            networks.append(ip_network(word, strict=False))
        except ValueError:
            raise ValueError(f"expected networks such as 10.0.0.0/8, found {shortened(word)}") from None
    if not networks:
        raise ValueError("expected at least one network such as 10.0.0.0/8")
    return tuple(networks), ""


def read_texts(_: Option, text: str | None, __: Context) -> Read:
    if not text:
        raise ValueError("expected a text, found nothing")
    return (text,), ""


def read_hook(_: Option, text: str | None, __: Context) -> Read:
    hooks.parse(text or "")
    return (text or "",), ""


def read_command(_: Option, text: str | None, __: Context) -> Read:
    if not text:
        raise ValueError("expected a shell command, found nothing")
    return (f"exec:{text}",), ""


def read_daemons(option: Option, text: str | None, _: Context) -> Read:
    return (read_daemon(option.names[0], text or ""),), ""


def read_touch_command(_: Option, text: str | None, __: Context) -> Read:
    path, space, command = (text or "").partition(" ")
    if not path or not space:
        raise ValueError(f"expected a file and a shell command, found {shortened(text)}")
    return ((path, command),), ""


def read_touch_hook(_: Option, text: str | None, __: Context) -> Read:
    path, space, hook = (text or "").partition(" ")
    if not path or not space:
        raise ValueError(f"expected a file and action:args, found {shortened(text)}")
    hooks.parse(hook)
    return ((path, hook),), ""


def read_paths(_: Option, text: str | None, context: Context) -> Read:
    """Read a path with shell wildcards; without a match it stands for itself, as for uWSGI."""
    matches = context.system.expand_glob(text or "", context.cwd) if re.search(r"[*?[]", text or "") else []
    return tuple(matches or [text or ""]), ""


def read_variable(_: Option, text: str | None, __: Context) -> Read:
    name, equals, value = (text or "").partition("=")
    if not name:
        raise ValueError(f"expected NAME=value, found {shortened(text)}")
    note = "" if equals else f"{shortened(name)} has no =, it gets an empty value"
    return ((name, value),), note


def read_user(_: Option, text: str | None, context: Context) -> Read:
    """Read a user; return (uid, name), the name None when it was given as a number."""
    return find_user(text or "", context), ""


def read_group(_: Option, text: str | None, context: Context) -> Read:
    return find_group(text or "", context), ""


def read_groups(_: Option, text: str | None, context: Context) -> Read:
    return (find_group(text or "", context),), ""


def read_owner(_: Option, text: str | None, context: Context) -> Read:
    """Read `user[:group]`; return (uid, gid), -1 for a group that stays as it is."""
    user, _colon, group = (text or "").partition(":")
    uid, _name = find_user(user, context)
    return (uid, find_group(group, context) if group else -1), ""


def find_user(text: str, context: Context) -> tuple[int, str | None]:
    if text.isascii() and text.isdigit():
        return account_number(text), None
    uid = context.system.user_id(text)
    if uid is None:
        raise ValueError(f"this machine has no user {shortened(text)}")
    return uid, text


def find_group(text: str, context: Context) -> int:
    if text.isascii() and text.isdigit():
        return account_number(text)
    gid = context.system.group_id(text)
    if gid is None:
        raise ValueError(f"this machine has no group {shortened(text)}")
    return gid


def account_number(digits: str) -> int:
    if len(digits) > 10 or int(digits) >= 2**32 - 1:
        raise ValueError(f"expected a name or a number below 2^32 - 1, found {shortened(digits)}")
    return int(digits)


def shortened(text: str | None) -> str:
    """Return a text as it is shown in messages: quoted, and not longer than a line."""
    return "nothing" if not text else repr(text if len(text) <= 60 else text[:57] + "...")


READERS: dict[Kind, Callable[[Option, str | None, Context], Read]] = {
    Kind.FLAG: read_flag,
    Kind.CLEARED: read_flag,
    Kind.INT: read_number,
    Kind.SIGNED: read_number,
    Kind.U64: read_number,
    Kind.U16: read_u16,
    Kind.MEGABYTES: read_megabytes,
    Kind.MILLISECONDS: read_milliseconds,
    Kind.OCTAL: read_octal,
    Kind.MODE: read_mode,
    Kind.KEEPALIVE: read_keepalive,
    Kind.TEXT: read_text,
    Kind.SPACED: read_spaced,
    Kind.FILE: read_file_name,
    Kind.LOG: read_log_file,
    Kind.SOCKETS: read_sockets,
    Kind.TLS_SOCKETS: read_tls_sockets,
    Kind.NETWORKS: read_networks,
    Kind.LIST: read_texts,
    Kind.HOOKS: read_hook,
    Kind.COMMANDS: read_command,
    Kind.DAEMONS: read_daemons,
    Kind.TOUCH_COMMANDS: read_touch_command,
    Kind.TOUCH_HOOKS: read_touch_hook,
    Kind.PATHS: read_paths,
    Kind.VARIABLES: read_variable,
    Kind.USER: read_user,
    Kind.GROUP: read_group,
    Kind.GROUPS: read_groups,
    Kind.OWNER: read_owner,
}
