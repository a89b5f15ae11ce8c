# SPDX-License-Identifier: Apache-2.0
"""Pods as Kubernetes writes them: YAML, compiled to what a file of `nsrun up` says, and written from what there is.

document.py reads YAML as kubectl does, fields.py has the values of fields, pods.py compiles them, and generate.py writes
them.  All of it is pure: it asks nothing of the machine, and nothing here is on the way to a member.
"""
