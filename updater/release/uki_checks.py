"""What a UKI must say and hold so that its initrd cannot wait for ever: see `image_checks` for the root's part."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from updater.release.image_checks import Finding

_LONGEST_PANIC_S = 60


def check_command_line(command_line: str, root_hash: str, *, swaps: str = "root") -> list[Finding]:
    """Return what a release's kernel command line lacks; that of a UKI together with its addons."""
    words = command_line.split()
    values = dict(word.split("=", 1) for word in words if "=" in word)
    where = "kernel command line"
    findings = []
    key = f"{swaps}hash="
    if [word for word in words if word.startswith(key)] != [f"{key}{root_hash}"]:
        findings.append(Finding(where, f"{key} does not name this image, and only this one", f"write {key}{root_hash}"))
    options = values.get(f"systemd.verity_{swaps}_options", "").split(",")
    if not {"panic-on-corruption", "restart-on-corruption"} & set(options):
        findings.append(
            Finding(
                where,
                "a corrupt block would be an I/O error that the node lives on with",
                f"add systemd.verity_{swaps}_options=panic-on-corruption",
            )
        )
    panic = values.get("panic", "0")
    if not panic.lstrip("-").isdigit() or int(panic) == 0 or int(panic) > _LONGEST_PANIC_S:
        findings.append(Finding(where, f"after a panic the kernel waits (panic={panic})", "add panic=10"))
    if values.get("systemd.crash_action") != "reboot" and values.get("systemd.crash_reboot") not in ("yes", "1"):
        findings.append(Finding(where, "a crash of the initrd's PID 1 freezes it", "add systemd.crash_action=reboot"))
    return findings


def check_uki(
    uki: Path, root_hash: str, initrd_overlay: bytes, *, addons: Iterable[Path] = (), swaps: str = "root"
) -> list[Finding]:
    """Return what a UKI lacks: its sections, its command line, the initrd's deadlines.

    `addons` are those of one slot each: the UKI is judged together with every one of them, and never without.
    """
    sections = _sections(uki)
    if isinstance(sections, Finding):
        return [sections]
    missing = [name for name in (".linux", ".initrd", ".cmdline", ".osrel") if name not in sections]
    if missing:
        return [Finding(uki.name, f"it has no section {', '.join(missing)}", "build it with ukify")]
    lines, findings = [_text(sections)], []
    for addon in addons:
        added = _sections(addon)
        if isinstance(added, Finding):
            findings.append(added)
        else:
            lines.append(f"{lines[0]} {_text(added)}")
    for line in lines[1:] or lines:
        findings += check_command_line(line, root_hash, swaps=swaps)
    if initrd_overlay.rstrip(b"\0") not in sections[".initrd"]:
        findings.append(
            Finding(uki.name, "its initrd lacks the updater's deadlines", "let `acl-release build` append them")
        )
    return findings


def _sections(path: Path) -> dict[str, bytes] | Finding:
    import pefile

    try:
        with pefile.PE(str(path), fast_load=True) as pe:
            return {_name(section): section.get_data()[: section.Misc_VirtualSize] for section in pe.sections}
    except pefile.PEFormatError as error:
        return Finding(path.name, f"it is no PE file: {error}", "build it with ukify")


def _name(section: Any) -> str:
    return bytes(section.Name).rstrip(b"\0").decode("ascii", "replace")


def _text(sections: dict[str, bytes]) -> str:
    return sections.get(".cmdline", b"").rstrip(b"\0").decode("utf-8", "replace").strip()
