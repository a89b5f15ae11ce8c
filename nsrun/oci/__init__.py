# SPDX-License-Identifier: Apache-2.0
"""`nsrun-oci`: what engines call in place of runc or crun, over the same spec, plan, run and nsrun-init as pods.

    commands   the command line: a table, and what reads it      say       the log, output, and the state as JSON
    config     what is in config.json and what is refused        resources what of it becomes files of cgroups; both are pure
    cgroups    the hierarchies of this machine                   state     one directory for each container
    steps      what only containers have                         plan      the order of `create`, `exec` and hooks
    run        runs such a plan                                  lifecycle what each command does
    main       picks the command

The specification is https://github.com/opencontainers/runtime-spec; docs/oci.md tells what engines need beyond it.
"""
