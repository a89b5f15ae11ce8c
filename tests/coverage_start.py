"""Coverage of every nsrun process: `make coverage` installs this file as sitecustomize of an environment of its own.

An environment variable would not do, for what root starts for an owner, or the monitor to restart a member, begins
with an empty environment.  nsrun ends without the interpreter's own end, by os._exit() and by execveat(), so data are
saved before both.  DIRECTORY is replaced by the directory of the data, which anybody may write to.
"""

import os
import sys

TOP, DATA = "@TOP@", "@DATA@"


def start() -> None:
    import coverage

    umask = os.umask(0)  # what root's process has begun, an owner's may have to read
    os.umask(umask)
    measured = coverage.Coverage(config_file=f"{TOP}/pyproject.toml", data_file=f"{DATA}/data", data_suffix=True)
    measured.start()

    def saved() -> None:
        try:
            measured.stop()
            measured.save()
        except Exception:  # a disk that a test has filled, a directory that a test has taken away
            pass

    def before(function):
        def wrapper(*args, **kwargs):
            saved()
            return function(*args, **kwargs)

        return wrapper

    os._exit = before(os._exit)
    os.execv, os.execve = before(os.execv), before(os.execve)

    class Finder:
        """Wrap nsrun.kernel.replace_process as soon as it is there."""

        def find_spec(self, name, path=None, target=None):
            if name != "nsrun.kernel":
                return None
            sys.meta_path.remove(self)
            from importlib.util import find_spec

            spec = find_spec(name)
            load = spec.loader.exec_module

            def exec_module(module):
                load(module)
                module.replace_process = before(module.replace_process)

            spec.loader.exec_module = exec_module
            return spec

    sys.meta_path.insert(0, Finder())


if "nsrun" in os.path.basename(sys.argv[0] if hasattr(sys, "argv") and sys.argv else "") or True:
    start()
