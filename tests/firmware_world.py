"""A machine that boots by its firmware alone: boot options in memory, an ESP, and the model of a boot manager."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from uuid import UUID

from tests.boot_contract import BootWorld
from tests.simulated import Instant, Power, SimulatedDirectory
from tests.simulated_variables import SimulatedEfiVariables
from updater.boot import firmware_model
from updater.boot.efi_bootnext import EfiBootNext, factory_variables
from updater.boot.firmware import FirmwareView, look
from updater.boot.firmware_model import Manner
from updater.boot.load_option import EspPlace, option_name, order_bytes
from updater.efivars import GLOBAL_GUID
from updater.slots import Slot

PLACE = EspPlace(1, 2048, 393_216, UUID("2f5e1a4c-0000-4000-8000-000000000001"))
FILES = {"EFI/acl/a.efi": b"factory"}

Values = Mapping[tuple[UUID, str], bytes]


class _Told(list[Instant]):
    """The ESP's own instants, which join those of the variables."""

    def __init__(self, tell: Callable[[str, Mapping[str, bytes]], None]) -> None:
        super().__init__()
        self._tell = tell

    def append(self, instant: Instant) -> None:
        self._tell(instant.effect, instant.files)


class FirmwareWorld:
    """A machine whose firmware has manners of its own; with `live` it runs, and BootCurrent is to be seen."""

    def __init__(
        self,
        files: Mapping[str, bytes],
        values: Values,
        *,
        manner: Manner = Manner.PLAIN,
        live: bool = False,
        power: Power | None = None,
    ) -> None:
        """Hold a state."""
        self.esp = SimulatedDirectory(files, power=power)
        self.efi = SimulatedEfiVariables(volatile=live, tell=self._changed)
        self.efi.values = dict(values)
        self.esp.instants = _Told(self._saw)
        self.manner = manner
        self.live = live
        self.boot_number = 1
        self._seen: list[tuple[str, Mapping[str, bytes], Values]] = []

    @classmethod
    def factory(cls, *, manner: Manner = Manner.PLAIN, live: bool = False) -> FirmwareWorld:
        """Return a machine whose slot a holds the proven release 1."""
        values = {(GLOBAL_GUID, name): value for name, value in factory_variables(PLACE, "1").items()}
        world = cls(FILES, values, manner=manner, live=live)
        if live:
            world.power_on()
        return world

    def _changed(self, effect: str) -> None:
        self.esp.power.spend(effect)
        self._saw(effect, self.esp.files)

    def _saw(self, effect: str, files: Mapping[str, bytes]) -> None:
        self._seen.append((effect, files, dict(self.efi.values)))

    @property
    def boot_id(self) -> str:
        return f"{self.boot_number:08x}-0000-4000-8000-000000000000" if self.live else ""

    def backend(self) -> EfiBootNext:
        return EfiBootNext(self.esp, self.efi, PLACE, boot_id=self.boot_id)

    def view(self) -> FirmwareView:
        return look(self.esp, self.efi, PLACE, self.boot_id)

    def boots(self) -> Slot | None:
        chosen = firmware_model.choose(self.view().state, self.manner)
        return self.view().slots.get(chosen) if chosen is not None else None

    def power_on(self) -> Slot | None:
        view = self.view()
        started, after = firmware_model.boot(view.state, self.manner)
        dropped = {option_name(number) for number in view.state.options.keys() - after.options.keys()}
        dropped |= {"BootOrder", "BootNext", "BootCurrent"}
        kept = {key: value for key, value in self.efi.values.items() if key[0] != GLOBAL_GUID or key[1] not in dropped}
        if after.order:
            kept[GLOBAL_GUID, "BootOrder"] = order_bytes(after.order)
        if after.next_number is not None:
            kept[GLOBAL_GUID, "BootNext"] = order_bytes((after.next_number,))
        if started is not None and self.live:
            kept[GLOBAL_GUID, "BootCurrent"] = order_bytes((started,))
        self.efi.values = kept
        self.boot_number += 1
        return view.slots.get(started) if started is not None else None

    def _as_it_was(self, files: Mapping[str, bytes], values: Values) -> FirmwareWorld:
        world = FirmwareWorld(files, values, manner=self.manner, live=self.live)
        world.boot_number = self.boot_number
        return world

    def copy(self) -> FirmwareWorld:
        return self._as_it_was(self.esp.files, self.efi.values)

    def instants(self) -> Iterable[tuple[str, BootWorld]]:
        seen = self._seen[:]
        self._seen.clear()
        return [(effect, self._as_it_was(files, values)) for effect, files, values in seen]
