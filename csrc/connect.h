/* SPDX-License-Identifier: Apache-2.0 */
/*
 * connect.h: a health check that connects to a port of the pod, for health.h.
 *
 * nsrun-health joins the network namespace of the member, and nothing else that is the pod's: no member sees this process.  It
 * connects, and if there is a request, it sends that, and reads the first line of the answer: a status of HTTP from 200 to 399 is
 * healthy.  As nobody, it reads what a server of the pod has written; in a user namespace it is root of that, as its owner is.
 *
 * The plan is a struct sockaddr_in or sockaddr_in6, in as many bytes as the latter has, and then the request, or nothing.
 */
#ifndef NSRUN_CONNECT_H
#define NSRUN_CONNECT_H

#define ADDRESS_BYTES 28
#define NOBODY        65534
#define LINE_BYTES    256 /* of a first line; what is longer is cut off */

/* End with this text as the output, and an errno if it is not 0. */
static __attribute__((noreturn)) void end_connect(const char *what, long error, int code)
{
	char text[LINE_BYTES + 64], *p = put_str(text, what);

	if (error)
		p = put_str(put_num(put_str(p, " [errno "), (unsigned long)-error, 1), "]");
	*p++ = '\n';
	SYS3(write, CHECK_OUT, text, p - text);
	sys_exit(code);
}

/* Join the network namespace, and give up what is not needed there. */
static long enter_network(void)
{
	int flags = health.join & (CLONE_NEWNET | CLONE_NEWUSER), id = flags & CLONE_NEWUSER ? 0 : NOBODY;

	if (flags)
		MUST(SYS2(setns, PROBE_MEMBER_FD, flags));
	if (!by_root)
		return 0;
	MUST(SYS2(setgroups, 0, NULL));
	MUST(SYS3(setresgid, id, id, id));
	return SYS3(setresuid, id, id, id);
}

/* Wait for the socket; what is not ready in time is the end. */
static void wait_for_socket(int fd, short events, long until)
{
	int came = wait_until(fd, events, until);

	if (came <= 0)
		end_late(came, is_frozen(cgroup < 0 ? -1 : CHECK_ABOVE));
}

/* Whether this is the rest of the first line of an answer: a digit, a blank, three digits, and no more of these. */
static int is_status(const char *p)
{
	if (!*p || p[1] != ' ')
		return 0;
	for (int i = 2; i < 5; i++)
		if (p[i] < '0' || p[i] > '9')
			return 0;
	return !p[5] || p[5] == ' ';
}

static __attribute__((noreturn)) void connect_check(long until)
{
	long r, n = SYS4(pread64, CHECK_PLAN, buf, sizeof buf, 0), at = ADDRESS_BYTES, got = 0;
	unsigned short family;
	int fd, error = 0;
	unsigned size = sizeof error;
	char *line = health_text, *p;
	const char *status;

	if (n < ADDRESS_BYTES)
		end_connect("nsrun: the health check has no address", n < 0 ? n : 0, 125);
	memcpy(&family, buf, sizeof family);
	set_action(SIGPIPE, SIG_IGN);
	r = enter_network();
	if (r < 0)
		end_connect("nsrun: the network of the pod can't be entered", r, 125);
	r = fd = (int)SYS3(socket, family, SOCK_STREAM | O_NONBLOCK | SOCK_CLOEXEC, 0);
	if (r >= 0)
		r = SYS3(connect, fd, buf, ADDRESS_BYTES);
	if (r == -EINPROGRESS) {
		wait_for_socket(fd, POLLOUT, until);
		r = SYS5(getsockopt, fd, SOL_SOCKET, SO_ERROR, &error, &size);
		r = r < 0 ? r : -error;
	}
	if (r < 0)
		end_connect("nsrun: the health check can't connect", r, 1);
	if (n == ADDRESS_BYTES)
		end_connect("connected", 0, 0);
	while (at < n) {
		r = SYS3(write, fd, buf + at, n - at);
		if (r < 0 && r != -EAGAIN)
			break; /* it may have answered all the same */
		if (r > 0)
			at += r;
		else
			wait_for_socket(fd, POLLOUT, until);
	}
	for (p = NULL; !p && got < LINE_BYTES;) {
		r = SYS3(read, fd, line + got, LINE_BYTES - got);
		if (r == -EAGAIN) {
			wait_for_socket(fd, POLLIN, until);
			continue;
		}
		if (r <= 0)
			break;
		for (long i = got; i < got + r && !p; i++)
			if (line[i] == '\n' || line[i] == '\r')
				p = line + i;
		got += r;
	}
	*(p ? p : line + got) = 0;
	status = str_after(line, "HTTP/1.");
	if (!status || !is_status(status))
		end_connect(got ? "nsrun: the answer is not HTTP" : "nsrun: the connection ended without an answer", r < 0 ? r : 0, 1);
	end_connect(line, 0, status[2] == '2' || status[2] == '3' ? 0 : 1);
}

#endif
