/*
 * nsrun-monitor keeps: it is a member's parent on the host.  It relays output and the terminal, writes
 * the log, passes signals on, records the exit status, and ends with it.  `nsrun join` execs into it,
 * so what remains for a running member is this program and the member.
 *
 *   nsrun-monitor KEY=VALUE… [-- PROGRAM ARG…]
 *     pidfd=FD         the member, our child
 *     out=FD err=FD    read ends of its stdout and stderr      tty=FD  or the master of its terminal
 *     in=FD            write end of its stdin
 *     foreground=1     relay to our own stdout and stderr      stdin=1  and from our stdin
 *     dir=FD           its state directory: `log`, `log.1`, `exit` ("STATUS TIME", " oom" when it was killed for memory)
 *     cgroup=FD        its cgroup, killed when it has ended    parent=FD name=NAME  removed from there
 *     listen=FD        SOCK_SEQPACKET of `nsrun attach`
 *     go=FD            one byte from here once nsrun has committed; without it the member was never ours
 *     status=FD        gets {"event":"exited",…}
 *     lead=FD          gets the exit status in decimal: the nsrun that waits outside of the pod's cgroup (csrc/door.c)
 *     follow=FD        we are that one: pass signals on to pidfd=FD, end as it says
 *     held=FD data=FD  files that we hold record locks on, by which others know that we live: PROGRAM gets them, too
 *     cap=BYTES        the log is rotated at this size
 *     delay=MS         wait this long before PROGRAM (see restart) unless the member ran for 10 s
 *   PROGRAM is executed when the member has ended, with its exit status as last argument: nsrun itself, to
 *   restart or remove it.  DIR/stop says that somebody asked for the end: we make it when we are signalled.
 *
 * Attach speaks packets whose first byte is the kind.  To the client: 'o' and 'e' output, 'x' the exit
 * status in decimal.  From it: 'i' input, 'c' end of input, 'w' a struct winsize.
 */
#include "sys.h"

#include <asm/ioctls.h>
#include <asm/signal.h>
#include <asm/termbits.h>
#include <linux/fcntl.h>
#include <linux/poll.h>
#include <linux/signalfd.h>
#include <linux/time.h>
#include <linux/wait.h>

#define N_CLIENTS 4
#define BUF       4096

struct iov {
	const void *base;
	size_t len;
};
struct winsize_ {
	unsigned short row, col, x, y;
};

static int pidfd = -1, out = -1, err = -1, in = -1, tty = -1, dir = -1, cgroup = -1, parent = -1;
static int signals = -1, listener = -1, go = -1, status_fd = -1, lead = -1, follow = -1, held = -1, data = -1, foreground, use_stdin, log_fd = -1;
static long log_cap = 16 << 20, log_size, delay;
static const char *cgroup_name;
static char **program;
static int client[N_CLIENTS] = {-1, -1, -1, -1};
static char buf[BUF];
static char pending[BUF]; /* input that the member has not taken yet */
static size_t pending_at, pending_len;
static int input_ended;
static struct termios saved;
static int raw;

/* ---- the log: CRI's format, "TIME STREAM F|P TEXT" ------------------------------------------------ */

static char *put_time(char *p)
{
	struct timespec ts;
	SYS2(clock_gettime, 0 /* CLOCK_REALTIME */, &ts);
	/* days since 1970 to a civil date, Gregorian, years from March */
	long day = ts.tv_sec / 86400, sec = ts.tv_sec % 86400;
	long era = (day + 719468) / 146097, doe = (day + 719468) % 146097;
	long yoe = (doe - doe / 1460 + doe / 36524 - doe / 146096) / 365;
	long doy = doe - (365 * yoe + yoe / 4 - yoe / 100), mp = (5 * doy + 2) / 153;
	long month = mp < 10 ? mp + 3 : mp - 9;
	p = put_num(p, (unsigned long)(yoe + era * 400 + (month <= 2)), 4);
	*p++ = '-';
	p = put_num(p, (unsigned long)month, 2);
	*p++ = '-';
	p = put_num(p, (unsigned long)(doy - (153 * mp + 2) / 5 + 1), 2);
	*p++ = 'T';
	p = put_num(p, (unsigned long)(sec / 3600), 2);
	*p++ = ':';
	p = put_num(p, (unsigned long)(sec / 60 % 60), 2);
	*p++ = ':';
	p = put_num(p, (unsigned long)(sec % 60), 2);
	*p++ = '.';
	p = put_num(p, (unsigned long)ts.tv_nsec, 9);
	*p++ = 'Z';
	return p;
}

