/* SPDX-License-Identifier: Apache-2.0 */
/*
 * nsrun-monitor is a member's parent on the host.  It relays output and the terminal, writes the log,
 * passes on signals, records the exit status, and exits with it.  `nsrun join` execs this program, so a
 * running member takes only this process and its own.
 *
 *   nsrun-monitor KEY=VALUE… [-- PROGRAM ARG…]
 *     pidfd=FD         the member, our child
 *     out=FD err=FD    read ends of its stdout and stderr      tty=FD  or the master of its terminal
 *     in=FD            write end of its stdin
 *     foreground=1     relay to our own stdout and stderr      stdin=1  and from our stdin
 *     dir=FD           its state directory: `log`, `log.1`, `exit` ("STATUS TIME", and " oom" when the OOM killer ended it)
 *     cgroup=FD        its cgroup, which is killed when it has ended, and removed by parent=FD name=NAME
 *     mnt=FD           without a cgroup: its mount namespace, by which we find and kill what it left behind
 *     listen=FD        the SOCK_SEQPACKET of `nsrun attach`
 *     go=FD            a byte comes once nsrun has committed, perhaps with `mnt`; without it the member was never ours
 *     status=FD        gets {"event":"exited",…}
 *     lead=FD          gets the exit status in decimal, for the nsrun that waits outside the pod's cgroup (csrc/door.c)
 *     follow=FD        we are that nsrun: pass signals on to pidfd=FD, and exit with that status
 *     held=FD data=FD  files on which we hold record locks, by which others know that we live; PROGRAM inherits them
 *     cap=BYTES        the log is rotated at this size
 *     delay=MS         wait this long before PROGRAM (see restart) unless the member ran for 10 s
 *     probe=FD init=FD filter=FD join=FLAGS owner=UID interval=MS timeout=MS period=MS often=MS retries=N    its health checks (health.h)
 *     connect=1        they connect to a port, and probe=FD says to which (connect.h)
 *   PROGRAM is executed when the member has ended, with its exit status as last argument: nsrun itself, to
 *   restart or remove it.  DIR/stop means that somebody asked for the end; we make it when we are signalled.
 *
 * It blocks only in its one ppoll(2).  The reader of our stdout may be slow, stopped or gone: the member then has a full
 * pipe, and its end is still seen, recorded and reported.  What it wrote until then is kept for a reader that still takes
 * some; a signal, or a stop, ends that wait.  When a reader has gone, we do as in any pipeline: we close the read end of the
 * member's pipe, so that the member gets SIGPIPE.
 *
 * Attach speaks packets whose first byte is the kind: enum attach_packet of protocol.h.
 */
#include "protocol.h"
#include "sys.h"

#include <asm/ioctls.h>
#include <asm/siginfo.h>
#include <asm/termbits.h>
#include <linux/signalfd.h>

#define N_CLIENTS  4
#define BUF        4096
#define TTY_BUFFER (1 << 17) /* the most that a terminal without a writer holds: 64 KiB, and 4 KiB that were expanded */
#define PATIENCE   2000 /* ms that a client of `attach` may be behind before it is dropped */
#define GONE       (-1)
#define RECENT     10000 /* ms: a signal that came within this time before the member's end is taken for its cause */
#define GRACE      500  /* ms without progress after which we do not wait for a reader, once somebody asked for the end */

struct winsize_ {
	unsigned short row, col, x, y;
};

static int pidfd = -1, out = -1, err = -1, in = -1, tty = -1, dir = -1, cgroup = -1, parent = -1;
static int signals = -1, listener = -1, go = -1, status_fd = -1, lead = -1, follow = -1, held = -1, data = -1, foreground, use_stdin, log_fd = -1, mnt = -1;
static long log_cap = LOG_CAP, log_size, delay;
static const char *cgroup_name;
static char **program;
static int client[N_CLIENTS] = {-1, -1, -1, -1};
static long behind[N_CLIENTS]; /* ms of CLOCK_MONOTONIC since when it takes nothing; 0: it does; GONE: it never will again */
static int asked; /* somebody wants the end of the member, or ours: we do not wait for a reader that takes no output */
#define PAGES __attribute__((aligned(4096))) /* what is not used takes no memory, and what is takes no page more than it fills */
static char buf[BUF] PAGES;
static char pending[BUF] PAGES; /* input that the member has not taken yet */
static size_t pending_at, pending_len;
static int input_ended;
static struct termios at_first;
static int raw;

/* ---- the log: CRI's format, "TIME STREAM F|P TEXT" ------------------------------------------------ */

static void open_log(void)
{
	log_fd = (int)SYS4(openat, dir, "log", O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK, 0600);
	log_size = log_fd >= 0 ? SYS3(lseek, log_fd, 0, SEEK_END) : 0;
}

