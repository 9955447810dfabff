"""What differs between a disk and its layout is told with its consequence and its mend; `layout` shows it."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from uuid import UUID

import pytest

from updater.cli import main
from updater.gpt import Gpt, Partition, parse
from updater.layout_check import compare, root_hash_told
from updater.layouts import layout_folders, load_layout
from updater.new_disk import disk_bytes, new_disk_image, new_table
from updater.partition import WholeDisk
from updater.slots import Slot

LAYOUTS = sorted(path.stem for path in layout_folders()[-1].glob("*.yaml"))


def fresh(name: str, *, sector_bytes: int = 512) -> Gpt:
    layout = load_layout(name)
    partuuids = {partition.label: UUID(int=0xD15C + at) for at, partition in enumerate(layout.partitions)}
    table = new_table(layout, disk_guid=UUID(int=1), partuuids=partuuids, sector_bytes=sector_bytes)
    return dataclasses.replace(table, primary_ok=True, backup_ok=True, consistent=True)


def said(table: Gpt, name: str = "dps-root") -> list[tuple[str, str]]:
    return [(finding.kind, finding.sentence) for finding in compare(load_layout(name), table)]


def moved(table: Gpt, label: str, **changes: object) -> Gpt:
    """Return the table with one partition told otherwise."""

    def change(partition: Partition) -> Partition:
        return dataclasses.replace(partition, **changes) if partition.name == label else partition  # type: ignore[arg-type]

    return dataclasses.replace(table, partitions=tuple(change(partition) for partition in table.partitions))


@pytest.mark.parametrize("name", LAYOUTS)
@pytest.mark.parametrize("sector", [512, 4096])
def test_a_new_disk_is_as_its_layout_says(name: str, sector: int) -> None:
    assert said(fresh(name, sector_bytes=sector), name) == []


def test_a_renamed_partition_is_guessed_and_named() -> None:
    (problem, note) = said(moved(fresh("dps-root"), "state", name="var"))
    assert problem[0] == "problem"
    assert "no partition labelled state; partition 6, labelled 'var', is like it" in problem[1]
    assert note == ("note", "partition 6 ('var') is not in the layout")


def test_fixed_partuuids_tell_a_renamed_slot_among_its_likes() -> None:
    table = moved(moved(fresh("azure-container-linux"), "USR-A", name="old"), "OEM", name="extra")
    sentences = [sentence for _, sentence in said(table, "azure-container-linux")]
    assert any("no partition labelled USR-A; partition 2, labelled 'old', is like it" in text for text in sentences)


@pytest.mark.parametrize(
    ("label", "changes", "why"),
    [
        ("USR-B", {"unique_guid": UUID(int=7)}, "what is booted would not find it"),
        ("HASH-A", {"type_guid": UUID(int=7)}, "partition 3 (HASH-A) has type"),
        ("USR-B", {"name": "USR-A"}, "partitions 2 and 5 are both labelled USR-A"),
        ("ROOT", {"last_lba": 4_800_000}, "releases that fit the layout need not fit this disk"),
    ],
)
def test_what_keeps_updates_from_working_is_a_problem(label: str, changes: dict[str, object], why: str) -> None:
    findings = compare(load_layout("azure-container-linux"), moved(fresh("azure-container-linux"), label, **changes))
    assert any(why in finding.sentence and finding.kind == "problem" and finding.mend for finding in findings)


def test_larger_slots_are_fine_and_unequal_ones_are_not() -> None:
    table = fresh("dps-root")
    last = table.partition(6)
    assert said(moved(table, "state", last_lba=last.last_lba + 1000)) == []
    larger = moved(table, "root-b", last_lba=table.partition(4).last_lba + 8)
    assert any("so that the smaller one counts" in sentence for _, sentence in said(larger))


def test_moved_partitions_are_only_noted() -> None:
    table = moved(fresh("dps-root"), "state", first_lba=100, last_lba=100 + (512 << 20) // 512, number=9)
    assert {kind for kind, _ in said(table)} == {"note"}


def test_partuuids_tell_what_a_slot_holds_only_where_the_layout_makes_them() -> None:
    table = fresh("dps-root")
    told = root_hash_told(load_layout("dps-root"), table, Slot.A)
    assert told == table.partition(2).unique_guid.hex + table.partition(3).unique_guid.hex
    acl = load_layout("azure-container-linux")
    assert root_hash_told(acl, fresh("azure-container-linux"), Slot.A) is None


def written(folder: Path, name: str, *, sector_bytes: int = 512) -> Path:
    """Write a sparse disk that bears only a layout's table."""
    disk = folder / "node.raw"
    with disk.open("wb") as file:
        file.truncate(disk_bytes(load_layout(name)))
        for offset, raw in new_disk_image(fresh(name, sector_bytes=sector_bytes)):
            file.seek(offset)
            file.write(raw)
    return disk


@pytest.mark.parametrize("sector", [512, 4096])
def test_the_command_draws_and_checks_an_image(tmp_path: Path, capsys: pytest.CaptureFixture[str], sector: int) -> None:
    disk = written(tmp_path, "azure-container-linux", sector_bytes=sector)
    arguments = ["--layout", "azure-container-linux", "--disk", str(disk)]
    assert main(["layout", "check", *arguments]) == 0
    drawn = capsys.readouterr().out
    assert f"in sectors of {sector} bytes" in drawn
    assert "This disk is as the layout azure-container-linux says." in drawn
    assert drawn.index("USR-A") < drawn.index("HASH-SIG-B") < drawn.index("ROOT")
    assert main(["layout", "check", "--layout", "dps-root", "--disk", str(disk)]) == 1
    assert "there is no partition labelled root-a" in capsys.readouterr().out
    assert main(["layout", "show", *arguments, "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert (document["sector_bytes"], document["copies_agree"]) == (sector, True)
    assert [row["label"] for row in document["partitions"]][-1] == "ROOT"


def end_of(disk: Path) -> bytes:
    with disk.open("rb") as file:
        file.seek(-(1 << 16), 2)
        return file.read()


def test_a_stale_backup_is_repaired_only_when_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    disk = written(tmp_path, "dps-root")
    with disk.open("r+b") as file:
        file.seek(-512, 2)
        file.write(bytes(512))
    before = end_of(disk)
    arguments = ["layout", "check", "--layout", "dps-root", "--disk", str(disk)]
    assert main(arguments) == 1
    assert "backup copy of the partition table is damaged" in capsys.readouterr().out
    assert end_of(disk) == before
    assert main([*arguments, "--repair"]) == 0
    assert "repaired" in capsys.readouterr().out
    with WholeDisk(disk) as opened:
        assert parse(opened.read, opened.length_bytes).consistent
