"""The state of one run of one scenario: its machine, its server, what was seen and what held."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from integration.lab.boots import Observer
from integration.lab.disk import Disk
from integration.lab.emulator import Given, Hardware, network_address
from integration.lab.firmware_proofs import StoreProof
from integration.lab.injections import Fault
from integration.lab.lying_disk import LyingDisk
from integration.lab.machine import Machine
from integration.lab.patience import slowness
from integration.lab.report import Held
from integration.lab.scenario import Scenario
from integration.lab.serial import Mark
from integration.lab.server import LabServer
from integration.lab.stock import Stock
from integration.lab.terms import DEFAULT_LAYOUT
from integration.lab.timeline import Boot
from updater.errors import UpdaterError

# Enough for a machine some four times slower to come up, and to tell what fails; well below the five minutes after
# which PID 1 of a lab image gives up by itself.
_MOST_DEADLINE_S = 150
_MOST_PACE = 3.0
# What a lying disk really holds, while a scenario runs.
KEPT = "disk.raw.kept"
# What the kernel says of the firmware that started it, as the stub told it.
_SECURE = "Secure boot enabled"
_CONFIG_PATH = "/etc/acl-updater/config.d/90-lab.yaml"


class Failed(Exception):
    """An expectation did not hold, and the steps after it would mean nothing."""


class NotInjected(UpdaterError):
    """A fault was asked for and did not happen: the run proves nothing."""


@dataclass(slots=True)
class Run:
    """The state that steps work on."""

    stock: Stock
    scenario: Scenario
    folder: Path
    machine: Machine
    disk: Disk
    server: LabServer
    observer: Observer
    config: dict[str, Any]
    repository: Path
    hardware: Hardware
    faults: list[Fault] = field(default_factory=list)
    asked: list[Fault] = field(default_factory=list)
    held: list[Held] = field(default_factory=list)
    boots_expected: int = 0
    server_broken: bool = False
    disk_broken: bool = False
    lying: LyingDisk | None = None
    store: StoreProof | None = None
    digests: dict[str, str] = field(default_factory=dict)
    pace: float = 1.0

    def check(self, what: str, expected: object, found: object, ok: bool) -> None:
        """Record an expectation's result; raise Failed when it did not hold."""
        held = Held(what, _shown(expected), _shown(found), ok)
        self.held.append(held)
        words = f"{what}: {held.expected}" + ("" if ok else f", but found {held.found}")
        self.observer.note("expect", ("held: " if ok else "FAILED: ") + words)
        if not ok:
            raise Failed(what)

    def version(self, number: int) -> str:
        """Return the version of a release by its number."""
        return self.stock.release(number).version

    def slowest(self) -> float:
        """Return how many times slower than a quiet machine this one was when the run looked, now included."""
        self.pace = max(self.pace, slowness())
        return self.pace

    def power_went(self) -> None:
        """Let a lying disk lose what it said it had; raise NotInjected when that is nothing."""
        if self.lying is None:
            return
        lost = self.lying.lose()
        self.lying.kept.unlink()
        self.lying = None
        if not lost:
            raise NotInjected(
                "the disk had nothing to lose",
                mend="let it lie before something is written",
                reason="fault-not-injected",
            )
        self.observer.note("fault", f"the disk lost {lost} bytes that it had acknowledged")

    def prove_store(self) -> None:
        """Look whether the firmware met what is wrong with its variable store; raise NotInjected when it did not."""
        proof, self.store = self.store, None
        if proof is None:
            return
        missing = proof.missing(len(self.machine.boots))
        if missing is not None:
            raise NotInjected(
                f"nothing shows that the firmware met a variable store with this fault, {proof.fault.value}: {missing}",
                mend="see the timeline, and the store",
                reason="fault-not-injected",
            )
        self.observer.note("fault", f"the firmware met its variable store: {proof.fault.value}")

    @property
    def last_boot(self) -> Boot | None:
        """Return the running or latest boot."""
        return self.machine.boots[-1] if self.machine.boots else None

    def give(self) -> None:
        """Hand the next boots their faults, parameters, drop-ins and configuration, from outside."""
        faults = tuple(f"acl.lab.fault={self.version(f.release)}:{f.name}" for f in self.faults)
        self.slowest()
        pace = min(_MOST_PACE, slowness())
        drop_ins = {f"systemd.unit-dropin.{unit}": paced(text, pace) for unit, text in self.scenario.units.items()}
        config = self.node_config(network_address())
        health = config.get("health", {})
        if "deadline_s" in health:
            grown = min(_MOST_DEADLINE_S, health["deadline_s"] * pace)
            config["health"] = {**health, "deadline_s": max(health["deadline_s"], round(grown))}
        credentials = {"tmpfiles.extra": tmpfiles_line(config), **drop_ins}
        for fault in self.faults:
            credentials |= fault.credentials
        kernel = (paced(parameter, pace) for parameter in self.scenario.kernel)
        self.machine.given = Given((*kernel, *faults), credentials)

    def node_config(self, host: str) -> dict[str, Any]:
        """Return the configuration of the node, which reaches the server at `host`."""
        given: dict[str, Any] = {"mirrors": [f"http://{host}:{self.server.port}"]}
        if self.stock.layout != DEFAULT_LAYOUT:
            given["layout"] = self.stock.layout
        # A step `config` that sets a key to null takes back what an earlier one said.
        return merged(given, {key: value for key, value in self.config.items() if value is not None})

    def offline_config(self) -> Path:
        """Return the configuration file for `acl-updater --disk`."""
        path = self.folder / "offline.yaml"
        path.write_text(json.dumps({**self.node_config("127.0.0.1"), "trusted_roots": str(self.stock.trust)}))
        return path

    def require_injection(self) -> None:
        """Raise NotInjected for a fault that no boot was seen to obey, a broken server or disk that nobody noticed."""
        if self.server_broken and not self.server.fault_hits:
            raise NotInjected(
                "no request met the server's fault", mend="mend `paths` and `after_bytes`", reason="fault-not-injected"
            )
        if self.disk_broken and not self.observer.disk_errors:
            raise NotInjected(
                "no transfer met a bad sector",
                mend="name a block that is read, or written",
                reason="fault-not-injected",
            )
        if self.scenario.secure_boot:
            require_secure_boot(self.machine.boots)
        if self.lying is not None:
            raise NotInjected(
                "the disk lied, and the power never went", mend="add a step that cuts it", reason="fault-not-injected"
            )
        self.prove_store()
        for strike in self.machine.strikes:
            if not strike.proven:
                raise NotInjected(
                    f"no boot was seen to be struck: {strike.name}",
                    mend="see the timeline, and what the consoles of its boots say",
                    reason="fault-not-injected",
                )
        for fault in self.asked:
            version = self.version(fault.release)
            given = f"{version}:{fault.name}"
            boots = [boot for boot in self.machine.boots if given in boot.faults and boot.release == version]
            seen = [s.text for boot in boots for s in boot.sightings if s.mark is Mark.FAULT]
            if boots and (fault.silent or any(fault.name in text for text in seen)):
                continue
            raise NotInjected(
                f"the fault {fault.name} was never injected into release {version}"
                + ("" if boots else ": no boot of it was given the fault"),
                mend="see the hooks of the reference image and the serial logs",
                reason="fault-not-injected",
            )


