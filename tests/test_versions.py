"""Release versions and their order."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from updater.errors import InvalidDocument
from updater.versions import Version, is_version

ORDERED = [
    "1.0.0-alpha",
    "1.0.0-alpha.1",
    "1.0.0-beta.2",
    "1.0.0-beta.11",
    "1.0",
    "1.0.1",
    "4.0.20261101",
    "202606.29.0",
]


def test_versions_sort_in_the_order_in_which_releases_follow() -> None:
    assert sorted(sorted(ORDERED), key=Version) == ORDERED


def test_missing_numbers_count_as_zero() -> None:
    assert Version("1.0") == Version("1.0.0")
    assert hash(Version("1.0")) == hash(Version("1.0.0"))


@pytest.mark.parametrize(
    "text", ["", "1.", ".1", "v1", "1 0", "1.0\n", "1.0/../2", "1" * 65, "1.2.3.4.5.6", "1.0-", "١.0"]
)
def test_what_is_no_version_is_refused(text: str) -> None:
    assert not is_version(text)
    with pytest.raises(InvalidDocument, match="not a release version"):
        Version(text)


numbers = st.lists(st.integers(0, 10**9), min_size=1, max_size=5).map(lambda parts: ".".join(map(str, parts)))


@given(numbers, numbers, numbers)
def test_the_order_is_total(one: str, two: str, three: str) -> None:
    a, b, c = Version(one), Version(two), Version(three)
    assert (a < b) + (b < a) + (a == b) == 1
    if a < b and b < c:
        assert a < c


@given(numbers)
def test_a_pre_release_sorts_below_its_release(text: str) -> None:
    assert Version(f"{text}-rc.1") < Version(text)
