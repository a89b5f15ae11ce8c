/* SPDX-License-Identifier: Apache-2.0 */
/*
 * For tests/machine, on processors with AMX: LD_PRELOADed into user-mode Linux.
 *
 * User-mode Linux 6.1 sets its processes' floating-point state with PTRACE_SETREGSET, NT_X86_XSTATE, from a record as long as
 * the processors that it knows have; where AMX makes the host's record longer, the host takes nothing but a whole one, and
 * nothing starts ("ptrace set fp regs failed, errno = 14").  So the record is completed here with what the process has already,
 * and the bits of XSTATE_BV that stand for the rest are left as they are.  ptrace(2); Intel SDM volume 1, chapter 13.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <stdarg.h>
#include <stdint.h>
#include <string.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

#define GETREGSET  0x4204L
#define SETREGSET  0x4205L
#define XSTATE     0x202L
#define XSTATE_BV  512 /* where it stands in the record */
#define BEFORE_AMX 0x2ffUL /* x87, SSE, AVX, MPX, AVX-512, PKRU */

static long kernel(long request, long pid, long address, void *data)
{
	return syscall(SYS_ptrace, request, pid, address, data);
}

static long set_state(long pid, const struct iovec *given)
{
	static unsigned char record[1 << 16];
	struct iovec whole = {record, sizeof record};
	uint64_t had, has;

	if (kernel(GETREGSET, pid, XSTATE, &whole) < 0 || given->iov_len >= whole.iov_len || given->iov_len < XSTATE_BV + sizeof has)
		return kernel(SETREGSET, pid, XSTATE, (void *)given);
	memcpy(&had, record + XSTATE_BV, sizeof had);
	memcpy(record, given->iov_base, given->iov_len);
	memcpy(&has, record + XSTATE_BV, sizeof has);
	has |= had & ~BEFORE_AMX;
	memcpy(record + XSTATE_BV, &has, sizeof has);
	return kernel(SETREGSET, pid, XSTATE, &whole);
}

long ptrace(int request, ...)
{
	va_list arguments;
	long pid, address, word = 0;
	void *data;

	va_start(arguments, request);
	pid = va_arg(arguments, int);
	address = va_arg(arguments, long);
	data = va_arg(arguments, void *);
	va_end(arguments);
	if (request == SETREGSET && address == XSTATE)
		return set_state(pid, data);
	if (request < 1 || request > 3)
		return kernel(request, pid, address, data);
	if (kernel(request, pid, address, &word) < 0) /* PEEK: the C library gives the word itself */
		return -1;
	errno = 0;
	return word;
}
