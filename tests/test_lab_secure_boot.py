"""Secure Boot in the lab: its keys, its firmware, and the proof that it was on."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from uuid import UUID

import pytest
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509 import load_pem_x509_certificate

from integration.images.secure_boot import enroll, known_key, make_key
from integration.lab.emulator import Emulator, Given, Hardware, Wires, command
from integration.lab.publisher import without_signature
from integration.lab.run import NotInjected, require_secure_boot
from integration.lab.serial import Console, Mark, Sighting
from integration.lab.stock import Stock
from integration.lab.timeline import Boot, Ending, Outcome
from tests.portable_executable import build_pe, build_uki, uki_sections
from tests.test_efivars import empty_store
from updater.efi_store import FileEfiVariables
from updater.efivars import GLOBAL_GUID
from updater.errors import EnvironmentFailure

DATABASE = UUID("d719b2cb-3d3a-4596-a3bc-dad00e67656f")
ENABLED = "Secure boot enabled"


def boot(*said: str) -> Boot:
    sightings = tuple(Sighting(Mark.SECURE_BOOT, 1.0, text) for text in said)
    return Boot(1, "a", "1.0.0", Outcome.HEALTHY, 40.0, 0.0, (), sightings, Ending.RESET, "a.conf", (), "serial-01.log")


def argv(emulator: Emulator, hardware: Hardware) -> str:
    return " ".join(command(emulator, hardware, Given(), Wires(3, 4), disk=Path("d.raw"), variables=Path("v.fd")))


def test_a_store_that_was_enrolled_trusts_the_labs_key_and_no_other(tmp_path: Path) -> None:
    signing = make_key(tmp_path / "key")
    assert known_key(tmp_path / "key") == signing
    assert signing.key.stat().st_mode & 0o077 == 0
    enroll(empty_store(tmp_path / "empty.fd"), tmp_path / "store.fd", signing.certificate)
    der = load_pem_x509_certificate(signing.certificate.read_bytes()).public_bytes(Encoding.DER)
    store = FileEfiVariables(tmp_path / "store.fd")
    for name, vendor in (("PK", GLOBAL_GUID), ("KEK", GLOBAL_GUID), ("db", DATABASE)):
        trusted = store.read(name, vendor) or b""
        # A list's header and one entry's owner stand before the one certificate.
        assert trusted.endswith(der), name
        assert len(trusted) == 28 + 16 + len(der), name
    assert FileEfiVariables(tmp_path / "empty.fd").names(GLOBAL_GUID) == []


def test_a_machine_with_secure_boot_has_the_firmware_and_the_guarded_store_that_it_takes() -> None:
    emulator = Emulator(("qemu",), Path("plain.fd"), Path("vars.fd"), secure_firmware_code=Path("secure.fd"))
    with_it, without = argv(emulator, Hardware(secure_boot=True)), argv(emulator, Hardware())
    assert "file=secure.fd" in with_it
    assert "plain.fd" not in with_it
    assert "smm=on" in with_it
    assert "driver=cfi.pflash01,property=secure,value=on" in with_it
    assert "file=plain.fd" in without
    assert "smm=off" in without
    assert "property=secure" not in without


def test_an_emulator_or_a_layout_that_cannot_do_it_says_so() -> None:
    with pytest.raises(EnvironmentFailure, match="no firmware with Secure Boot"):
        argv(Emulator(("qemu",), Path("plain.fd"), Path("vars.fd")), Hardware(secure_boot=True))
    nowhere = Path("/nowhere")
    stock = Stock(Emulator(("qemu",), nowhere, nowhere), nowhere, nowhere, nowhere, {}, nowhere, layout="dps-root-grub")
    with pytest.raises(EnvironmentFailure, match="dps-root-grub has no UEFI"):
        stock.store_with_secure_boot()
    assert replace(stock, trusting=Path("store.fd")).store_with_secure_boot() == Path("store.fd")


def test_the_kernels_words_about_secure_boot_are_a_mark() -> None:
    found = Console().feed(b"[    0.000000] secureboot: Secure boot enabled\r\n", 1.0)
    assert [(sighting.mark, sighting.text) for sighting in found] == [(Mark.SECURE_BOOT, ENABLED)]


def test_a_run_passes_for_secure_boot_only_where_a_kernel_said_so_and_none_denied_it() -> None:
    require_secure_boot([])
    # The loader refused every UKI of the first boot, so that no kernel spoke.
    require_secure_boot([boot(), boot(ENABLED)])
    with pytest.raises(NotInjected, match="Secure Boot was not on: the kernels said none"):
        require_secure_boot([boot(), boot()])
    with pytest.raises(NotInjected, match="Secure boot disabled"):
        require_secure_boot([boot(ENABLED), boot("Secure boot disabled")])


def test_a_program_loses_its_signature_and_nothing_else() -> None:
    plain = build_uki()
    signed = build_pe(uki_sections(), certificates=b"\x10\0\0\0\0\x02\x02\0" + b"x" * 8)
    assert len(signed) == len(plain) + 16
    assert without_signature(signed) == plain
    with pytest.raises(EnvironmentFailure, match="bears no signature"):
        without_signature(plain)
