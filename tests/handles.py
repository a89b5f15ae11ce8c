# SPDX-License-Identifier: Apache-2.0
"""Runs one command line, and prints what each step that Python carries out asked for, and what it left (test_explain.py).

The last step of a command in the foreground, which would put the monitor in Python's place, fails instead.
"""

import json
import os
import sys

from nsrun import kernel
from nsrun.cli import main
from nsrun.plan import INIT
from nsrun.run import Run

execute, fd = Run.execute, Run.fd
found: list[dict[str, object]] = []
asked: set[str] = set()


def watched(step, needs):
    def do(run):
        asked.clear()
        before = set(run.handles)
        try:
            type(step).do(step, run)
        finally:
            told = {"step": type(step).__name__, "needs": needs, "makes": step.makes()}
            left = set(run.handles) - before | {name for name in step.makes() if name in run.values}  # pod:ip
            found.append({**told, "asked": sorted(asked & before), "left": sorted(left)})

    return do


def execute_watched(run):
    inside = [name for step in run.plan.init_steps() for name in step.needs()]  # Launch encodes phase 4
    for step in run.plan:
        if step.phase != INIT:
            needs = [*step.needs(), *(inside if type(step).__name__ == "Launch" else [])]
            object.__setattr__(step, "do", watched(step, needs))
    execute(run)


def fd_watched(run, name):
    if name in run.handles:
        asked.add(name)
    return fd(run, name)


def replace_process(program, argv):
    raise SystemExit(0)


Run.execute, Run.fd, kernel.replace_process = execute_watched, fd_watched, replace_process  # type: ignore[method-assign]
out = os.dup(1)
os.dup2(2, 1)
try:
    main(sys.argv[1:])
finally:
    os.write(out, json.dumps(found).encode())
