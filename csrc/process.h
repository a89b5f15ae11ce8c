/* SPDX-License-Identifier: Apache-2.0 */
/*
 * process.h: what the file of `exec --process` says.  Only its args and env are read here.  Everything else has to be, byte for byte,
 * what Python has understood when it made the plan; what is not is for Python to understand, as is a string with anything but ASCII.
 */
#ifndef NSRUN_PROCESS_H
#define NSRUN_PROCESS_H

#include "sys.h"

#include "decode.h"

#define MOST_STRINGS 10000 /* nsrun/schema.py takes more, but there are never so many */

static int hex_digit(char c)
{
	return c >= '0' && c <= '9' ? c - '0' : (c | ' ') >= 'a' && (c | ' ') <= 'f' ? (c | ' ') - 'a' + 10
	                                                                             : -1;
}

/* The character of an escape sequence, after its backslash; 0 for one that is not of ASCII, or none.  `p` is then at its last byte. */
static char unescape(const char **p)
{
	static const char forms[] = "\"\"\\\\//b\bf\fn\nr\rt\t";
	const char *at = *p;

	if (*at != 'u') {
		for (const char *form = forms; *form && *at; form += 2)
			if (*form == *at)
				return form[1];
		return 0;
	}
	if (at[1] != '0' || at[2] != '0' || hex_digit(at[3]) < 0 || hex_digit(at[3]) > 7 || hex_digit(at[4]) < 0)
		return 0;
	*p += 4;
	return (char)(hex_digit(at[3]) << 4 | hex_digit(at[4]));
}

static const char *after_blanks(const char *p)
{
	while (*p == ' ' || *p == '\n' || *p == '\t' || *p == '\r')
		p++;
	return p;
}

/* Read a list of JSON strings into `to`, which has as many bytes as the text; returns what follows, or NULL. */
static const char *take_strings(const char *p, char **to, struct strings *found)
{
	*found = (struct strings){.s = *to};
	if (*p++ != '[')
		return NULL;
	for (p = after_blanks(p); *p != ']' || found->count; p = after_blanks(p)) {
		if (*p++ != '"' || found->count++ == MOST_STRINGS)
			return NULL;
		for (; *p != '"'; p++) {
			char c = *p;
			if (c == '\\')
				p++, c = unescape(&p);
			else if ((signed char)c < ' ') /* what is not of ASCII, or no JSON, or the end */
				return NULL;
			if (!c)
				return NULL;
			*(*to)++ = c;
		}
		*(*to)++ = 0;
		p = after_blanks(p + 1);
		if (*p == ']')
			break;
		if (*p++ != ',')
			return NULL;
	}
	found->len = (uint32_t)(*to - found->s);
	return p + 1;
}

/*
 * Read such a file, which ends with a NUL.  `frame` has the text of all other members, `"key":value`, in their order.  Returns 0
 * when it says anything else.
 */
static int read_process(const char *text, size_t size, const char *frame, size_t n_frame, char *to, struct strings *args, struct strings *env)
{
	const char *p = text, *end = text + size, *rest, *frame_end = frame + n_frame;

	*args = *env = (struct strings){0};
	while (end > text && after_blanks(end - 1) > end - 1) /* Go's encoder ends it with a newline */
		end--;
	if (*p != '{')
		return 0;
	do {
		p++;
		if (!args->s && (rest = str_after(p, "\"args\":"))) {
			p = take_strings(rest, &to, args);
		} else if (!env->s && (rest = str_after(p, "\"env\":"))) {
			p = take_strings(rest, &to, env);
		} else if (frame < frame_end && (rest = str_after(p, frame))) {
			p = rest;
			frame += str_len(frame) + 1;
		} else {
			return 0;
		}
	} while (p && *p == ',');
	return p && *p == '}' && p + 1 == end && frame == frame_end && args->count;
}

#endif
