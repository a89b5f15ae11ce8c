# SPDX-License-Identifier: Apache-2.0
"""What others wrote is shown without harm: no byte of theirs speaks to the terminal; what is no UTF-8 is read all the same."""

from __future__ import annotations

import json
import os
import pathlib
import pty
import subprocess
import unicodedata

import pytest
from conftest import NSRUN, sh, wait_for
from images import Layout

from nsrun.errors import BadInput, printable
from nsrun.lifecycle import owners, read_environment_file
from nsrun.spec.options import parse_user

#: Bytes that are no UTF-8, CSI in both widths, a title, bidirectional overrides, DEL, a bell, line ends of all kinds.
ODD = b"\xff\xfe\x1b[31m\xc2\x9b2J\x1b]0;t\x07\xe2\x80\xae\xe2\x81\xa6\x7f\r\x0b\xc2\x85\xe2\x80\xa8\xf3\xa0\x81\x81"
WORD = os.fsdecode(ODD)

NAMED = rb"""
#include <sys/prctl.h>
#include <unistd.h>
int main(void)
{
	prctl(PR_SET_NAME, "\xff\xfe\x1b[31m\rUid:");
	for (;;)
		pause();
}
"""


def clean(data: bytes) -> str:
    """What a terminal gets; fails for anything but printable text and ends of lines."""
    text = data.decode("utf-8")
    bad = sorted({hex(ord(c)) for c in text if c != "\n" and not c.isprintable()})
    assert not bad and b"Traceback" not in data, (bad, text)
    return text


def shown(host, *words: object, codes=(0,), **kwargs) -> str:
    """Standard output and error of a command, both clean."""
    env = {**host.env, **kwargs.pop("env", {})}
    done = subprocess.run(
        host.words(NSRUN, *words), capture_output=True, env=env, timeout=60, check=False, cwd="/", **kwargs
    )
    assert done.returncode in codes, (words, done)
    return clean(done.stdout) + clean(done.stderr)


def test_every_character():
    for number in range(0x110000):
        c = chr(number)
        text = printable(f"a{c}b")
        assert text.isprintable() and text.isprintable()
        if unicodedata.category(c)[0] == "C" or unicodedata.category(c) in ("Zl", "Zp"):
            assert c not in text
    assert (
        printable("\x1b[31m") == "\\x1b[31m" and printable("\u202e\udcff\x9b\ud800") == "\\u{202e}\\xff\\x9b\\u{d800}"
    )
    assert printable("äöü 日本 €") == "äöü 日本 €" and printable("a\nb\x1b", keep="\n") == "a\nb\\x1b"


@pytest.fixture(scope="session")
def named(tmp_path_factory) -> pathlib.Path:
    path = tmp_path_factory.mktemp("named")
    path.chmod(0o755)
    (path / "n.c").write_bytes(NAMED)
    sh("cc", "-static", "-O1", "-o", path / "named", path / "n.c", timeout=60)
    return path


@pytest.mark.live
def test_processes_of_any_name(host, pod, busybox, named):
    """A name of a process that is no UTF-8 ended every command of root's in a traceback."""
    words = ("-d", "--name", "m", "-v", f"{named}:/t:ro", "--rootfs", busybox, "-e", f"X={WORD}")
    host.run("join", pod, *words, "--", "sh", "-c", 'exec -a "$0" /t/named', WORD)
    pid = host.member("m")["pid"]
    wait_for(lambda: b"\xff" in pathlib.Path(f"/proc/{pid}/comm").read_bytes(), what="the name")
    assert "\\xff\\xfe\\x1b[31m\\x9b2J" in shown(host, "ls")
    assert "\\xff\\xfe\\x1b[31m\\x9b2J" in shown(host, "pod", "ps", pod)
    assert shown(host, "pod", "ps", pod).count("\n") == 3  # the head, pause, the member
    rows = json.loads(shown(host, "pod", "ps", pod, "--json"))
    assert [row["uid"] for row in rows if row["member"] == "m"] == [0]
    for words in (["pod", "ls"], ["pod", "inspect", pod], ["inspect", "m"], ["ls", "--json"], ["stats"], ["pod", "stats", pod], ["pod", "prune"]):  # fmt: skip
        shown(host, *words)
    with open(f"/proc/{pid}/cmdline", "rb") as file:
        assert ODD in file.read()
    shown(host, "stop", "-t", "0", "m")
    assert "\\xff" in shown(host, "ls", "-a")


