# SPDX-License-Identifier: Apache-2.0
"""Coverage of every nsrun process: tests/coverage installs this file as sitecustomize of an environment of its own.

An environment variable would not do: what root starts for an owner, or the monitor to restart a member, begins with an
empty environment.  nsrun ends without the interpreter's own end, by os._exit() and by execveat(), so data are saved
before both.  What is killed tells nothing.
"""

import atexit
import os
import sys

import coverage

TOP, DATA = "@TOP@", "@DATA@"  # filled in by tests/coverage; anybody may write to DATA

measured = coverage.Coverage(config_file=f"{TOP}/pyproject.toml", data_file=f"{DATA}/data", data_suffix=True)
measured.start()


def save() -> None:
    try:
        measured.stop()
        measured.save()
    except Exception:  # a test has filled the disk or taken a power away, which must not change what nsrun does
        pass


def before(function):
    def wrapper(*args, **kwargs):
        save()
        return function(*args, **kwargs)

    return wrapper


class Finder:
    """Wrap nsrun.kernel.replace_process as soon as there is one."""

    @staticmethod
    def find_spec(name, path=None, target=None):
        if name != "nsrun.kernel":
            return None
        sys.meta_path.remove(Finder)
        from importlib.util import find_spec

        spec = find_spec(name)
        load = spec.loader.exec_module

        def exec_module(module):
            load(module)
            module.replace_process = before(module.replace_process)

        spec.loader.exec_module = exec_module
        return spec


atexit.register(save)
os._exit = before(os._exit)
sys.meta_path.insert(0, Finder)
