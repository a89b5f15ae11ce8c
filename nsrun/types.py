# SPDX-License-Identifier: Apache-2.0
"""The shapes that travel through nsrun, for mypy: imported under TYPE_CHECKING only, so they cost nothing at run time."""

from __future__ import annotations

Ranges = list[list[int]]  # [first id of the pod, first id of the host, how many]
Maps = dict[str, Ranges]  # "uid", "gid"