@pytest.mark.live
def test_a_process_without_a_command_line(host, pod, busybox, named):
    """Then its name is shown, and no line of it is taken for another of /proc/PID/status."""
    words = ("-d", "--name", "m", "-v", f"{named}:/t:ro", "--rootfs", busybox)
    host.run("join", pod, *words, "--", "sh", "-c", 'exec -a "" /t/named')
    pid = host.member("m")["pid"]
    wait_for(lambda: pathlib.Path(f"/proc/{pid}/cmdline").read_bytes() == b"\0", what="no command line")
    wait_for(lambda: b"\xff" in pathlib.Path(f"/proc/{pid}/comm").read_bytes(), what="the name")
    assert "[\\xff\\xfe\\x1b[31m\\x0dUid:]" in shown(host, "pod", "ps", pod)
    assert [row["uid"] for row in json.loads(shown(host, "pod", "ps", pod, "--json"))] == [65535, 0]


@pytest.mark.live
def test_what_an_owner_wrote_before_root(host, alice, owned, box):
    alice.run("join", "pause", "-d", "--name", "hers", "--image", box, "--", "sh", "-c", "sleep 1000; :", WORD)
    for who in (host, alice):
        assert ("??" if who is host else "\\xff\\xfe") + ("?" if who is host else "\\x1b") + "[31m" in shown(who, "ls")
        assert "\\x1b[31m" in shown(who, "pod", "ps", "pause")
        json.loads(shown(who, "ls", "--json"))


def test_what_an_owner_answers_is_flat():
    """Root prints it: a list a thousand deep would end root's command."""
    deep: list = []
    for _ in range(900):
        deep = [deep]
    sound = {"name": "m", "pod": "p", "status": "running", "pid": 5, "pid_in_pod": 1, "command": ["a", "b c"], "namespaces": {"net": 1}, "exit_code": None, "orphaned": False}  # fmt: skip
    assert owners._is_sound(sound)
    for key in ("command", "namespaces", "pod", "name", "exit_code"):
        assert not owners._is_sound({**sound, key: deep}), key
    assert not owners._is_sound({**sound, "command": ["a", deep]}) and not owners._is_sound({**sound, "namespaces": {"net": deep}})  # fmt: skip
    assert owners._shown({**sound, "created": deep, "unknown": deep, "image": "i"}) == {
        **sound,
        "image": "i",
        "labels": {},
    }
    for labels in (deep, {"a": deep}, {"a": 1}, "x", None):
        assert owners._shown({**sound, "labels": labels})["labels"] == {}, labels
    assert owners._shown({**sound, "labels": {"a": "1"}})["labels"] == {"a": "1"}


@pytest.mark.live
def test_errors_that_quote(host, pod, rootfs, tmp_path):
    join = ("join", pod, "--rootfs", rootfs)
    for name, content in (("script", b"#!/bin/" + ODD.replace(b"\r", b"").replace(b"\x0b", b"") + b"\n"), ("elf", b"\x7fELF\x02\x01"), ("nul", b"#!/bin/\0" + ODD + b"\n")):  # fmt: skip
        (rootfs / "bin" / name).write_bytes(content)
        (rootfs / "bin" / name).chmod(0o755)
        shown(host, *join, "--", name, codes=(126, 127))
    (rootfs / "bin" / WORD).write_bytes(b"#!/nothing\n")
    (rootfs / "bin" / WORD).chmod(0o755)
    assert "interpreter" in shown(host, *join, "--", WORD, codes=(127,))
    shown(host, *join, "--", WORD + "x", codes=(127,))
    shown(host, *join, "-e", f"PATH={WORD}", "--", "nothing", codes=(127,))
    shown(host, *join, "-v", f"/{WORD}:/x", "--", "true", codes=(125,))
    shown(host, *join, "-w", f"/{WORD}", "-u", WORD, "--", "true", codes=(125,))
    (rootfs / WORD).symlink_to("/")
    (tmp_path / WORD).mkdir()
    shown(host, *join, "-v", f"{tmp_path}:/{WORD}/x", "--", "true", codes=(0, 125))
    shown(host, "--trace", *join, "-v", f"{tmp_path}/{WORD}:/x", "--rm", "--", "true", WORD)
    for form in ("text", "json"):
        shown(host, "explain", "--format", form, *join, "-v", f"{tmp_path}/{WORD}:/x", "--", "true", f"{WORD}\n#")


