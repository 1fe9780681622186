"""An application of which there are several versions: what its import does stands in the file that DEPLOY names, a line
of Python, so that a test can deploy another one."""

import os
import time
from pathlib import Path

VERSION = "none"
exec(Path(os.environ["DEPLOY"]).read_text())
IMPORTED_BY = os.getpid()


def application(environ, start_response):
    path = environ["PATH_INFO"]
    if path == "/sleep":
        time.sleep(float(environ["QUERY_STRING"]))
    if path == "/gate":
        while not Path(environ["QUERY_STRING"]).exists():
            time.sleep(0.01)
    status = "503 Not Ready" if path == "/health" and VERSION.endswith("ill") else "200 OK"
    start_response(status, [("Content-Type", "text/plain")])
    return [f"{VERSION} {os.environ.get('COLOUR', '')} {os.getpid()}".encode()]
