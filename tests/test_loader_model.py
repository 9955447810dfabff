"""The model of systemd-boot: order, patterns, choice, counting."""

from __future__ import annotations

import functools
import itertools

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from updater.boot.entries import LoaderConf, entry_text, sort_key
from updater.boot.loader_model import (
    Candidate,
    LoaderState,
    boot,
    candidate,
    choose,
    compare_versions,
    in_order,
    is_counted,
    matches,
)
from updater.slots import Slot


def entry(file: str, generation: int, version: str = "1", kind: str = "linux") -> Candidate:
    return Candidate(file, kind, f"/EFI/acl/{file[0]}.efi", version=version, sort_key=sort_key(generation))


def files(state: LoaderState) -> list[str]:
    return [found.file for found in in_order(state)]


def booted(state: LoaderState) -> str:
    found = choose(state)
    assert found is not None
    return found.file


TRIAL = LoaderState((entry("a.conf", 1, "9"), entry("b+3-0.conf", 2, "8")))


def test_a_trial_of_an_older_version_sorts_first_by_its_generation() -> None:
    assert booted(TRIAL) == "b+3-0.conf"


def test_a_trial_that_nobody_commits_falls_back_after_its_tries() -> None:
    state, seen = TRIAL, []
    for _ in range(5):
        started, state = boot(state)
        assert started is not None
        seen.append(started.file)
    assert seen == ["b+2-1.conf", "b+1-2.conf", "b+0-3.conf", "a.conf", "a.conf"]
    assert files(state) == ["a.conf", "b+0-3.conf"]


def test_an_efi_entry_is_no_longer_counted_from_version_258_on() -> None:
    trial = entry("b+3-0.conf", 2, kind="efi")
    assert is_counted(trial, 257)
    assert not is_counted(trial, 258)
    started, after = boot(LoaderState((entry("a.conf", 1), trial), version=262))
    assert started is trial
    assert booted(after) == "b+3-0.conf"


def test_a_read_only_entry_boots_for_ever() -> None:
    trial = Candidate("b+3-0.conf", "linux", "/EFI/acl/b.efi", sort_key=sort_key(2), read_only=True)
    _, after = boot(LoaderState((entry("a.conf", 1), trial)))
    assert booted(after) == "b+3-0.conf"


def test_when_all_entries_are_bad_the_first_of_them_boots() -> None:
    state = LoaderState((entry("a+0-3.conf", 1), entry("b+0-3.conf", 2)))
    assert booted(state) == "b+0-3.conf"
    _, after = boot(state)
    assert sorted(files(after)) == ["a+0-3.conf", "b+0-4.conf"]


def test_nothing_boots_from_nothing() -> None:
    assert boot(LoaderState(()))[0] is None


def test_entries_with_a_sort_key_come_before_ones_without() -> None:
    old_style = Candidate("zzz.conf", "linux", "/x", version="99")
    assert files(LoaderState((old_style, entry("a.conf", 1)))) == ["a.conf", "zzz.conf"]


def test_equal_sort_keys_are_ordered_by_machine_then_version_then_id() -> None:
    def of(file: str, version: str, machine: str = "") -> Candidate:
        return Candidate(file, "linux", "/x", version=version, sort_key="k", machine_id=machine)

    state = LoaderState((of("1.conf", "1"), of("2.conf", "10"), of("3.conf", "9"), of("4.conf", "99", "m")))
    assert files(state) == ["2.conf", "3.conf", "1.conf", "4.conf"]
    assert files(LoaderState((of("x1.conf", "1"), of("x2.conf", "1")))) == ["x2.conf", "x1.conf"]


def test_of_two_counted_twins_the_one_with_more_tries_comes_first() -> None:
    assert files(LoaderState((entry("b+2-1.conf", 2), entry("b+3-0.conf", 2)))) == ["b+3-0.conf", "b+2-1.conf"]


