/* SPDX-License-Identifier: Apache-2.0 */
/*
 * protocol.h: the messages between nsrun and its programs, defined once.
 *
 * The programs include this file; setup.py makes nsrun/_protocol.py from it for the Python side.  docs/protocol.md draws
 * which process talks to which over which descriptor, and what happens when one end dies.  All of it stays on one machine
 * and within one installation, so numbers have the machine's byte order and there are no versions to negotiate; the magic
 * numbers only detect a wrong descriptor.
 *
 * setup.py understands `#define NAME "text"`, `enum name { … }`, `struct name { … }` without padding, and OPS.  The
 * name of an enumerator is its name in Python; a struct becomes its format for Python's struct module, in upper case.
 */
#ifndef NSRUN_PROTOCOL_H
#define NSRUN_PROTOCOL_H

#include <stdint.h>

/* ---- limits that both sides know ------------------------------------------------------------------- */

/* Where a program is searched for when the environment has no PATH. */
#define DEFAULT_PATH "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

enum limits {
	MAX_GROUPS = 65536,      /* supplementary groups; the kernel's NGROUPS_MAX.  More are refused, never cut off */
	MAX_FILTER = 4096,       /* instructions of one seccomp filter; the kernel's BPF_MAXINSNS */
	LOG_CAP = 16 << 20,      /* bytes after which a member's log is rotated */
	DOOR_FDS = 250,          /* descriptors in one request; the kernel's SCM_MAX_FD is 253 */
	DOOR_NUMBERS = 512,      /* the numbers that a request may give its descriptors are below this */
	DOOR_BYTES = 8 << 20,    /* bytes of one request; execve(2) takes 6 MiB of strings at most */
	DOOR_LOCKS = 8,          /* descriptors to be locked in one request */
	DOOR_SECONDS = 10,       /* from a request to the door's answer */
};

/* The roles of the bytes in a `held` file (nsrun/state/life.py): a lock on one proves that its holder is alive. */
enum lock_byte {
	MAKER = 0,  /* nsrun, while it makes or removes the pod or member */
	KEEPER = 1, /* pause, for a pod; nsrun-monitor, for a member */
	HOLDER = 2, /* nsrun-hold, which keeps what root lends to an owned pod */
};

/* ---- nsrun → nsrun-init: the plan ------------------------------------------------------------------ */

/*
 * A sealed memfd: this header, then `count` steps.  A step is a u32, the position of its op in OPS, and for each argument
 * a u32 length and that many bytes.
 */
#define PLAN_MAGIC "NSP1"
struct plan_header {
	char magic[4]; /* PLAN_MAGIC */
	uint32_t count;
};

/*
 * The ops of nsrun-init in the order of their numbers, and their arguments: i = 64-bit integer, s = string, l = list of
 * strings.  Each is named after its step class in nsrun/plan: mount_tree is the step MountTree, and
 * op_mount_tree() in init.c carries it out.  No plan of a pod has a wait: nsrun/teach/steps.py puts them between the steps.
 * Those from new_mount on are in the plans of nsrun-oci alone (nsrun/oci/steps.py).
 */
