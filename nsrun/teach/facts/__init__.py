# SPDX-License-Identifier: Apache-2.0
"""Ask the kernel about processes and their namespaces; read no note, no log, and no file that a student can write.

What has just ended is left out, so nothing here fails because processes come and go.  A process that the caller may not
look into (ptrace(2), "Ptrace access mode checking") has no namespaces here, which is not to say that it shares ours.
"""

from __future__ import annotations

from nsrun.teach.facts.cgroups import Limit as Limit
from nsrun.teach.facts.cgroups import cgroup as cgroup
from nsrun.teach.facts.cgroups import controller as controller
from nsrun.teach.facts.cgroups import controllers as controllers
from nsrun.teach.facts.cgroups import group as group
from nsrun.teach.facts.cgroups import limits as limits
from nsrun.teach.facts.cgroups import memory_limit as memory_limit
from nsrun.teach.facts.cgroups import out_of_memory as out_of_memory
from nsrun.teach.facts.entered import enter as enter
from nsrun.teach.facts.entered import file_from_inside as file_from_inside
from nsrun.teach.facts.entered import hostname_of as hostname_of
from nsrun.teach.facts.entered import segments as segments
from nsrun.teach.facts.mounts import Mount as Mount
from nsrun.teach.facts.mounts import identity_at as identity_at
from nsrun.teach.facts.mounts import inode_in_root as inode_in_root
from nsrun.teach.facts.mounts import mount_at as mount_at
from nsrun.teach.facts.mounts import mount_of as mount_of
from nsrun.teach.facts.mounts import mounted_namespace as mounted_namespace
from nsrun.teach.facts.mounts import mounts as mounts
from nsrun.teach.facts.mounts import names_in_root as names_in_root
from nsrun.teach.facts.mounts import open_at as open_at
from nsrun.teach.facts.mounts import root_of as root_of
from nsrun.teach.facts.mounts import root_of_directory as root_of_directory
from nsrun.teach.facts.mounts import root_of_namespace as root_of_namespace
from nsrun.teach.facts.mounts import shm as shm
from nsrun.teach.facts.mounts import text_in_root as text_in_root
from nsrun.teach.facts.namespaces import Namespace as Namespace
from nsrun.teach.facts.namespaces import descriptors as descriptors
from nsrun.teach.facts.namespaces import family as family
from nsrun.teach.facts.namespaces import id_map as id_map
from nsrun.teach.facts.namespaces import initial as initial
from nsrun.teach.facts.namespaces import mount_namespace_id as mount_namespace_id
from nsrun.teach.facts.namespaces import namespace as namespace
from nsrun.teach.facts.namespaces import namespace_at as namespace_at
from nsrun.teach.facts.namespaces import of_children as of_children
from nsrun.teach.facts.namespaces import owners as owners
from nsrun.teach.facts.namespaces import threads as threads
from nsrun.teach.facts.namespaces import uid_inside as uid_inside
from nsrun.teach.facts.network import Interface as Interface
from nsrun.teach.facts.network import Link as Link
from nsrun.teach.facts.network import Socket as Socket
from nsrun.teach.facts.network import addresses as addresses
from nsrun.teach.facts.network import has_owner as has_owner
from nsrun.teach.facts.network import holders as holders
from nsrun.teach.facts.network import http as http
from nsrun.teach.facts.network import interfaces as interfaces
from nsrun.teach.facts.network import ip_addresses as ip_addresses
from nsrun.teach.facts.network import listening as listening
from nsrun.teach.facts.network import netns_number as netns_number
from nsrun.teach.facts.network import own_links as own_links
from nsrun.teach.facts.network import routes as routes
from nsrun.teach.facts.network import sockets as sockets
from nsrun.teach.facts.network import tables as tables
from nsrun.teach.facts.network import tcp as tcp
from nsrun.teach.facts.processes import KINDS as KINDS
from nsrun.teach.facts.processes import Process as Process
from nsrun.teach.facts.processes import inside as inside
from nsrun.teach.facts.processes import is_of_nsrun as is_of_nsrun
from nsrun.teach.facts.processes import is_pause as is_pause
from nsrun.teach.facts.processes import namespaces_of as namespaces_of
from nsrun.teach.facts.processes import nice as nice
from nsrun.teach.facts.processes import pids as pids
from nsrun.teach.facts.processes import process as process
from nsrun.teach.facts.processes import processes as processes
from nsrun.teach.facts.processes import program as program
from nsrun.teach.facts.processes import read as read
