# SPDX-License-Identifier: Apache-2.0
"""The user's scenario on real software: MariaDB and WordPress in one pod, with nsrun alone."""

import html
import os
import pathlib
import re
import urllib.parse

import pytest
from conftest import CACHE, HERE, need, sh, wait_for


def page(port, path="/", data=None):
    post = ["--data", urllib.parse.urlencode(data)] if data else []
    return sh("curl", "-sSL", "-m", "30", *post, f"http://127.0.0.1:{port}{path}", timeout=40, check=False).stdout


def _join_both(host, mysql, mysqld, wordpress, apache):
    host.run(
        "join", "pause", "-d", "--name", "mysql", *mysql, "-e", "MYSQL_DATABASE=exampledb", "-e", "MYSQL_USER=exampleuser",
        "-e", "MYSQL_PASSWORD=examplepass", "-e", "MYSQL_RANDOM_ROOT_PASSWORD=1", *mysqld,
    )  # fmt: skip
    host.run(
        "join", "pause", "-d", "--name", "wordpress", *wordpress, "-e", "WORDPRESS_OFFLINE=1", "-e", "WORDPRESS_DB_HOST=127.0.0.1",
        "-e", "WORDPRESS_DB_USER=exampleuser", "-e", "WORDPRESS_DB_PASSWORD=examplepass", "-e", "WORDPRESS_DB_NAME=exampledb", *apache,
    )  # fmt: skip


@pytest.mark.parametrize("who", ["root's, by one file", "root's, from directories", "owned", "rootless"])
def test_wordpress_on_mariadb(host, alice, who, tmp_path):
    """A pod of root's; one that sudo made for a user, who does the rest herself, on port 80; one without any root.

    From images, whose config says what runs, by rootfs/demo.toml too; from root directories, with the commands given.
    """
    source, port, root, before = "roots" if who.endswith("directories") else "images", 8080, host, host.snapshot()
    for name in ("mariadb", "wordpress"):
        option = "--image " if source == "images" else ""
        need((CACHE.parent / source / name).is_dir(), f"{source}/{name} is not built", f"sudo rootfs/build {option}{name}, or make scenario")  # fmt: skip
    if who == "owned":
        port, host = 80, alice
        assert root.run("pod", "create", "-p", "80:80", env={"SUDO_UID": str(alice.uid)}).stdout == "pause\n"
    else:
        host = alice if who == "rootless" else root
    if who in ("root's, from directories", "rootless"):
        assert host.run("pod", "create", "-p", "8080:80").stdout == "pause\n"
    if source == "images":
        for name in ("mariadb", "wordpress"):
            assert host.run("image", "load", CACHE.parent / "images" / name).stdout == f"localhost/{name}:latest\n"
        shared = [{layer["chain_id"] for layer in image["layers"]} for image in host.json("image", "ls")]
        assert len(shared[0] & shared[1]) == 1
        mysqld = apache = ()
        mysql, wordpress = ("--image", "mariadb"), ("--image", "localhost/wordpress")
    else:
        mysql, mysqld = ("--rootfs", CACHE / "mariadb"), ("--", "docker-entrypoint.sh", "mysqld")
        wordpress = ("--rootfs", CACHE / "wordpress", "--stop-signal", "WINCH")
        apache = ("--", "docker-entrypoint.sh", "apache2-foreground")
    if who == "root's, by one file":
        text = (HERE.parent / "rootfs/demo.toml").read_text()
        for old, new in (('name = "demo"', 'name = "pause"'), ("demo-mysql", "mysql"), ("demo-wordpress", "wordpress")):
            text = text.replace(old, new)
        (tmp_path / "pod.toml").write_text(text)
        assert (
            host.run("up", tmp_path / "pod.toml").stdout
            == "pod pause: created\nmember mysql: started\nmember wordpress: started\n"
        )
    else:
        _join_both(host, mysql, mysqld, wordpress, apache)
    wait_for(lambda: "weblog_title" in page(port, "/wp-admin/install.php"), 90, "WordPress's install page")

    title = "Ünique title & more"
    form = {
        "weblog_title": title,
        "user_name": "admin",
        "admin_password": "Xy12345678z!",
        "admin_password2": "Xy12345678z!",
        "pw_weak": "on",
        "admin_email": "a@example.com",
        "language": "",
    }
    page(port, "/wp-admin/install.php?step=2", form)
    assert title in html.unescape(re.search(r"<title>(.*?)</title>", page(port)).group(1))
    # the title lies in the database
    query = "SELECT option_value FROM wp_options WHERE option_name='blogname'"
    stored = host.run(
        "exec mysql mariadb --default-character-set=utf8mb4 -h 127.0.0.1 -u exampleuser -pexamplepass -N exampledb -e {}",
        query,
    ).stdout
    assert html.unescape(stored.strip()) == title

    host.run("exec", "mysql", "sh", "-c", "echo hello > /dev/shm/test")
    assert host.run("exec", "wordpress", "cat", "/dev/shm/test").stdout == "hello\n"

    rows = [line.split(None, 7) for line in host.run("exec", "wordpress", "ps", "-ef").stdout.splitlines()[1:]]
    by_command = {row[7]: row for row in rows}
    assert by_command["/pause"][:3] == ["65535", "1", "0"]
    assert by_command["mysqld"][0] == "999" and by_command["mysqld"][2] == "0"
    apaches = [row for row in rows if row[7].startswith("apache2")]
    master = next(row for row in apaches if row[0] == "root")
    assert master[2] == "0" and all(
        row[0] == "www-data" and row[2] == master[1] for row in apaches if row is not master
    )
    assert "GENERATED ROOT PASSWORD" in host.run("logs", "mysql").stdout

    pids = [row["pid"] for row in host.json("pod", "ps", "pause")]
    host.run("pod", "kill", "pause")
    wait_for(
        lambda: not any(os.path.exists(f"/proc/{pid}") and "Z" not in _state(pid) for pid in pids),
        what="all members end",
    )
    host.run("ls"), root.run("pod", "ls")
    if who == "owned":  # root's part of its story is root's to remove, and all that is left
        wait_for(lambda: root.snapshot() == {**before, "notes": ["run/pods/pause"]}, what="only the story is left")
        root.run("pod", "rm", "pause")
    if who == "root's, by one file":
        assert root.run("volume", "rm", "demo-data").stdout == "demo-data\n"
    wait_for(lambda: root.snapshot() == before, what="nothing is left")


def _state(pid):
    try:
        return re.search(r"State:\s+(\w)", pathlib.Path(f"/proc/{pid}/status").read_text()).group(1)
    except OSError:
        return "Z"


def test_real_mysql(host):
    """The option: MySQL itself, when its root has been built (rootfs/build mysql; Debian has it in unstable only)."""
    if not (CACHE / "mysql").is_dir():
        pytest.skip("the mysql root is not built; to enable: sudo rootfs/build mysql")
    host.run("pod", "create", "--network", "none", "m")
    host.run(
        "join m -d --name mysql --rootfs {} -e MYSQL_ROOT_PASSWORD=secret -e MYSQL_DATABASE=d -- docker-entrypoint.sh mysqld",
        CACHE / "mysql",
    )
    words = [
        "exec",
        "mysql",
        "mysql",
        "-h",
        "127.0.0.1",
        "-u",
        "root",
        "-psecret",
        "-N",
        "-e",
        "SELECT VERSION(); SHOW DATABASES LIKE 'd'",
    ]
    out = wait_for(lambda: (done := host.run(*words, check=False)).returncode == 0 and done.stdout, 90, "MySQL answers")
    assert "Maria" not in out and out.split()[-1] == "d"
