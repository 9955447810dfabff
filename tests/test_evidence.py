"""Evidence on a failed trial: gathered from a node's folders, bounded, and judged."""

from __future__ import annotations

import json
import os
import random
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rollback.bootlog import BootLogs, BootSigns, read_signs
from rollback.classify import Signs, classify
from rollback.evidence import collect_evidence, evidence_of_verdict, watchdog_has_reset
from rollback.evidence_store import EvidenceStore
from rollback.pstore import Dump, dump_names, read_dumps
from rollback.results import Result, Status
from rollback.verdict import Decision, Verdict
from updater.files import MountedDirectory
from updater.health_plugin import Cause, Evidence, FailedTrial, Stage, Trial
from updater.slots import Slot

ROOT_HASH = "5f" * 32
OLD, ARMING, TRY_1, TRY_2, NOW = ("a" * 32, "b" * 32, "c" * 32, "d" * 32, "e" * 32)


def dashed(boot_id: str) -> str:
    return "-".join((boot_id[:8], boot_id[8:12], boot_id[12:16], boot_id[16:20], boot_id[20:]))


def entry(message: str, *, who: str = "systemd", pid: str = "1", **fields: str) -> dict[str, Any]:
    return {"MESSAGE": message, "SYSLOG_IDENTIFIER": who, "_PID": pid, **fields}


def kmsg(message: str) -> dict[str, Any]:
    """A line that a shell wrote to /dev/kmsg, as journald takes it apart."""
    return {"MESSAGE": message, "SYSLOG_IDENTIFIER": "acl-updater"}


class Node:
    """The folders of a node, and a journalctl that serves boots from files."""

    def __init__(self, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.root = root
        self.journals = root / "journals"
        self.journals.mkdir()
        self.state = MountedDirectory(root / "state")
        self.boots: list[str] = []
        tool = root / "bin" / "journalctl"
        tool.parent.mkdir()
        tool.write_text(
            f"""#!/bin/sh
cd {self.journals} || exit 1
case "$*" in
*--list-boots*) cat list ;;
*--sync*) echo synced > sync ;;
*_TRANSPORT=kernel*) boot=${{*#*-b }}; cat "${{boot%% *}}.kernel" ;;
*"-o json"*) boot=${{*#*-b }}; cat "${{boot%% *}}.json" ;;
*) echo "journal: $*" ;;
esac
"""
        )
        tool.chmod(0o755)
        monkeypatch.setenv("PATH", f"{tool.parent}:{os.environ['PATH']}")
        for boot_id in (OLD, ARMING, NOW):
            self.boot(boot_id, root_hash="00" * 32)

    def boot(self, boot_id: str, *entries: dict[str, Any], root_hash: str = ROOT_HASH) -> None:
        if boot_id not in self.boots:
            self.boots.insert(max(0, len(self.boots) - 1) if boot_id != NOW else len(self.boots), boot_id)
        listed = [{"index": index, "boot_id": one} for index, one in enumerate(self.boots)]
        (self.journals / "list").write_text(json.dumps(listed))
        (self.journals / f"{boot_id}.kernel").write_text(
            f"Linux version 6.12\nCommand line: roothash={root_hash} quiet\n"
        )
        (self.journals / f"{boot_id}.json").write_text("".join(json.dumps(one) + "\n" for one in entries))

    def dump(self, name: str, text: str, folder: str = "sys/fs/pstore") -> None:
        path = self.root / folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)

    def watchdog(self, bits: str) -> None:
        path = self.root / "sys/class/watchdog/watchdog0/bootstatus"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(bits)

    def collect(self, **more: Any) -> Evidence:
        failed = FailedTrial(
            **{
                "release": "202611.3.0",
                "root_hash": ROOT_HASH,
                "boot_id": dashed(NOW),
                "armed_boot_id": dashed(ARMING),
                "tries_done": 3,
                **more,
            }
        )
        return collect_evidence(failed, self.state, limit_bytes=8 << 20, root=self.root)

    def kept(self, path: str) -> str:
        return (self.root / "state" / path).read_text()


