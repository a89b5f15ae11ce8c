"""What pyproject.toml can't say: the cffi extension, the three static programs, and the nsrun script.

The programs of csrc/ are compiled by the same build step as the extension (build_ext), so `pip install .`,
a wheel and an sdist all carry them.  CC and CFLAGS are honoured; a cross compiler works:
    CC=aarch64-linux-gnu-gcc python setup.py build_programs --build-lib out
"""

import os
import pathlib
import shlex
import subprocess
import sys

from setuptools import Command, setup
from setuptools.command.build_ext import build_ext

HERE = pathlib.Path(__file__).parent
PROGRAMS = ("pause", "init", "monitor")
FLAGS = (
    "-std=gnu11 -Os -Wall -Wextra -Werror -ffreestanding -fno-builtin -fno-stack-protector -fno-asynchronous-unwind-tables "
    "-fno-ident -fno-pie -static -nostdlib -nostartfiles -Wl,-z,noseparate-code -Wl,--build-id=none -Wl,-z,norelro "
    "-Wl,-z,noexecstack -s"
).split()


def compile_programs(out: pathlib.Path, version: str) -> None:
    cc = shlex.split(os.environ.get("CC", "cc"))
    out.mkdir(parents=True, exist_ok=True)
    for name in PROGRAMS:
        command = [*cc, *FLAGS, f'-DNSRUN_VERSION="{version}"', "-o", str(out / f"nsrun-{name}"), str(HERE / "csrc" / f"{name}.c")]
        print(" ".join(command), flush=True)
        subprocess.run(command, check=True)


class BuildExt(build_ext):
    def run(self) -> None:
        super().run()
        package = HERE / "nsrun" if self.inplace else pathlib.Path(self.build_lib) / "nsrun"
        compile_programs(package / "libexec", self.distribution.get_version())


class BuildPrograms(Command):
    description = "compile only the static programs (for a cross compiler)"
    user_options = [("build-lib=", None, "directory to put them in")]

    def initialize_options(self) -> None:
        self.build_lib = "build/programs"

    def finalize_options(self) -> None:
        pass

    def run(self) -> None:
        compile_programs(pathlib.Path(self.build_lib), self.distribution.get_version())


sys.path.insert(0, str(HERE))
setup(
    cffi_modules=["csrc/kernel_build.py:ffi"],
    cmdclass={"build_ext": BuildExt, "build_programs": BuildPrograms},
    scripts=["nsrun/cli/nsrun"],
)
