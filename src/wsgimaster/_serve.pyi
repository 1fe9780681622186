from collections.abc import Callable, Sequence
from mmap import mmap
from typing import Any

class ClientDisconnected(OSError): ...
class ChannelLost(OSError): ...

class FileWrapper:
    filelike: Any
    block_size: int
    def __init__(self, filelike: Any, block_size: int = ...) -> None: ...
    def __iter__(self) -> FileWrapper: ...
    def __next__(self) -> bytes: ...
    def close(self) -> None: ...

class Core:
    def __init__(
        self,
        channel: int,
        memory: mmap,
        cores: int,
        doorbell: int,
        index: int,
        core_id: int,
        threads: int,
        application: Callable[..., Any],
        environ: dict[str, Any],
        timeout: float,
        *,
        buffer_size: int,
        allow_from: Sequence[tuple[bytes, int]],
        forwarded_allow: Sequence[tuple[bytes, int]],
        log_all: bool,
        log_4xx: bool,
        log_5xx: bool,
        complain: Callable[[str], None],
        report: Callable[[str, str], None],
    ) -> None: ...
    def serve(self) -> None: ...
    def asked_to_stop(self) -> bool: ...

def expect_the_worst(tracebacks: int, master: int) -> None: ...
def say_alive(channel: int) -> None: ...
def sendable(filelike: Any) -> tuple[int, int, int] | None: ...
