"""Builds the Cython extensions; everything else stands in pyproject.toml.

WSGIMASTER_SANITIZE=address builds them with AddressSanitizer (see `make asan`).
"""

import hashlib
import os
from pathlib import Path

from Cython.Build import cythonize
from setuptools import Extension, find_packages, setup

FLAGS = ["-O2", "-std=gnu11", "-Wall", "-Wno-unused-function", "-Wno-sign-compare"]
LINK = ["-lrt"]  # timer_create, in C libraries that still have it apart; elsewhere an empty one
if sanitizer := os.environ.get("WSGIMASTER_SANITIZE"):
    FLAGS += [f"-fsanitize={sanitizer}", "-fno-omit-frame-pointer", "-g"]
    LINK += [f"-fsanitize={sanitizer}"]
else:
    FLAGS += ["-g0"]  # Python's own flags ask for debugging symbols: three quarters of the wheel

# What master, zygotes and workers share, and how one master tells the next of it. An upgrade can keep the workers if
# nothing of that has changed (upgrading.py).
SHARED = ["src/wsgimaster/_layout.pxd", "src/wsgimaster/messages.py", "src/wsgimaster/handover.py"]
LAYOUT = hashlib.sha256(b"".join(Path(path).read_bytes() for path in SHARED)).hexdigest()[:16]

setup(
    packages=find_packages("src"),
    package_dir={"": "src"},
    package_data={"wsgimaster": ["*.pyi", "*.pxd", "py.typed"]},
    ext_modules=cythonize(
        [
            Extension(
                f"wsgimaster.{path[4:-4]}",
                [path],
                define_macros=[("WSGIMASTER_LAYOUT", f'"{LAYOUT}"')] if path == "src/_front.pyx" else [],
                depends=SHARED,
                extra_compile_args=FLAGS,
                extra_link_args=LINK,
            )
            for path in (
                "src/_proto.pyx",
                "src/_http1.pyx",
                "src/_front.pyx",
                "src/_serve.pyx",
                "src/_files.pyx",
                "src/_process.pyx",
            )
        ],
        include_path=["src"],
        language_level=3,
        compiler_directives={"boundscheck": True, "wraparound": False, "cdivision": True},
    ),
)