@pytest.fixture
def node(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Node:
    return Node(tmp_path, monkeypatch)


# What is found where.


def test_tries_that_left_nothing_are_not_blamed_on_the_release(node: Node) -> None:
    evidence = node.collect()
    assert (evidence.stage, evidence.cause) == (Stage.UNKNOWN, Cause.NONE)
    assert not evidence.points_at_release
    assert "3 tries left no trace" in evidence.sentence
    assert node.collect(tries_done=0).stage is Stage.LOADER


def test_a_panic_dump_of_the_trial_is_put_together_and_names_the_panic(node: Node) -> None:
    node.dump("dmesg-efi_pstore-179515342101001", "Panic#1 Part1\n<0>[ 9.2] Kernel panic - not syncing: VFS: no root\n")
    node.dump("dmesg-efi_pstore-179515342102001", "Panic#1 Part2\n<6>[ 9.1] before\n<6>[ 9.15] just before\n")
    evidence = node.collect()
    assert (evidence.stage, evidence.cause) == (Stage.KERNEL, Cause.PANIC)
    assert evidence.sentence == "the kernel panicked: VFS: no root"
    assert evidence.folder == "evidence/202611.3.0-1"
    assert node.kept("evidence/202611.3.0-1/panic-1.txt") == (
        "[ 9.1] before\n[ 9.15] just before\n[ 9.2] Kernel panic - not syncing: VFS: no root"
    )


def test_dumps_that_systemd_has_filed_away_are_found_as_well(node: Node) -> None:
    folder = "var/lib/systemd/pstore/1795153421/001"
    node.dump("dmesg-efi_pstore-179515342101001", "Panic#1 Part1\nKernel panic - not syncing: filed\n", folder)
    node.dump("dmesg.txt", "the same once more", folder)
    assert "filed" in node.collect().sentence


def test_a_dump_that_was_there_before_the_trial_is_not_held_against_it(node: Node) -> None:
    node.dump("dmesg-efi_pstore-179515342101001", "Panic#1 Part1\nKernel panic - not syncing: long ago\n")
    baseline = {"pstore": list(dump_names(node.root))}
    assert node.collect(baseline=baseline).cause is Cause.NONE


def test_without_a_baseline_only_dumps_that_this_boot_found_count(node: Node) -> None:
    folder = "var/lib/systemd/pstore/1795153421/001"
    node.dump("dmesg-efi_pstore-179515342101001", "Panic#1 Part1\nKernel panic - not syncing: filed\n", folder)
    assert "filed" in node.collect(baseline=None).sentence
    os.utime(node.root / folder / "dmesg-efi_pstore-179515342101001", (0, 0))
    assert node.collect(baseline=None).cause is Cause.NONE
    assert "filed" in node.collect(baseline={"pstore": []}).sentence
    node.dump("dmesg-efi_pstore-179515342201001", "Panic#1 Part1\nKernel panic - not syncing: fresh\n")
    os.utime(node.root / "sys/fs/pstore/dmesg-efi_pstore-179515342201001", (0, 0))
    assert "fresh" in node.collect(baseline=None).sentence


def test_the_latest_of_several_dumps_counts_and_an_oops_does_not(node: Node) -> None:
    node.dump("dmesg-efi_pstore-179515342101001", "Panic#1 Part1\nKernel panic - not syncing: first\n")
    node.dump("dmesg-efi_pstore-179515352101002", "Panic#2 Part1\nKernel panic - not syncing: second\n")
    node.dump("dmesg-efi_pstore-179515362101003", "Oops#1 Part1\nBUG: survived\n")
    assert node.collect().sentence == "the kernel panicked: second"


def test_an_initrd_that_gave_up_says_why_and_what_it_waited_for(node: Node) -> None:
    node.dump(
        "dmesg-efi_pstore-179515342101001",
        "Panic#1 Part1\n<5>[40.1] systemd[1]: Timed out waiting for device dev-mapper-root.device\n"
        "<12>[40.2] acl-updater: initrd: failed: systemd-veritysetup@root.service\n"
        "<12>[40.2] acl-updater: initrd: emergency mode\n"
        "<0>[40.3] Kernel panic - not syncing: sysrq triggered crash\n",
    )
    evidence = node.collect()
    assert (evidence.stage, evidence.cause) == (Stage.INITRD, Cause.EMERGENCY)
    assert evidence.sentence.endswith("emergency mode; failed or still running: systemd-veritysetup@root.service")


def test_an_initrd_that_ran_into_its_deadline_is_told_apart(node: Node) -> None:
    node.dump(
        "dmesg-efi_pstore-179515342101001",
        "Panic#1 Part1\n<12>[180.0] acl-updater: initrd: job: acl-updater-initrd-deadline.service start running\n"
        "<12>[180.1] acl-updater: initrd: job: initrd.target start waiting\n"
        "<12>[180.1] acl-updater: initrd: job: dev-disk-by\\x2duuid-1.device start running\n"
        "<12>[180.2] acl-updater: initrd: the initrd did not reach its root at its deadline\n"
        "<0>[180.3] Kernel panic - not syncing: sysrq triggered crash\n",
    )
    evidence = node.collect()
    assert (evidence.stage, evidence.cause) == (Stage.INITRD, Cause.DEADLINE)
    assert evidence.sentence.endswith("at its deadline; failed or still running: dev-disk-by\\x2duuid-1.device")


def test_a_corrupt_block_behind_a_panic_is_named(node: Node) -> None:
    node.boot(TRY_1, entry("Started something"))
    node.dump(
        "dmesg-efi_pstore-179515342101001",
        "Panic#1 Part1\n<3>[20.1] device-mapper: verity: 254:0: data block 77 is corrupted\n"
        "<0>[20.2] Kernel panic - not syncing: dm-verity device corrupted\n",
    )
    evidence = node.collect()
    assert (evidence.stage, evidence.cause) == (Stage.USERSPACE, Cause.DAMAGED_SLOT)
    assert "data block 77" in evidence.sentence


def test_a_panic_after_the_switch_to_the_root_is_placed_there_even_without_a_journal(node: Node) -> None:
    node.dump(
        "dmesg-efi_pstore-179515342101001",
        "Panic#1 Part1\n<6>[3.3] systemd[1]: Running in initrd.\n<5>[10.3] systemd-journald[150]: Received SIGTERM\n"
        "<6>[15.5] systemd[1]: Stopped initrd-switch-root.service - Switch Root.\n"
        "<0>[33.2] Kernel panic - not syncing: hung_task: blocked tasks\n",
    )
    assert node.collect().stage is Stage.USERSPACE


def test_the_kernels_stand_in_for_a_watchdog_is_named_as_one(node: Node) -> None:
    node.dump(
        "dmesg-efi_pstore-179515342101001",
        "Panic#1 Part1\n<2>[83.2] softdog: Initiating panic\n"
        "<0>[83.2] Kernel panic - not syncing: Software Watchdog Timer expired\n",
    )
    evidence = node.collect()
    assert evidence.cause is Cause.WATCHDOG
    assert evidence.points_at_release
    assert "the system hung" in evidence.sentence


def test_a_dump_without_its_panic_line_gives_way_to_one_that_has_it(node: Node) -> None:
    node.dump("dmesg-efi_pstore-179515342101001", "Panic#1 Part1\nKernel panic - not syncing: first\n")
    node.dump("dmesg-efi_pstore-179515352104001", "Panic#1 Part4\nhardware\n")
    assert node.collect().sentence == "the kernel panicked: first"
    assert node.collect(baseline={"pstore": ["dmesg-efi_pstore-179515342101001"]}).cause is Cause.PANIC


def test_the_journals_of_the_trials_boots_are_kept_and_no_others(node: Node) -> None:
    node.boot(TRY_1, entry("one"))
    node.boot(TRY_2, entry("two"))
    evidence = node.collect()
    assert sorted(path.rpartition("/")[2] for path in evidence.files) == [
        "evidence.json",
        "journal-1.txt",
        "journal-2.txt",
        "kernel-1.txt",
        "kernel-2.txt",
    ]
    assert f"-b {TRY_1} " in node.kept(f"{evidence.folder}/journal-1.txt")
    assert f"-k -b {TRY_2} " in node.kept(f"{evidence.folder}/kernel-2.txt")
    summary = json.loads(node.kept(f"{evidence.folder}/evidence.json"))
    assert [boot["boot_id"] for boot in summary["boots"]] == [TRY_1, TRY_2]


def test_a_boot_that_the_trial_recorded_itself_needs_no_command_line(node: Node) -> None:
    node.boot(TRY_1, entry("one"), root_hash="no such thing")
    logs = BootLogs()
    assert logs.boots_of(ROOT_HASH, after=dashed(ARMING), before=dashed(NOW)) == []
    assert logs.boots_of(ROOT_HASH, after=dashed(ARMING), before=dashed(NOW), known=[dashed(TRY_1)]) == [TRY_1]


def test_an_earlier_trial_of_the_same_image_is_not_mixed_in(node: Node) -> None:
    node.boots = [OLD, TRY_1, ARMING, NOW]
    node.boot(TRY_1, entry("Forcibly rebooting: job timed out"))
    assert node.collect().cause is Cause.NONE


def test_the_recorded_verdict_is_the_surest_sign_and_its_folder_is_added_to(node: Node) -> None:
    trial = Trial("202611.3.0", ROOT_HASH, Slot.B, 1, 3, None)
    broken = Result("containerd", Status.FAILED, "containerd is broken", output="boom")
    verdict = Verdict(Decision.ROLL_BACK, "check-failed", "containerd is broken", 600, None, (broken,))
    told = evidence_of_verdict(trial, verdict, [broken], node.state, limit_bytes=8 << 20)
    assert (told.stage, told.cause, told.checks) == (Stage.HEALTH, Cause.CHECK, ("containerd",))
    assert (node.journals / "sync").exists()
    report = json.loads(node.kept("evidence/202611.3.0-1/health.json"))
    assert report["results"][0]["output"] == "boom"
    node.boot(TRY_1, entry("Forcibly rebooting: job timed out"))
    node.watchdog("32")
    evidence = node.collect(verdict=told)
    assert evidence.sentence == "containerd is broken"
    assert evidence.folder == told.folder
    assert node.state.names("evidence") == ["202611.3.0-1"]
    assert set(told.files) < set(evidence.files)


@pytest.mark.parametrize("value", ["", "x", "0x20", "33", "0"])
def test_a_watchdogs_word_is_read_bit_by_bit(node: Node, value: str) -> None:
    node.watchdog(value)
    assert watchdog_has_reset(node.root) is (value in ("0x20", "33"))


def test_a_node_without_journal_pstore_or_watchdog_is_judged_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr("updater.run._SBIN", str(tmp_path))
    failed = FailedTrial("1.0", ROOT_HASH, NOW, None)
    evidence = collect_evidence(failed, MountedDirectory(tmp_path / "s"), limit_bytes=1 << 20, root=tmp_path)
    assert evidence.cause is Cause.NONE


def test_a_journalctl_that_hangs_costs_no_more_than_the_budget(node: Node) -> None:
    (node.root / "bin" / "journalctl").write_text("#!/bin/sh\nexec sleep 600\n")
    failed = FailedTrial("1.0", ROOT_HASH, NOW, None)
    evidence = collect_evidence(failed, node.state, limit_bytes=1 << 20, root=node.root, budget_s=0.3)
    assert evidence.cause is Cause.NONE


# How a boot ended.


@pytest.mark.parametrize(
    ("entries", "cause", "words"),
    [
        ([entry("Forcibly rebooting: job timed out")], Cause.DEADLINE, "PID 1's own deadline"),
        ([kmsg("the boot is not complete at its deadline: leaving this release"),
          entry("Forcibly rebooting: unit acl-updater-deadline.service failed")], Cause.DEADLINE, "deadline"),
        ([entry("Forcibly rebooting: unit foo.service failed")], Cause.EMERGENCY, "unit foo.service failed"),
        ([kmsg("the health service is gone for good: leaving this release"),
          entry("Forcibly rebooting: unit acl-updater-abandon.service failed")], Cause.EMERGENCY, "health service"),
        ([kmsg("emergency mode: rebooting in 20 s"),
          entry("Forcibly rebooting: unit emergency.service succeeded")], Cause.EMERGENCY, "emergency mode"),
        ([entry("Reached target emergency.target - Emergency Mode.")], Cause.EMERGENCY, "emergency mode"),
        ([entry("Caught <SEGV>, core dump failed.")], Cause.PANIC, "PID 1 crashed: Caught <SEGV>"),
        ([entry("device-mapper: verity: 254:0: metadata block 3 is corrupted", who="kernel", pid="")],
         Cause.DAMAGED_SLOT, "metadata block 3"),
        ([entry("The system will reboot now!", who="systemd-logind", pid="700",
                MESSAGE_ID="98268866d1d54a499c4e98921d93bc40")], Cause.NONE, "somebody rebooted the node in order"),
        ([entry("Reached target reboot.target - System Reboot.")], Cause.NONE, "in order"),
        ([entry("Journal stopped", who="systemd-journald", pid="300",
                MESSAGE_ID="d93fb3c9c24d451a97cea615ce59c00b")], Cause.NONE, "in order"),
        ([entry("Journal stopped", who="systemd-journald", pid="100", MESSAGE_ID="d93fb3c9c24d451a97cea615ce59c00b"),
          entry("Journal started", who="systemd-journald", pid="300", MESSAGE_ID="f77379a8490b408bbe5f6940505a777b"),
          entry("Started containerd.service")], Cause.NONE, "power cut or a reset; last line: systemd: Started cont"),
        ([entry("Forcibly rebooting: Ctrl-Alt-Del was pressed more than 7 times within 2s")], Cause.NONE, "power cut"),
        ([entry("Started containerd.service")], Cause.NONE, "power cut or a reset; last line: systemd: Started cont"),
    ],
)  # fmt: skip
def test_the_ends_of_a_boot_are_told_apart(entries: list[dict[str, Any]], cause: Cause, words: str, node: Node) -> None:
    node.boot(TRY_1, *entries)
    evidence = node.collect()
    assert evidence.cause is cause
    assert words in evidence.sentence
    assert evidence.stage in (Stage.USERSPACE, Stage.HEALTH)


def test_the_units_that_failed_before_a_deadline_are_named(node: Node) -> None:
    failed = entry(
        "containerd.service: Failed with result 'exit-code'.",
        MESSAGE_ID="d9b373ed55a64feb8242e02dbe79a49c",
        UNIT="containerd.service",
    )
    node.boot(TRY_1, failed, failed, entry("Forcibly rebooting: job timed out"))
    assert node.collect().sentence.endswith("failed units: containerd.service")


def test_a_process_that_only_calls_itself_systemd_is_not_believed(node: Node) -> None:
    node.boot(TRY_1, entry("Forcibly rebooting: job timed out", pid="4711"))
    assert node.collect().cause is Cause.NONE


def test_a_hang_that_a_watchdog_ended_is_placed_by_how_far_the_journal_came(node: Node) -> None:
    node.watchdog("32")
    early = node.collect()
    assert (early.stage, early.cause) == (Stage.INITRD, Cause.WATCHDOG)
    node.boot(TRY_1, entry("Started containerd.service"))
    late = node.collect()
    assert (late.stage, late.cause) == (Stage.USERSPACE, Cause.WATCHDOG)
    assert "Started containerd.service" in late.sentence


def test_damaged_artifacts_outweigh_what_followed_from_them() -> None:
    panic = Dump(("x",), "Panic", "Kernel panic - not syncing: dm-verity device corrupted")
    slot = classify(Signs(damaged_slot="slot b does not match", dumps=(panic,)))
    assert (slot.stage, slot.cause) == (Stage.ARTIFACT, Cause.DAMAGED_SLOT)
    assert "dm-verity device corrupted" in slot.sentence
    uki = classify(Signs(damaged_uki="the UKI differs", damaged_slot="slot b does not match"))
    assert uki.cause is Cause.DAMAGED_UKI


def test_the_surest_sign_wins_over_all_others() -> None:
    boot = BootSigns(TRY_1, action="job timed out", last_line="x")
    panic = Dump(("x",), "Panic", "Kernel panic - not syncing: boom")
    assert classify(Signs(dumps=(panic,), boots=(boot,), watchdog=True)).cause is Cause.PANIC
    assert classify(Signs(boots=(boot,), watchdog=True)).cause is Cause.DEADLINE
    assert classify(Signs(watchdog=True)).cause is Cause.WATCHDOG


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=40), lambda inner: st.lists(inner, max_size=3)
)


