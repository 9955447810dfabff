"""The verdict as a pure function: examples, then properties over whole histories."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rollback.results import Result, Status
from rollback.verdict import MAX_GAP_INTERVALS, Course, Decision, Limits, Look, Verdict, blame, judge

LIMITS = Limits(deadline_s=600, hold_s=60, interval_s=5)
NOTHING: frozenset[str] = frozenset()


def result(name: str, ok: bool = True, *, required: bool = True, findings: tuple[str, ...] = ()) -> Result:
    status = Status.OK if ok else Status.FAILED
    return Result(name, status, f"{name} is {'well' if ok else 'broken'}", required=required, findings=findings)


def look(at_s: float, *results: Result) -> Look:
    return Look(at_s - 0.5, at_s, results or (result("a"),))


def course(*looks: Look, baseline: frozenset[str] = NOTHING, limits: Limits = LIMITS) -> Course:
    so_far = Course()
    for one in looks:
        so_far = so_far.after(one, limits, baseline)
    return so_far


def healthy(start_s: float, end_s: float) -> list[Look]:
    steps = int((end_s - start_s) / 5)
    return [look(start_s + 5 * step) for step in range(steps + 1)]


def test_checks_that_held_for_the_whole_period_are_committed() -> None:
    verdict = judge(LIMITS, course(*healthy(30, 90)), 90)
    assert verdict.decision is Decision.COMMIT
    assert verdict.reason == "healthy"
    assert verdict.sentence == "1 required checks have held for 60 s"


def test_a_moment_short_of_the_period_waits() -> None:
    verdict = judge(LIMITS, course(*healthy(30, 85)), 89.9)
    assert verdict.decision is Decision.WAIT
    assert verdict.sentence == "healthy for 55 s of 60 s"


def test_one_failure_starts_the_period_anew() -> None:
    broken = look(60, result("a", ok=False))
    assert judge(LIMITS, course(*healthy(30, 55), broken, *healthy(65, 120)), 120).decision is Decision.WAIT
    assert judge(LIMITS, course(*healthy(30, 55), broken, *healthy(65, 125)), 125).decision is Decision.COMMIT


def test_time_in_which_nobody_looked_does_not_count_as_held() -> None:
    gap = MAX_GAP_INTERVALS * LIMITS.interval_s + 1
    verdict = judge(LIMITS, course(look(30), look(30 + gap + 40)), 30 + gap + 40)
    assert verdict.decision is Decision.WAIT
    assert verdict.healthy_since_s == 30 + gap + 40


def test_no_period_to_hold_means_that_one_look_is_enough() -> None:
    limits = Limits(600, 0, 5)
    assert judge(limits, course(look(20), limits=limits), 20).decision is Decision.COMMIT
    assert judge(limits, course(limits=limits), 20).decision is Decision.WAIT


def test_a_check_that_still_fails_is_rolled_back_once_it_could_not_hold_before_the_deadline() -> None:
    broken = [look(at, result("a"), result("containerd", ok=False)) for at in range(20, 541, 5)]
    assert judge(LIMITS, course(*broken), 540).decision is Decision.WAIT
    verdict = judge(LIMITS, course(*broken, look(545, result("containerd", ok=False))), 545)
    assert verdict.decision is Decision.ROLL_BACK
    assert verdict.reason == "check-failed"
    assert verdict.checks == ("containerd",)
    assert "containerd: containerd is broken" in verdict.sentence
    assert "600 s after the boot" in verdict.sentence


def test_a_boot_that_became_healthy_too_late_says_what_had_failed() -> None:
    late = course(look(540, result("a", ok=False)), look(545))
    verdict = judge(LIMITS, late, 545)
    assert (verdict.decision, verdict.reason) == (Decision.ROLL_BACK, "not-held")
    assert verdict.checks == ("a",)
    assert "(last at 540 s); healthy again only since 545 s" in verdict.sentence


def test_a_boot_whose_checks_could_only_begin_too_late_is_rolled_back_without_blaming_a_check() -> None:
    verdict = judge(LIMITS, course(look(560)), 560)
    assert (verdict.decision, verdict.reason, verdict.checks) == (Decision.ROLL_BACK, "too-late", ())
    nothing = judge(LIMITS, Course(), 600)
    assert (nothing.decision, nothing.reason) == (Decision.ROLL_BACK, "too-late")
    assert "no check could be run" in nothing.sentence


def test_health_that_was_held_is_worth_nothing_after_the_deadline() -> None:
    held = course(*healthy(30, 90))
    assert judge(LIMITS, held, 600).decision is Decision.COMMIT
    assert judge(LIMITS, held, 600.1).decision is Decision.ROLL_BACK


def test_a_check_that_only_informs_never_counts() -> None:
    looks = [look(at, result("a"), result("route", ok=False, required=False)) for at in range(30, 91, 5)]
    assert judge(LIMITS, course(*looks), 90).decision is Decision.COMMIT


def test_what_was_broken_before_does_not_count_and_is_named() -> None:
    looks = [look(at, result("a"), result("old", ok=False)) for at in range(30, 91, 5)]
    verdict = judge(LIMITS, course(*looks, baseline=frozenset({"old"})), 90)
    assert verdict.decision is Decision.COMMIT
    assert "old failed before the update already" in verdict.sentence


def test_a_degraded_system_is_excused_for_the_units_that_had_failed_before_and_for_no_others() -> None:
    baseline = frozenset({"system-state/old.service"})
    same = result("system-state", ok=False, findings=("old.service",))
    worse = result("system-state", ok=False, findings=("old.service", "containerd.service"))
    speechless = result("system-state", ok=False)
    assert blame([same], baseline) == ()
    assert blame([worse], baseline) == (worse,)
    assert blame([speechless], baseline) == (speechless,)
    assert blame([same], frozenset({"system-state"})) == (same,)


def test_a_long_list_of_failures_is_told_in_a_few_words() -> None:
    broken = look(545, *(result(name, ok=False) for name in "abcd"))
    verdict = judge(LIMITS, course(broken), 545)
    assert verdict.sentence.startswith("a: a is broken; b: b is broken; and 2 more; ")
    assert verdict.checks == ("a", "b", "c", "d")


def test_a_long_detail_is_told_in_one_short_line() -> None:
    broken = Result("a", Status.ERROR, "many\nlines " * 100)
    verdict = judge(LIMITS, course(look(545, broken)), 545)
    assert "\n" not in verdict.sentence
    assert len(verdict.sentence) < 400


# Properties.


@dataclass(frozen=True)
class Story:
    """A boot as the service lives it: looks one after the other, until something is decided."""

    limits: Limits
    baseline: frozenset[str]
    looks: list[Look]

    def verdicts(self) -> list[tuple[Course, float, Verdict]]:
        so_far, told = Course(), []
        for one in self.looks:
            so_far = so_far.after(one, self.limits, self.baseline)
            told.append((so_far, one.ended_s, judge(self.limits, so_far, one.ended_s)))
        return told


NAMES = st.sampled_from(["a", "b", "c"])
RESULTS = st.lists(
    st.builds(
        result,
        NAMES,
        st.booleans(),
        required=st.booleans(),
        findings=st.sampled_from([(), ("x",), ("x", "y")]),
    ),
    min_size=1,
    max_size=3,
    unique_by=lambda one: one.name,
).map(tuple)
TIMES = st.floats(-50, 1200, allow_nan=False)
LOOKS = st.lists(st.builds(lambda at, took, found: Look(at - took, at, found), TIMES, st.floats(0, 20), RESULTS))
STORIES = st.builds(
    Story,
    st.builds(Limits, st.floats(10, 700), st.floats(0, 120), st.floats(0.1, 30)),
    st.frozensets(st.sampled_from(["a", "b", "a/x", "b/x", "b/y"])),
    # In their order, or shuffled: a clock that jumps.
    LOOKS.map(lambda looks: sorted(looks, key=lambda one: one.ended_s)) | LOOKS,
)


@given(STORIES)
def test_a_commit_never_passes_over_a_required_failure_that_is_new(story: Story) -> None:
    for (_, _, verdict), last in zip(story.verdicts(), story.looks, strict=True):
        if verdict.decision is Decision.COMMIT:
            assert blame(last.results, story.baseline) == ()


@given(STORIES)
def test_a_commit_needs_a_row_of_healthy_looks_as_long_as_the_hold(story: Story) -> None:
    for index, (_, _, verdict) in enumerate(story.verdicts()):
        if verdict.decision is not Decision.COMMIT or story.limits.hold_s == 0:
            continue
        row = []
        for one in reversed(story.looks[: index + 1]):
            if blame(one.results, story.baseline):
                break
            row.append(one.ended_s)
        assert max(row) - min(row) >= story.limits.hold_s
        assert len(row) >= 2


@given(STORIES, TIMES)
def test_at_the_deadline_nothing_waits_and_after_it_nothing_commits(story: Story, now_s: float) -> None:
    for so_far in [Course(), *(so_far for so_far, _, _ in story.verdicts())]:
        verdict = judge(story.limits, so_far, now_s)
        latest_s = max(now_s, so_far.latest_s)
        if latest_s >= story.limits.deadline_s:
            assert verdict.decision is not Decision.WAIT
        if latest_s > story.limits.deadline_s:
            assert verdict.decision is Decision.ROLL_BACK


@given(STORIES, TIMES, st.floats(0, 1000))
def test_a_clock_that_is_set_back_never_undoes_the_deadline(story: Story, now_s: float, back_s: float) -> None:
    """Once any look has ended past the deadline, no later reading of the clock brings the trial back to life."""
    for so_far, ended_s, verdict in story.verdicts():
        if ended_s > story.limits.deadline_s:
            assert verdict.decision is Decision.ROLL_BACK
            assert judge(story.limits, so_far, ended_s - back_s).decision is Decision.ROLL_BACK


@given(STORIES, st.floats(0, 500))
def test_a_boot_that_is_lost_stays_lost_as_time_goes_on(story: Story, later_s: float) -> None:
    for so_far, ended_s, verdict in story.verdicts():
        if verdict.decision is Decision.ROLL_BACK:
            assert judge(story.limits, so_far, ended_s + later_s).decision is Decision.ROLL_BACK


@given(STORIES)
def test_a_roll_back_blames_only_what_is_required_failed_and_new(story: Story) -> None:
    for _, _, verdict in story.verdicts():
        for one in verdict.failing:
            assert one.required
            assert not one.ok
            assert not set(one.failures) <= story.baseline
        if verdict.reason in ("check-failed", "not-held"):
            assert verdict.checks


@given(STORIES)
def test_a_longer_list_of_what_was_broken_before_never_turns_a_commit_into_a_roll_back(story: Story) -> None:
    wider = Story(story.limits, story.baseline | {"a", "b", "c", "a/x", "a/y", "b/x", "b/y", "c/x", "c/y"}, story.looks)
    for (_, _, narrow), (_, _, wide) in zip(story.verdicts(), wider.verdicts(), strict=True):
        if narrow.decision is Decision.COMMIT:
            assert wide.decision is Decision.COMMIT


@pytest.mark.parametrize("hold_s", [0.0, 60.0, 700.0])
def test_a_hold_that_does_not_fit_into_the_deadline_ends_at_once_instead_of_never(hold_s: float) -> None:
    limits = Limits(600, hold_s, 5)
    verdict = judge(limits, course(look(20), limits=limits), 20)
    assert verdict.decision is {0.0: Decision.COMMIT, 60.0: Decision.WAIT, 700.0: Decision.ROLL_BACK}[hold_s]
