# SPDX-License-Identifier: Apache-2.0
"""The sources of the compiled parts: a digest that the build leaves beside them, and that the tests compare.

setup.py writes it to nsrun/libexec/sources; tests/conftest.py refuses to test what was built from other sources.
Modification times would not do: switching to another branch and back changes them, although nothing has changed.
"""

import hashlib
import pathlib

NAME = "sources"
#: Where the compiled and generated parts come from, below the top of the checkout.
INPUTS = ("csrc/*", "nsrun/host/messages.py", "pyproject.toml", "setup.py")


#: All from which one build differs from another: a compiled plan is replayed only by the front of the same build.
EVERYTHING = (*INPUTS, "nsrun/**/*.py", "nsrun/**/*.json", "nsrun/cli/nsrun-python", "nsrun/oci/nsrun-oci-python")
#: What a build makes below nsrun/.
_MADE = ("_protocol.py", "_templates.py")


def digest(top: pathlib.Path, patterns: tuple[str, ...] = INPUTS) -> str:
    """Return the digest of the names and the contents of these files."""
    whole = hashlib.sha256()
    for pattern in patterns:
        for path in sorted(path for path in top.glob(pattern) if path.is_file() and path.name not in _MADE):
            content = path.read_bytes()
            whole.update(f"{path.relative_to(top)} {len(content)}\n".encode() + content)
    return whole.hexdigest()