#define OPS(OP) \
	OP(enter_mount_namespace, "ii") \
	OP(unshare, "i") \
	OP(make_private, "") \
	OP(attach_root, "is") \
	OP(tmpfs_root, "ss") \
	OP(mount, "sssi") \
	OP(mount_tree, "isi") \
	OP(mount_from_pod, "ssi") \
	OP(make_directory, "s") \
	OP(write_file, "ss") \
	OP(make_symlink, "ss") \
	OP(make_dev, "sl") \
	OP(mask, "s") \
	OP(readonly_path, "s") \
	OP(pivot, "") \
	OP(readonly_root, "") \
	OP(set_hostname, "s") \
	OP(write_proc, "ssi") \
	OP(set_limit, "iii") \
	OP(loopback_up, "") \
	OP(new_session, "i") \
	OP(new_keyring, "") \
	OP(set_user, "iilii") \
	OP(set_capabilities, "i") \
	OP(set_profile, "s") \
	OP(no_new_privileges, "") \
	OP(set_filter, "i") \
	OP(undumpable, "") \
	OP(change_directory, "s") \
	OP(wait, "") \
	OP(execute, "ll") \
	OP(execute_pause, "ill") \
	OP(new_mount, "ssslii") \
	OP(enter_cgroup, "ii") \
	OP(bind_inside, "ss") \
	OP(make_node, "siiiii") \
	OP(make_link, "ss") \
	OP(move_root, "") \
	OP(set_propagation, "i") \
	OP(set_readonly, "s") \
	OP(set_domainname, "s") \
	OP(set_umask, "i") \
	OP(set_personality, "i") \
	OP(set_io_priority, "i") \
	OP(set_scheduler, "iiiiiii") \
	OP(set_capability_sets, "iiii") \
	OP(set_filter_flags, "iii") \
	OP(set_filter_with_listener, "iii") \
	OP(execute_container, "slliiiii")

/* ---- nsrun → nsrun's front, the next time: a compiled plan ------------------------------------------ */

/*
 * A file below RUN/plans: this header, then `count` steps, each encoded as those of nsrun-init's plan are, with the numbers of
 * REPLAY.  `checksum` (sealed.h) is that of everything after the header.  docs/replay.md tells what a front may take for granted.
 */
#define REPLAY_MAGIC "NSR1"
struct replay_header {
	char magic[4];  /* REPLAY_MAGIC */
	char build[64]; /* csrc/built.py, EVERYTHING: of the nsrun that made the plan */
	uint32_t checksum, count;
};

/*
 * What the front does, in the order of the numbers; b = any bytes, the others as in OPS.  The first ones are witnesses: they
 * change nothing, and if what they say is not so any more, the plan is stale.  A handle is the number of a descriptor.
 *
 *     words WORDS COMMAND           the command line begins with these, and after them comes nothing, or (1) a command
 *     same_file PATH DEV INODE SIZE MTIME CTIME    times in nanoseconds; the last component is no link
 *     same_text PATH TEXT           a file of the kernel's, whole
 *     same_link PATH TARGET         readlink(2)
 *     same_variable NAME VALUE      "=…", or "" for one that is not set
 *     same_powers EFFECTIVE BOUNDING               bit masks of capabilities(7)
 *     same_inside ROOT PATH DEV INODE SIZE MTIME CTIME    a file below that directory; DEV 0: there is none
 *     input_is_a_terminal
 *     absent PATH                   nothing is there
 *     fresh IDS TIMES               a new id, and the time, in the place of those of the run that left the plan: int32_t[], each
 *                                   counted from the end of the plan; and the command is such that a note can have it
 *     process PID START HANDLE      a pidfd; START as in proc_pid_stat(5)
 *     program PATH NAME HANDLE      a sealed copy
 *     memory NAME BYTES HANDLE      a sealed file
 *     document HEAD FIRST TAIL HANDLE      the same, for nsrun-init's plan: HEAD, the list of FIRST and the arguments of the
 *                                   command, TAIL
 *     pipe READ WRITE OWNED UID     OWNED is the end that belongs to UID
 *     null HANDLE FLAGS             /dev/null; of open(2)
 *     terminal ROOT UID MASTER SLAVE       in the devpts below that directory
 *     cgroup PATH INODE HANDLE
 *     new_cgroup ABOVE NAME HANDLE SHARED  ABOVE is a handle; 1: it may be there already, and is not ours to remove
 *     offer CGROUP CONTROLLERS      CGROUP is a handle; "+…", as cgroup.subtree_control has it, unless it is offered already
 *     new_netns HANDLE
 *     netlink NETNS PROTOCOL MESSAGE       in that namespace; one that asks for an acknowledgement
 *     claim DIRECTORY HANDLE NOTED  make it, with its `held`, which we hold as MAKER; 1: the note says which file that is
 *     note PATH TEMPLATE            write a note (state/codec.py), and rename it into place
 *     file PATH BYTES
 *     rename FROM TO
 *     directory PATH MODE UID GID   MODE 0: 0700, and nobody else's
 *     share PATH HANDLE             flock(2), LOCK_SH
 *     overlay LOWERS UPPER ATTRS HANDLE    of directories from the top down, and UPPER/upper and UPPER/work
 *     tree PATH RECURSIVE ATTRS HANDLE     a private copy of the mount, or mounts
 *     channel ONE OTHER             a SOCK_SEQPACKET pair
 *     listen DIRECTORY HANDLE       at DIRECTORY/attach
 *     launch JOIN FLAGS CGROUP PROGRAM DOCUMENT CHANNEL PIDFD KEEP STDIO MONITOR WORDS KEEP LOCKS NEW    KEEP, STDIO, LOCKS: int32_t[];
 *                                   MONITOR -1: there is none yet, and PIDFD is ours; NEW: CLONE_NEW…, of namespaces to be made
 *     release READY                 let the program start; 1: it is pause, which says that it is ready
 *     open_directory PATH HANDLE
 *     lock HANDLE BYTE              F_SETLK, F_RDLCK
 *     become PROGRAM WORDS KEEP     become the monitor
 *     go HANDLE NAME                tell the monitor, if there is one (-1), that all is done; print the name, and end
 */
