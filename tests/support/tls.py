"""Clients that speak TLS byte by byte, and an authority whose certificates they trust."""

from __future__ import annotations

import contextlib
import ssl
from pathlib import Path

import trustme

from support.client import TIMEOUT, Address, Connection

AUTHORITY = trustme.CA()
NAMES = ("localhost", "127.0.0.1")


def issue(where: Path, *, by: trustme.CA = AUTHORITY) -> None:
    """A new certificate and its key, as cert.pem and key.pem in that directory."""
    issued = by.issue_cert(*NAMES)
    (where / "cert.pem").write_bytes(b"".join(part.bytes() for part in issued.cert_chain_pems))
    (where / "key.pem").write_bytes(issued.private_key_pem.bytes())


def client_context(authority: trustme.CA = AUTHORITY) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)  # the usual one loads all authorities: 20 ms
    authority.configure_trust(context)
    return context


class TlsConnection(Connection):
    """One client's connection; `preface` goes before the handshake."""

    def __init__(
        self,
        address: Address,
        context: ssl.SSLContext | None = None,
        *,
        preface: bytes = b"",
        timeout: float = TIMEOUT,
    ) -> None:
        super().__init__(address, timeout)
        try:
            if preface:
                self.socket.sendall(preface)
            context = context or client_context()
            self.socket: ssl.SSLSocket = context.wrap_socket(self.socket, server_hostname="localhost")
        except BaseException:
            self.socket.close()
            raise

    @property
    def certificate(self) -> bytes:
        found = self.socket.getpeercert(binary_form=True)
        assert found is not None
        return found

    def half_close(self) -> None:
        """close_notify; answers still come. (Python's unwrap would wait for the server's.)"""
        self.socket.setblocking(False)
        with contextlib.suppress(ssl.SSLWantReadError):
            self.socket.unwrap()
        self.socket.setblocking(True)