@given(st.lists(st.dictionaries(st.sampled_from(["MESSAGE", "MESSAGE_ID", "SYSLOG_IDENTIFIER", "_PID", "UNIT"]), JSON)))
def test_a_journal_of_garbage_is_read_without_a_crash(entries: list[dict[str, Any]]) -> None:
    classify(Signs(boots=(read_signs(TRY_1, entries),)))


@given(st.text(max_size=200), st.text(max_size=10))
def test_a_dump_of_garbage_is_judged_without_a_crash(text: str, reason: str) -> None:
    classify(Signs(dumps=(Dump(("x",), reason, text),)))


def test_a_message_that_is_not_text_is_read_as_far_as_it_goes() -> None:
    signs = read_signs(TRY_1, [{"MESSAGE": [104, 105, 255], "SYSLOG_IDENTIFIER": "x"}])
    assert signs.last_line == "x: hi\ufffd"


# Panic dumps.


def test_parts_of_dumps_are_grouped_by_their_ids_and_ordered_from_the_last_part_to_the_first(tmp_path: Path) -> None:
    folder = tmp_path / "sys/fs/pstore"
    folder.mkdir(parents=True)
    names = [(f"dmesg-efi_pstore-{when}{part:02}001", when, part) for when in (1700000001, 1700000002)
             for part in range(1, 13)]  # fmt: skip
    random.Random(1).shuffle(names)
    for name, when, part in names:
        (folder / name).write_text(f"Panic#1 Part{part}\n<6>{when} part {part}\n")
    (folder / "dmesg-efi-170000000301001").write_text("Oops#1 Part1\nof an older kernel\n")
    (folder / "dmesg-ramoops-0").write_text("Panic#1 Part1\nof another backend\n")
    (folder / "dmesg-efi_pstore-170000000401001.enc.z").write_bytes(b"\x1f\x8b")
    (folder / "console-ramoops-0").write_text("no dump")
    dumps = read_dumps(tmp_path, frozenset())
    assert [(dump.reason, dump.text.splitlines()[0], len(dump.files)) for dump in dumps] == [
        ("Panic", "1700000001 part 12", 12),
        ("Panic", "1700000002 part 12", 12),
        ("Oops", "of an older kernel", 1),
        ("Panic", "of another backend", 1),
    ]
    assert dumps[0].text.splitlines()[-1] == "1700000001 part 1"