static void open_log(void)
{
	log_fd = (int)SYS4(openat, dir, "log", O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK, 0600);
	log_size = log_fd >= 0 ? SYS3(lseek, log_fd, 0, 2 /* SEEK_END */) : 0;
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
			SYS1(close, log_fd);
			SYS5(renameat2, dir, "log", dir, "log.1", 0);
			open_log();
		}
	}
}

/* ---- output ---------------------------------------------------------------------------------------- */

static void write_all(int fd, const char *p, size_t n)
{
	while (n) {
		long r = SYS3(write, fd, p, n);
		if (r == -EINTR)
			continue;
		if (r == -EAGAIN) { /* the caller's stdout is non-blocking: wait for it */
			struct pollfd w = {fd, POLLOUT, 0};
			SYS5(ppoll, &w, 1, NULL, NULL, 0);
			continue;
		}
		if (r <= 0)
			return;
		p += r;
		n -= (size_t)r;
	}
}

static void drop(int i)
{
	SYS1(close, client[i]);
	client[i] = -1;
}

static void tell_clients(char kind, const char *text, size_t n)
{
	struct iov v[2] = {{&kind, 1}, {text, n}};
	for (int i = 0; i < N_CLIENTS; i++)
		if (client[i] >= 0 && SYS3(writev, client[i], v, 2) < 0)
			drop(i); /* gone, or two seconds behind: the member is not held up for it */
}

/* Moves what can be read from `fd`; 0 when it has ended. */
static int relay(int fd, int to, char kind, const char *stream)
{
	long n = SYS3(read, fd, buf, sizeof buf);
	if (n == -EAGAIN || n == -EINTR)
		return 1;
	if (n <= 0)
		return 0;
	if (foreground)
		write_all(to, buf, (size_t)n);
	write_log(stream, buf, (size_t)n);
	tell_clients(kind, buf, (size_t)n);
	return 1;
}

/* ---- input ----------------------------------------------------------------------------------------- */

static void push_input(void)
{
	int to = tty >= 0 ? tty : in;
	while (pending_len && to >= 0) {
		long r = SYS3(write, to, pending + pending_at, pending_len);
		if (r == -EAGAIN)
			return;
		if (r < 0)
			r = (long)pending_len; /* nobody reads any more */
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
		pending[pending_at + pending_len++] = 4; /* ^D, what a terminal says for end of file */
	input_ended = 1;
	push_input();
}

/* ---- attach ---------------------------------------------------------------------------------------- */

static void greet(void)
{
	struct __kernel_old_timeval two = {2, 0};
	long fd = SYS4(accept4, listener, NULL, NULL, O_CLOEXEC);
	if (fd < 0)
		return;
	SYS5(setsockopt, fd, 1 /* SOL_SOCKET */, 21 /* SO_SNDTIMEO */, &two, sizeof two);
	for (int i = 0; i < N_CLIENTS; i++)
		if (client[i] < 0) {
			client[i] = (int)fd;
			return;
		}
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
	if (buf[0] == 'w' && tty >= 0 && n == 1 + (long)sizeof size) {
		memcpy(&size, buf + 1, sizeof size);
		SYS3(ioctl, tty, TIOCSWINSZ, &size);
	} else if (buf[0] == 'c') {
		end_input();
	} else if (buf[0] == 'i' && n > 1) {
		memcpy(pending, buf + 1, (size_t)n - 1);
		pending_len = (size_t)n - 1;
		push_input();
	}
}

/* ---- the terminal ---------------------------------------------------------------------------------- */

static void copy_size(void)
{
	struct winsize_ size;
	if (tty >= 0 && SYS3(ioctl, 0, TIOCGWINSZ, &size) == 0)
		SYS3(ioctl, tty, TIOCSWINSZ, &size);
}

static void make_raw(void)
{
	struct termios t;
	if (tty < 0 || !use_stdin || SYS3(ioctl, 0, TCGETS, &saved) < 0)
		return;
	t = saved;
	t.c_iflag &= ~(unsigned)(IGNBRK | BRKINT | PARMRK | ISTRIP | INLCR | IGNCR | ICRNL | IXON);
	t.c_oflag &= ~(unsigned)OPOST;
	t.c_lflag &= ~(unsigned)(ECHO | ECHONL | ICANON | ISIG | IEXTEN);
	t.c_cflag = (t.c_cflag & ~(unsigned)(CSIZE | PARENB)) | CS8;
	t.c_cc[VMIN] = 1;
	t.c_cc[VTIME] = 0;
	raw = SYS3(ioctl, 0, TCSETSW, &t) == 0;
}

/* ---- signals --------------------------------------------------------------------------------------- */

static int take_signal(int fd)
{
	struct signalfd_siginfo si;
	if (SYS3(read, fd, &si, sizeof si) != sizeof si)
		return 0;
	if (si.ssi_signo == SIGWINCH)
		copy_size(); /* never passed on: to apache it means "stop" */
	else
		SYS4(pidfd_send_signal, pidfd, si.ssi_signo, NULL, 0);
	return (int)si.ssi_signo;
}

/* ---- the end --------------------------------------------------------------------------------------- */

/* All of a file of /proc that fits into buf; its length, 0 when it can't be read. */
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

/* What wait(2) would give of the zombie: the last number of its stat, proc_pid_stat(5), field 52. */
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
	return n ? (int)pid : SIGKILL; /* it is dead, and more can't be known */
}

