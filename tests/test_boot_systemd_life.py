"""The life of an update on systemd-boot, over a simulated ESP, asked of the loader model at every instant."""

from __future__ import annotations

from collections.abc import Mapping

import pytest

from tests.simulated import SimulatedDirectory
from updater.boot import entries, loader_model
from updater.boot.esp import look
from updater.boot.protocol import BootFile
from updater.boot.systemd_boot import SystemdBoot
from updater.efivars import NoEfiVariables
from updater.errors import EnvironmentFailure
from updater.slots import Slot

A, B = Slot.A, Slot.B


def new_disk(version: str = "1") -> SimulatedDirectory:
    return SimulatedDirectory({**entries.factory_files(version), "EFI/acl/a.efi": b"uki of 1"})


def back_end(esp: SimulatedDirectory) -> SystemdBoot:
    return SystemdBoot(esp, NoEfiVariables())


def slot_that_boots(files: Mapping[str, bytes]) -> Slot | None:
    chosen = loader_model.choose(look(SimulatedDirectory(files), NoEfiVariables()).state)
    return chosen.slot if chosen else None


def test_good_update_is_tried_first_and_committed() -> None:
    esp = new_disk()
    boot = back_end(esp)
    boot.settle(A)
    boot.withdraw(B)
    boot.place(B, BootFile("uki.efi", 8, ""), [b"uki ", b"of 2"])
    armed = boot.arm(B, "2", tries=3)
    assert (armed.name, armed.slot, armed.tries_left) == ("b+3-0.conf", B, 3)
    assert boot.read().next_entry == armed
    boot.commit(B, tries=3)
    assert [entry.name for entry in boot.read().order] == ["b+3-0.conf", "a.conf"]


def test_at_every_instant_of_an_update_a_proven_release_or_the_armed_trial_boots() -> None:
    esp = new_disk()
    boot = back_end(esp)
    boot.settle(A)
    boot.withdraw(B)
    boot.place(B, BootFile("uki.efi", 8, ""), [b"uki ", b"of 2"])
    assert {slot_that_boots(instant.files) for instant in esp.instants} == {A}
    boot.arm(B, "2", tries=3)
    boot.condemn(B)
    assert slot_that_boots(esp.files) is A
    assert {slot_that_boots(instant.files) for instant in esp.instants} == {A, B}


def test_arming_without_a_settled_fallback_is_refused() -> None:
    esp = new_disk()
    boot = back_end(esp)
    boot.commit(A, tries=3)
    boot.place(B, BootFile("uki.efi", 8, ""), [b"uki of 2"])
    with pytest.raises(EnvironmentFailure, match="no uncounted entry"):
        boot.arm(B, "2", tries=3)