def test_a_dump_whose_writing_took_longer_than_a_second_is_one_dump(tmp_path: Path) -> None:
    folder = tmp_path / "sys/fs/pstore"
    folder.mkdir(parents=True)
    for second, parts in ((1795155469, range(1, 16)), (1795155503, range(1, 12)), (1795155504, range(12, 16))):
        for part in parts:
            (folder / f"dmesg-efi_pstore-{second}{part:02}001").write_text(f"Panic#1 Part{part}\n<6>part {part}\n")
    dumps = read_dumps(tmp_path, frozenset())
    assert [len(dump.files) for dump in dumps] == [15, 15]
    assert dumps[1].text.splitlines() == [f"part {part}" for part in range(15, 0, -1)]


# The store.


@pytest.fixture
def state(tmp_path: Path) -> MountedDirectory:
    return MountedDirectory(tmp_path / "state")


def test_folders_are_numbered_over_all_releases(state: MountedDirectory) -> None:
    store = EvidenceStore(state, 1 << 20)
    assert store.save("2.0", {"a.txt": b"a"}) == ("evidence/2.0-1/a.txt",)
    assert store.save("1.0-rc.1", {"a.txt": b"a"}) == ("evidence/1.0-rc.1-2/a.txt",)
    assert store.save("2.0", {"a.txt": b"a", "empty.txt": b""}) == ("evidence/2.0-3/a.txt",)


