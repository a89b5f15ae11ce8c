# SPDX-License-Identifier: Apache-2.0
"""The number of bits of a system call's argument that the kernel reads, and comparisons of no more than those.

A filter sees every argument as 64 bits (seccomp(2)).  The kernel first converts it to the type in the call's prototype:
of socket(2)'s `int domain` it reads 32 bits, so a domain with bit 32 set is the same domain to the kernel and another
number to a filter that compares all 64.  A filter that compares bits which the kernel does not read can be bypassed.

The prototypes are the kernel's (SYSCALL_DEFINE…, as section 2 of the man pages documents them under "C library/kernel
differences"), not the C library's: clone(2) has `unsigned long flags`, of which the kernel takes the lower 32 bits.
They are those of 64-bit programs: the 16-bit ids of i386's setuid(2), chown(2) and the like are compared in 32 bits.
"""

from __future__ import annotations

from nsrun.errors import BadInput

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

    Masked = tuple[int, int]  # (mask, value): true when argument & mask == value

#: Indices of the arguments that are 32 bits wide (int, unsigned int, pid_t, uid_t, clockid_t, …) → calls.
_INTS = {
    "0": """accept alarm arch_prctl clock_adjtime clock_adjtime64 clock_getres clock_getres_time64 clock_gettime
        clock_gettime64 clock_settime clock_settime64 clone close dup epoll_create epoll_create1 eventfd exit exit_group
        fchdir fchmod fdatasync fgetxattr flistxattr fremovexattr fstat fstat64 fstatfs fstatfs64 fsync ftruncate
        ftruncate64 futimesat get_robust_list getgroups getgroups32 getitimer getpeername getpgid getrlimit getrusage
        getsid getsockname inotify_init1 io_setup io_uring_setup iopl keyctl memfd_secret migrate_pages mkdirat mlockall
        modify_ldt mq_getsetattr mq_notify mq_timedreceive mq_timedreceive_time64 nice openat2 personality pkey_free
        prctl pread64 preadv process_vm_readv process_vm_writev pselect6 pselect6_time64 pwrite64 pwritev read readahead
        readv rt_sigaction rt_sigprocmask sched_get_priority_max sched_get_priority_min sched_getparam
        sched_getscheduler sched_rr_get_interval sched_rr_get_interval_time64 sched_setparam select set_mempolicy
        setfsgid setfsgid32 setfsuid setfsuid32 setgid setgid32 setgroups setgroups32 setitimer setrlimit setuid
        setuid32 sigaction signal signalfd sigprocmask socketcall ssetmask syncfs sysfs timer_create timer_delete
        timer_getoverrun timer_gettime timer_gettime64 timerfd_gettime timerfd_gettime64 ugetrlimit umask userfaultfd
        ustat write writev fchmodat""",
    "1": """access delete_module fsopen memfd_create mq_open open pipe2 ppoll ppoll_time64 swapon symlinkat umount umount2
        ptrace""",
    "2": """getrandom ioperm landlock_create_ruleset lsm_list_modules madvise map_shadow_stack mknod mlock2 msync
        readlink""",
    "3": "listmount pkey_mprotect request_key statmount",
    "4": "add_key lsetxattr mmap mmap2 setxattr",
    "5": "mbind",
    "01": """clock_nanosleep clock_nanosleep_time64 dup2 eventfd2 fallocate fanotify_init fcntl fcntl64 flock getpriority
        inotify_rm_watch ioctl ioprio_get kexec_file_load kill landlock_restrict_self listen msgctl msgget pidfd_open
        prlimit64 process_mrelease rt_sigqueueinfo sched_getaffinity sched_setaffinity sched_setscheduler seccomp
        sendfile sendfile64 setns setpgid setregid setregid32 setreuid setreuid32 shmctl shutdown timer_settime
        timer_settime64 timerfd_create timerfd_settime timerfd_settime64 tkill""",
    "02": """bind bpf connect epoll_pwait2 faccessat finit_module fspick getdents getdents64 getxattrat inotify_add_watch
        listxattrat lseek mount_setattr open_by_handle_at open_tree open_tree_attr openat quotactl recvmsg removexattrat
        renameat sched_setattr semop semtimedop semtimedop_time64 sendmsg setxattrat shmat shmget syslog unlinkat wait4
        waitpid""",
    "03": """accept4 cachestat fadvise64 fchmodat2 fstatat64 lsm_get_self_attr mknodat mq_timedsend mq_timedsend_time64
        msgsnd newfstatat readlinkat recvfrom signalfd4 sync_file_range utimensat utimensat_time64 vmsplice""",
    "04": "_llseek execveat file_getattr file_setattr fsetxattr msgrcv name_to_handle_at",
    "05": "move_pages preadv2 pwritev2",
    "12": "chown chown32 lchown lchown32 poll",
    "23": "futex_wake",
    "35": "futex_wait",
    "012": """close_range dup3 epoll_ctl fchown fchown32 fsmount getsockopt ioprio_set kcmp membarrier pidfd_getfd
        quotactl_fd reboot rt_tgsigqueueinfo semctl semget setpriority setresgid setresgid32 setresuid setresuid32
        socket socketpair tgkill""",
    "013": "fanotify_mark io_uring_register landlock_add_rule pidfd_send_signal tee waitid",
    "014": "fsconfig",
    "023": """epoll_pwait epoll_wait faccessat2 lsm_set_self_attr recvmmsg recvmmsg_time64 sched_getattr sendmmsg
        statx""",
    "024": "linkat move_mount renameat2",
    "025": "copy_file_range splice",
    "034": "process_madvise",
    "035": "sendto",
    "123": "futex_requeue perf_event_open rseq",
    "124": "futex_waitv",
    "125": "futex futex_time64",
    "0123": "io_uring_enter",
    "0124": "setsockopt",
    "0234": "fchownat",
}

