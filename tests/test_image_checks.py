"""An image that could strand a node never becomes a release."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.root_trees import VERSION, as_folder, as_tar, sound_tree
from updater.errors import Refused
from updater.release.cpio import TreeFile
from updater.release.image_checks import check_root_tree, require_sound
from updater.release.root_tree import open_root_tree
from updater.release.uki_checks import check_command_line

UNITS = "usr/lib/systemd/system"
ROOT_HASH = "ab" * 32
Tree = dict[str, TreeFile]


def findings(tree: Tree, folder: Path) -> list[str]:
    with open_root_tree(as_folder(tree, folder / "tree")) as root:
        return [str(finding) for finding in check_root_tree(root, VERSION)]


def test_a_tree_with_our_units_and_an_identity_is_sound(tmp_path: Path) -> None:
    assert findings(sound_tree(), tmp_path) == []


@pytest.mark.parametrize("prefix", ["./", "", "/"])
def test_a_tar_is_judged_like_a_folder(tmp_path: Path, prefix: str) -> None:
    with open_root_tree(as_tar(sound_tree(), tmp_path / "tree.tar", prefix=prefix)) as root:
        assert check_root_tree(root, VERSION) == []


def drop(*names: str) -> Callable[[Tree], None]:
    def change(tree: Tree) -> None:
        for name in names:
            del tree[name]

    return change


def lay(name: str, text: str) -> Callable[[Tree], None]:
    def change(tree: Tree) -> None:
        tree[name] = TreeFile(text.encode())

    return change


def replace(name: str, old: str, new: str) -> Callable[[Tree], None]:
    def change(tree: Tree) -> None:
        text = tree[name].content.decode()
        assert old in text
        tree[name] = TreeFile(text.replace(old, new).encode(), tree[name].mode)

    return change


HEALTH = f"{UNITS}/acl-updater-health.service"
COMPLETE = f"{UNITS}/boot-complete.target.d/50-acl-updater.conf"
DEADLINE = f"{UNITS}/acl-updater-deadline.target"
LEAVES = f"{UNITS}/acl-updater-deadline.service"
MANAGER = "usr/lib/systemd/system.conf.d/50-acl-updater.conf"
MODPROBE = "usr/lib/modprobe.d/50-acl-updater.conf"

BROKEN: dict[str, tuple[Callable[[Tree], None], str]] = {
    "bless-boot is not masked": (drop("etc/systemd/system/systemd-bless-boot.service"), "without a verdict"),
    "boot-update is not masked": (drop("etc/systemd/system/systemd-boot-update.service"), "replace the loader"),
    "a mask that masks nothing": (
        lay("etc/systemd/system/systemd-bless-boot.service", "[Service]\nExecStart=/bin/true\n"),
        "without a verdict",
    ),
    "no deadline": (replace(DEADLINE, "JobTimeoutSec=15min\n", ""), "wait for its verdict for ever"),
    "an endless deadline": (
        lay("etc/systemd/system/acl-updater-deadline.target.d/90-site.conf", "[Unit]\nJobTimeoutSec=infinity\n"),
        "wait for its verdict for ever",
    ),
    "a deadline for something else": (
        replace(DEADLINE, "After=boot-complete.target\n", ""),
        "does not wait for boot-complete.target",
    ),
    "a deadline without a consequence": (
        replace(DEADLINE, "OnFailure=acl-updater-deadline.service\n", ""),
        "no consequence",
    ),
    "a deadline that does not reboot": (
        replace(LEAVES, "FailureAction=reboot-force\n", ""),
        "PID 1's deadlines reboot through it",
    ),
    "a deadline that spares no boot": (
        lay("etc/systemd/system/acl-updater-deadline.target.d/90-site.conf", "[Unit]\nJobTimeoutAction=reboot-force\n"),
        "reboot a proven release",
    ),
    "boot-complete.target spares no boot": (
        replace(COMPLETE, "[Unit]\n", "[Unit]\nJobTimeoutSec=15min\nJobTimeoutAction=reboot-force\n"),
        "its own job timeout",
    ),
    "PID 1 is faster than the verdict": (
        lay("usr/lib/acl-updater/config.yaml", "format: 1\nhealth: {deadline_s: 880}\n"),
        "before the verdict",
    ),
    "a deadline whose program is missing": (drop("usr/lib/acl-updater/leave"), "reboots proven releases too"),
    "nobody pulls in the deadline": (
        replace(f"{UNITS}/multi-user.target.d/50-acl-updater.conf", " acl-updater-deadline.target", ""),
        "nothing counts the time",
    ),
    "no deadline at all": (lay("etc/systemd/system/acl-updater-deadline.target", ""), "whose verdict never comes"),
    "the second deadline is off": (
        drop("etc/systemd/system/sysinit.target.wants/acl-updater-deadline.timer"),
        "second deadline",
    ),
    "no health service": (drop(HEALTH), "nobody judges"),
    "a masked health service": (
        lay("etc/systemd/system/acl-updater-health.service", ""),
        "nobody judges",
    ),
    "health is not required": (
        drop("etc/systemd/system/boot-complete.target.requires/acl-updater-health.service"),
        "does not require it",
    ),
    "health counts as started at once": (replace(HEALTH, "Type=notify", "Type=simple"), "before it has a verdict"),
    "health comes after": (replace(HEALTH, "Before=boot-complete.target", ""), "not ordered before"),
    "no updater": (drop("usr/bin/acl-updater"), "program that judges a trial is missing"),
    "no watchdog": (replace(MANAGER, "RuntimeWatchdogSec=60s", ""), "a hang is never ended"),
    "a nervous watchdog": (replace(MANAGER, "RuntimeWatchdogSec=60s", "RuntimeWatchdogSec=10s"), "misfires"),
    "PID 1 freezes": (replace(MANAGER, "CrashAction=reboot", ""), "it freezes"),
    "the watchdog can be disarmed": (
        replace(MODPROBE, "options softdog nowayout=1", ""),
        "softdog is disarmed",
    ),
    "an emergency shell": (drop(f"{UNITS}/emergency.service.d/50-acl-updater.conf"), "wait for ever on a console"),
    "no init": (drop("usr/lib/systemd/systemd"), "no init"),
    "another version": (replace("usr/lib/os-release", VERSION, "1.2.3"), "IMAGE_VERSION is '1.2.3'"),
    "no image name": (replace("usr/lib/os-release", "IMAGE_ID=acl", ""), "IMAGE_ID is 'missing'"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_tree_is_refused_with_file_reason_and_mend(tmp_path: Path, name: str) -> None:
    change, expected = BROKEN[name]
    tree = sound_tree()
    change(tree)

    found = findings(tree, tmp_path)

    assert len(found) == 1, found
    assert expected in found[0]
    assert found[0].startswith("/")
    assert "; " in found[0]


def test_an_operators_drop_in_of_the_same_name_hides_the_vendors(tmp_path: Path) -> None:
    tree = sound_tree()
    tree["usr/lib/systemd/system/acl-updater-deadline.target.d/50-site.conf"] = TreeFile(
        b"[Unit]\nJobTimeoutSec=20min\n"
    )
    tree["etc/systemd/system/acl-updater-deadline.target.d/50-site.conf"] = TreeFile(b"[Unit]\nJobTimeoutSec=0\n")

    (found,) = findings(tree, tmp_path)

    assert "wait for its verdict for ever" in found


def test_a_vendor_may_set_the_watchdog_in_the_main_file(tmp_path: Path) -> None:
    tree = sound_tree()
    del tree[MANAGER]
    tree["etc/systemd/system.conf"] = TreeFile(b"[Manager]\nRuntimeWatchdogSec=2min\nCrashReboot=yes\n")

    assert findings(tree, tmp_path) == []


def test_findings_are_raised_together_with_a_mend(tmp_path: Path) -> None:
    tree = sound_tree()
    del tree["etc/systemd/system/systemd-bless-boot.service"]
    del tree["usr/bin/acl-updater"]
    with (
        open_root_tree(as_folder(tree, tmp_path / "tree")) as root,
        pytest.raises(Refused, match=r"(?s)lacks 2 .*bless-boot.*acl-updater") as caught,
    ):
        require_sound(check_root_tree(root, VERSION), "tree")
    assert caught.value.reason == "image-unsafe"
    assert "units and preset" in caught.value.mend


GOOD_LINE = f"roothash={ROOT_HASH} systemd.verity_root_options=panic-on-corruption systemd.crash_action=reboot panic=10"


def test_a_command_line_with_its_deadlines_is_sound() -> None:
    assert check_command_line(GOOD_LINE, ROOT_HASH) == []


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        (GOOD_LINE.replace(ROOT_HASH, "cd" * 32), "roothash="),
        (GOOD_LINE + f" roothash={'cd' * 32}", "roothash="),
        (GOOD_LINE.replace("panic-on-corruption", "ignore-corruption"), "corrupt block"),
        (GOOD_LINE.replace("panic=10", "panic=0"), "kernel waits"),
        (GOOD_LINE.replace("panic=10", ""), "kernel waits"),
        (GOOD_LINE.replace("panic=10", "panic=soon"), "kernel waits"),
        (GOOD_LINE.replace("panic=10", "panic=3600"), "kernel waits"),
        (GOOD_LINE.replace("systemd.crash_action=reboot", ""), "freezes"),
    ],
)
def test_a_command_line_that_could_wait_for_ever_is_refused(line: str, expected: str) -> None:
    (finding,) = check_command_line(line, ROOT_HASH)
    assert expected in finding.why
