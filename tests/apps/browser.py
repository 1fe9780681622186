"""What the Flask and the Django application serve to a browser; what it finds, it writes into a directory."""

import os
import time
from pathlib import Path

PAGE = Path(__file__).with_name("browser.html")
FOUND = Path(os.environ.get("BROWSER_FOUND", "."))
EVENTS = 5


def events():
    """Server-sent events, each when the browser has told that it has the one before."""
    for number in range(EVENTS):
        yield f"data: {number}\n\n"
        for _ in range(3000):
            if (FOUND / f"event-{number}").exists():
                break
            time.sleep(0.01)


def note(name, data=b""):
    """All of it, or nothing."""
    part = FOUND / f"{name}.part"
    part.write_bytes(data)
    part.rename(FOUND / name)
