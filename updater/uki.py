"""Unified kernel images judged as PE files, before anything may boot them.

A UKI that the firmware cannot load costs a try at best and the node at worst (systemd-boot before 258 gives up), so
the bounds that firmware checks are checked here: headers, sections and certificates inside the file, the machine type,
the memory image. Sources: Microsoft's PE format; edk2's `PeCoffLoaderGetImageInfo`; the UAPI specification of UKIs.
"""

from __future__ import annotations

import contextlib
import mmap
import shlex
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from updater.errors import InvalidDocument

MACHINES = {"x86-64": 0x8664, "arm64": 0xAA64}
MAX_UKI_BYTES = 1 << 30
MAX_TEXT_BYTES = 64 * 1024
REQUIRED = (".linux", ".initrd", ".cmdline", ".osrel")
# What an addon may bring: the stub reads these, and an addon without any of them does nothing.
ADDON_SECTIONS = (".cmdline", ".initrd", ".ucode", ".dtb", ".dtbauto")
_PE32_PLUS = 0x20B
_EFI_APPLICATION = 10
_MAX_SECTIONS = 96
_SECURITY_DIRECTORY = 4
_HEADER_BYTES = 64 * 1024
_REBUILD = "build the release anew with `acl-release build`"


@dataclass(frozen=True, slots=True)
class Section:
    """A section: its place in the file, and how many of its bytes count (the rest is padding)."""

    name: str
    offset_bytes: int
    length_bytes: int


@dataclass(frozen=True, slots=True)
class Uki:
    """What a sound UKI or addon carries; texts are empty where it has no such section."""

    machine: int
    sections: tuple[Section, ...]
    command_line: str
    os_release: Mapping[str, str]

    def section(self, name: str) -> Section | None:
        """Return the first section of a name."""
        return next((section for section in self.sections if section.name == name), None)


class Identity(Protocol):
    """What a UKI must say about its release: a manifest or a release's record."""

    @property
    def version(self) -> str: ...


def check_uki(path: Path, release: Identity, architecture: str) -> Uki:
    """Return the UKI at `path` when it is sound and of `release`; raise InvalidDocument.

    Its command line is judged together with its addons': see `updater.verity_words`.
    """
    with _mapped(path) as content:
        uki = parse(content, path.name)
    _check_machine(uki, architecture, path.name)
    for name in REQUIRED:
        found = [section for section in uki.sections if section.name == name]
        if len(found) != 1:
            why = "is missing" if not found else f"stands {len(found)} times (profiles are not supported)"
            raise InvalidDocument(path.name, name, f"the section {why}", _REBUILD)
        if found[0].length_bytes == 0:
            raise InvalidDocument(path.name, name, "the section is empty", _REBUILD)
    version = uki.os_release.get("IMAGE_VERSION") or uki.os_release.get("VERSION_ID")
    if version != release.version:
        raise InvalidDocument(
            path.name, ".osrel", f"it names release {version} instead of {release.version}", "publish the right UKI"
        )
    return uki


def check_addon(path: Path, architecture: str, *, of_slot: bool = False) -> Uki:
    """Return the addon at `path` when it is sound and changes no root; raise InvalidDocument.

    An addon `of_slot` may carry the verity words of its slot, which an addon of both slots may not.
    """
    with _mapped(path) as content:
        addon = parse(content, path.name)
    _check_machine(addon, architecture, path.name)
    if addon.section(".linux") is not None:
        raise InvalidDocument(path.name, ".linux", "an addon carries no kernel", "publish it as the release's UKI")
    if not any(addon.section(name) for name in ADDON_SECTIONS):
        raise InvalidDocument(
            path.name, "", "it carries nothing that the stub reads", "build the addon anew with ukify"
        )
    kept_out = ("root=", *(() if of_slot else ("roothash=", "usrhash=", "systemd.verity")))
    for word in words(addon.command_line):
        if word.startswith(kept_out) or word.partition("=")[0] in ("systemd.verity", "rd.systemd.verity"):
            raise InvalidDocument(
                path.name,
                ".cmdline",
                f"{word} would change what the UKI proves",
                "keep it in the UKI's command line, or in an addon of one slot",
            )
    return addon


def parse(content: Any, source: str) -> Uki:
    """Return what a PE file carries (bytes or a memory map); raise InvalidDocument for one that would not load."""
    length = len(content)
    if length > MAX_UKI_BYTES:
        raise InvalidDocument(source, "", f"{length} bytes are more than a UKI may have", "leave something out")
    image = _load(content, source)
    header = image.OPTIONAL_HEADER
    if header.Magic != _PE32_PLUS or header.Subsystem != _EFI_APPLICATION:
        raise InvalidDocument(source, "optional header", "it is no 64-bit EFI application", _REBUILD)
    if image.FILE_HEADER.NumberOfSections != len(image.sections) or not 0 < len(image.sections) <= _MAX_SECTIONS:
        raise InvalidDocument(source, "section table", "it does not hold the sections that it should", _REBUILD)
    if not 0 < header.SizeOfHeaders <= min(length, header.SizeOfImage) or header.SizeOfImage > MAX_UKI_BYTES:
        raise InvalidDocument(source, "optional header", "its sizes do not fit the file", _REBUILD)
    sections = tuple(_section(section, header, length, source) for section in image.sections)
    _check_overlaps(image.sections, source)
    if not any(_holds(section, header.AddressOfEntryPoint) for section in image.sections):
        raise InvalidDocument(source, "optional header", "its entry point lies in no section", _REBUILD)
    _check_certificates(header, length, source)
    return Uki(
        machine=image.FILE_HEADER.Machine,
        sections=sections,
        command_line=_text(content, sections, ".cmdline", source).strip(" \t\r\n"),
        os_release=parse_os_release(_text(content, sections, ".osrel", source)),
    )