static void write_log(const char *stream, const char *text, size_t n)
{
	while (n && log_fd >= 0) {
		char head[64], *p = head;
		size_t line = 0;
		int whole;
		struct iov v[3];
		long r;

		while (line < n && text[line] != '\n')
			line++;
		whole = line < n;
		p = put_time(p);
		*p++ = ' ';
		p = put_str(p, stream);
		p = put_str(p, whole ? " F " : " P ");
		v[0] = (struct iov){head, (size_t)(p - head)};
		v[1] = (struct iov){text, line};
		v[2] = (struct iov){"\n", 1};
		r = SYS3(writev, log_fd, v, 3);
		if (r > 0)
			log_size += r;
		text += line + (size_t)whole;
		n -= line + (size_t)whole;
		if (log_size > log_cap) {
			long count = SYS4(openat, dir, "rotated", O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK, 0600);
			SYS1(close, log_fd);
			SYS5(renameat2, dir, "log", dir, "log.1", 0);
			open_log();
			if (count >= 0) /* its size is the count of rotations, for followers (lifecycle/logs.py) */
				SYS3(write, count, ".", 1), SYS1(close, count);
		}
	}
}

/* ---- output ---------------------------------------------------------------------------------------- */

/* The sink of a stream of the member in the foreground: our own stdout or stderr, which other processes may share. */
struct sink {
	int fd;           /* -1: there is none (any more) */
	int socket, wait; /* wait: it can't be made non-blocking, so ppoll(2) is asked before each write */
	int reader_gone;
	size_t most;                /* bytes of one write */
	size_t at, len, room, mapped; /* what is to be written yet: bytes[at .. at+len) */
	char *bytes;
};
static char first[2][BUF] PAGES;
static struct sink sinks[2] = {{.fd = -1}, {.fd = -1}};
static long unwritten; /* the errno with which a sink failed */

/*
 * Open the same file in an open file description of our own, which can be non-blocking while the shell's is not.  That works
 * for a FIFO, pipe or terminal through /proc, unless it is another user's.  Returns the descriptor, or -errno.
 */
static long reopen(int fd, int flags)
{
	char path[40];
	int number;
	long now = SYS3(fcntl, fd, F_GETFL, 0);
	if (now < 0 || now & O_PATH || (now & O_ACCMODE) == (flags == O_WRONLY ? O_RDONLY : O_WRONLY))
		return -EBADF; /* we must not gain access that the caller did not give */
	if (SYS3(ioctl, fd, TIOCGPTN, &number) == 0)
		return -ENOTTY; /* it is a master, and opening it again would make another terminal */
	*put_num(put_str(path, "/proc/self/fd/"), (unsigned long)fd, 1) = 0;
	return SYS4(openat, AT_FDCWD, path, flags | O_NONBLOCK | O_NOCTTY | O_CLOEXEC, 0);
}

static unsigned kind_of(int fd)
{
	struct statx st = {0};
	SYS5(statx, fd, "", AT_EMPTY_PATH, STATX_TYPE, &st);
	return st.stx_mode & S_IFMT;
}

static void open_sink(struct sink *s, int fd)
{
	unsigned kind = kind_of(fd);
	long own = kind == S_IFIFO || kind == S_IFCHR ? reopen(fd, O_WRONLY) : -1;

	s->fd = own >= 0 ? (int)own : fd;
	s->socket = kind == S_IFSOCK;
	s->wait = own < 0 && own != -EBADF && (kind == S_IFIFO || kind == S_IFCHR);
	s->most = !s->wait ? 1 << 16 : kind == S_IFIFO ? PIPE_BUF
	                                               : 1;
	s->bytes = first[s - sinks];
	s->room = sizeof *first;
}

static int is_ready(int fd, short what)
{
	struct timespec now = {0, 0};
	struct pollfd p = {fd, what, 0};
	return SYS5(ppoll, &p, 1, &now, NULL, 0) > 0;
}

/* Write what is taken at once. */
static void push(struct sink *s)
{
	while (s->len && s->fd >= 0) {
		size_t n = s->len < s->most ? s->len : s->most;
		long r;
		if (s->wait && !is_ready(s->fd, POLLOUT))
			return;
		if (s->socket)
			r = SYS(sendto, s->fd, s->bytes + s->at, n, MSG_DONTWAIT | MSG_NOSIGNAL, 0, 0);
		else
			r = SYS3(write, s->fd, s->bytes + s->at, n);
		if (r == -EINTR)
			continue;
		if (r == -EAGAIN)
			return;
		if (r < 0) {
			s->reader_gone = r == -EPIPE;
			if (r != -EPIPE && r != -EIO) /* EIO: the terminal was hung up, for which a signal comes, too */
				unwritten = -r;
			s->fd = -1, s->len = 0;
			return;
		}
		s->at += (size_t)r;
		s->len -= (size_t)r;
	}
	s->at = 0;
}