#define REPLAY(DO) \
	DO(words, "li") \
	DO(same_file, "siiiii") \
	DO(same_text, "ss") \
	DO(same_link, "ss") \
	DO(same_variable, "ss") \
	DO(same_powers, "ii") \
	DO(same_inside, "ssiiiii") \
	DO(input_is_a_terminal, "") \
	DO(absent, "s") \
	DO(fresh, "bb") \
	DO(process, "iii") \
	DO(program, "ssi") \
	DO(memory, "sbi") \
	DO(document, "bbbi") \
	DO(pipe, "iiii") \
	DO(null, "ii") \
	DO(terminal, "siii") \
	DO(cgroup, "sii") \
	DO(new_cgroup, "isii") \
	DO(offer, "il") \
	DO(new_netns, "i") \
	DO(netlink, "iib") \
	DO(claim, "sii") \
	DO(note, "ss") \
	DO(file, "sb") \
	DO(rename, "ss") \
	DO(directory, "siii") \
	DO(share, "si") \
	DO(overlay, "lsii") \
	DO(tree, "siii") \
	DO(channel, "ii") \
	DO(listen, "si") \
	DO(launch, "iiiiiiibbilbbi") \
	DO(release, "i") \
	DO(open_directory, "si") \
	DO(lock, "ii") \
	DO(become, "ilb") \
	DO(go, "is")