#: The index of a umode_t, of which the kernel reads 16 bits → calls.
_MODES = {
    1: "chmod creat fchmod mkdir mknod",
    2: "fchmodat fchmodat2 mkdirat mknodat mq_open open",
    3: "openat",
}


def width(call: str, index: int) -> int:
    """Return how many low bits of the argument the kernel reads: 16, 32 or 64."""
    if call in _MODES.get(index, "").split():
        return 16
    return 32 if any(str(index) in indices and call in calls.split() for indices, calls in _INTS.items()) else 64


def masked(comparison: str, value: int, two: int, bits: int) -> list[Masked]:
    """Return masked comparisons of which one is true exactly when `comparison` is true of the lowest `bits` bits.

    `comparison` is one of libseccomp's (seccomp_rule_add(3)): NE, LT, LE, EQ, GE, GT, and MASKED_EQ, whose mask is
    `value` and whose operand is `two`.  All of them are unsigned.  No pair means that it is never true, a pair of zeros
    that it always is.

    Raise BadInput for an operand that the argument can't have.  A negative number may be sign-extended to 64 bits.
    """
    full = (1 << bits) - 1
    operand = two if comparison == "MASKED_EQ" else value
    if operand >> bits and operand >> (bits - 1) != (1 << (65 - bits)) - 1:
        raise BadInput(f"the kernel reads {bits} bits of this argument, which is never {operand:#x}")
    operand &= full
    if comparison == "MASKED_EQ":
        return [(value & full, operand)]
    if comparison == "EQ":
        return [(full, operand)]
    if comparison == "LT":
        return list(_below(operand, bits))
    if comparison == "LE":
        return [*_below(operand, bits), (full, operand)]
    if comparison == "GT":
        return list(_above(operand, bits))
    if comparison == "GE":
        return [*_above(operand, bits), (full, operand)]
    return [*_below(operand, bits), *_above(operand, bits)]  # NE


def _below(operand: int, bits: int) -> Iterator[Masked]:
    """Yield comparisons for smaller numbers.

    They agree with the operand down to one of its ones, and have a zero there.
    """
    for bit in range(bits):
        if operand >> bit & 1:
            mask = (1 << bits) - (1 << bit)
            yield mask, operand & mask ^ 1 << bit


def _above(operand: int, bits: int) -> Iterator[Masked]:
    """Yield comparisons for larger numbers.

    They agree with the operand down to one of its zeros, and have a one there.
    """
    for bit in range(bits):
        if not operand >> bit & 1:
            mask = (1 << bits) - (1 << bit)
            yield mask, operand & mask | 1 << bit
