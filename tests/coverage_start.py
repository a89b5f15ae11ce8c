# SPDX-License-Identifier: Apache-2.0
"""Coverage of every nsrun process: tests/coverage installs this file as sitecustomize of an environment of its own.

An environment variable would not do: what root starts for an owner, or the monitor to restart a member, begins with an
empty environment.  nsrun ends without the interpreter's own end, by os._exit() and by execveat(), so data are written
before both.  What is killed tells nothing.

The suite starts Python some 50,000 times.  Importing coverage.py would cost each of them 100 ms, and its data a
database.  So only its tracer in C is loaded, and what that saw is written to a file that is named by its digest: most
commands see the same lines, and write nothing.  tests/coverage gathers the files.  This is not coverage.py's public
interface, so pyproject.toml pins its version.
"""

import atexit
import marshal
import os
import sys
import threading
from importlib.machinery import ExtensionFileLoader
from importlib.util import module_from_spec, spec_from_loader

TOP, DATA, TRACER = "@TOP@", "@DATA@", "@TRACER@"  # filled in by tests/coverage; anybody may write to DATA

loader = ExtensionFileLoader("coverage.tracer", TRACER)
spec = spec_from_loader("coverage.tracer", loader)
assert spec
coverage_tracer = module_from_spec(spec)
loader.exec_module(coverage_tracer)

seen: dict[str, set[int]] = {}  # by source: its branches, each packed into a number
asked: dict = {}  # what trace() answered, for the tracers
tracers: list[object] = []


def trace(filename, frame):
    """Tell a tracer whether it is to trace `filename`."""
    answer = coverage_tracer.CFileDisposition()
    answer.original_filename = answer.canonical_filename = answer.source_filename = filename
    answer.trace, answer.reason = filename.startswith(f"{TOP}/nsrun/"), ""
    answer.file_tracer, answer.has_dynamic_filename = None, False
    return answer


def start():
    """Start a tracer for this thread, and return it."""
    tracer = coverage_tracer.CTracer()
    tracer.data, tracer.trace_arcs, tracer.should_trace, tracer.should_trace_cache = seen, True, trace, asked
    tracer.lock_data = tracer.unlock_data = tracer.warn = lambda *_: None
    tracer.concur_id_func = tracer.check_include = tracer.should_start_context = tracer.switch_context = None
    tracer.disable_plugin, tracer.file_tracers = None, {}
    tracers.append(tracer)
    return tracer.start()


def start_thread(frame, event, arg):
    """Trace a new thread from its first call on (threading.settrace)."""
    sys.settrace(None)
    traced = start()
    return traced(frame, event, arg) if traced else None


def save():
    """Write what was seen, unless that has been written before."""
    try:
        text = marshal.dumps(sorted((name, sorted(branches)) for name, branches in seen.items()), 2)
        import _sha1  # most of nsrun's processes have it, and hashlib costs 2 ms

        path = f"{DATA}/{_sha1.sha1(text).hexdigest()}"
        if seen and not os.path.exists(path):
            with open(f"{path}.{os.getpid()}", "xb") as file:
                file.write(text)
            os.rename(file.name, path)
    except Exception:  # a test has filled the disk or taken a power away, which must not change what nsrun does
        pass


def before(function):
    """Return `function`, but save what was seen first."""

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
threading.settrace(start_thread)
start()
