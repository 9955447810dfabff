"""The command `layout`: a disk's partition table, drawn and compared with a layout."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from updater.cli.output import Report
from updater.config import load_config
from updater.errors import ExitCode
from updater.gpt import Gpt, Partition, parse
from updater.layout_check import Finding, Found, compare, matched, root_hash_told
from updater.layouts import Layout, LayoutPartition, load_layout
from updater.partition import WholeDisk, write_table
from updater.slots import Slot

_ROLES = {
    "esp": "EFI system partition",
    "boot": "boot files",
    "bios-boot": "GRUB's core image",
    "data": "image",
    "hash": "hash tree",
    "signature": "signature",
    "state": "state, shared",
    "shared": "shared",
}


def layout(args: argparse.Namespace) -> Report:
    """Draw a disk, and for `check` compare it with its layout; no node is opened, so that a broken one can be seen."""
    wanted = load_layout(args.layout or load_config(args.config).layout)
    disk: Path = args.disk or _running_disk(wanted)
    table = _read(disk)
    repaired = False
    if args.verb == "check" and args.repair and not table.consistent:
        with _locked(disk), WholeDisk(disk, writable=True) as opened:
            write_table(opened, parse(opened.read, opened.length_bytes, opened.sector_bytes))
        table, repaired = _read(disk), True
    findings = compare(wanted, table) if args.verb == "check" else ()
    lines = list(drawing(disk, wanted, table))
    if args.verb == "check":
        lines += ["", *_told(findings, repaired=repaired, name=wanted.name)]
    failed = any(finding.kind == "problem" for finding in findings)
    return Report(
        _document(disk, wanted, table, findings, repaired), lines, ExitCode.FAILED if failed else ExitCode.DONE
    )


def drawing(disk: Path, layout: Layout, table: Gpt) -> Iterator[str]:
    """Draw the disk from its first byte to its last."""
    total = table.disk_sectors * table.sector_bytes
    yield f"{disk}: {_size(total)} in sectors of {table.sector_bytes} bytes, layout {layout.name}"
    yield f"  {'begins':>10}  {'length':>10}  {'#':>3}  {'label':14}  what"
    end = 0
    for found in matched(layout, table):
        if found.partition is None:
            assert found.wanted is not None
            yield f"  {'':10}  {'missing':>10}  {'':3}  {found.wanted.label:14}  {_what(found.wanted)}"
            continue
        if found.partition.offset_bytes - end > (1 << 20):
            yield f"  {_size(end):>10}  {_size(found.partition.offset_bytes - end):>10}  {'':3}  {'':14}  free"
        yield _row(layout, table, found.partition, found)
        end = found.partition.offset_bytes + found.partition.length_bytes
    if total - end > (2 << 20):
        yield f"  {_size(end):>10}  {_size(total - end):>10}  {'':3}  {'':14}  free"


def _row(layout: Layout, table: Gpt, partition: Partition, found: Found) -> str:
    what = _what(found.wanted) if found.wanted else "not in the layout"
    if found.wanted and found.wanted.role == "data" and found.wanted.slot:
        told = root_hash_told(layout, table, found.wanted.slot)
        what += f", PARTUUIDs spell {told[:16]}…" if told else ""
    place = f"{_size(partition.offset_bytes):>10}  {_size(partition.length_bytes):>10}"
    return f"  {place}  {partition.number:3}  {partition.name:14}  {what}"


def _what(wanted: LayoutPartition) -> str:
    what = f"slot {wanted.slot} {_ROLES[wanted.role]}" if wanted.slot else _ROLES[wanted.role]
    return f"{what} with its hash tree" if wanted.hash_offset_bytes is not None else what


def _told(findings: tuple[Finding, ...], *, repaired: bool, name: str) -> Iterator[str]:
    if repaired:
        yield "repaired  both copies of the partition table were written anew and read back"
    for finding in findings:
        yield f"{finding.kind:8}  {finding.sentence}"
        if finding.mend:
            yield f"          what to do: {finding.mend}"
    if not any(finding.kind == "problem" for finding in findings):
        yield f"This disk is as the layout {name} says."


def _document(disk: Path, layout: Layout, table: Gpt, findings: tuple[Finding, ...], repaired: bool) -> dict[str, Any]:
    rows = []
    for found in matched(layout, table):
        wanted, partition = found.wanted, found.partition
        rows.append(
            {
                "label": partition.name if partition else wanted.label if wanted else "",
                "role": wanted.role if wanted else None,
                "slot": wanted.slot.value if wanted and wanted.slot else None,
                "number": partition.number if partition else None,
                "offset_bytes": partition.offset_bytes if partition else None,
                "length_bytes": partition.length_bytes if partition else None,
                "type": str(partition.type_guid) if partition else None,
                "partuuid": str(partition.unique_guid) if partition else None,
                "attributes": partition.attributes if partition else None,
            }
        )
    return {
        "format": 1,
        "disk": str(disk),
        "layout": layout.name,
        "sector_bytes": table.sector_bytes,
        "length_bytes": table.disk_sectors * table.sector_bytes,
        "copies_agree": table.consistent,
        "repaired": repaired,
        "partitions": rows,
        "root_hashes": {slot.value: root_hash_told(layout, table, slot) for slot in Slot},
        "findings": [
            {"kind": item.kind, "label": item.label, "sentence": item.sentence, "mend": item.mend} for item in findings
        ],
    }


def _read(disk: Path) -> Gpt:
    with WholeDisk(disk) as opened:
        return parse(opened.read, opened.length_bytes, opened.sector_bytes)


def _running_disk(layout: Layout) -> Path:
    from updater.devices import discover_live_root

    return discover_live_root(layout=layout).disk


def _locked(disk: Path) -> AbstractContextManager[None]:
    if disk.is_file():
        from updater.node.image import locked_image

        return locked_image(disk)
    from updater.node.live import locked_machine

    return locked_machine()


def _size(length_bytes: int) -> str:
    """Return a length in the largest unit that it is a whole number of, so that lengths can be added up."""
    for unit, size in (("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)):
        if length_bytes >= size and length_bytes % size == 0:
            return f"{length_bytes // size} {unit}"
    return f"{length_bytes} B"
