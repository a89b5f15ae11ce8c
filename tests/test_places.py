# SPDX-License-Identifier: Apache-2.0
"""Where targets lead, as overlayfs merges layers: whiteouts, opaque directories, and what hides what."""

import os

import pytest

from nsrun.errors import BadInput, UsageError
from nsrun.host.places import arrange, real_path


@pytest.fixture
def layers(tmp_path):
    made = [tmp_path / "upper", tmp_path / "lower"]
    for path in made:
        path.mkdir()
    fds = [os.open(path, os.O_PATH) for path in made]
    yield (*made, fds)
    for fd in fds:
        os.close(fd)


def test_links(layers):
    upper, lower, fds = layers
    (lower / "usr/bin").mkdir(parents=True)
    (lower / "bin").symlink_to("usr/bin")
    (lower / "run").mkdir()
    (lower / "var").mkdir()
    (upper / "var").mkdir()
    (upper / "var/run").symlink_to("/run")
    (upper / "up").symlink_to("../../../../etc")
    (lower / "loop").symlink_to("loop")
    for path, place in (
        ("/bin/tool", "/usr/bin/tool"),
        ("/var/run/x/y", "/run/x/y"),
        ("/up/x", "/etc/x"),
        ("/a/b", "/a/b"),
        ("//a/./b/../c", "/a/c"),
        ("/..", "/"),
    ):
        assert real_path(fds, path) == place, path
    with pytest.raises(BadInput):
        real_path(fds, "/loop/x")


def test_what_hides_a_link(layers):
    upper, lower, fds = layers
    for name in ("covered", "opaque", "merged", "file"):
        (lower / name).mkdir()
        (lower / name / "link").symlink_to("/etc")
    (lower / "link").symlink_to("/etc")
    (upper / "link").mkdir()
    (upper / "opaque").mkdir()
    os.setxattr(upper / "opaque", "user.overlay.opaque", b"y")
    (upper / "merged").mkdir()
    (upper / "file").write_text("")
    (upper / "covered").mkdir()
    (upper / "covered/link").write_text("")  # as a whiteout, which only root can make, it is no directory and no link
    assert real_path(fds, "/covered/link/x") == "/covered/link/x"
    assert real_path(fds, "/opaque/link/x") == "/opaque/link/x"
    assert real_path(fds, "/file/link/x") == "/file/link/x"
    assert real_path(fds, "/link/x") == "/link/x"
    assert real_path(fds, "/merged/link/x") == "/etc/x"


def test_a_directory_over_a_link(layers):
    """What the upper layer has as a directory, the lower one has as a link: nothing of where that leads is there."""
    upper, lower, fds = layers
    (lower / "b").mkdir()
    (lower / "b/c").symlink_to("/etc")
    (lower / "a").symlink_to("b")
    (upper / "a").mkdir()
    assert real_path(fds, "/a/c/x") == "/a/c/x"


@pytest.mark.parametrize("targets", [["/a", "/a"], ["/link/x", "/etc/x"]])
def test_two_mounts_at_one_place(tmp_path, targets):
    (tmp_path / "link").symlink_to("etc")
    with pytest.raises(UsageError, match="two mounts are at"):
        arrange([{"destination": target} for target in targets], [str(tmp_path)], {})
