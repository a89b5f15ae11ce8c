# SPDX-License-Identifier: Apache-2.0
"""`python -m nsrun`, and the file that the monitor executes to restart a member (`python -I …/__main__.py`)."""

import gc
import os.path
import sys

if not __package__:
    sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

from nsrun.cli import main

gc.disable()  # nothing lives long enough to be worth collecting
sys.exit(main())