@pytest.mark.live
def test_labels_and_hosts(host, busybox):
    shown(host, "pod", "create", "--network", "none", "--label", f"{WORD}={WORD}", "--add-host", f"h:{WORD}", "p", codes=(0, 2))  # fmt: skip
    shown(host, "pod", "create", "--network", "none", "--label", f"{WORD}={WORD}", "q")
    inspected = shown(host, "pod", "inspect", "q")
    assert "\x7f" not in inspected and json.loads(inspected)[0]["labels"] == {WORD: WORD}
    shown(host, "pod", "ls")


@pytest.mark.live
def test_fields_of_an_image(host, pod, busybox, tmp_path):
    """How an image says that it was made, and what it runs."""
    odd = "\x1b[31m\x9b2J\u202e\u2066\x7f\r\x0b\x85\u2028"
    layer = subprocess.run(["tar", "-C", busybox, "-c", "."], stdout=subprocess.PIPE, check=True, timeout=30).stdout
    layout = Layout(layer, name="odd:1", Entrypoint=[f"/nothing{odd}"], Labels={odd: odd}, User=odd, Env=[f"X={odd}"])
    layout.write(tmp_path / "l")
    shown(host, "image", "load", tmp_path / "l")
    for words in (["ls"], ["ls", "--json"], ["inspect", "odd:1"], ["history", "odd:1"], ["history", "--json", "odd:1"]):
        shown(host, "image", *words)
    shown(host, "join", pod, "--image", "odd:1", codes=(125,))
    shown(host, "join", pod, "--image", "odd:1", "-u", "0", codes=(127,))
    shown(host, "image", "rm", "odd:1")


@pytest.mark.live
def test_what_is_piped_into_a_shell_is_exact(host, pod, rootfs):
    """A script is escaped for a terminal only: as a file it does what it says; a comment of it can't become a command."""
    words = [NSRUN, "explain", "--format", "shell", "join", pod, "--rootfs", rootfs, "--", "printf", f"a\tb\nrm -rf /\n{WORD}"]  # fmt: skip
    words = [str(word) for word in words]
    script = subprocess.run(words, capture_output=True, env=host.env, timeout=30, check=True).stdout
    assert b"a\tb\nrm -rf /\n" + ODD in script
    assert b"rm -rf" not in b"".join(line for line in script.split(b"\n")[:5] if not line.startswith(b"#"))
    master, slave = pty.openpty()
    child = subprocess.Popen(words, stdout=slave, env=host.env)
    os.close(slave)
    seen = b""
    try:
        while data := os.read(master, 65536):
            seen += data
    except OSError:
        pass
    assert child.wait(30) == 0
    clean(seen.replace(b"\r\n", b"\n"))
    os.close(master)


