"""A node where systemd-bless-boot is active: its bless is the commit, and the journal follows."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.machine import SimulatedMachine
from tests.releases import Publisher, make_release
from tests.simulated_variables import SimulatedEfiVariables
from updater.boot.entries import ENTRIES
from updater.efivars import LOADER_GUID, encode_text
from updater.explain import Outlook, explain
from updater.health_plugin import Cause, Evidence, Stage
from updater.node.live import bless_is_active
from updater.repository import open_repository
from updater.situation import Situation, decide
from updater.slots import Slot
from updater.steps.finalize import finalize
from updater.steps.recover import recover
from updater.steps.session import Session
from updater.steps.stage import stage
from updater.steps.trial import TrialEngine

A, B = Slot.A, Slot.B
ONE, TWO, THREE = make_release("1.0.0"), make_release("2.0.0"), make_release("3.0.0")
BROKEN = Evidence(Stage.HEALTH, Cause.CHECK, "containerd does not answer", ("containerd",))
NOTHING = Outlook(None, None, None, "", None)


class NodeWithLoaderVariables(SimulatedMachine):
    """A machine whose loader tells what it booted, as systemd-boot does."""

    def __init__(self, mirror: Path, roots: list[Path]) -> None:
        super().__init__(ONE, mirror=mirror, roots=roots)
        self.loader = SimulatedEfiVariables()
        self.efi = self.loader
        self._tell()

    def restart(self) -> Situation:
        self.reboot_now()
        self._tell()
        return recover(self.session(), None)

    def _tell(self) -> None:
        values = {
            "LoaderInfo": encode_text("systemd-boot 262-1"),
            "LoaderFeatures": (0x3FFFFF).to_bytes(8, "little"),
            "LoaderEntrySelected": encode_text(f"{self.booted.slot}.conf"),
        }
        if "+" in self.booted.entry:
            values["LoaderBootCountPath"] = encode_text(f"\\loader\\entries\\{self.booted.entry}")
        self.loader.values = {(LOADER_GUID, name): value for name, value in values.items()}

    def bless(self) -> None:
        """Do what `systemd-bless-boot good` does: rename the counted entry, if the name without a counter is free."""
        counted = f"{ENTRIES}/{self.booted.entry}"
        good = f"{ENTRIES}/{self.booted.slot}.conf"
        assert good not in self.esp.files
        self.esp.rename_as_firmware(counted, good)

    def names(self) -> list[str]:
        return self.esp.names(ENTRIES)


@pytest.fixture(scope="module")
def publisher(tmp_path_factory: pytest.TempPathFactory) -> Publisher:
    made = Publisher(tmp_path_factory.mktemp("publisher"))
    made.publish(ONE, TWO, THREE)
    made.promote("2.0.0")
    return made


@pytest.fixture
def node(publisher: Publisher) -> NodeWithLoaderVariables:
    made = NodeWithLoaderVariables(publisher.mirror, list(publisher.roots))
    armed(made, "2.0.0")
    assert made.restart() is Situation.TRIAL
    assert made.names() == ["a.conf", "b+2-1.conf"]
    return made


def staged(machine: SimulatedMachine, to: str) -> Session:
    session = machine.session()
    with open_repository(machine, built=None) as repository:
        repository.refresh()
        stage(session, repository, to=to)
    return session


def armed(machine: SimulatedMachine, to: str) -> Session:
    session = staged(machine, to)
    with open_repository(machine, built=None) as repository:
        finalize(session, repository=repository, health=None)
    return session


def last_event(node: NodeWithLoaderVariables) -> tuple[str, str]:
    event = node.session().store.history()[-1]
    return event.event, event.sentence


def test_a_trial_is_no_trial_any_more_once_somebody_blessed_it(node: NodeWithLoaderVariables) -> None:
    assert node.boot.read().blessed is None
    node.bless()
    assert node.boot.read().blessed is B
    assert decide(node.session().facts()) is Situation.COMMITTING
    assert TrialEngine(node.session()).trial() is None, "the health service goes on to watch a committed release"
    assert decide(node.session().facts()) is Situation.IDLE
    assert last_event(node)[0] == "committed"
    assert "systemd-bless-boot" in last_event(node)[1]
    assert node.names() == ["a.conf", "b+3-0.conf"], "counted again, so that a release that rots falls back"
    ledger = node.session().store.ledger()
    assert ledger is not None
    assert {item.slot: item.release.version for item in ledger.proven} == {A: "1.0.0", B: "2.0.0"}


def test_recovery_follows_a_bless_when_no_health_service_runs(node: NodeWithLoaderVariables) -> None:
    node.bless()
    assert recover(node.session(), None) is Situation.IDLE
    assert last_event(node)[0] == "committed"


def test_a_bless_that_nobody_followed_in_its_boot_is_followed_in_the_next(node: NodeWithLoaderVariables) -> None:
    node.bless()
    assert node.restart() is Situation.IDLE
    assert node.booted.slot is B
    assert last_event(node)[0] == "committed"


def test_our_own_commit_comes_first_and_the_bless_finds_nothing_to_rename(node: NodeWithLoaderVariables) -> None:
    TrialEngine(node.session()).commit("healthy", "all checks hold")
    assert f"{ENTRIES}/{node.booted.entry}" not in node.esp.files
    assert decide(node.session().facts()) is Situation.IDLE
    assert [event.event for event in node.session().store.history()].count("committed") == 1
    assert node.restart() is Situation.IDLE
    assert node.booted.slot is B


def test_a_verdict_to_roll_back_is_not_undone_by_a_bless(node: NodeWithLoaderVariables) -> None:
    TrialEngine(node.session()).roll_back("deadline", "containerd does not answer", BROKEN)
    assert node.names() == ["a.conf", "b+0-1.conf"]
    node.esp.rename_as_firmware(f"{ENTRIES}/b+0-1.conf", f"{ENTRIES}/b.conf")
    facts = node.session().facts()
    assert decide(facts) is Situation.TRIAL
    assert node.restart() is Situation.TRIAL, "it boots once more and is ended at once"
    TrialEngine(node.session()).trial()
    assert node.restart() is Situation.IDLE
    assert node.booted.slot is A


def test_a_proven_release_that_runs_uncounted_changes_nothing(publisher: Publisher) -> None:
    made = NodeWithLoaderVariables(publisher.mirror, list(publisher.roots))
    assert made.boot.read().blessed is A
    assert decide(made.session().facts()) is Situation.IDLE


def test_explain_names_what_keeps_a_staged_release_from_being_armed(publisher: Publisher) -> None:
    made = NodeWithLoaderVariables(publisher.mirror, list(publisher.roots))
    staged(made, "2.0.0")
    made.loader.write("LoaderEntryDefault", encode_text("a.conf"))
    told = explain(made.session().facts(), NOTHING)
    assert told.reason == "loader-obstacle"
    assert (
        "Release 2.0.0 is staged and cannot be armed: the EFI variable LoaderEntryDefault is 'a.conf'" in told.sentence
    )
    assert "bootctl set-default ''" in told.sentence


@pytest.mark.parametrize(
    ("variable", "mend"), [("LoaderEntryOneShot", "bootctl set-oneshot ''"), ("LoaderEntryDefault", "set-default ''")]
)
def test_explain_tells_when_an_operator_masked_an_armed_trial(publisher: Publisher, variable: str, mend: str) -> None:
    made = NodeWithLoaderVariables(publisher.mirror, list(publisher.roots))
    armed(made, "2.0.0")
    assert explain(made.session().facts(), NOTHING).reason == "armed"
    made.loader.write(variable, encode_text("a.conf"))
    told = explain(made.session().facts(), NOTHING)
    assert told.reason == "trial-masked"
    assert told.sentence.startswith("Release 2.0.0 is armed, but the next boot takes a.conf instead: the EFI variable")
    assert mend in told.sentence


def test_an_active_bless_service_is_noticed_unless_it_is_masked(tmp_path: Path) -> None:
    assert not bless_is_active(tmp_path)
    wants = tmp_path / "run/systemd/generator.early/basic.target.wants"
    wants.mkdir(parents=True)
    (wants / "systemd-bless-boot.service").symlink_to("/usr/lib/systemd/system/systemd-bless-boot.service")
    assert bless_is_active(tmp_path)
    mask = tmp_path / "etc/systemd/system/systemd-bless-boot.service"
    mask.parent.mkdir(parents=True)
    mask.symlink_to("/dev/null")
    assert not bless_is_active(tmp_path)