def require_secure_boot(boots: Sequence[Boot]) -> None:
    """Raise NotInjected unless a kernel of these boots said that Secure Boot is on, and none that it is off."""
    said = [sighting.text for boot in boots for sighting in boot.sightings if sighting.mark is Mark.SECURE_BOOT]
    if boots and (not said or set(said) != {_SECURE}):
        raise NotInjected(
            f"Secure Boot was not on: the kernels said {_shown(sorted(set(said)))}",
            mend="see the serial logs, and the keys in the variable store",
            reason="fault-not-injected",
        )


def paced(text: str, pace: float) -> str:
    """Return text in which `@20` has become what 20 s of a quiet machine are on this one now."""
    return re.sub(r"@(\d+)", lambda match: str(round(int(match.group(1)) * pace)), text)


def tmpfiles_line(config: Mapping[str, Any]) -> str:
    """Return the line that makes systemd-tmpfiles write the node's configuration early in each boot.

    JSON is YAML as well, and fits the one line that tmpfiles.d has for a file's content; `%` begins a specifier
    there, a backslash an escape.
    """
    content = json.dumps(config).replace("\\", "\\\\").replace("%", "%%")
    return f"f+ {_CONFIG_PATH} 0644 root root - {content}"


def merged(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """Return settings with those of `over` on top, mappings merged key by key."""
    result = dict(base)
    for key, value in over.items():
        below = result.get(key)
        both = isinstance(below, Mapping) and isinstance(value, Mapping)
        result[key] = merged(below, value) if both else value  # type: ignore[arg-type]
    return result


def _shown(value: object) -> str:
    if isinstance(value, str):
        return value
    if isinstance(value, (list, tuple)):
        return ", ".join(map(str, value)) or "none"
    return str(value)