@pytest.mark.live
def test_interfaces_of_any_name(host):
    """proc_net(5): a route's interface may have a name that splits a line of text, and is none in UTF-8."""
    for number, name in enumerate((b"a\xe2\x80\xa8b", b"c\xff\xc2\x85d")):
        subprocess.run([b"ip", b"link", b"add", name, b"type", b"bridge"], check=True, timeout=10)
        subprocess.run([b"ip", b"address", b"add", b"10.77.%d.1/24" % number, b"dev", name], check=True, timeout=10)
        subprocess.run([b"ip", b"link", b"set", name, b"up"], check=True, timeout=10)
    try:
        shown(host, "pod", "create", "p")
        shown(host, "pod", "rm", "-f", "p")
    finally:
        for name in (b"a\xe2\x80\xa8b", b"c\xff\xc2\x85d"):
            subprocess.run([b"ip", b"link", b"del", name], check=True, timeout=10)


# ---- foreign files ------------------------------------------------------------------------------------------


def test_accounts_of_any_bytes():
    """Lines end at \\n only, and two names that are no UTF-8 are two names."""
    text = os.fsdecode(b"a\xffb:x:5:6::/h:/s\na\xfeb:x:7:8::/h\xff:/s\nx\xe2\x80\xa8root:x:9:9::/:\nroot:x:0:0\x0c:x\n")
    assert parse_user(os.fsdecode(b"a\xffb"), text, "")[:2] == (5, 6)
    assert parse_user(os.fsdecode(b"a\xfeb"), text, "")[3] == os.fsdecode(b"/h\xff")
    assert parse_user("x\u2028root", text, "")[0] == 9
    with pytest.raises(BadInput):
        parse_user("b", "a\x85b:x:0:0::/:", "")
    with pytest.raises(BadInput):
        parse_user("b", "a\u2028b:x:0:0::/:", "")


@pytest.mark.live
def test_a_member_as_such_a_user(host, pod, rootfs):
    with open(rootfs / "etc/passwd", "ab") as file:
        file.write(b"o\xffd:x:33:44::/h\xff:/bin/sh\nz\xc2\x85www:x:0:0::/:\n")
    done = subprocess.run([NSRUN, "join", pod, "--rm", "--rootfs", rootfs, "-u", b"o\xffd", "sh", "-c", 'id -u; echo "$HOME"'], capture_output=True, env=host.env, timeout=30, check=True)  # fmt: skip
    assert done.stdout == b"33\n/h\xff\n"


def test_files_of_variables(tmp_path):
    path = tmp_path / "env"
    path.write_bytes(
        b"\xef\xbb\xbfA=1\n  # note\n\n\tB=\xe2\x80\xa8two\xc2\x85\x0b\x0c \nC\nD=\xff\r\nE=\x1c\x1d\x1e=\nF=a\rb\n"
    )
    assert read_environment_file(str(path)) == ["A=1", "B=\u2028two\x85\x0b\x0c ", "C", "D=\udcff", "E=\x1c\x1d\x1e=", "F=a\rb"]  # fmt: skip
    for text, number in ((b"A=1\nexport X=1\n", 2), (b"\n#\nX =1", 3), (b"=1", 1), (b"A=1\nB\0=2", 2), (b"A B", 1)):
        path.write_bytes(text)
        with pytest.raises(BadInput, match=f"line {number}:"):
            read_environment_file(str(path))
    with pytest.raises(BadInput, match="MiB"):
        read_environment_file("/dev/zero")
    with pytest.raises(BadInput, match="No such file"):
        read_environment_file(str(tmp_path / "nothing"))


@pytest.mark.live
def test_the_later_file_wins(host, pod, busybox, tmp_path):
    (tmp_path / "1").write_text("A=1\nB=1\nC=1\n")
    (tmp_path / "2").write_bytes(b"\xef\xbb\xbfA=2\nB=2\n")
    files = ("--env-file", tmp_path / "1", "--env-file", tmp_path / "2", "-e", "A=3")
    show = ("sh", "-c", "echo $A $B $C")
    assert host.run("join", pod, "--rm", *files, "--rootfs", busybox, "--", *show).stdout == "3 2 1\n"
    host.start("m", busybox, "sleep", "100")
    assert host.run("exec", *files, "m", *show).stdout == "3 2 1\n"
    (tmp_path / "2").write_text("export X=1\n")
    assert "line 1" in host.fails(125, "exec", *files, "m", *show)
