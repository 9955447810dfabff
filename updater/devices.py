"""Discovery of the running system's disk: what is mounted, proven by udev, sysfs and the partition table."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from updater.gpt import Gpt


@dataclass(frozen=True, slots=True)
class LiveRoot:
    """The disk that this system runs from, and which of its partitions back the running root."""

    disk: Path
    gpt: Gpt
    root_hash: str
    data_partition: int
    hash_partition: int
    esp_partition: int

    def device(self, number: int) -> Path:
        """Return the device node of a partition."""
        raise NotImplementedError


def discover_live_root(sysroot: Path = Path("/")) -> LiveRoot:
    """Find the disk behind `/`; raise EnvironmentFailure or Refused when anything disagrees."""
    raise NotImplementedError