def test_the_oldest_folders_make_room_and_the_end_of_a_long_file_is_kept(state: MountedDirectory) -> None:
    store = EvidenceStore(state, 4096)
    for number in range(1, 8):
        store.save("2.0", {"long.txt": b"x" * 5000 + b"%d" % number})
    assert state.names("evidence") == ["2.0-4", "2.0-5", "2.0-6", "2.0-7"]
    kept = state.read("evidence/2.0-7/long.txt")
    assert kept is not None
    assert len(kept) == 1024
    assert kept.endswith(b"x7")


def test_the_folder_of_a_trial_is_added_to_and_never_makes_room_for_itself(state: MountedDirectory) -> None:
    store = EvidenceStore(state, 4096)
    store.save("1.0", {"old.txt": b"o" * 1000})
    store.save("2.0", {"first.txt": b"f" * 1000})
    kept = store.save("2.0", {"a.txt": b"a" * 1000, "b.txt": b"b" * 1000, "c.txt": b"c" * 1000}, "evidence/2.0-2")
    assert [path.rpartition("/")[0] for path in kept] == ["evidence/2.0-2"] * 3
    assert state.names("evidence") == ["2.0-2"]
    assert state.names("evidence/2.0-2") == ["a.txt", "b.txt", "c.txt", "first.txt"]


