"""Boot Loader Specification entries (Type #1) as text: their names with counters, their lines, and loader.conf.

Pure: bytes in, values out, nothing raised on hostile content, since the loader itself skips what it cannot read.
Sources: the UAPI Boot Loader Specification; systemd's `boot_entry_parse_tries`, `boot_entry_add_type1`,
`config_defaults_load_from_file` (src/boot/boot.c) and `line_get_key_value` (src/boot/util.c), as of version 262.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from updater.slots import Slot

ENTRIES = "loader/entries"
LOADER_CONF_PATH = "loader/loader.conf"
ARTIFACTS = "EFI/acl"
# The loader reads whole files; ours have some 150 bytes. Anything beyond this is nothing that we could own.
MAX_ENTRY_BYTES = 64 * 1024
MAX_GENERATION = 999_999

_INT_MAX = 2**31 - 1
# Beside UKIs in /EFI/Linux, whose sort key is the image's own name, ours begins with what sorts before any name.
BEFORE_SHIPPED = "0-"
_SORT_KEY = re.compile(r"(?:0-)?acl-([0-9]{6})")
_OUR_NAME = re.compile(r"([ab])(\+[0-9]{1,9}(-[0-9]{1,9})?)?\.conf")
_IMAGE_KEYS = ("linux", "uki", "uki-url", "efi")


@dataclass(frozen=True, slots=True)
class EntryName:
    """A file name taken apart: `b+2-1.conf` is stem `b`, two tries left, one done; None means not counted."""

    stem: str
    tries_left: int | None = None
    tries_done: int = 0
    suffix: str = ".conf"

    @property
    def file(self) -> str:
        """Return the file name."""
        if self.tries_left is None:
            return f"{self.stem}{self.suffix}"
        return f"{self.stem}+{self.tries_left}-{self.tries_done}{self.suffix}"

    @property
    def bare_id(self) -> str:
        """Return the name without its counter, in lower case: the loader's id from version 259 on."""
        return f"{self.stem}{self.suffix}".lower()


def parse_name(file: str, suffix: str = ".conf") -> EntryName:
    """Take a file name apart as the loader does: only a well-formed counter right before the suffix counts."""
    stem, plus, tail = file.rpartition("+")
    bare = EntryName(file[: -len(suffix)] if file.lower().endswith(suffix) else file, suffix=suffix)
    if not plus:
        return bare
    found = re.fullmatch(r"([0-9]+)(?:-([0-9]+))?(\.[^.]*)", tail, re.ASCII)
    if not found or found[3].lower() != suffix:
        return bare
    left, done = int(found[1]), int(found[2] or 0)
    if left > _INT_MAX or done > _INT_MAX:
        return bare
    return EntryName(stem, left, done, suffix)


def is_entry_name(file: str) -> bool:
    """Tell whether the loader looks into a file of this name in /loader/entries (`valid_type1_filename`)."""
    low = file.lower()
    return low.endswith(".conf") and not low.startswith((".", "auto-"))


def slot_of_name(file: str) -> Slot | None:
    """Return the slot that one of our entry names stands for, or None for a foreign name."""
    found = _OUR_NAME.fullmatch(file.lower())
    return Slot(found[1]) if found else None


def key_values(raw: bytes, separators: str = " \t") -> list[tuple[str, str]]:
    """Split a file into its keys and values as the loader's `line_get_key_value` does.

    A NUL byte ends the file, CR and LF both end a line, quotes around a value are taken off. A UTF-8 byte order mark
    sticks to the first key, which is then unknown: the loader does not skip it either.
    """
    text = raw.split(b"\0", 1)[0].decode("utf-8", "replace")
    pairs = []
    for line in re.split(r"[\n\r]", text):
        line = line.strip(" \t")
        if not line or line.startswith("#"):
            continue
        at = next((index for index, letter in enumerate(line) if letter in separators), None)
        if at is None:
            continue
        value = line[at:].lstrip(separators)
        if value and value[0] in "\"'" and value[-1] == value[0]:
            value = value[1:-1]
        pairs.append((line[:at], value))
    return pairs


@dataclass(frozen=True, slots=True)
class Type1:
    """The lines of an entry that decide what the loader does with it.

    `image` are its image lines in order: (key, path) with key linux, uki, uki-url or efi. Of other keys that stand
    twice, the last counts. `shipped` is the slot of an image in /EFI/Linux that the back end took over.
    """

    title: str = ""
    version: str | None = None
    sort_key: str | None = None
    machine_id: str | None = None
    architecture: tuple[str, ...] = ()
    profile: int = 0
    image: tuple[tuple[str, str], ...] = ()
    comments: tuple[str, ...] = ()
    shipped: Slot | None = None

    @property
    def generation(self) -> int | None:
        """Return the number that orders our entries, or None when the sort key is not of our form."""
        found = _SORT_KEY.fullmatch(self.sort_key or "")
        return MAX_GENERATION - int(found[1]) if found else None

    @property
    def slot(self) -> Slot | None:
        """Return the slot whose UKI this entry starts, by the path and not by the name of its file."""
        if not self.image:
            return None
        return self.shipped or slot_of_image(self.image[-1][1])


