"""Users and groups of a rootfs, from the text of its own passwd and group files, parsed strictly (threats R19).

Never the host's: NSS, `pwd` and `grp` would answer for the wrong machine.  passwd(5), group(5).
"""

from __future__ import annotations

from nsrun.errors import BadInput
from nsrun.schema import is_number

MAX_ID = (1 << 32) - 2
MAX_BYTES = 1 << 20


def _number(text: str) -> int | None:
    """A uid or gid in decimal; None for a name.  BadInput for what looks like a number and is none (4294967295, -1)."""
    if text.isascii() and text.isdigit():
        value = int(text) if len(text) <= 4000 else MAX_ID + 1  # beyond that int() itself refuses
        if value > MAX_ID:
            raise BadInput(f"user or group {text[:40]!r} is out of range", hint=f"ids go from 0 to {MAX_ID}")
        return value
    if text.startswith(("-", "+")) or text[:1].isdigit():
        raise BadInput(f"user or group {text!r} is neither a number nor a name")
    return None


def _is_id(text: str) -> bool:
    return is_number(text) and int(text) <= MAX_ID


def _lines(text: str, fields: int) -> list[list[str]]:
    rows = []
    for line in text.split("\n"):
        parts = line.split(":")
        if len(parts) >= fields and _is_id(parts[2]):
            rows.append(parts)
    return rows


def resolve(user: str, passwd: str, group: str) -> tuple[int, int, list[int], str]:
    """(uid, gid, supplementary groups, home) of "USER[:GROUP]", names or numbers; "" is root.

    Supplementary groups come from the group file only when no group is given, as in Docker.
    BadInput: a name that is not in the file, a number out of range, an empty part.
    """
    name, colon, group_name = (user or "0").partition(":")
    if not name or (colon and not group_name) or ":" in group_name:
        raise BadInput(f"user {user!r} is not USER[:GROUP]")
    users, groups = _lines(passwd, 4), _lines(group, 3)
    uid = _number(name)
    row = next((r for r in users if (r[0] == name if uid is None else int(r[2]) == uid)), None)
    if uid is None:
        if row is None:
            known = ", ".join(r[0] for r in users[:40])
            raise BadInput(
                f"no user {name!r} in the rootfs's /etc/passwd", hint=f"it has: {known or 'none'}; a number works too"
            )
        uid = int(row[2])
    gid = 0
    if row is not None and _is_id(row[3]):
        gid = int(row[3])
    extra: list[int] = []
    if colon:
        number = _number(group_name)
        if number is None:
            found = next((r for r in groups if r[0] == group_name), None)
            if found is None:
                raise BadInput(f"no group {group_name!r} in the rootfs's /etc/group", hint="a number works too")
            number = int(found[2])
        gid = number
    elif row is not None:
        extra = sorted({int(r[2]) for r in groups if len(r) > 3 and row[0] in r[3].split(",")} - {gid})
    home = row[5] if row is not None and len(row) > 5 and row[5].startswith("/") else ("/root" if uid == 0 else "/")
    return uid, gid, [gid, *extra], home
