/* SPDX-License-Identifier: Apache-2.0 */
/*
 * sealed.h: files in memory that can't be changed, and the checksum of what is kept on disk; for kernel.c and front.c.
 */
#ifndef NSRUN_SEALED_H
#define NSRUN_SEALED_H

#include "session.h"

#include <linux/memfd.h>

#ifndef MFD_EXEC /* Linux 6.3 */
#define MFD_NOEXEC_SEAL 8U
#define MFD_EXEC        0x10U
#endif
#ifndef F_SEAL_EXEC
#define F_SEAL_EXEC 0x20
#endif

/*
 * Make a file in memory, a program or data, that can't be changed any more.  MFD_EXEC, MFD_NOEXEC_SEAL and F_SEAL_EXEC are
 * tried first (Linux 6.3).  EACCES: vm.memfd_noexec is 2, which forbids a program.
 */
static long sealed_memfd(const char *name, const char *data, size_t size, int program)
{
	const int seals = F_SEAL_SEAL | F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_WRITE;
	const unsigned flags = MFD_CLOEXEC | MFD_ALLOW_SEALING;
	long r, fd = CALL(memfd_create, name, flags | (program ? MFD_EXEC : MFD_NOEXEC_SEAL), 0, 0, 0);

	if (fd == -EINVAL)
		fd = CALL(memfd_create, name, flags, 0, 0, 0);
	if (fd < 0)
		return fd;
	r = 0;
	for (size_t at = 0; at < size && r >= 0; at += (size_t)r)
		r = CALL(write, fd, data + at, size - at, 0, 0);
	if (r >= 0 && (r = CALL(fcntl, fd, F_ADD_SEALS, seals | F_SEAL_EXEC, 0, 0)) < 0)
		r = CALL(fcntl, fd, F_ADD_SEALS, seals, 0, 0);
	if (r >= 0)
		return fd;
	CALL(close, fd, 0, 0, 0, 0);
	return r;
}

/* CRC-32 (ISO 3309, as in zlib): it detects any flipped bit, and any burst of up to 32. */
static uint32_t checksum(const char *data, size_t size)
{
	static const uint32_t of_four_bits[] = {
		/* clang-format off: a table */
		0x00000000, 0x1db71064, 0x3b6e20c8, 0x26d930ac, 0x76dc4190, 0x6b6b51f4, 0x4db26158, 0x5005713c,
		0xedb88320, 0xf00f9344, 0xd6d6a3e8, 0xcb61b38c, 0x9b64c2b0, 0x86d3d2d4, 0xa00ae278, 0xbdbdf21c,
		/* clang-format on */
	};
	uint32_t crc = ~0U;

	for (size_t i = 0; i < size; i++) {
		crc ^= (unsigned char)data[i];
		crc = crc >> 4 ^ of_four_bits[crc & 15];
		crc = crc >> 4 ^ of_four_bits[crc & 15];
	}
	return ~crc;
}

#endif