/*
 * What csrc/oci.c does besides, for the containers of nsrun-oci: the numbers follow those of REPLAY.  The plan of a container lies in
 * its own directory, and has the steps of several commands (nsrun/oci/leave.py).
 *
 *     container PATH                it is the directory that we hold
 *     verb COMMAND                  the steps up to the next verb are those of this command
 *     look PID START FREEZER V1     which status its first process has; FREEZER: the cgroup that freezes it, "" for none
 *     only STATUSES                 the command can be carried out with one of these
 *     answer HEAD MIDDLE TAIL       print HEAD, the pid, MIDDLE, the status, TAIL
 *     let_go                        the first process becomes its program
 *     send                          it gets the signal of the command line
 *     end                           it is killed, and has ended
 *     remove_cgroup PATH            no process is in it
 *     remove                        what is written of the container
 *     frame MEMBERS                 the file of --process, if it was given, says this beside args and env: a list of "key":value
 *     home WORD DEV INODE SIZE MTIME CTIME    its env gets that, if it has no HOME, and this is the container's /etc/passwd
 *     same_namespaces OURS THEIRS   inodes, uint64_t[], of the seven that a container may have of its own
 *     unlock                        others may work on the container
 *     give_stdio UID                the pipes and terminals of our standard streams belong to that user
 *     open_cgroup PATH HANDLE       by which a process of one thread enters a cgroup of v1
 *     oom_score VALUE               of the new process
 *     arguments HEAD ENV TAIL HANDLE       nsrun-init's plan: HEAD, the list of arguments, ENV or what --process says, TAIL
 *     write_pid                     of the new process, where --pid-file says
 *     stay                          until it has ended, unless it is detached
 *
 * Those of `create`, whose plans lie beside the containers (nsrun/oci/anew.py):
 *
 *     config FIRST SECOND THIRD LISTS NAMES MOUNTS ORDER    config.json says this, with the list of args and that of env between;
 *                                   LISTS: of enum list_order.  NAMES: int32_t[], where in it a name stands that may be another:
 *                                   offset, length, number.  MOUNTS: where each begins and ends; ORDER: which comes before which
 *     own_name NUMBER LENGTH        the id of the new container
 *     names PLACES                  int32_t[], where such a name stands in this plan: number (-1: the time), distance from the end
 *     new_container PATH BUNDLE     it is what the command line asks for
 *     same_hierarchies TEXT         the lines of mountinfo that are about cgroups
 *     hidden PATH KIND              something lies over such a mount; KIND: of enum cgroup_kind
 *     plain_path PATH               a directory, and no link on the way
 *     plain_targets ROOT PATHS      no link is on the way to a mount, if the mounts have another order than in the plan
 *     home_of_image WORD ROOT TEXT  env gets that, if it has no HOME, and the /etc/passwd there says TEXT
 *     make_container                its directory, which we hold locked
 *     fifo NAME HANDLE              in it
 *     namespace PATH TYPE HANDLE    TYPE: CLONE_NEW…
 *     open_tree PATH RECURSIVE PROPAGATION DEEP SET CLEAR BELOW_SET BELOW_CLEAR HANDLE    DEEP: the propagation of all of it
 *     make_cgroup PATH LENGTH KIND HANDLE  LENGTH: of the mount point; KIND: of enum cgroup_kind
 *     write PATH TEXT               to a file of the kernel's
 *     device_filter CGROUP PROGRAM  eBPF
 *     joins NAMESPACES              the new process is born in these: int32_t[]
 *     leave FIRST SECOND NUMBERS THEIRS    the plan of the container, with the list of env between, if there is a SECOND; NUMBERS:
 *                                   int32_t[], where there is a number of this container: which half, offset, of enum
 *                                   container_number; THEIRS: a bit mask of its namespaces that are not ours (container.h, namespaces)
 */
#define CONTAINER(DO) \
	DO(container, "s") \
	DO(verb, "s") \
	DO(look, "iisi") \
	DO(only, "l") \
	DO(answer, "sss") \
	DO(let_go, "") \
	DO(send, "") \
	DO(end, "") \
	DO(remove_cgroup, "s") \
	DO(remove, "") \
	DO(frame, "l") \
	DO(home, "siiiii") \
	DO(same_namespaces, "bb") \
	DO(unlock, "") \
	DO(give_stdio, "i") \
	DO(open_cgroup, "si") \
	DO(oom_score, "i") \
	DO(arguments, "bbbi") \
	DO(write_pid, "") \
	DO(stay, "") \
	DO(own_name, "ii") \
	DO(config, "bbbibbb") \
	DO(names, "b") \
	DO(new_container, "ss") \
	DO(same_hierarchies, "s") \
	DO(hidden, "si") \
	DO(plain_path, "s") \
	DO(plain_targets, "sl") \
	DO(home_of_image, "ssb") \
	DO(make_container, "") \
	DO(fifo, "si") \
	DO(namespace, "sii") \
	DO(open_tree, "siiiiiiii") \
	DO(make_cgroup, "siii") \
	DO(write, "ss") \
	DO(device_filter, "ib") \
	DO(joins, "b") \
	DO(leave, "bbbi")

enum list_order {
	ARGS_FIRST = 0,
	ENV_FIRST = 1,
	ARGS_ALONE = 2, /* there is no env */
};

