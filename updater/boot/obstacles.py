"""Why a trial must not be armed on an ESP as it is: a pure judgement of what was read.

A trial is rehearsed on the loader model: it must be the next to boot, and once its tries are used up, an entry of ours
must be. Whatever would keep it from that is named together with its mend.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from uuid import UUID

from updater.boot import entries, loader_model
from updater.boot.entries import EntryName
from updater.boot.esp import EspView, folder_records, loader_version
from updater.boot.loader_model import Candidate, LoaderState
from updater.efivars import EfiVariables, LoaderFeature, boot_count_file, read_features, read_text
from updater.slots import Slot

# A sector holds 16 records; `.` and `..` take two, and counting a try down needs a free pair in the same sector.
_SAFE_RECORDS = 12
# bootctl writes the number, whose meaning is the loader's interface.
_FOR_EVER = frozenset({"menu-force", "4294967295"})
_CLEAR = "clear it with `bootctl set-{} ''`"


@dataclass(frozen=True, slots=True)
class BootedEntry:
    """The entry that this boot came from, as far as the loader says.

    `counting_failed` is set when the loader took an entry with a counter and did not count it.
    """

    name: str | None
    counting_failed: bool = False
    counted: bool = False


def booted_entry(view: EspView, efi: EfiVariables, boot_id: str) -> BootedEntry:
    """Return the entry of this boot from LoaderBootCountPath, else from LoaderEntrySelected."""
    if not efi.volatile:
        return BootedEntry(None)
    counted = boot_count_file(efi)
    if counted:
        return BootedEntry(counted.rpartition("/")[2], counted=True)
    selected = read_text(efi, "LoaderEntrySelected")
    if selected is None:
        return BootedEntry(None)
    name = selected.lower()
    if entries.parse_name(name).tries_left is not None:
        # Only loaders before 259 keep the counter in the id: this one began to count and did not get far.
        return BootedEntry(name, counting_failed=True)
    bare = {file.lower(): file for file in view.files}
    if name in bare:
        return BootedEntry(bare[name])
    twins = [file for file in view.files if entries.parse_name(file).bare_id == name]
    # An entry that we wrote in this very boot (after a commit) was not there for the loader to count.
    ours = f"written in boot {boot_id}"
    older = [file for file in twins if not boot_id or ours not in view.files[file].comments]
    return BootedEntry(older[0] if older else selected, counting_failed=bool(older))


def blessed_slot(view: EspView, booted: BootedEntry, boot_id: str) -> Slot | None:
    """Return the slot of this boot's entry when that cannot go bad any more, and this boot did not write it so.

    An entry that this boot wrote anew is our own commit; a bless renames what was armed.
    """
    slot = entries.slot_of_name(booted.name) if booted.name else None
    files = view.of_slot(slot) if slot is not None else ()
    ours = f"written in boot {boot_id}"
    lines = [view.files.get(entry.file) for entry in files]
    written = [line for line in lines if line is not None and ours in line.comments]
    counted = [entry for entry in files if entry.name.tries_left is not None]
    return slot if files and not written and not counted else None


def obstacles(view: EspView, efi: EfiVariables, booted: BootedEntry, part_uuid: UUID | None) -> tuple[str, ...]:
    """Return one sentence with its mend for each reason not to arm a trial."""
    return (
        *_of_unread(view),
        *_of_counting(view, efi, booted, part_uuid),
        *_of_defaults(view.state),
        *_of_order(view, efi),
    )


def _of_unread(view: EspView) -> Iterator[str]:
    for text in view.broken:
        yield f"what the loader makes of a file cannot be told, since it cannot be read: {text}; move the file away"


def _of_counting(view: EspView, efi: EfiVariables, booted: BootedEntry, part_uuid: UUID | None) -> Iterator[str]:
    if booted.counting_failed:
        yield (
            f"the loader started {booted.name} without counting the try: a bad release would never fall back; "
            "check the ESP for a read-only attribute or a write-protected disk"
        )
    for entry in view.state.candidates:
        if entry.slot is not None and entry.read_only:
            yield (
                f"/{entries.ENTRIES}/{entry.file} is read-only, so that tries are not counted on it; "
                "remove the attribute with `chmod u+w`"
            )
    if not efi.volatile:
        return
    features = read_features(efi)
    if features is None:
        yield "this boot did not come through systemd-boot (no LoaderFeatures); boot through the loader of this ESP"
    elif not features & LoaderFeature.BOOT_COUNTING:
        yield "the loader does not count boots (LoaderFeatures); install systemd-boot 258 or newer"
    loaded_from = read_text(efi, "LoaderDevicePartUUID")
    if part_uuid is not None and loaded_from and loaded_from.lower() != str(part_uuid):
        yield (
            f"the loader came from partition {loaded_from.lower()}, and this ESP is {part_uuid}; mend the firmware's "
            "boot order, or remove the other ESP"
        )


def _of_defaults(state: LoaderState) -> Iterator[str]:
    sources = (
        ("the EFI variable LoaderEntryOneShot", state.one_shot, _CLEAR.format("oneshot")),
        ("the EFI variable LoaderEntryPreferred", state.preferred, _CLEAR.format("preferred")),
        ("the EFI variable LoaderEntryDefault", state.default, _CLEAR.format("default")),
        ("the EFI variable LoaderEntrySysFail", state.sysfail, _CLEAR.format("sysfail")),
        ("`default` in /loader/loader.conf", state.conf.default, "remove the line"),
        ("`preferred` in /loader/loader.conf", state.conf.preferred, "remove the line"),
    )
    for where, pattern, mend in sources:
        if pattern is None:
            continue
        if pattern.lower() == "@saved":
            yield f"{where} is @saved, so that the loader repeats the last boot instead of the trial; {mend}"
        elif _catches(pattern, state):
            yield f"{where} is {pattern!r}, which catches entries whether or not they are bad; {mend}"


def _catches(pattern: str, state: LoaderState) -> bool:
    """Tell whether a pattern matches an entry that is there, or any name that a trial or its successors bear."""
    ids = {loader_model.entry_id(entry, version) for entry in state.candidates for version in (257, 262)}
    for slot in Slot:
        ids.add(EntryName(str(slot)).file)
        ids |= {EntryName(str(slot), left, done).file for left in range(10) for done in range(10)}
    return any(loader_model.matches(pattern.lower(), known) for known in ids)


def _of_order(view: EspView, efi: EfiVariables) -> Iterator[str]:
    state = view.state
    timeouts = (
        read_text(efi, "LoaderConfigTimeout") or state.conf.timeout,
        read_text(efi, "LoaderConfigTimeoutOneShot"),
    )
    if _FOR_EVER & set(timeouts):
        yield "the loader's menu waits for ever (timeout menu-force); set it with `bootctl set-timeout 0`"
    plain = replace(
        state, one_shot=None, preferred=None, default=None, sysfail_occurred=False, conf=entries.LoaderConf()
    )
    highest = view.highest_generation()
    if highest >= entries.MAX_GENERATION:
        yield (
            f"entries are at generation {highest}, the last one; write the good slot's entry anew with sort-key "
            f"{entries.sort_key(1)} by hand"
        )
        return
    for slot in Slot:
        others = [entry for entry in plain.candidates if entry.slot is not slot]
        if not any(entry.slot is slot.other and not entry.is_bad for entry in others):
            # Without a fallback in the other slot this one is never tried.
            continue
        trial = Candidate(
            file=EntryName(str(slot), 3).file,
            kind="linux",
            path=f"/{entries.uki_path(slot)}",
            sort_key=entries.sort_key(highest + 1, view.before),
        )
        first = loader_model.choose(replace(plain, candidates=(*others, trial)))
        used_up = replace(trial, file=EntryName(str(slot), 0, 3).file)
        then = loader_model.choose(replace(plain, candidates=(*others, used_up)))
        if first is not None and first is not trial:
            yield f"{describe(first)} would sort before a trial of slot {slot}; remove it, or give it a later sort-key"
        elif then is not None and then.slot is None:
            yield (
                f"{describe(then)} would boot after a failed trial of slot {slot}, before the fallback; "
                "remove it, or give it a later sort-key"
            )


def entry_generation(entry: Candidate) -> int:
    """Return the generation of an entry; 0 for one whose sort key is not of our form, such as any UKI's own."""
    if entry.kind == "type2":
        return 0
    return entries.Type1(sort_key=entry.sort_key).generation or 0


