from collections.abc import Sequence

class HeadError(ValueError):
    status: int

class Head:
    variables: list[tuple[bytes, bytes]]
    content_length: int | None
    chunked: bool
    expects: bool
    keeps: bool
    size: int
    taken: int
    body: bytes

class Dechunker:
    ended: bool
    def feed(self, data: bytes) -> tuple[bytes, int]: ...

def read_request(
    data: bytes,
    *,
    address: str = ...,
    port: int = ...,
    own_port: int = ...,
    secure: bool = ...,
    forwarded_allow: Sequence[tuple[bytes, int]] | None = ...,
    proxied: bool = ...,
    limit: int = ...,
) -> Head | None: ...