/*
 * Takes the member, whose pidfd is readable; gives the shell's exit status.  Who traces it, the pod's owner perhaps, has to
 * wait for it first, ptrace(2), and may never: then it stays a zombie of theirs, and its status is read where it can be seen.
 */
static int reap(void)
{
	struct timespec pause = {0, 5000000};
	char info[128] = {0}; /* siginfo_t: si_code at 8, si_status at 24 */
	int code = 0, value;
	for (int i = 0; i < 200 && !code; i++) {
		if (i)
			SYS2(nanosleep, &pause, NULL);
		SYS5(waitid, 3 /* P_PIDFD */, pidfd, info, WEXITED | 1 /* WNOHANG */, NULL);
		memcpy(&code, info + 8, 4);
	}
	memcpy(&value, info + 24, 4);
	if (!code) {
		value = wait_status();
		return value & 127 ? 128 + (value & 127) : value >> 8 & 255;
	}
	return code == 1 /* CLD_EXITED */ ? value : 128 + value;
}

/* `main` has ended: what it left in its cgroup ends too (kubernetes#92214). */
static void kill_rest(void)
{
	long fd = cgroup >= 0 ? SYS4(openat, cgroup, "cgroup.kill", O_WRONLY | O_CLOEXEC, 0) : -1;
	if (fd >= 0) {
		SYS3(write, fd, "1", 1);
		SYS1(close, fd);
	}
}

/* Did the kernel kill something in its cgroup for memory?  memory.events: "oom_kill N", whoever's limit it was. */
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
		if (SYS3(unlinkat, parent, cgroup_name, 0x200 /* AT_REMOVEDIR */) != -EBUSY)
			return;
		SYS2(nanosleep, &pause, NULL);
	}
}

static void drain(int *fd, int to, char kind, const char *stream)
{
	if (*fd < 0)
		return;
	SYS3(fcntl, *fd, F_SETFL, O_NONBLOCK);
	for (long n; (n = SYS3(read, *fd, buf, sizeof buf)) > 0;) {
		if (foreground)
			write_all(to, buf, (size_t)n);
		write_log(stream, buf, (size_t)n);
		tell_clients(kind, buf, (size_t)n);
	}
	*fd = -1;
}

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
		/* nsrun wrote it full of blanks before the member began: on a full disk there is room for this line */
		fd = SYS4(openat, dir, "exit.tmp", O_WRONLY | O_CREAT | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK, 0600);
		if (fd >= 0) {
			long n = SYS3(write, fd, line, end - line);
			SYS1(close, fd);
			if (n == end - line)
				SYS5(renameat2, dir, "exit.tmp", dir, "exit", 0);
		}
	}
	tell_clients('x', line, (size_t)(p - line));
	if (status_fd >= 0) {
		char text[64], *q = put_str(text, "{\"event\": \"exited\", \"exit_code\": ");
		q = put_str(put_num(q, (unsigned long)code, 1), "}\n");
		SYS3(write, status_fd, text, q - text);
	}
}