def test_a_default_pattern_boots_even_a_bad_entry() -> None:
    state = LoaderState((entry("a.conf", 1), entry("b+0-3.conf", 2)), conf=LoaderConf(default="B*"))
    assert booted(state) == "b+0-3.conf"
    assert booted(LoaderState(state.candidates, default="b.conf")) == "b+0-3.conf"


def test_ids_kept_their_counters_before_version_257() -> None:
    found = (entry("a.conf", 1), entry("b+3-0.conf", 0))
    assert booted(LoaderState(found, default="b.conf", version=256)) == "a.conf"
    assert booted(LoaderState(found, default="b.conf", version=257)) == "b+3-0.conf"


def test_a_file_of_the_next_name_stops_counting_and_the_entry_boots_for_ever() -> None:
    found = (entry("a.conf", 1), entry("b+3-0.conf", 2))
    for state in (
        LoaderState((*found, entry("b+2-1.conf", 1))),
        LoaderState(found, taken=frozenset({"B+2-1.conf"})),
    ):
        assert booted(boot(boot(state)[1])[1]) == "b+3-0.conf"


def test_preferred_skips_entries_without_tries_and_is_unknown_before_260() -> None:
    state = LoaderState((entry("a.conf", 3), entry("b+0-3.conf", 2)), preferred="b*")
    assert booted(state) == "a.conf"
    counted = LoaderState((entry("a.conf", 3), entry("b+1-2.conf", 2)), preferred="b*")
    assert booted(counted) == "b+1-2.conf"
    assert booted(LoaderState(counted.candidates, preferred="b*", version=259)) == "a.conf"


def test_one_shot_comes_before_all_defaults_and_only_once() -> None:
    state = LoaderState(TRIAL.candidates, one_shot="a.conf", default="b*", preferred="b*")
    started, after = boot(state)
    assert started is not None
    assert started.file == "a.conf"
    assert booted(after) == "b+3-0.conf"


def test_sysfail_matters_only_after_a_failed_firmware_update() -> None:
    assert booted(LoaderState(TRIAL.candidates, sysfail="a.conf")) == "b+3-0.conf"
    assert booted(LoaderState(TRIAL.candidates, sysfail="a.conf", sysfail_occurred=True)) == "a.conf"


def test_saved_repeats_the_last_boot() -> None:
    state = LoaderState(TRIAL.candidates, conf=LoaderConf(default="@saved"), last_booted="a.conf")
    assert booted(state) == "a.conf"
    assert boot(state)[1].last_booted == "a.conf"


def test_an_entry_of_a_profile_is_never_chosen_by_itself() -> None:
    state = LoaderState((Candidate("p.conf", "linux", "/x", sort_key="0", profile=1), entry("a.conf", 1)))
    assert booted(state) == "a.conf"


def test_an_entry_with_two_kinds_of_image_is_dropped_from_258_on() -> None:
    raw = b"linux /EFI/acl/a.efi\nefi /EFI/acl/b.efi\n"
    assert candidate("x.conf", raw) is None
    older = candidate("x.conf", raw, version=257)
    assert older is not None
    assert older.slot is Slot.B


def test_an_entry_that_names_its_image_by_uki_is_not_listed_before_258() -> None:
    raw = b"uki /EFI/acl/a.efi\n"
    assert candidate("a.conf", raw, version=257) is None
    assert candidate("a.conf", raw, version=258) is not None


def test_our_own_entries_are_listed_and_counted_by_every_version() -> None:
    for version in (250, 257, 258, 262):
        found = candidate("b+3-0.conf", entry_text(Slot.B, "2", 7), version=version)
        assert found is not None
        assert found.slot is Slot.B
        assert is_counted(found, version)