def test_a_folder_that_is_not_ours_is_never_written_to(state: MountedDirectory) -> None:
    store = EvidenceStore(state, 4096)
    assert store.save("2.0", {"a.txt": b"a"}, "evidence/../trust") == ("evidence/2.0-1/a.txt",)
    assert store.save("../up", {"a.txt": b"a"}) == ()
    assert state.names() == ["evidence"]


class FullDisk(MountedDirectory):
    """A folder on a disk with few bytes left."""

    free = 0

    def free_bytes(self) -> int:
        return self.free


def test_a_full_disk_keeps_no_evidence_and_fails_nothing(tmp_path: Path) -> None:
    disk = FullDisk(tmp_path)
    assert EvidenceStore(disk, 1 << 20).save("2.0", {"a.txt": b"a"}) == ()
    disk.free = 4000
    kept = EvidenceStore(disk, 1 << 20).save("2.0", {"big.txt": b"b" * 5000, "small.txt": b"s" * 900})
    assert kept == ("evidence/2.0-1/small.txt",)


def test_a_disk_that_cannot_be_written_fails_nothing(tmp_path: Path) -> None:
    (tmp_path / "evidence").write_text("a file where a folder should be")
    assert EvidenceStore(MountedDirectory(tmp_path), 1 << 20).save("2.0", {"a.txt": b"a"}) == ()


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        (
            "<4>[ 79.1] Oops: invalid opcode: 0000 [#1] SMP\n"
            "<4>[ 79.2] RIP: 0010:__gup_longterm_locked+0xef/0x9e0\n"
            "<0>[ 81.8] Kernel panic - not syncing: Fatal exception\n",
            "Fatal exception, Oops: invalid opcode: 0000 [#1] SMP, RIP: 0010:__gup_longterm_locked+0xef/0x9e0",
        ),
        (
            "<4>[ 9.1] RIP: 0010:warned_long_ago+0x1/0x2\n<0>[ 9.2] Kernel panic - not syncing: VFS: no root\n",
            "VFS: no root",
        ),
    ],
)
def test_a_panic_that_says_little_is_told_with_what_went_wrong(node: Node, lines: str, words: str) -> None:
    node.dump("dmesg-efi_pstore-179515342101001", f"Panic#1 Part1\n{lines}")
    assert node.collect().sentence == f"the kernel panicked: {words}"