def describe(entry: Candidate) -> str:
    """Name an entry for a person."""
    folder = "EFI/Linux" if entry.kind == "type2" else entries.ENTRIES
    return f"/{folder}/{entry.file}"


def notes(view: EspView, efi: EfiVariables, booted: BootedEntry) -> tuple[str, ...]:
    """Return what is worth knowing and no reason to refuse."""
    return tuple(_notes(view, efi, booted))


def _notes(view: EspView, efi: EfiVariables, booted: BootedEntry) -> Iterator[str]:
    if not efi.present:
        yield "no EFI variables here: a default or one-shot entry set in the firmware cannot be seen"
    elif efi.volatile and not booted.counted:
        yield "this boot was not counted, so that counting on this ESP is not proven before the trial itself"
    for path, text in view.loaders.items():
        version = loader_version(text)
        if version is None:
            yield f"/{path} is no systemd-boot that could be recognised"
        elif version < loader_model.FIRST_WITH_UKI_KEY:
            yield (
                f"/{path} is {text}: before 258 it gives up on a UKI that does not load, and the node is lost "
                "until someone is at its console"
            )
    if not view.loaders:
        yield "no loader lies on this ESP in its usual places"
    setting = view.state.conf.reboot_on_error
    if setting is None:
        yield "/loader/loader.conf does not say reboot-on-error auto, and depends on the loader's own default"
    elif setting not in ("auto", "1", "yes", "y", "true", "t", "on"):
        yield f"/loader/loader.conf says reboot-on-error {setting}: a UKI that does not load then stops the node"
    records = folder_records(view.names)
    if any(count % 2 for count in records) or sum(records) > _SAFE_RECORDS:
        yield (
            f"/{entries.ENTRIES} holds names of others beside ours: a power cut while the loader counts a try may then "
            "leave two entries of the trial, which are not counted any more; keep at most six short names there"
        )
    for file in view.unlisted:
        yield f"/{entries.ENTRIES}/{file} is skipped by the loader: it is damaged, or its image is missing"
    for entry in view.state.candidates:
        if entry.slot is None:
            yield f"{describe(entry)} is not ours and is left alone"
        elif not loader_model.is_counted(entry, view.state.version) and entry.name.tries_left is not None:
            yield f"{describe(entry)} bears a counter that the loader does not count down (key {entry.kind})"