/* Keep what is to be written; memory grows only when the member has ended, by what was in its pipes then. */
static void keep(struct sink *s, const char *text, size_t n)
{
	size_t want = s->at + s->len + n;

	if (s->fd < 0)
		return;
	if (want > s->room && s->at) {
		memmove(s->bytes, s->bytes + s->at, s->len);
		s->at = 0;
		want = s->len + n;
	}
	if (want > s->room) {
		size_t room = (2 * want + BUF - 1) / BUF * BUF;
		long more = s->mapped ? SYS4(mremap, s->bytes, s->mapped, room, MREMAP_MAYMOVE)
		                      : (long)map_memory(room);
		if (!more || (more < 0 && more > -4096)) {
			unwritten = ENOMEM;
			return;
		}
		if (!s->mapped)
			memcpy((char *)more, s->bytes, s->at + s->len);
		s->bytes = (char *)more, s->room = s->mapped = room;
	}
	memcpy(s->bytes + s->at + s->len, text, n);
	s->len += n;
}

static void drop(int i)
{
	if (client[i] >= 0)
		SYS1(close, client[i]);
	client[i] = -1;
	behind[i] = 0;
}

static long now_ms(void)
{
	struct timespec ts;
	SYS2(clock_gettime, CLOCK_MONOTONIC, &ts);
	return ts.tv_sec * 1000 + ts.tv_nsec / 1000000 + 1;
}

/* Send a packet to every client; a client without room for the next one is waited for, at most PATIENCE. */
static void tell_clients(char kind, const char *text, size_t n)
{
	struct iov v[2] = {{&kind, 1}, {text, n}};
	struct message message = {.iov = v, .n_iov = 2};

	for (int i = 0; i < N_CLIENTS; i++)
		if (client[i] >= 0 && behind[i] != GONE) {
			if (SYS3(sendmsg, client[i], &message, MSG_DONTWAIT | MSG_NOSIGNAL) < 0)
				behind[i] = GONE; /* we still read what it sent before */
			else if (!is_ready(client[i], POLLOUT))
				behind[i] = now_ms();
		}
}

/* Drop the clients that have been behind for too long; returns how many ms the next one has left, -1 when none is behind. */
static long drop_late_clients(void)
{
	long least = -1, now = now_ms();

	for (int i = 0; i < N_CLIENTS; i++)
		if (behind[i] > 0) {
			long left = behind[i] + (asked ? GRACE : PATIENCE) - now;
			if (left <= 0)
				drop(i);
			else if (least < 0 || left < least)
				least = left;
		}
	return least;
}

/*
 * Move what can be read from `*fd`; close it at end of file, or when its reader has gone.  `left` is how many bytes are from
 * the member, when that has ended: we do not wait for other writers; -1: the member lives.
 */
static void relay(int *fd, struct sink *s, char kind, const char *stream, long *left)
{
	int dead = *left >= 0;
	size_t most = dead && *left < (long)sizeof buf ? (size_t)*left : sizeof buf;
	long n = s->reader_gone || !most ? 0 : SYS3(read, *fd, buf, most);
	if (n > 0) {
		if (dead)
			*left -= n;
		write_log(stream, buf, (size_t)n);
		tell_clients(kind, buf, (size_t)n);
		keep(s, buf, (size_t)n);
		push(s);
	} else if (n == -EINTR || (n == -EAGAIN && !dead)) {
		return;
	}
	if (n <= 0 || s->reader_gone) {
		SYS1(close, *fd);
		*fd = -1;
	}
}

/* ---- input ----------------------------------------------------------------------------------------- */

static void push_input(void)
{
	int to = tty >= 0 ? tty : in;
	if (to < 0)
		pending_len = 0; /* it has no input */
	while (pending_len) {
		long r = SYS3(write, to, pending + pending_at, pending_len);
		if (r == -EAGAIN)
			return;
		if (r < 0)
			r = (long)pending_len; /* nothing reads any more */
		pending_at += (size_t)r;
		pending_len -= (size_t)r;
	}
	pending_at = 0;
	if (input_ended && in >= 0 && !pending_len) {
		SYS1(close, in);
		in = -1;
	}
}

static void end_input(void)
{
	if (tty >= 0 && pending_len < sizeof pending && !input_ended)
		pending[pending_at + pending_len++] = 4; /* ^D, a terminal's end of file */
	input_ended = 1;
	push_input();
}

/* ---- attach ---------------------------------------------------------------------------------------- */

static void greet(void)
{
	static const char full = ATTACH_FULL;
	long fd = SYS4(accept4, listener, NULL, NULL, O_CLOEXEC);
	if (fd < 0)
		return;
	for (int i = 0; i < N_CLIENTS; i++)
		if (client[i] < 0) {
			client[i] = (int)fd;
			return;
		}
	SYS(sendto, fd, &full, 1, MSG_DONTWAIT | MSG_NOSIGNAL, 0, 0);
	SYS1(close, fd);
}

