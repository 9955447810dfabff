"""BootNext and BootOrder keep the contract of boot back ends, on firmware with all its manners."""

from __future__ import annotations

from tests.boot_contract import BootContract, BootWorld
from tests.firmware_world import FirmwareWorld
from updater.boot.firmware_model import Manner


class TestFirmware(BootContract):
    tries = 1
    recounts = False
    manner = Manner.PLAIN

    def make_world(self) -> BootWorld:
        return FirmwareWorld.factory(manner=self.manner)


class TestFirmwareThatDropsOrphans(TestFirmware):
    manner = Manner.DROPS_ORPHANS


class TestFirmwareThatDropsOptionsWithoutAFile(TestFirmware):
    manner = Manner.DROPS_ORPHANS | Manner.DROPS_MISSING


class TestFirmwareThatStartsInactiveOptions(TestFirmware):
    manner = Manner.STARTS_INACTIVE


class TestRunningMachine(TestFirmware):
    def make_world(self) -> BootWorld:
        return FirmwareWorld.factory(manner=self.manner, live=True)