def read_os_release(chunks: Iterable[bytes]) -> Mapping[str, str] | None:
    """Return the os-release inside a PE file read as a stream, or None when a loader would find none in it.

    Only the headers and that section are kept in memory.
    """
    stream = iter(chunks)
    head = b""
    for chunk in stream:
        head += chunk
        if len(head) >= _HEADER_BYTES:
            break
    try:
        image = _load(head, "UKI")
    except InvalidDocument:
        return None
    found = next((section for section in image.sections if _name(section) == ".osrel"), None)
    if found is None:
        return None
    start = found.PointerToRawData
    end = start + min(found.SizeOfRawData, found.Misc_VirtualSize, MAX_TEXT_BYTES)
    text, position = head[start:end], len(head)
    while position < end:
        following = next(stream, b"")
        if not following:
            return None
        text += following[max(0, start - position) : max(0, end - position)]
        position += len(following)
    return parse_os_release(text.split(b"\0", 1)[0].decode("utf-8", "replace"))


def words(command_line: str) -> list[str]:
    """Return the words of a kernel command line; double quotes hold one together, as for the kernel."""
    lexer = shlex.shlex(command_line, posix=True)
    lexer.whitespace_split = True
    lexer.quotes, lexer.escape, lexer.commenters = '"', "", ""
    try:
        return list(lexer)
    except ValueError:
        # A quote that is never closed reaches to the end, for the kernel as for us.
        return words(command_line + '"')


def parse_os_release(text: str) -> dict[str, str]:
    """Return the assignments of an os-release file; lines that are none are skipped."""
    values = {}
    for line in text.splitlines():
        key, equals, value = line.strip().partition("=")
        if not equals or not key or key.startswith("#"):
            continue
        with contextlib.suppress(ValueError):
            values[key] = "".join(shlex.split(value))
    return values


@contextlib.contextmanager
def _mapped(path: Path) -> Iterator[Any]:
    with path.open("rb") as file:
        if path.stat().st_size == 0:
            raise InvalidDocument(path.name, "", "the file is empty", "fetch it again")
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            yield content


def _load(content: Any, source: str) -> Any:
    import pefile

    try:
        return pefile.PE(data=content, fast_load=True)
    except Exception as error:
        # pefile meets some hostile headers with errors of its own code, not only with PEFormatError.
        raise InvalidDocument(source, "", f"it is no PE file ({error or type(error).__name__})", _REBUILD) from error


def _name(section: Any) -> str:
    return bytes(section.Name).split(b"\0", 1)[0].decode("ascii", "replace")


def _section(section: Any, header: Any, length: int, source: str) -> Section:
    name = _name(section)
    raw_end = section.PointerToRawData + section.SizeOfRawData
    if section.SizeOfRawData and raw_end > length:
        raise InvalidDocument(
            source, name, f"the section ends at byte {raw_end} of {length}: it is cut off", "fetch it again"
        )
    if section.SizeOfRawData and section.PointerToRawData < header.SizeOfHeaders:
        raise InvalidDocument(source, name, "the section overlaps the headers", _REBUILD)
    if section.VirtualAddress + max(section.Misc_VirtualSize, section.SizeOfRawData) > _aligned(
        header.SizeOfImage, header.SectionAlignment
    ):
        raise InvalidDocument(source, name, "the section does not fit the image in memory", _REBUILD)
    return Section(name, section.PointerToRawData, min(section.SizeOfRawData, section.Misc_VirtualSize))


def _aligned(value: int, alignment: int) -> int:
    return -(-value // alignment) * alignment if alignment else value


def _holds(section: Any, address: int) -> bool:
    start = section.VirtualAddress
    return bool(start <= address < start + max(section.Misc_VirtualSize, section.SizeOfRawData))


def _check_overlaps(sections: Iterable[Any], source: str) -> None:
    for what, spans in (
        ("file", [(s.PointerToRawData, s.SizeOfRawData, _name(s)) for s in sections]),
        ("memory", [(s.VirtualAddress, s.Misc_VirtualSize, _name(s)) for s in sections]),
    ):
        end = 0
        for start, size, name in sorted(span for span in spans if span[1]):
            if start < end:
                raise InvalidDocument(source, name, f"the section overlaps another one in the {what}", _REBUILD)
            end = start + size


def _check_certificates(header: Any, length: int, source: str) -> None:
    directories = header.DATA_DIRECTORY
    if len(directories) <= _SECURITY_DIRECTORY:
        return
    # This directory holds an offset into the file, unlike the others.
    table = directories[_SECURITY_DIRECTORY]
    if table.Size and table.VirtualAddress + table.Size > length:
        raise InvalidDocument(source, "certificates", "the signature is cut off", "fetch it again")


def _text(content: Any, sections: Iterable[Section], name: str, source: str) -> str:
    section = next((section for section in sections if section.name == name), None)
    if section is None:
        return ""
    if section.length_bytes > MAX_TEXT_BYTES:
        raise InvalidDocument(source, name, f"{section.length_bytes} bytes are too many for text", "shorten it")
    raw = bytes(content[section.offset_bytes : section.offset_bytes + section.length_bytes])
    try:
        return raw.rstrip(b"\0").decode("utf-8")
    except UnicodeDecodeError as error:
        raise InvalidDocument(source, name, "the section is no UTF-8 text", _REBUILD) from error


def _check_machine(uki: Uki, architecture: str, source: str) -> None:
    if uki.machine != MACHINES.get(architecture):
        raise InvalidDocument(
            source,
            "machine",
            f"it is built for machine type {uki.machine:#06x}, this release is for {architecture}",
            "publish the file of the right architecture",
        )