static void hear(int i)
{
	struct winsize_ size;
	long n = SYS3(read, client[i], buf, sizeof buf);
	if (n <= 0) {
		drop(i);
		return;
	}
	if (buf[0] == ATTACH_SIZE && tty >= 0 && n == 1 + (long)sizeof size) {
		memcpy(&size, buf + 1, sizeof size);
		SYS3(ioctl, tty, TIOCSWINSZ, &size);
	} else if (buf[0] == ATTACH_CLOSE) {
		end_input();
	} else if (buf[0] == ATTACH_INPUT && n > 1) {
		memcpy(pending, buf + 1, (size_t)n - 1);
		pending_len = (size_t)n - 1;
		push_input();
	}
}

/* ---- the terminal ---------------------------------------------------------------------------------- */

/* From whichever of our 0, 1 and 2 is a terminal. */
static void copy_size(void)
{
	struct winsize_ size;
	for (int fd = 0; fd < 3 && tty >= 0; fd++)
		if (SYS3(ioctl, fd, TIOCGWINSZ, &size) == 0) {
			SYS3(ioctl, tty, TIOCSWINSZ, &size);
			return;
		}
}

static void make_raw(void)
{
	struct termios t;
	if (tty < 0 || !use_stdin || SYS3(ioctl, 0, TCGETS, &at_first) < 0)
		return;
	t = at_first;
	t.c_iflag &= ~(unsigned)(IGNBRK | BRKINT | PARMRK | ISTRIP | INLCR | IGNCR | ICRNL | IXON);
	t.c_oflag &= ~(unsigned)OPOST;
	t.c_lflag &= ~(unsigned)(ECHO | ECHONL | ICANON | ISIG | IEXTEN);
	t.c_cflag = (t.c_cflag & ~(unsigned)(CSIZE | PARENB)) | CS8;
	t.c_cc[VMIN] = 1;
	t.c_cc[VTIME] = 0;
	raw = SYS3(ioctl, 0, TCSETSW, &t) == 0;
}

/* ---- signals --------------------------------------------------------------------------------------- */

#define STOPS (SIGBIT(SIGTERM) | SIGBIT(SIGINT) | SIGBIT(SIGHUP) | SIGBIT(SIGQUIT))

/*
 * The signals that are passed on: all except those for ourselves: those of job control, those that a fault of ours
 * raises, SIGCHLD, and those that were ignored when nsrun started (nohup(1), a shell's background job).  signal(7).
 */
static sigbits passed_signals(void)
{
	struct action action;
	sigbits passed = ~(SIGBIT(SIGKILL) | SIGBIT(SIGSTOP) | SIGBIT(SIGTSTP) | SIGBIT(SIGTTIN) | SIGBIT(SIGTTOU) | SIGBIT(SIGCONT) |
	                   SIGBIT(SIGSEGV) | SIGBIT(SIGBUS) | SIGBIT(SIGFPE) | SIGBIT(SIGILL) | SIGBIT(SIGTRAP) | SIGBIT(SIGSYS) |
	                   SIGBIT(SIGCHLD) | SIGBIT(SIGPIPE) | SIGBIT(SIGXFSZ));

	for (int sig = 1; sig <= 64; sig++)
		if (sig != SIGWINCH && SYS4(rt_sigaction, sig, NULL, &action, sizeof(sigbits)) == 0 && action.handler == SIG_IGN)
			passed &= ~SIGBIT(sig);
	return passed;
}

static void watch_signals(void)
{
	const sigbits passed = passed_signals();

	set_action(SIGPIPE, SIG_IGN), set_action(SIGXFSZ, SIG_IGN), set_action(SIGTTOU, SIG_IGN);
	sys_sigmask(SIG_SETMASK, passed);
	signals = (int)SYS4(signalfd4, -1, &passed, sizeof passed, O_CLOEXEC | O_NONBLOCK);
}

/* Take a signal and pass it on; returns its bit. */
static sigbits take_signal(int to)
{
	struct signalfd_siginfo si;
	if (SYS3(read, signals, &si, sizeof si) != sizeof si)
		return 0;
	if (si.ssi_signo == SIGWINCH && follow < 0)
		copy_size(); /* never passed on to a member: to apache it means "stop" */
	else if (to >= 0)
		SYS4(pidfd_send_signal, to, si.ssi_signo, NULL, 0);
	return SIGBIT(si.ssi_signo);
}

/* Wait until nsrun has written the member's note, or ends; it may send us the member's mount namespace. */
static int committed(void)
{
	struct {
		struct control head;
		int fd, pad;
	} rights = {0};
	struct iov v = {buf, 1};
	struct message message = {.iov = &v, .n_iov = 1, .control = &rights, .control_len = sizeof rights};

	if (SYS3(recvmsg, go, &message, MSG_CMSG_CLOEXEC) != 1)
		return 0;
	if (rights.head.level == SOL_SOCKET && rights.head.type == SCM_RIGHTS)
		mnt = rights.fd;
	return 1;
}

/* The member is not to be restarted. */
static void mark_stop(void)
{
	if (dir >= 0)
		SYS1(close, SYS4(openat, dir, "stop", O_WRONLY | O_CREAT | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK, 0600));
}

