"""An application that needs an old library of the server's own kind, and looks at what else it can see."""

import importlib.util
import json
import sys

import pydantic

OURS = ("uvloop", "psutil", "pydantic_core")


class Model(pydantic.BaseModel):
    number: int


def application(environ, start_response):
    seen = {
        "pydantic": pydantic.VERSION,
        "model": Model(number="7").dict(),
        "others": [name for name in OURS if importlib.util.find_spec(name)],
        "prefix": sys.prefix,
    }
    start_response("200 OK", [("Content-Type", "application/json")])
    return [json.dumps(seen).encode()]
