"""The plan of an update: a value that is printed, tested, then executed step by step."""

from __future__ import annotations

from dataclasses import dataclass, replace

from updater.boot.protocol import BootFile
from updater.errors import EnvironmentFailure
from updater.manifest import Manifest
from updater.policy import Target
from updater.records import UKI_NAME, Brought, ReleaseRecord
from updater.slots import Slot
from updater.ways import Choice, Cost

STAGE_STEPS: tuple[tuple[str, str], ...] = (
    ("prove-fallback", "read the whole running slot and its boot files against their hashes"),
    ("record-intent", "write down which release goes into which slot"),
    ("settle-fallback", "make the running release's boot entry one that cannot go bad"),
    ("withdraw-slot", "take away the other slot's boot entry and boot files"),
    ("fill-slot", "fetch what the slot lacks, prove it, write what differs, read the whole slot back"),
    ("label-slot", "give the slot's partitions the PARTUUIDs of the root hash, one GPT copy after the other"),
    ("place-boot-files", "fetch the boot files, prove them, write them to the ESP, read them back"),
    ("record-staged", "write down that the release is staged"),
)

FINALIZE_STEPS: tuple[tuple[str, str], ...] = (
    ("prove-fallback", "read the whole running slot and its boot files against their hashes again"),
    ("prove-slot", "read the staged slot and its boot files against their hashes"),
    ("check-loader", "see that the loader counts tries and that nothing masks the trial or its fallback"),
    ("capture-baseline", "run the health checks, so that what is broken already does not blame the new release"),
    ("record-arming", "write down, on the state partition and on the ESP, that a trial begins"),
    ("arm", "publish a counted boot entry that sorts before the running release's"),
    ("record-armed", "write down that the trial is armed"),
)


@dataclass(frozen=True, slots=True)
class Check:
    """One sum of the preflight: what is needed against what there is, in bytes."""

    name: str
    needed_bytes: int
    available_bytes: int
    mend: str

    @property
    def holds(self) -> bool:
        """Tell whether there is enough."""
        return self.needed_bytes <= self.available_bytes


@dataclass(frozen=True, slots=True)
class Plan:
    """What a stage would do, and whether it can."""

    target: Target
    release: ReleaseRecord
    from_version: str
    from_slot: Slot
    slot: Slot
    checks: tuple[Check, ...]
    download_bytes_at_most: int
    steps: tuple[tuple[str, str], ...] = STAGE_STEPS
    image_ways: tuple[Cost, ...] = ()
    image_choice: Choice | None = None
    uki_ways: tuple[Cost, ...] = ()
    uki_choice: Choice | None = None
    brought: Brought | None = None

    def with_ways(
        self,
        image: tuple[Cost, ...],
        image_choice: Choice,
        uki: tuple[Cost, ...],
        uki_choice: Choice,
        *,
        beside_bytes: int,
    ) -> Plan:
        """Return the plan with the ways in which image and UKI can come, and the download that the chosen ones take.

        `beside_bytes` is what every way of the image needs besides.
        """
        addons = sum(file.length_bytes for file in self.release.files_of(self.slot) if file.name != UKI_NAME)
        taken = [cost for cost in image if cost.way is image_choice.taken]
        taken += [cost for cost in uki if cost.way is uki_choice.taken]
        return replace(
            self,
            image_ways=image,
            image_choice=image_choice,
            uki_ways=uki,
            uki_choice=uki_choice,
            download_bytes_at_most=beside_bytes + addons + sum(cost.fetch_bytes for cost in taken),
        )

    def refuse_unless_possible(self) -> None:
        """Raise EnvironmentFailure with the sums of the first check that does not hold."""
        for check in self.checks:
            if not check.holds:
                raise EnvironmentFailure(
                    f"release {self.release.version} does not fit: {check.name} needs {sizes(check.needed_bytes)}, "
                    f"{sizes(check.available_bytes)} are there",
                    mend=check.mend,
                    reason="no-room",
                )


def sizes(length_bytes: int) -> str:
    """Return a length as people read it, with the exact bytes."""
    for unit, size in (("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)):
        if length_bytes >= size:
            return f"{length_bytes / size:.1f} {unit} ({length_bytes} bytes)"
    return f"{length_bytes} bytes"


def boot_files(release: ReleaseRecord, slot: Slot) -> tuple[BootFile, ...]:
    """Return the release's boot files for `slot` in the order in which they are placed: addons before the UKI."""
    return tuple(BootFile(item.name, item.length_bytes, item.sha256) for item in release.files_of(slot))


def make_plan(
    *,
    target: Target,
    manifest: Manifest,
    release: ReleaseRecord,
    from_version: str,
    from_slot: Slot,
    data_bytes: int,
    hash_bytes: int,
    esp_needed: int,
    esp_free: int,
    scratch_free: int,
    boot_partition: str = "the ESP",
) -> Plan:
    """Return the plan to stage a release into the slot that is not running, with the preflight's sums."""
    slot = from_slot.other
    root = manifest.root
    files = release.files_of(slot)
    largest = max(item.length_bytes for item in files)
    checks = (
        Check(f"slot {slot}'s image", root.length_bytes, data_bytes, "choose a smaller image or larger slots"),
        # One block more than the tree: the superblock stands before it.
        Check(f"slot {slot}'s hash tree", root.tree_length_bytes + 4096, hash_bytes, "choose larger hash partitions"),
        Check(
            boot_partition,
            esp_needed,
            esp_free,
            f"remove files from {boot_partition} that neither slot needs, or reimage the node with a layout whose boot "
            "files have more room",
        ),
        Check("the state partition", largest, scratch_free, "free space on the state partition, mounted at /var"),
    )
    return Plan(
        target=target,
        release=release,
        from_version=from_version,
        from_slot=from_slot,
        slot=slot,
        checks=checks,
        download_bytes_at_most=root.length_bytes + root.tree_length_bytes + sum(f.length_bytes for f in files),
    )
