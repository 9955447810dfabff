"""The health service: it watches a boot from its start to its verdict, then acts on it."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable

from rollback.baseline import failing_names
from rollback.clock import Clock
from rollback.evidence import evidence_of_verdict
from rollback.health_files import CheckSet
from rollback.loop import Loop, Stopped, Watch
from rollback.notify import Notifier
from rollback.probes import Prober
from rollback.results import Result
from rollback.rounds import Rounds
from rollback.verdict import Decision, Limits, Verdict, blame, told
from updater.errors import EnvironmentFailure, UpdaterError
from updater.health_plugin import Aftermath, Cause, HealthEngine, Trial

log = logging.getLogger(__name__)

# How long a reboot that was asked for may take to reach this service.
REBOOT_S = 120.0
MAX_REPORTS = 20


class HealthService:
    """Judges this boot, once.

    A trial is committed or rolled back. On a boot of a proven release the judgement renews its protection, or says
    what is wrong, and settles whether an image that was rolled back before had been to blame.
    """

    def __init__(
        self,
        engine: HealthEngine,
        load: Callable[[], CheckSet],
        clock: Clock,
        *,
        notifier: Notifier,
        prober: Prober,
        shutting_down: Callable[[], bool],
    ) -> None:
        """Work with an engine, checks that `load` reads, and the machine that `prober` looks at."""
        self._engine = engine
        self._load = load
        self._prober = prober
        self._shutting_down = shutting_down
        settings = engine.settings
        self._limits = Limits(settings.deadline_s, settings.hold_s, settings.interval_s)
        self._loop = Loop(self._limits, clock, notifier)
        self._watch_s = settings.watch_s

    def run(self) -> int:
        """Serve until the verdict is carried out, and for a while after a commit; return the exit code.

        An exception during a trial leaves this method: the unit fails, and PID 1 ends the boot. On a proven release
        it is logged, because a reboot would only repeat it.
        """
        try:
            trial = self._which_boot()
            if trial is not None:
                return self._try(trial)
            return self._accept()
        except Stopped:
            log.info("stopped before a verdict: nothing is recorded about this boot")
            return 0

    # A trial boot.

    def _which_boot(self) -> Trial | None:
        while True:
            try:
                return self._engine.trial()
            except EnvironmentFailure as error:
                if self._loop.now() >= self._limits.deadline_s:
                    raise
                self._loop.tell(f"cannot tell yet whether this boot is a trial: {error}")
                self._loop.pause(self._limits.interval_s)

    def _try(self, trial: Trial) -> int:
        name = f"trial of release {trial.release}, try {trial.try_number} of {trial.tries}"
        log.info("%s: judged within %g s of the boot", name, self._limits.deadline_s)
        baseline = failing_names(trial.baseline)
        watch = Watch(self._loop, Rounds(self._load(), self._prober, "trial"), baseline, name)
        not_committed: UpdaterError | None = None
        while True:
            verdict = watch.until_decided()
            if verdict.decision is Decision.COMMIT:
                not_committed = self._commit(trial, verdict)
                if not_committed is None:
                    return self._after_commit(trial, baseline)
                self._loop.pause(self._limits.interval_s)
                continue
            if self._shutting_down():
                log.info("%s: the system is shutting down: no verdict", name)
                return self._await_end()
            if not self._still_on_trial():
                return self._after_commit(trial, baseline)
            return self._roll_back(trial, verdict, watch.results, not_committed)

    def _commit(self, trial: Trial, verdict: Verdict) -> UpdaterError | None:
        try:
            self._engine.commit(verdict.reason, verdict.sentence)
        except UpdaterError as error:
            if not self._still_on_trial():
                log.info("release %s was committed by hand", trial.release)
                return None
            log.error("release %s is healthy, but could not be committed yet: %s", trial.release, error)
            self._loop.tell(f"release {trial.release} is healthy, but could not be committed yet: {error}")
            return error
        log.info("release %s is committed: %s", trial.release, verdict.sentence)
        return None

    def _still_on_trial(self) -> bool:
        try:
            return self._engine.trial() is not None
        except EnvironmentFailure:
            return True

    def _roll_back(
        self, trial: Trial, verdict: Verdict, results: tuple[Result, ...], not_committed: UpdaterError | None
    ) -> int:
        if not_committed is not None and not verdict.checks:
            sentence = f"healthy, but it could not be committed before the deadline: {not_committed}"
            verdict = dataclasses.replace(verdict, reason="commit-failed", sentence=sentence)
        log.error("release %s is rolled back: %s", trial.release, verdict.sentence)
        self._loop.tell(f"release {trial.release} is rolled back: {verdict.sentence}")
        evidence = evidence_of_verdict(
            trial, verdict, results, self._engine.state, limit_bytes=self._engine.evidence_bytes
        )
        if verdict.reason == "commit-failed":
            # The ESP's fault, or ours: the release itself held.
            evidence = dataclasses.replace(evidence, cause=Cause.NONE)
        self._engine.roll_back(verdict.reason, verdict.sentence, evidence)
        return self._await_end()

    def _await_end(self) -> int:
        """Wait for the reboot that is under way; a failure has PID 1 see to it."""
        try:
            self._loop.pause(REBOOT_S)
        except Stopped:
            return 0
        log.error("the reboot that was asked for did not come within %g s", REBOOT_S)
        return 1

    # After a commit.

    def _after_commit(self, trial: Trial, baseline: frozenset[str]) -> int:
        self._loop.ready()
        try:
            self._keep_watching(trial, baseline)
        except Stopped:
            log.info("stopped while watching")
        except Exception:
            log.exception("the watch over release %s broke; its commit stands", trial.release)
        return 0

    def _keep_watching(self, trial: Trial, baseline: frozenset[str]) -> None:
        """Report what changes. Nothing is rolled back any more: by now a failure may be the workload's."""
        end_s = self._loop.now() + self._watch_s
        rounds = Rounds(self._load(), self._prober, "always")
        before: tuple[str, ...] = ()
        reports = 0
        while self._loop.now() < end_s:
            self._loop.tell(f"release {trial.release} is committed; watched for {end_s - self._loop.now():.0f} s more")
            self._loop.pause(self._limits.interval_s)
            look = self._loop.look(rounds)
            failing = blame(look.results, baseline)
            names = tuple(name for result in failing for name in result.failures)
            if names != before and reports < MAX_REPORTS:
                reports += 1
                event = "unhealthy-after-commit" if names else "healthy-again"
                said = told(failing) if names else f"{', '.join(before)} recovered"
                self._engine.report(event, f"release {trial.release}, after its commit: {said}", names or before)
            before = names
        self._loop.tell(f"release {trial.release} is committed; the watch has ended")

    # A boot of a proven release.

    def _accept(self) -> int:
        try:
            return self._judge_proven()
        except Stopped:
            raise
        except Exception:
            log.exception("the health of this boot could not be judged; a proven release keeps running all the same")
            self._loop.tell("health unknown: the health service broke, see its log")
            self._loop.ready()
            return 0

    def _judge_proven(self) -> int:
        aftermath = self._aftermath()
        # What condemned the image may be a check for trials only.
        rounds = Rounds(self._load(), self._prober, "always" if aftermath is None else "trial")
        watch = Watch(self._loop, rounds, frozenset(), "boot of a proven release")
        verdict = watch.until_decided()
        if verdict.decision is Decision.ROLL_BACK and self._shutting_down():
            return self._await_end()
        if aftermath is not None:
            self._settle(aftermath, watch.failed_lately())
        if verdict.decision is Decision.COMMIT:
            self._loop.tell(f"healthy: {verdict.sentence}")
            try:
                self._engine.healthy_boot()
            except UpdaterError as error:
                log.error("this boot is healthy, but its protection could not be renewed: %s", error)
            self._loop.ready()
            return 0
        log.error("this boot of a proven release is unhealthy: %s", verdict.sentence)
        if self._engine.unhealthy_boot(verdict.sentence, verdict.checks) == "reboot":
            return self._await_end()
        self._loop.tell(f"unhealthy, and staying for want of a better release: {verdict.sentence}")
        # Otherwise PID 1's deadline would reboot a node whose only good release this is, again and again.
        self._loop.ready()
        return 0

    def _aftermath(self) -> Aftermath | None:
        try:
            return self._engine.aftermath()
        except UpdaterError as error:
            log.error("it is not known whether a release was rolled back before this boot: %s", error)
            return None

    def _settle(self, aftermath: Aftermath, failed: frozenset[str]) -> None:
        """Clear an image whose every condemning check fails on the old release too."""
        blamed = ", ".join(aftermath.checks)
        try:
            if aftermath.checks and failed.issuperset(aftermath.checks):
                sentence = f"{blamed}: this fails on the old release as well, so release {aftermath.release} is cleared"
                self._engine.clear_blame(aftermath, sentence)
            else:
                passes = ", ".join(name for name in aftermath.checks if name not in failed) or "everything"
                sentence = f"{passes}: this passes on the old release, so release {aftermath.release} stays condemned"
                self._engine.keep_blame(aftermath, sentence)
        except UpdaterError as error:
            log.error("what the old release shows about release %s is not recorded: %s", aftermath.release, error)