def slot_of_image(path: str) -> Slot | None:
    """Return the slot whose UKI lies at `path` on the ESP; FAT compares names without case."""
    return next((slot for slot in Slot if clean_path(path) == uki_path(slot).lower()), None)


def clean_path(path: str) -> str:
    """Return an image's path as the loader and FAT compare it: slashes, none at the ends, lower case."""
    return re.sub(r"/+", "/", path.replace("\\", "/")).strip("/").lower()


def uki_path(slot: Slot) -> str:
    """Return where the UKI of a slot lies on the ESP."""
    return f"{ARTIFACTS}/{slot}.efi"


def parse_entry(raw: bytes) -> Type1:
    """Read an entry's lines; unknown keys are skipped, as the loader does."""
    last: dict[str, str] = {}
    image = []
    architecture = []
    for key, value in key_values(raw):
        if key in _IMAGE_KEYS:
            image.append((key, value))
        elif key == "architecture":
            architecture.append(value)
        else:
            last[key] = value
    profile = last.get("profile", "0")
    return Type1(
        title=last.get("title", ""),
        version=last.get("version"),
        sort_key=last.get("sort-key"),
        machine_id=last.get("machine-id"),
        architecture=tuple(architecture),
        profile=int(profile) if re.fullmatch(r"[0-9]{1,9}", profile, re.ASCII) else 0,
        image=tuple(image),
        comments=tuple(_comments(raw)),
    )


def _comments(raw: bytes) -> list[str]:
    lines = raw.split(b"\0", 1)[0].decode("utf-8", "replace").splitlines()
    return [line.lstrip()[1:].strip() for line in lines if line.lstrip().startswith("#")]


def sort_key(generation: int, before: str = "") -> str:
    """Return the sort key of a generation: a higher generation sorts first; `before` is "" or `BEFORE_SHIPPED`."""
    if not 0 <= generation <= MAX_GENERATION:
        raise ValueError(f"no generation: {generation}")
    return f"{before}acl-{MAX_GENERATION - generation:06d}"


def entry_text(
    slot: Slot,
    version: str,
    generation: int,
    *,
    title: str = "ACL",
    boot_id: str = "",
    image: str = "",
    before: str = "",
) -> bytes:
    """Return the bytes of an entry for a slot's UKI.

    The image key is `linux`: every systemd-boot lists and counts it. `efi` entries are no longer counted from version
    258 on (systemd issue 40405), and `uki` is unknown before 258, so that such an entry would not be listed at all.
    `boot_id` names the boot in which the entry was written; `image` is the path of the UKI, ours when empty; `before`
    begins the sort key.
    """
    lines = [
        f"title {title} {version} (slot {slot})",
        f"version {version}",
        f"sort-key {sort_key(generation, before)}",
        f"linux /{image or uki_path(slot)}",
    ]
    if boot_id:
        lines.append(f"# written in boot {boot_id}")
    return ("\n".join(lines) + "\n").encode()


def no_entry(length_bytes: int) -> bytes:
    """Return a file of this length that the loader does not list: a comment."""
    return b"#" * (length_bytes - 1) + b"\n"


@dataclass(frozen=True, slots=True)
class LoaderConf:
    """The settings of loader.conf that decide what boots."""

    default: str | None = None
    preferred: str | None = None
    timeout: str | None = None
    reboot_on_error: str | None = None


def parse_loader_conf(raw: bytes | None) -> LoaderConf:
    """Read loader.conf; an absent one has only defaults."""
    last: dict[str, str] = {}
    for key, value in key_values(raw or b""):
        # The loader refuses special names other than @saved, and keeps what stood there before.
        if key in ("default", "preferred") and value.startswith("@") and value.lower() != "@saved":
            continue
        last[key] = value
    return LoaderConf(
        default=last.get("default"),
        preferred=last.get("preferred"),
        timeout=last.get("timeout"),
        reboot_on_error=last.get("reboot-on-error"),
    )


# No `default`, on purpose: what sorts first and is not bad boots. The editor stays shut, since a changed command line
# could leave out the root hash.
LOADER_CONF = b"timeout 0\neditor no\nreboot-on-error auto\n"


def factory_files(version: str, slot: Slot = Slot.A, *, tries: int | None = None) -> dict[str, bytes]:
    """Return the loader's files of a new disk whose one proven release lies in `slot`.

    With `tries` the first boot is counted, which proves counting on that machine; as long as it is the only entry it
    boots even with no tries left.
    """
    name = EntryName(str(slot), tries)
    return {LOADER_CONF_PATH: LOADER_CONF, f"{ENTRIES}/{name.file}": entry_text(slot, version, 1)}