@pytest.mark.parametrize(
    ("pattern", "text", "expected"),
    [
        ("a.conf", "a.conf", True),
        ("a.conf", "a+3-0.conf", False),
        ("a*", "a+3-0.conf", True),
        ("*", "", True),
        ("?.conf", "a.conf", True),
        ("?", "", False),
        ("[a-c].conf", "b.conf", True),
        ("[!b].conf", "b.conf", True),
        ("[!a].conf", "b.conf", False),
        ("[]a].conf", "].conf", True),
        ("[a-]", "-", True),
        ("[a", "a", False),
        ("a\\*", "a*", True),
        ("a\\", "a", False),
        ("a*b*c", "aXbYc", True),
        ("a*b*c", "aXcYb", False),
        ("*.conf*", "x.conf", True),
    ],
)
def test_patterns_match_as_the_loaders_globs(pattern: str, text: str, expected: bool) -> None:
    assert matches(pattern, text) is expected


@given(st.text("ab*?[]-\\!.", max_size=8), st.text("ab.]-", max_size=8))
def test_any_pattern_gives_an_answer(pattern: str, text: str) -> None:
    assert matches(pattern, text) in (True, False)
    assert matches("*" + text.translate({ord(c): "\\" + c for c in "]"}), text)


# The order that systemd documents for its comparison (systemd's version comparison, UAPI.10).
DOCUMENTED = ["122.1", "123~rc1-1", "123", "123-a", "123-a.1", "123-1", "123-1.1", "123^post1", "123.a-1"]
DOCUMENTED += ["123.1-1", "123a-1", "124-1"]


def test_versions_are_ordered_as_documented() -> None:
    for older, newer in itertools.combinations(DOCUMENTED, 2):
        assert compare_versions(older, newer) < 0, (older, newer)
        assert compare_versions(newer, older) > 0, (older, newer)


def test_leading_zeros_and_separators_do_not_count() -> None:
    assert compare_versions("00123", "123") == 0
    assert compare_versions("123_a", "123a") == 0
    assert compare_versions("", "0") < 0
    assert compare_versions("~", "") < 0


texts = st.text("019azA.-^~_+", max_size=8)


@given(texts, texts)
@example("^", "^")
@example("-_", "-")
def test_comparing_versions_always_ends_and_is_antisymmetric(one: str, other: str) -> None:
    assert compare_versions(one, other) == -compare_versions(other, one)
    assert compare_versions(one, one) == 0


@given(st.lists(st.sampled_from(DOCUMENTED), max_size=8))
def test_documented_versions_sort_consistently(versions: list[str]) -> None:
    assert sorted(versions, key=functools.cmp_to_key(compare_versions)) == sorted(versions, key=DOCUMENTED.index)


counters = st.tuples(st.integers(0, 4), st.integers(0, 4)).map(lambda pair: f"+{pair[0]}-{pair[1]}") | st.just("")
candidates = st.builds(
    lambda slot, counter, generation: entry(f"{slot}{counter}.conf", generation),
    st.sampled_from("ab"),
    counters,
    st.integers(0, 3),
)


@given(st.lists(candidates, max_size=5, unique_by=lambda found: found.file))
def test_a_bad_entry_boots_only_when_all_are_bad(found: list[Candidate]) -> None:
    chosen = choose(LoaderState(tuple(found)))
    assert (chosen is None) == (not found)
    if chosen is not None and chosen.is_bad:
        assert all(other.is_bad for other in found)


def chain(found: Candidate) -> tuple[str, int]:
    return found.name.stem, (found.name.tries_left or 0) + found.name.tries_done


@given(st.lists(candidates, min_size=1, max_size=4, unique_by=chain))
def test_counted_entries_run_out_of_tries(found: list[Candidate]) -> None:
    state = LoaderState(tuple(found))
    tries = sum(one.name.tries_left or 0 for one in found)
    for _ in range(tries):
        _, state = boot(state)
    final = choose(state)
    assert final is not None
    if any(one.name.tries_left is None for one in found):
        assert final.name.tries_left is None or not final.is_bad
        _, state = boot(state)