enum cgroup_kind {
	CGROUP_PLAIN = 0,
	CGROUP_CPUSET = 1, /* it has the processors of the one above, or no process may be in it */
	CGROUP_UNIFIED = 2,
};

/* What the plan of a container says of it, and is known only when that is made.  Of a file: device, inode, size and two times. */
enum container_number {
	OF_PID = 0,
	OF_START = 1,
	OF_CGROUP = 2,  /* the inode of that of v2 */
	OF_STATE = 3,
	OF_CONFIG = 8,
	OF_PASSWD = 13,
	OF_OURS = 18,   /* inodes of our namespaces */
	OF_THEIRS = 25, /* and of its first process */
	CONTAINER_NUMBERS = 32,
};

/* What is known only at the time stands in the template of a note as HOLE, a byte that is in no note, and one of the others. */
enum replay_hole {
	HOLE = 1,
	HOLE_COMMAND = 'c', /* the arguments of the command, as JSON strings with commas between */
	HOLE_PROCESS = 'p', /* pid and start time of the process, as two numbers */
	HOLE_HELD = 'h',    /* inode of its `held` */
	HOLE_SINCE = 's',   /* and when that was made, in nanoseconds */
	HOLE_CGROUP = 'g',  /* inode of its cgroup */
	HOLE_NAMESPACES = 'n', /* of the process: an object, with the inode of each */
	HOLE_PID = 'i',     /* of a container's first process */
	HOLE_START = 't',   /* and when that began */
	HOLE_ARGS = 'a',    /* its arguments, as JSON strings with commas between */
	HOLE_ENV = 'e',     /* and its environment */
};

enum replay_limits {
	REPLAY_BYTES = 1 << 20, /* of one compiled plan */
	REPLAY_WORDS = 32,      /* of a command line, before the command */
	REPLAY_FIRST = 20,      /* handles are numbers from this one on, above those that a shell leaves open, */
	REPLAY_HANDLES = 40,    /* so many of them: below 63, the first of bash's <(…), and in a table of 64 */
	CREATE_NAMES = 64,      /* names of one container that may be others in the next */
	CREATE_PLANS = 4,       /* plans of `create` for config.json with the same members */
};

/* ---- nsrun → nsrun-monitor → nsrun-init: the plan of a health check --------------------------------- */

/* The descriptors that it names; the cgroup of the checks, below the member's. */
enum probe_fd {
	PROBE_MEMBER_FD = 3, /* pidfd of the member */
	PROBE_FILTER_FD = 4, /* the memfd of its seccomp filter */
};
#define CHECKS "nsrun-health"

/* ---- nsrun-init ↔ nsrun: the channel, a SOCK_SEQPACKET pair ---------------------------------------- */

/* From nsrun-init: this, and after `err` the path or name that the step was touching, without a NUL. */
struct init_record {
	uint32_t kind, step; /* of enum init_says; the step counts from 0 */
	int32_t err;         /* an errno */
};

enum init_says {
	INIT_FAILED = 'E', /* a step failed; the exit of nsrun-init follows */
	INIT_WAITS = 'W',  /* all but the exec is done, or it has come to a wait; it waits for GO */
	PAUSE_READY = 'R', /* from pause, one byte instead of a record: its signals are blocked */
};

/* From nsrun, one byte: it tells nsrun-init to exec, and nsrun-monitor (`go=`) that the member's note is written. */
enum nsrun_says {
	GO = 'G',
};

/* ---- nsrun ↔ nsrun-door: a launch, one connection each --------------------------------------------- */

/*
 * From nsrun, one packet of any byte with descriptors.  The first is a sealed memfd: this struct; four lists of numbers,
 * each a u32 count and as many i32 (the numbers of the other descriptors, those that nsrun-init keeps, those that
 * nsrun-monitor keeps, and those that are locked); three lists of strings, each a u32 length and the strings with their
 * NULs (the arguments of nsrun-init, those of nsrun-monitor, and its environment).
 */