/*
 * In the foreground of a pod that was entered by its door, the monitor is another process: its exit status comes
 * through a socket, the last one counts, and the end of file is the end (of what follows the member's, too).
 */
static int follow_monitor(void)
{
	int code = 128 + SIGKILL; /* it was killed */

	for (;;) {
		struct pollfd p[2] = {{follow, POLLIN, 0}, {signals, POLLIN, 0}};
		if (SYS5(ppoll, p, 2, NULL, NULL, 0) < 0)
			continue;
		if (p[1].revents) {
			struct signalfd_siginfo si;
			if (SYS3(read, signals, &si, sizeof si) == sizeof si)
				SYS4(pidfd_send_signal, pidfd, si.ssi_signo, NULL, 0);
		}
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

static int asked_to_stop(void)
{
	return dir >= 0 && SYS3(faccessat, dir, "stop", 0) == 0;
}

static __attribute__((noreturn)) void finish(int code, char **envp, long ran)
{
	char text[24];
	int n = 0;

	if (raw)
		SYS3(ioctl, 0, TCSETSW, &saved);
	if (lead >= 0)
		SYS3(write, lead, text, put_num(text, (unsigned long)code, 1) - text);
	if (program) {
		struct timespec pause = {delay / 1000, delay % 1000 * 1000000};
		struct pollfd told = {signals, POLLIN, 0};
		if (ran < 10 && delay && !asked_to_stop())
			SYS5(ppoll, &told, 1, &pause, NULL, 0); /* a signal ends the wait */
		*put_num(text, (unsigned long)code, 1) = 0;
		while (program[n])
			n++;
		char *argv[n + 2];
		memcpy(argv, program, sizeof(char *) * (size_t)n);
		argv[n] = text;
		argv[n + 1] = NULL;
		SYS3(close_range, 3, ~0U, 4 /* CLOSE_RANGE_CLOEXEC */);
		SYS3(fcntl, lead, F_SETFD, 0); /* what follows is waited for, too */
		SYS3(fcntl, held, F_SETFD, 0); /* closing them would end the locks */
		SYS3(fcntl, data, F_SETFD, 0);
		sys_sigmask(SIG_SETMASK_, 0);
		SYS3(execve, argv[0], argv, envp);
	}
	sys_exit(code);
}

static void option(const char *arg)
{
	static const struct {
		const char *key;
		int *value;
	} ints[] = {{"pidfd=", &pidfd}, {"out=", &out}, {"err=", &err}, {"in=", &in}, {"tty=", &tty}, {"dir=", &dir},
	            {"cgroup=", &cgroup}, {"parent=", &parent}, {"listen=", &listener}, {"go=", &go},
	            {"status=", &status_fd}, {"foreground=", &foreground}, {"stdin=", &use_stdin},
	            {"lead=", &lead}, {"follow=", &follow}, {"held=", &held}, {"data=", &data}};
	for (unsigned i = 0; i < sizeof ints / sizeof *ints; i++)
		if (str_after(arg, ints[i].key))
			*ints[i].value = (int)str_num(str_after(arg, ints[i].key), -1);
	if (str_after(arg, "name="))
		cgroup_name = str_after(arg, "name=");
	if (str_after(arg, "cap="))
		log_cap = str_num(str_after(arg, "cap="), log_cap);
	if (str_after(arg, "delay="))
		delay = str_num(str_after(arg, "delay="), 0);
}

int main(int argc, char **argv, char **envp)
{
	const sigbits passed = SIGBIT(SIGHUP) | SIGBIT(SIGINT) | SIGBIT(SIGQUIT) | SIGBIT(SIGTERM) | SIGBIT(SIGUSR1) |
	                       SIGBIT(SIGUSR2) | SIGBIT(SIGALRM) | SIGBIT(SIGWINCH);
	const sigbits blocked = passed | SIGBIT(SIGPIPE) | SIGBIT(SIGTTOU);
	struct timespec start, end;
	int code, oom;

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
	SYS5(prctl, 15 /* PR_SET_NAME */, follow >= 0 ? "nsrun-follow" : "nsrun-monitor", 0, 0, 0);
	sys_sigmask(SIG_SETMASK_, blocked);
	signals = (int)SYS4(signalfd4, -1, &passed, sizeof passed, O_CLOEXEC);
	if (follow >= 0)
		return follow_monitor();
	if (dir >= 0)
		open_log();
	if (foreground)
		make_raw(), copy_size();
	if (in >= 0)
		SYS3(fcntl, in, F_SETFL, O_NONBLOCK);
	SYS2(clock_gettime, 1 /* CLOCK_MONOTONIC */, &start);

	for (;;) {
		struct pollfd p[8 + N_CLIENTS];
		int n = 0, i_out, i_err, i_tty, i_in, i_stdin, i_listen;
#define WATCH(fd, what) (p[n] = (struct pollfd){(fd), (what), 0}, n++)
		WATCH(pidfd, POLLIN);
		WATCH(signals, POLLIN);
		i_out = WATCH(out, POLLIN);
		i_err = WATCH(err, POLLIN);
		i_tty = WATCH(tty, (short)(POLLIN | (pending_len ? POLLOUT : 0)));
		i_in = WATCH(pending_len && tty < 0 ? in : -1, POLLOUT);
		i_stdin = WATCH(use_stdin && !pending_len && !input_ended ? 0 : -1, POLLIN);
		i_listen = n;
		for (int i = 0; i < N_CLIENTS; i++)
			WATCH(pending_len ? -1 : client[i], POLLIN); /* nothing is read that could not be kept */
		p[n] = (struct pollfd){listener, POLLIN, 0};
		if (SYS5(ppoll, p, n + 1, NULL, NULL, 0) < 0)
			continue;
		if (p[1].revents) {
			int sig = take_signal(signals);
			if (sig == SIGTERM || sig == SIGINT || sig == SIGHUP)
				SYS1(close, SYS4(openat, dir, "stop", O_WRONLY | O_CREAT | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK, 0600));
		}
		if (p[i_out].revents && !relay(out, 1, 'o', "stdout"))
			out = -1;
		if (p[i_err].revents && !relay(err, 2, 'e', "stderr"))
			err = -1;
		if (p[i_tty].revents & (POLLIN | POLLHUP) && !relay(tty, 1, 'o', "stdout"))
			tty = -1;
		if (p[i_in].revents || p[i_tty].revents & POLLOUT)
			push_input();
		if (p[i_stdin].revents) {
			long got = SYS3(read, 0, pending, sizeof pending);
			if (got > 0)
				pending_at = 0, pending_len = (size_t)got, push_input();
			else if (got != -EAGAIN && got != -EINTR)
				end_input();
		}
		for (int i = 0; i < N_CLIENTS; i++)
			if (client[i] >= 0 && p[i_listen + i].revents && !pending_len)
				hear(i);
		if (p[n].revents)
			greet();
		if (p[0].revents)
			break;
	}

	code = reap();
	if (go >= 0 && SYS3(read, go, buf, 1) != 1)
		return code; /* never committed: nsrun undoes, or the next one sweeps */
	oom = code == 128 + SIGKILL && out_of_memory();
	kill_rest();
	drain(&out, 1, 'o', "stdout");
	drain(&err, 2, 'e', "stderr");
	drain(&tty, 1, 'o', "stdout");
	remove_cgroup();
	record(code, oom);
	if (oom && foreground)
		say("nsrun: the member was killed for memory: its limit, the pod's or the machine's (nsrun stats shows them)\n");
	SYS2(clock_gettime, 1, &end);
	finish(code, envp, end.tv_sec - start.tv_sec);
}