static int asked_to_stop(void)
{
	return dir >= 0 && SYS3(faccessat, dir, "stop", 0) == 0;
}

/* ---- the end --------------------------------------------------------------------------------------- */

/* Read as much of a file of /proc as fits into buf; returns its length, 0 when it can't be read. */
static size_t read_proc(const char *directory, long number, const char *file)
{
	char path[64];
	long fd, n = 0;
	*put_str(put_num(put_str(path, directory), (unsigned long)number, 1), file) = 0;
	fd = SYS4(openat, AT_FDCWD, path, O_RDONLY | O_CLOEXEC, 0);
	if (fd >= 0) {
		n = SYS3(read, fd, buf, sizeof buf - 1);
		SYS1(close, fd);
	}
	n = n < 0 ? 0 : n;
	buf[n] = 0;
	return (size_t)n;
}

/* The wait(2) status of the zombie: the last number of its stat, proc_pid_stat(5), field 52. */
static int wait_status(void)
{
	const char *p;
	size_t n;
	long pid = 0;
	read_proc("/proc/self/fdinfo/", pidfd, "");
	for (p = buf; *p; p++)
		if ((p == buf || p[-1] == '\n') && str_after(p, "Pid:\t"))
			for (p += 5; *p >= '0' && *p <= '9'; p++)
				pid = pid * 10 + *p - '0';
	n = pid > 0 ? read_proc("/proc/", pid, "/stat") : 0;
	for (pid = 0; n && (buf[n - 1] == '\n' || buf[n - 1] == ' '); n--)
		buf[n - 1] = 0;
	for (; n && buf[n - 1] >= '0' && buf[n - 1] <= '9'; n--)
		;
	for (p = buf + n; *p; p++)
		pid = pid * 10 + *p - '0';
	return n ? (int)pid : SIGKILL; /* it is dead, and we can't know more */
}

/*
 * Reap the member, whose pidfd is readable; returns the shell's exit status.  A tracer, perhaps of the pod's owner, has to
 * wait for it first (ptrace(2)), and may never do so: then it stays the tracer's zombie, and we read its status from /proc.
 */
static int reap(void)
{
	struct timespec pause = {0, 5000000};
	siginfo_t info = {0};
	for (int i = 0; i < 200 && !info.si_code; i++) {
		if (i)
			SYS2(nanosleep, &pause, NULL);
		SYS5(waitid, P_PIDFD, pidfd, &info, WEXITED | WNOHANG, NULL);
	}
	if (!info.si_code) {
		int value = wait_status();
		return value & 127 ? 128 + (value & 127) : value >> 8 & 255;
	}
	return info.si_code == CLD_EXITED ? info.si_status : 128 + info.si_status;
}

static long inode_of(const char *directory, long number, const char *file)
{
	char path[64];
	struct statx st = {0};
	*put_str(put_num(put_str(path, directory), (unsigned long)number, 1), file) = 0;
	SYS5(statx, AT_FDCWD, path, 0, STATX_INO, &st);
	return (long)st.stx_ino;
}

/*
 * Kill everything in the mount namespace of a member, in which no other member is; returns how many processes were found.
 * The namespace is identified by its inode number, which no other has as long as we have a descriptor of it.
 */
static int kill_namespace(void)
{
	struct statx st = {0};
	struct {
		uint64_t ino, off;
		unsigned short len;
		unsigned char type;
		char name[];
	} *entry;
	int found = 0;
	long n, proc = SYS4(openat, AT_FDCWD, "/proc", O_RDONLY | O_DIRECTORY | O_CLOEXEC, 0);

	SYS5(statx, mnt, "", AT_EMPTY_PATH, STATX_INO, &st);
	while (proc >= 0 && st.stx_ino && (n = SYS3(getdents64, proc, buf, sizeof buf)) > 0)
		for (char *p = buf; p < buf + n; p += entry->len) {
			long pid, fd;
			entry = (void *)p;
			pid = str_num(entry->name, -1);
			if (pid <= 0 || inode_of("/proc/", pid, "/ns/mnt") != (long)st.stx_ino)
				continue;
			fd = SYS2(pidfd_open, pid, 0);
			if (fd >= 0 && inode_of("/proc/", pid, "/ns/mnt") == (long)st.stx_ino) /* check again, now that we have the pidfd */
				found += SYS4(pidfd_send_signal, fd, SIGKILL, NULL, 0) == 0;
			SYS1(close, fd);
		}
	SYS1(close, proc);
	return found;
}

static void end_namespace(void)
{
	struct timespec pause = {0, 2000000};
	for (int i = 0; i < 100 && kill_namespace(); i++)
		SYS2(nanosleep, &pause, NULL);
}

/* The member has ended: end what it left in its cgroup, or without one in its mount namespace (kubernetes#92214). */
static void kill_rest(void)
{
	if (cgroup < 0 && mnt >= 0)
		end_namespace();
	long fd = cgroup >= 0 ? SYS4(openat, cgroup, "cgroup.kill", O_WRONLY | O_CLOEXEC, 0) : -1;
	if (fd >= 0) {
		SYS3(write, fd, "1", 1);
		SYS1(close, fd);
	}
}

