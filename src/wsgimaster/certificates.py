"""The certificate of a TLS address: what its files must hold, and the context that is made of them.

The files are read once with the rights of the start, and again at each reload; what was read stays in memory, so that
a terminator can be started at any time, by whoever the server is by then. Only who has the descriptor can read it: the
file has no permissions, and the processes that hold it hide (_process.hide), since the application's run as the same
user. What remains is the moment in which one starts, for somebody who may attach to it with ptrace then.

Runs in: the master, and the terminators.
"""

import contextlib
import os
import ssl
from collections.abc import Iterator
from typing import NamedTuple

from wsgimaster.errors import StartError

CERTIFICATE, KEY = b"-----BEGIN CERTIFICATE-----", b"PRIVATE KEY-----"  # RFC 7468
NEVER = ":!aNULL:!eNULL"  # whatever the list says: ciphers without authentication or encryption


class Files(NamedTuple):
    """As the configuration names them, by absolute paths. ciphers: OpenSSL's list for TLS 1.2, "" for Python's; ca: of
    clients' certificates, "" if they aren't asked for one; required: they must have one."""

    certificate: str
    key: str
    ciphers: str
    ca: str
    required: bool


class Certificate(NamedTuple):
    """What they held, each in a memfd; ca: -1 for none."""

    files: Files
    certificate: int
    key: int
    ca: int

    @property
    def descriptors(self) -> list[int]:
        return [fd for fd in (self.certificate, self.key, self.ca) if fd >= 0]

    def close(self) -> None:
        for fd in self.descriptors:
            os.close(fd)


def read(files: Files) -> Certificate:
    """Raises StartError for files that can't be read or don't belong together."""
    with contextlib.ExitStack() as undo:
        found = []
        for path in (files.certificate, files.key, files.ca):
            fd = _copy(path) if path else -1
            if fd >= 0:
                undo.callback(os.close, fd)
            found.append(fd)
        certificate = Certificate(files, *found)
        try:
            context(certificate)
        except OSError as error:  # no descriptor, or no memory, for a moment
            raise StartError(f"{files.certificate}: {error.strerror}") from error
        undo.pop_all()
        return certificate


def context(certificate: Certificate) -> ssl.SSLContext:
    """TLS 1.2 and 1.3, HTTP/1.1 inside. Raises StartError."""
    files = certificate.files
    made = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    made.minimum_version = ssl.TLSVersion.TLSv1_2
    # A FIN without close_notify is an end like any other: HTTP says itself whether a request is whole.
    made.options |= ssl.OP_NO_RENEGOTIATION | ssl.OP_IGNORE_UNEXPECTED_EOF
    made.set_alpn_protocols(["http/1.1"])
    if files.ciphers:
        try:
            made.set_ciphers(files.ciphers + NEVER)
        except ssl.SSLError:
            raise StartError(f"OpenSSL knows no cipher of {files.ciphers!r} (openssl ciphers lists them)") from None
    try:
        with _readable(certificate.certificate) as chain, _readable(certificate.key) as key:
            made.load_cert_chain(chain, key, password=_no_password)
    except ssl.SSLError as error:
        raise StartError(_why_not(certificate, error)) from None
    if files.ca:
        try:
            with _readable(certificate.ca) as authorities:
                made.load_verify_locations(authorities)
        except ssl.SSLError as error:
            raise StartError(f"{files.ca}: expected certificates (PEM) that sign those of clients: {error}") from None
        made.verify_mode = ssl.CERT_REQUIRED if files.required else ssl.CERT_OPTIONAL
    return made


def _why_not(certificate: Certificate, error: ssl.SSLError) -> str:
    """OpenSSL says "PEM lib" for most of it."""
    files = certificate.files
    if CERTIFICATE not in _content(certificate.certificate):
        return f"{files.certificate}: expected a certificate (PEM, {CERTIFICATE.decode()}), and found none"
    if KEY not in _content(certificate.key):
        return f"{files.key}: expected a private key (PEM, -----BEGIN {KEY.decode()}), and found none"
    if error.reason == "KEY_VALUES_MISMATCH":
        return f"{files.key}: this key isn't that of the first certificate in {files.certificate}"
    return f"{files.certificate}, {files.key}: OpenSSL can't read them: {error}"


def _no_password() -> str:
    """Nobody is there to type it, at the latest when the machine starts."""
    raise StartError("the private key is encrypted; openssl pkey -in key.pem -out plain.pem removes the password")


def _copy(path: str) -> int:
    try:
        with open(path, "rb") as file:
            fd = _memory(file.read())
        os.fchmod(fd, 0)
    except OSError as error:
        raise StartError(f"{path}: {error.strerror}") from error
    return fd


def _memory(content: bytes) -> int:
    fd = os.memfd_create("wsgimaster-certificate", os.MFD_CLOEXEC)
    with open(fd, "wb", closefd=False) as memory:
        memory.write(content)
    return fd


def _content(fd: int) -> bytes:
    return os.pread(fd, os.fstat(fd).st_size, 0)


@contextlib.contextmanager
def _readable(fd: int) -> Iterator[str]:
    """OpenSSL opens files by name only: the name of a copy, for this moment."""
    copy = _memory(_content(fd))
    try:
        yield f"/proc/self/fd/{copy}"
    finally:
        os.close(copy)
