/* SPDX-License-Identifier: Apache-2.0 */
/*
 * floor: what a join costs in C, with nothing around it: the same calls that nsrun makes for `join … --rootfs R true`.
 *
 *   floor PID ROOTFS PLAN INIT DIRECTORY CGROUP REPEAT      prints the median of REPEAT joins, in microseconds
 *
 * Each round: a claim (mkdir, write, rename), pidfd of pause, an overlay from new directories, a cgroup, a sealed copy of nsrun-init and of
 * its plan, setns, a clone born in the cgroup, phase 4 by nsrun-init, a note (write, rename), "go", the end of `true`.
 * PLAN was encoded by nsrun for the descriptors 50 (the pidfd) and 51 (the root).
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <linux/sched.h>
#include <sched.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define PATH 512

static long must(long r, const char *what)
{
	if (r < 0) {
		perror(what);
		exit(1);
	}
	return r;
}

static char *contents(const char *path, size_t *size)
{
	struct stat st;
	int fd = (int)must(open(path, O_RDONLY | O_CLOEXEC), path);
	char *data;
	must(fstat(fd, &st), path);
	data = malloc((size_t)st.st_size);
	must(read(fd, data, (size_t)st.st_size), path);
	*size = (size_t)st.st_size;
	close(fd);
	return data;
}

static int sealed(const char *name, const char *data, size_t size)
{
	int fd = (int)must(memfd_create(name, MFD_CLOEXEC | MFD_ALLOW_SEALING), "memfd_create");
	must(write(fd, data, size), "write");
	must(fcntl(fd, F_ADD_SEALS, F_SEAL_SEAL | F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_WRITE), "seals");
	return fd;
}

static void note(const char *directory, const char *name)
{
	static const char text[512] = "{}";
	char a[PATH], b[PATH];
	int fd;
	snprintf(a, sizeof a, "%s/%s.tmp", directory, name);
	snprintf(b, sizeof b, "%s/%s", directory, name);
	fd = (int)must(open(a, O_WRONLY | O_CREAT | O_CLOEXEC, 0600), a);
	must(write(fd, text, sizeof text), a);
	close(fd);
	must(rename(a, b), b);
}

static void set(int fs, const char *key, const char *directory, const char *part)
{
	char value[PATH];
	int fd;
	char path[PATH];
	snprintf(path, sizeof path, "%s%s", directory, part);
	fd = (int)must(open(path, O_PATH | O_DIRECTORY), path);
	snprintf(value, sizeof value, "/proc/self/fd/%d", fd);
	must(syscall(SYS_fsconfig, fs, 1, key, value, 0), key);
	close(fd);
}

static int compare(const void *a, const void *b)
{
	return (*(const long *)a > *(const long *)b) - (*(const long *)a < *(const long *)b);
}

int main(int argc, char **argv)
{
	static const char *const names[] = {"net", "ipc", "uts", "pid_for_children"};
	static const int kinds[] = {CLONE_NEWNET, CLONE_NEWIPC, CLONE_NEWUTS, CLONE_NEWPID};
	int repeat = argc > 7 ? atoi(argv[7]) : 1, null = open("/dev/null", O_RDWR | O_CLOEXEC);
	long *took = calloc((size_t)repeat, sizeof *took);
	size_t plan_size;
	char *plan = contents(argv[3], &plan_size);

	for (int i = 0; i < repeat; i++) {
		char tmp[PATH], dir[PATH], upper[PATH], part[PATH + 16], group[PATH], text[2][16];
		struct timespec a, b;
		struct clone_args args = {.flags = CLONE_PIDFD | CLONE_INTO_CGROUP, .exit_signal = SIGCHLD};
		int fs, fd, two[2], init, memfd, saved[4], cgroup, status, pidfd;
		size_t init_size;
		char *program, record[1024];
		long pid;

		clock_gettime(CLOCK_MONOTONIC, &a);
		snprintf(tmp, sizeof tmp, "%s/tmp%d", argv[5], i);
		snprintf(dir, sizeof dir, "%s/member%d", argv[5], i);
		must(mkdir(tmp, 0700), tmp);
		note(tmp, "note"), note(tmp, "config.json"), note(tmp, "options.json");
		must(rename(tmp, dir), dir);

		fd = (int)must(syscall(SYS_pidfd_open, atoi(argv[1]), 0), "pidfd_open");
		must(dup3(fd, 50, O_CLOEXEC), "dup3"), close(fd);
		program = contents(argv[4], &init_size);
		init = sealed("nsrun-init", program, init_size);
		free(program);

		snprintf(upper, sizeof upper, "%s/upper%d", argv[5], i);
		must(mkdir(upper, 0700), upper);
		snprintf(part, sizeof part, "%s/upper", upper), must(mkdir(part, 0755), part);
		snprintf(part, sizeof part, "%s/work", upper), must(mkdir(part, 0755), part);
		fs = (int)must(syscall(SYS_fsopen, "overlay", 1), "fsopen");
		must(syscall(SYS_fsconfig, fs, 1, "source", "floor", 0), "source");
		set(fs, "lowerdir", argv[2], ""), set(fs, "upperdir", upper, "/upper"), set(fs, "workdir", upper, "/work");
		must(syscall(SYS_fsconfig, fs, 6, NULL, NULL, 0), "create");
		fd = (int)must(syscall(SYS_fsmount, fs, 1, 4), "fsmount");
		must(dup3(fd, 51, O_CLOEXEC), "dup3"), close(fd), close(fs);

		snprintf(group, sizeof group, "%s/m%d", argv[6], i);
		must(mkdir(group, 0755), group);
		cgroup = (int)must(open(group, O_RDONLY | O_DIRECTORY | O_CLOEXEC), group);

		must(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, two), "socketpair");
		memfd = sealed("plan", plan, plan_size);
		for (int n = 0; n < 4; n++) {
			snprintf(part, sizeof part, "/proc/self/ns/%s", names[n]);
			saved[n] = open(part, O_RDONLY | O_CLOEXEC);
		}
		must(setns(50, CLONE_NEWNET | CLONE_NEWIPC | CLONE_NEWUTS | CLONE_NEWPID), "setns");
		snprintf(text[0], 16, "%d", memfd), snprintf(text[1], 16, "%d", two[1]);
		args.cgroup = (uint64_t)cgroup, args.pidfd = (uint64_t)(uintptr_t)&pidfd;
		pid = syscall(SYS_clone3, &args, sizeof args);
		if (pid == 0) {
			char *words[] = {"nsrun-init", text[0], text[1], NULL}, *none[] = {NULL};
			for (int n = 0; n < 3; n++)
				dup3(null, n, 0);
			fcntl(50, F_SETFD, 0), fcntl(51, F_SETFD, 0), fcntl(memfd, F_SETFD, 0), fcntl(two[1], F_SETFD, 0);
			syscall(SYS_execveat, init, "", words, none, AT_EMPTY_PATH);
			_exit(125);
		}
		must(pid, "clone3");
		for (int n = 0; n < 4; n++)
			must(setns(saved[n], kinds[n]), "back"), close(saved[n]);
		close(two[1]), close(memfd);
		must(read(two[0], record, sizeof record), "ready");
		note(dir, "note");
		must(write(two[0], "G", 1), "go");
		while (read(two[0], record, sizeof record) > 0)
			if (record[0] == 'E') {
				fprintf(stderr, "floor: step %u failed: %s\n", *(unsigned *)(record + 4), record + 12);
				return 1;
			}
		must(waitpid((pid_t)pid, &status, 0), "waitpid");
		clock_gettime(CLOCK_MONOTONIC, &b);
		close(two[0]), close(init), close(cgroup), close(pidfd), close(50), close(51);
		rmdir(group);
		if (status) {
			fprintf(stderr, "floor: the member ended with %d\n", status);
			return 1;
		}
		took[i] = (b.tv_sec - a.tv_sec) * 1000000 + (b.tv_nsec - a.tv_nsec) / 1000;
	}
	qsort(took, (size_t)repeat, sizeof *took, compare);
	printf("%ld\n", took[repeat / 2]);
	return 0;
}