#define DOOR_MAGIC "NSD2"
struct door_request {
	char magic[4]; /* DOOR_MAGIC */
	int32_t join_fd, join_flags, clone_flags, cgroup, program, monitor, pidfd_slot;
	int32_t stdio[3], monitor_stdio[3];
};

/* From the door, one packet; after a success with two descriptors, pidfds of the member and of its monitor. */
struct door_answer {
	int32_t pid, monitor, failed, error; /* failed: of enum stage; error: -errno, or 0 */
};

/* How far a launch got (csrc/launch.h), by nsrun itself or by a door. */
enum stage {
	STAGE_DONE = 0,
	STAGE_PREPARE = 1, /* opening our own namespaces; or the door's reading of the request */
	STAGE_JOIN = 2,    /* setns(2) to the pod */
	STAGE_CLONE = 3,   /* clone of nsrun-init */
	STAGE_MONITOR = 4, /* clone of nsrun-monitor */
	STAGE_RETURN = 5,  /* setns(2) back */
	STAGE_LOCK = 6,    /* locking the `held` files */
	STAGE_LEAVE = 7,   /* giving up keys and priorities before joining another user's namespace */
	STAGE_LIMITS = 8,  /* taking over the limits of the requesting process */
};

/* ---- nsrun attach ↔ nsrun-monitor: packets whose first byte is the kind ---------------------------- */

enum attach_packet {
	ATTACH_OUT = 'o',   /* to the client: output of the member on stdout */
	ATTACH_ERR = 'e',   /* and on stderr */
	ATTACH_EXIT = 'x',  /* the exit status in decimal; the member has ended */
	ATTACH_FULL = 'f',  /* the maximum of clients is reached */
	ATTACH_INPUT = 'i', /* from the client: input */
	ATTACH_CLOSE = 'c', /* the end of input */
	ATTACH_SIZE = 'w',  /* a struct winsize */
};

/* ---- nsrun-unpack → nsrun: records in a memfd ------------------------------------------------------ */

/* This, and then `len` and `len2` bytes: a path, and a second text for the kinds that have one. */
struct unpack_record {
	uint32_t kind, err;
	uint64_t a, b;
	uint32_t len, len2;
};

enum unpack_says {
	UNPACK_IMPLIED = 'I',  /* a directory that no entry made (yet): its attributes are the lower layer's */
	UNPACK_HIDING = 'H',   /* such a directory in place of a whiteout: it keeps hiding what is beneath */
	UNPACK_MADE = 'X',     /* an entry made such a directory after all */
	UNPACK_WHITEOUT = 'W', /* a whiteout */
	UNPACK_OPAQUE = 'O',   /* this directory hides the lower one */
	UNPACK_REPLACED = 'D', /* it does so because there was a whiteout of its name */
	UNPACK_SKIPPED = 'S',  /* a device node that was left out; only the first hundred are reported */
	UNPACK_FILE = 'F',     /* list: a file, with offset and size */
	UNPACK_LINK = 'L',     /* list: a link, with its target; err: the type of the entry */
	UNPACK_LOWER = 'N',    /* the layers beneath are needed (a link through, or to, something in them) */
	UNPACK_FAILED = 'E',   /* an error, with errno and text; the last record */
	UNPACK_CHARGED = 'C',  /* before UNPACK_END and UNPACK_LOWER: entries, bytes and bytes of records of this run */
	UNPACK_END = 'K',      /* the end: the number of regular files in the tree, and their bytes */
};

/* The charges of all writers of a load, in a memfd that they share. */
struct unpack_account {
	uint64_t bytes, entries, records, following; /* the last in ns of processor time */
};

/* The descriptors that nsrun-unpack starts with. */
enum unpack_fd {
	UNPACK_STREAM_FD = 0,
	UNPACK_RECORDS_FD = 1,
	UNPACK_ROOT_FD = 3,    /* a detached mount of the directory that is written to */
	UNPACK_ACCOUNT_FD = 4, /* a memfd with struct unpack_account */
};

#endif
