"""The cffi build step: `nsrun._kernel`, the system calls that Python lacks (API mode).

setuptools runs this file (`cffi_modules` in setup.py).  Every function gives what the kernel gave, a
value or -errno; nsrun/kernel.py is the only caller and turns the negative ones into exceptions that
carry the call.  nsrun/_kernel.pyi is the typed stub: change both together (a test compares them).
"""

import pathlib

from cffi import FFI

ffi = FFI()
ffi.cdef(
    """
    typedef struct {
        int user_fd;            /* a user namespace to join first; -1: none */
        int join_fd;            /* setns(join_fd, join_flags) before the clone; -1: none */
        int join_flags;
        int one_way;            /* a helper joins and clones: nobody comes back from a user namespace */
        int clone_flags;        /* CLONE_NEW… for namespaces made with the process */
        int cgroup;             /* directory of the cgroup it is born in; -1: the caller's */
        int program;            /* nsrun-init: a sealed memfd */
        char **argv;
        int stdio[3];
        int *keep;              /* descriptors it inherits, by the same numbers */
        int n_keep;
        int monitor;            /* nsrun-monitor, or -1: the caller itself is the parent */
        char **monitor_argv;
        char **monitor_envp;
        int *monitor_keep;
        int n_monitor_keep;
        int pidfd_slot;         /* with a monitor: the number under which it finds the member's pidfd */
        int *locks;             /* of these descriptors, lock_byte is locked by who stays: the monitor, or the program */
        int n_locks;
        int lock_byte;
        int pid;                /* out */
        int pidfd;              /* out; without a monitor */
        int monitor_pid;        /* out */
        int failed;             /* out: 1 save, 2 setns, 3 clone, 4 clone of the monitor, 5 restore, 6 locks, 7 leave */
        int error;              /* out: what the intermediate child met, -errno */
        int nest;               /* for itself */
    } nsrun_launch;

    long nsrun_do_launch(nsrun_launch *);
    long nsrun_new_netns(int user_fd);
    long nsrun_spawn_userns(int uid, int gid, int *hold);
    long nsrun_become(int uid, int gid, const unsigned *groups, int n);
    long nsrun_spawn_as(int uid, int gid, const unsigned *groups, int n, int out, char **argv, char **envp);
    long nsrun_enter_userns(int fd);
    long nsrun_enter_netns(int fd);
    long nsrun_pidfd_open(int pid);
    long nsrun_pidfd_send_signal(int fd, int sig);
    long nsrun_fsopen(const char *type);
    long nsrun_fsconfig(int fd, unsigned cmd, const char *key, const char *value);
    long nsrun_fsconfig_in(int dir, int mnt, int fd, unsigned cmd, const char *key, const char *value);
    long nsrun_fsmount(int fd, unsigned attrs);
    long nsrun_attach_apart(const int *trees, int n);
    long nsrun_open_tree(int dir, const char *path, unsigned flags);
    long nsrun_mount_setattr(int fd, unsigned flags, uint64_t set, uint64_t clear, uint64_t propagation, int userns);
    long nsrun_openat2(int dir, const char *path, uint64_t flags, uint64_t resolve);
    long nsrun_fs_magic(int fd);
    long nsrun_sealed_memfd(const char *name, const char *data, size_t size, int program);
    long nsrun_lock(int fd, int kind, long byte, long length);
    long nsrun_locked(int fd, long byte, long length);
    uint32_t nsrun_checksum(const char *data, size_t size);
    long nsrun_channel(int *two);
    long nsrun_replace_process(int program, char **argv, char **envp);
    """
)

HERE = pathlib.Path(__file__).parent
ffi.set_source("nsrun._kernel", (HERE / "kernel.c").read_text(), include_dirs=[str(HERE)])

if __name__ == "__main__":
    ffi.compile(verbose=True)