/* Whether the OOM killer ended something in its cgroup.  memory.events: "oom_kill N", whatever limit it was. */
static int out_of_memory(void)
{
	long n = 0, fd = cgroup >= 0 ? SYS4(openat, cgroup, "memory.events", O_RDONLY | O_CLOEXEC, 0) : -1;
	if (fd >= 0) {
		n = SYS3(read, fd, buf, sizeof buf - 1);
		SYS1(close, fd);
	}
	buf[n > 0 ? n : 0] = 0;
	for (const char *p = buf; *p; p++)
		if (str_after(p, "oom_kill "))
			return *str_after(p, "oom_kill ") != '0';
	return 0;
}

static void remove_cgroup(void)
{
	struct timespec pause = {0, 2000000};
	if (parent < 0)
		return;
	for (int i = 0; i < 250; i++) {
		if (SYS3(unlinkat, parent, cgroup_name, AT_REMOVEDIR) != -EBUSY)
			return;
		SYS2(nanosleep, &pause, NULL);
	}
}

#include "health.h"

static void record(int code, int oom)
{
	char line[96], *p = line;
	long fd;

	p = put_num(p, (unsigned long)code, 1);
	if (dir >= 0) {
		char *end = p;
		*end++ = ' ';
		end = put_time(end);
		if (oom)
			end = put_str(end, " oom");
		*end++ = '\n';
		/* nsrun filled the file with blanks before the member started, so a full disk has space for this line */
		fd = SYS4(openat, dir, "exit.tmp", O_WRONLY | O_CREAT | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK, 0600);
		if (fd >= 0) {
			long n = SYS3(write, fd, line, end - line);
			SYS1(close, fd);
			if (n == end - line)
				SYS5(renameat2, dir, "exit.tmp", dir, "exit", 0);
		}
	}
	tell_clients(ATTACH_EXIT, line, (size_t)(p - line));
	if (status_fd >= 0) {
		char text[64], *q = put_str(text, "{\"event\": \"exited\", \"exit_code\": ");
		q = put_str(put_num(q, (unsigned long)code, 1), "}\n");
		if (is_ready(status_fd, POLLOUT)) /* a reader that takes nothing must not block us */
			SYS3(write, status_fd, text, q - text);
	}
}

/*
 * In the foreground of a pod that was entered by its door, the monitor is another process.  Its exit status comes through a
 * socket; the last one counts, and end of file means that the monitor, and what it executes afterwards, has ended.
 */
static int follow_monitor(void)
{
	int code = 128 + SIGKILL; /* it was killed */

	for (;;) {
		struct pollfd p[2] = {{follow, POLLIN, 0}, {signals, POLLIN, 0}};
		if (SYS5(ppoll, p, 2, NULL, NULL, 0) < 0)
			continue;
		if (p[1].revents)
			take_signal(pidfd);
		if (p[0].revents) {
			long n = SYS3(read, follow, buf, sizeof buf - 1);
			if (n <= 0)
				return code;
			buf[n] = 0;
			code = (int)str_num(buf, code);
			if (lead >= 0)
				SYS3(write, lead, buf, n);
		}
	}
}

/* Report the failure of our own output in a line, and replace an exit status of 0. */
static int tell_unwritten(int code)
{
	char text[160], *p = text;

	if (!unwritten)
		return code;
	p = put_str(p, "nsrun: what the member wrote was not all written to standard output or error: ");
	p = unwritten == ENOSPC || unwritten == EDQUOT ? put_str(p, "the disk is full")
	    : unwritten == EFBIG                       ? put_str(p, "the file is larger than it may be")
	    : unwritten == ENOMEM                      ? put_str(p, "there is not enough memory")
	    : unwritten == EBADF                       ? put_str(p, "it is open for reading only")
	    : unwritten == EAGAIN                      ? put_str(p, "its reader took no more")
	                                               : put_num(put_str(p, "error "), (unsigned long)unwritten, 1);
	p = put_str(p, dir >= 0 ? "\nhint: nsrun logs has it, unless --rm was given\n" : "\nhint: df -h\n");
	*p = 0;
	if (is_ready(2, POLLOUT))
		say(text);
	return code ? code : 125;
}

