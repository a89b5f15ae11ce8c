# SPDX-License-Identifier: Apache-2.0
"""What teaches: the kernel's facts about processes and namespaces, `nsrun ns`, `nsrun map` and the labs.

Nothing here is imported on the way to a member, and nothing here believes a note: facts.py asks the kernel only.
"""
