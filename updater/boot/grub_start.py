"""A slot's start file: the lines by which GRUB starts a kernel and initrd that lie inside a UKI.

GRUB for a BIOS cannot start a UKI, but it can read any range of sectors of a file as if it were a file. So nothing is
copied out of the UKI: its sections are used where they lie, and the digest that proves the UKI proves them too.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

from updater.errors import InvalidDocument
from updater.slots import Slot
from updater.uki import ADDON_SECTIONS, MAX_TEXT_BYTES, Section, words

SECTOR_BYTES = 512
# The kernel takes 2,047 bytes (x86's COMMAND_LINE_SIZE) and GRUB cuts the rest off without a word.
MOST_COMMAND_LINE_BYTES = 1800
_HEADER_BYTES = 64 * 1024
_REBUILD = "build the release anew with `acl-release build`"

Chunks = Callable[[], Iterator[bytes]]


def start_text(slot: Slot, uki_path: str, uki: Chunks, addons: Iterable[tuple[str, Chunks]]) -> bytes:
    """Return the start file of a slot.

    `uki_path` is the UKI's path on GRUB's partition; `uki` and each named addon give their bytes anew at each call.
    Addons can bring command lines only. Raises InvalidDocument for what GRUB could not start, or would start otherwise
    than systemd-stub.
    """
    sections = _sections(uki(), uki_path)
    initrds = [section for name in (".ucode", ".initrd") if (section := sections.get(name))]
    for name in (".linux", ".initrd", ".cmdline"):
        if name not in sections:
            raise InvalidDocument(uki_path, name, "the section is missing", _REBUILD)
    given = words(_text(uki(), sections[".cmdline"], uki_path))
    for addon_name, chunks in sorted(addons):
        given += _addon_words(addon_name, chunks)
    device = f"acl_{slot}"
    command_line = " ".join(_quoted(word, uki_path) for word in given)
    if sum(len(word.encode()) + 3 for word in given) > MOST_COMMAND_LINE_BYTES:
        raise InvalidDocument(
            uki_path,
            ".cmdline",
            f"the command line is longer than {MOST_COMMAND_LINE_BYTES} bytes: GRUB would cut it off",
            "shorten it",
        )
    return (
        f"# Written by acl-updater for /{uki_path}, whose sections it names by their sectors.\n"
        f'loopback {device} "($root)/{uki_path}"\n'
        f"linux {_place(device, sections['.linux'], uki_path)} {command_line} $acl_parameters "
        f"acl.slot={slot} acl.tries_left=$acl_tries_left\n"
        f"initrd {' '.join(_place(device, section, uki_path) for section in initrds)}\n"
    ).encode()


def _addon_words(name: str, chunks: Chunks) -> list[str]:
    sections = _sections(chunks(), name)
    foreign = [found for found in ADDON_SECTIONS if found in sections and found != ".cmdline"]
    if foreign:
        raise InvalidDocument(
            name, foreign[0], "without systemd-stub an addon can bring a command line only", "leave the section out"
        )
    return words(_text(chunks(), sections[".cmdline"], name)) if ".cmdline" in sections else []


def _sections(chunks: Iterator[bytes], source: str) -> dict[str, Section]:
    import pefile

    head = b""
    for chunk in chunks:
        head += chunk
        if len(head) >= _HEADER_BYTES:
            break
    try:
        image = pefile.PE(data=head, fast_load=True)
    except Exception as error:
        # pefile meets some hostile headers with errors of its own code, not only with PEFormatError.
        raise InvalidDocument(source, "", f"it is no PE file ({error or type(error).__name__})", _REBUILD) from error
    found: dict[str, Section] = {}
    for section in image.sections:
        name = bytes(section.Name).split(b"\0", 1)[0].decode("ascii", "replace")
        length = min(section.SizeOfRawData, section.Misc_VirtualSize)
        if length:
            found.setdefault(name, Section(name, section.PointerToRawData, length))
    return found


def _text(chunks: Iterator[bytes], section: Section, source: str) -> str:
    if section.length_bytes > MAX_TEXT_BYTES:
        raise InvalidDocument(source, section.name, f"{section.length_bytes} bytes are too many for text", "shorten it")
    position, raw = 0, b""
    end = section.offset_bytes + section.length_bytes
    for chunk in chunks:
        raw += chunk[max(0, section.offset_bytes - position) : max(0, end - position)]
        position += len(chunk)
        if position >= end:
            break
    try:
        return raw.rstrip(b"\0").decode("utf-8").strip(" \t\r\n")
    except UnicodeDecodeError as error:
        raise InvalidDocument(source, section.name, "the section is no UTF-8 text", _REBUILD) from error


def _place(device: str, section: Section, source: str) -> str:
    first, rest = divmod(section.offset_bytes, SECTOR_BYTES)
    if rest:
        raise InvalidDocument(
            source, section.name, f"the section begins at byte {section.offset_bytes}, inside a sector", _REBUILD
        )
    return f"({device}){first}+{-(-section.length_bytes // SECTOR_BYTES)}"


def _quoted(word: str, source: str) -> str:
    # GRUB puts a backslash before each of these on the kernel's command line, which the kernel does not take away.
    if set(word) & set("'\"\\\n\r\t") or not word.isprintable():
        raise InvalidDocument(
            source, ".cmdline", f"GRUB cannot hand {word!r} on as it is", "leave quotes and backslashes out"
        )
    return f"'{word}'"
