# SPDX-License-Identifier: Apache-2.0
"""The cffi build step: `nsrun._kernel`, the system calls that Python lacks (API mode).

setuptools runs this file (`cffi_modules` in setup.py).  Python gets every function of kernel.c whose name begins with
nsrun_, and `struct launch` of launch.h, unchanged.  Each function returns what the kernel returned, a value or -errno;
nsrun/kernel.py is the only caller and turns the negative ones into exceptions that have the text of the call.
nsrun/_kernel.pyi is the typed stub: change both together (a test compares them).
"""

import pathlib
import re

from cffi import FFI

HERE = pathlib.Path(__file__).parent
SOURCE, LAUNCH = (HERE / "kernel.c").read_text(), (HERE / "launch.h").read_text()

ffi = FFI()
ffi.cdef(re.search(r"^struct launch \{$.*?^\};$", LAUNCH, re.M | re.S)[0] + "\ntypedef struct launch nsrun_launch;\n")
ffi.cdef("".join(f"{head};\n" for head in re.findall(r"^static ((?:long|uint32_t) nsrun_\w+\([^)]*\))$", SOURCE, re.M)))
ffi.set_source("nsrun._kernel", SOURCE, include_dirs=[str(HERE)])

if __name__ == "__main__":
    ffi.compile(verbose=True)
