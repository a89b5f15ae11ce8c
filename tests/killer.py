# SPDX-License-Identifier: Apache-2.0
"""Runs `pod create` or `join`, and kills itself with SIGKILL after the given step.  Started by test_faults.py.

killer.py pod|owned|pasta|join|detached STEP [ROOTFS or IMAGE]      STEP 0: print the number of steps that Python carries out, do nothing
"""

import os
import signal
import sys

from nsrun.lifecycle.create import plan_pod
from nsrun.lifecycle.join import plan_join
from nsrun.plan import INIT
from nsrun.plan.member import Request
from nsrun.run import Run
from nsrun.state import State

what, last = sys.argv[1], int(sys.argv[2])
state = State()
if what in ("pod", "owned", "pasta"):
    more = {"owned": {"owner": "alice"}, "pasta": {"network": "pasta"}}.get(what, {})
    if "NETWORK" in os.environ:
        more["network"] = os.environ["NETWORK"]
    plan = plan_pod(state, {"name": "victim", "publish": ["127.0.0.1:20500:80"], **more})
else:
    source = "image" if state.uid else "rootfs"
    options = {"name": "victim", source: sys.argv[3], "command": ["sleep", "1000"]}
    plan = plan_join(state, state.pod("pause"), options, Request(detach=what == "detached")).plan
steps = [step for step in plan if step.phase != INIT]
if last == 0:
    print(len(steps))
    sys.exit()
run = Run(plan, state)
for number, step in enumerate(steps, 1):
    step.do(run)
    if number == last:
        os.kill(os.getpid(), signal.SIGKILL)