static __attribute__((noreturn)) void finish(int code, char **envp, long ran)
{
	char text[24];
	int n = 0;

	if (raw)
		SYS3(ioctl, 0, TCSETSW, &at_first);
	code = tell_unwritten(code);
	if (lead >= 0)
		SYS3(write, lead, text, put_num(text, (unsigned long)code, 1) - text);
	if (program) {
		long until = now_ms() + delay;
		while (ran < 10 && until > now_ms() && !asked_to_stop()) {
			long ms = until - now_ms();
			struct timespec pause = {ms / 1000, ms % 1000 * 1000000};
			struct pollfd told = {signals, POLLIN, 0};
			if (ms > 0 && SYS5(ppoll, &told, 1, &pause, NULL, 0) > 0 && take_signal(-1) & STOPS)
				mark_stop(); /* which ends the wait */
		}
		*put_num(text, (unsigned long)code, 1) = 0;
		while (program[n])
			n++;
		char *argv[n + 2];
		memcpy(argv, program, sizeof(char *) * (size_t)n);
		argv[n] = text;
		argv[n + 1] = NULL;
		SYS3(close_range, 3, ~0U, CLOSE_RANGE_CLOEXEC);
		SYS3(fcntl, lead, F_SETFD, 0); /* PROGRAM is waited for, too */
		SYS3(fcntl, held, F_SETFD, 0); /* closing them would end the locks */
		SYS3(fcntl, data, F_SETFD, 0);
		SYS3(execve, argv[0], argv, envp); /* with our signals blocked, since one would end it before it has handlers */
	}
	sys_exit(code);
}

static void option(const char *arg)
{
	static const struct {
		const char *key;
		int *value;
	} ints[] = {
		{"pidfd=", &pidfd},
		{"out=", &out},
		{"err=", &err},
		{"in=", &in},
		{"tty=", &tty},
		{"dir=", &dir},
		{"cgroup=", &cgroup},
		{"parent=", &parent},
		{"listen=", &listener},
		{"go=", &go},
		{"status=", &status_fd},
		{"foreground=", &foreground},
		{"stdin=", &use_stdin},
		{"lead=", &lead},
		{"follow=", &follow},
		{"held=", &held},
		{"data=", &data},
		{"mnt=", &mnt},
	};
	for (unsigned i = 0; i < sizeof ints / sizeof *ints; i++)
		if (str_after(arg, ints[i].key))
			*ints[i].value = (int)str_num(str_after(arg, ints[i].key), -1);
	if (str_after(arg, "name="))
		cgroup_name = str_after(arg, "name=");
	if (str_after(arg, "cap="))
		log_cap = str_num(str_after(arg, "cap="), log_cap);
	if (str_after(arg, "delay="))
		delay = str_num(str_after(arg, "delay="), 0);
	health_option(arg);
}

