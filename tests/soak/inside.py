# SPDX-License-Identifier: Apache-2.0
"""In a PID namespace with the old /proc: bystanders get the pids of nsrun's processes, then the command is run.

inside.py UID PID… -- COMMAND…      says "BYSTANDER KILLED" when one of them has ended
"""

import contextlib
import subprocess
import sys

uid, at = int(sys.argv[1]), sys.argv.index("--")
bystanders = []
for pid in sorted(map(int, sys.argv[2:at])):
    with contextlib.suppress(OSError), open("/proc/sys/kernel/ns_last_pid", "w") as file:
        file.write(str(pid - 1))
        file.flush()
        bystanders.append(
            subprocess.Popen(
                ["bystander", "100"],
                executable="/bin/sleep",
                user=uid,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
            )
        )
code = subprocess.call(sys.argv[at + 1 :])
for process in bystanders:
    if process.poll() is not None:
        print(f"BYSTANDER KILLED: {process.pid}, {process.returncode}", file=sys.stderr)
    process.kill()
sys.exit(code if code >= 0 else 128 - code)