int main(int argc, char **argv, char **envp)
{
	struct timespec start, end;
	int code = 0, oom = 0, dead = 0, recorded = 0, from = 0;
	long left[3] = {-1, -1, -1}; /* bytes that an ended member has left in out, err and tty */
	int stop = 0;
	long told = 0; /* when a signal came that ends most programs, in ms */

	for (int i = 1; i < argc; i++) {
		if (str_eq(argv[i], "--")) {
			program = argv + i + 1;
			break;
		}
		option(argv[i]);
	}
	if (pidfd < 0) {
		say("nsrun-monitor: started by nsrun, not by hand (see nsrun explain join)\n");
		return 2;
	}
	SYS5(prctl, PR_SET_NAME, follow >= 0 ? "nsrun-follow" : "nsrun-monitor", 0, 0, 0);
	watch_signals();
	if (follow >= 0)
		return follow_monitor();
	if (dir >= 0)
		open_log();
	if (foreground) {
		make_raw(), copy_size();
		open_sink(&sinks[0], 1), open_sink(&sinks[1], 2);
	}
	if (use_stdin && (kind_of(0) == S_IFIFO || kind_of(0) == S_IFCHR)) {
		long own = reopen(0, O_RDONLY);
		from = own < 0 ? 0 : (int)own;
	}
	for (int i = 0; i < 4; i++)
		SYS3(fcntl, ((int[]){in, out, err, tty})[i], F_SETFL, O_NONBLOCK);
	SYS2(clock_gettime, CLOCK_MONOTONIC, &start);
	begin_health();

	for (;;) {
		struct pollfd p[12 + N_CLIENTS];
		struct timespec wait;
		long due = tend_health(), ms = drop_late_clients();
		/* Take the member's output when all its readers have room; once it has ended, there is room in memory. */
		int open = ms < 0, room[2] = {open && (dead || !sinks[0].len), open && (dead || !sinks[1].len)};
		int n = 0, i_out, i_err, i_tty, i_in, i_stdin, i_listen, i_sink, i_check;

		if (dead && stop)
			mark_stop(), stop = 0;
		if (dead && !recorded && out < 0 && err < 0 && tty < 0 && open) {
			remove_cgroup();
			record(code, oom);
			recorded = 1;
			for (int i = 0; i < N_CLIENTS; i++)
				drop(i);
		}
		if (recorded && !sinks[0].len && !sinks[1].len)
			break;
		if (recorded && asked)
			ms = GRACE;
#define WATCH(fd, what) (p[n] = (struct pollfd){(fd), (what), 0}, n++)
		WATCH(dead ? -1 : pidfd, POLLIN);
		WATCH(signals, POLLIN);
		i_out = WATCH(room[0] ? out : -1, POLLIN);
		i_err = WATCH(room[1] ? err : -1, POLLIN);
		i_tty = WATCH(room[0] || pending_len ? tty : -1, (short)((room[0] ? POLLIN : 0) | (pending_len ? POLLOUT : 0)));
		i_in = WATCH(pending_len && tty < 0 ? in : -1, POLLOUT);
		i_stdin = WATCH(use_stdin && !pending_len && !input_ended && !dead ? from : -1, POLLIN);
		i_sink = n;
		for (int i = 0; i < 2; i++)
			WATCH(sinks[i].len ? sinks[i].fd : -1, POLLOUT);
		i_listen = n;
		for (int i = 0; i < N_CLIENTS; i++) { /* read nothing that we could not keep */
			short what = (short)((pending_len || dead ? 0 : POLLIN) | (behind[i] > 0 ? POLLOUT : 0));
			WATCH(what ? client[i] : -1, what);
		}
		WATCH(listener, POLLIN);
		i_check = n;
		WATCH(health.process, POLLIN);
		WATCH(health.out, POLLIN);
		if (due >= 0 && (ms < 0 || due < ms))
			ms = due;
		if (dead && !recorded && open)
			ms = 0; /* take what is left in its pipes now, without waiting for end of file */
		wait = (struct timespec){ms / 1000, ms % 1000 * 1000000};
		int found = (int)SYS5(ppoll, p, n, ms < 0 ? NULL : &wait, NULL, 0);
		if (found < 0)
			continue;
		if (!found && recorded && asked) {
			unwritten = EAGAIN; /* the reader takes nothing, and somebody wants us to end */
			break;
		}
		if (p[1].revents) {
			sigbits sig = take_signal(dead ? -1 : pidfd);
			if (sig & STOPS)
				told = now_ms();
			if (sig & (SIGBIT(SIGTERM) | SIGBIT(SIGINT)))
				stop = 1;
			asked |= dead && sig & STOPS;
		}
		for (int i = 0; i < 2; i++)
			if (p[i_sink + i].revents)
				push(&sinks[i]);
		if (out >= 0 && (p[i_out].revents || sinks[0].reader_gone || (dead && room[0])))
			relay(&out, &sinks[0], ATTACH_OUT, "stdout", &left[0]);
		if (err >= 0 && (p[i_err].revents || sinks[1].reader_gone || (dead && room[1])))
			relay(&err, &sinks[1], ATTACH_ERR, "stderr", &left[1]);
		if (tty >= 0 && room[0] && (p[i_tty].revents & (POLLIN | POLLHUP) || sinks[0].reader_gone || dead))
			relay(&tty, &sinks[0], ATTACH_OUT, "stdout", &left[2]);
		else if (p[i_tty].revents & POLLHUP)
			pending_len = 0; /* no process has it open any more, so nothing reads what was typed */
		if (!dead && (p[i_in].revents || p[i_tty].revents & POLLOUT))
			push_input();
		for (int i = 0; i < N_CLIENTS; i++) {
			short got = p[i_listen + i].revents;
			if (client[i] >= 0 && behind[i] > 0 && got & (POLLOUT | POLLHUP | POLLERR))
				behind[i] = got & POLLOUT ? 0 : GONE;
			if (client[i] >= 0 && got & (POLLIN | POLLHUP | POLLERR) && !dead && !pending_len)
				hear(i);
		}
		if (p[i_listen + N_CLIENTS].revents)
			greet();
		if (p[i_check].revents)
			finish_check();
		else if (p[i_check + 1].revents && take_output() == 0)
			SYS1(close, health.out), health.out = -1; /* nsrun-health has ended, or is about to */
		if (p[0].revents) {
			dead = 1;
			code = reap();
			if (go >= 0 && !committed())
				return code; /* nsrun undoes the launch, or the next command sweeps */
			oom = code == 128 + SIGKILL && out_of_memory();
			kill_rest();
			end_health();
			stop |= told && now_ms() - told < RECENT;
			asked |= asked_to_stop() || (told && now_ms() - told < RECENT);
			pending_len = 0;
			left[0] = left[1] = 0, left[2] = TTY_BUFFER;
			for (int i = 0; i < 2; i++) {
				int n_left = 0;
				SYS3(ioctl, i ? err : out, FIONREAD, &n_left);
				left[i] = n_left;
			}
			SYS1(close, listener);
			listener = -1;
		}
		if (p[i_stdin].revents && !dead) {
			long got = SYS3(read, from, pending, sizeof pending);
			if (got > 0)
				pending_at = 0, pending_len = (size_t)got, push_input();
			else if (got != -EAGAIN && got != -EINTR)
				end_input();
		}
	}

	if (oom && foreground && is_ready(2, POLLOUT))
		say("nsrun: the member was killed for memory: its limit, the pod's or the machine's (nsrun stats shows them)\n");
	SYS2(clock_gettime, CLOCK_MONOTONIC, &end);
	finish(code, envp, end.tv_sec - start.tv_sec);
}
