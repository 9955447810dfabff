"""Work beside the steps of a command: its result, its failure, and how it is given up."""

from __future__ import annotations

import threading

import pytest

from updater.errors import Refused
from updater.steps.beside import Beside
from updater.verity import Progress

PATIENCE_S = 60


def test_what_the_work_returns_is_handed_over() -> None:
    with Beside(lambda progress: 7, "work") as work:
        assert work.result() == 7


def test_what_the_work_raises_is_raised_where_it_is_waited_for() -> None:
    def refuse(progress: Progress) -> None:
        raise Refused("no", reason="no")

    with Beside(refuse, "work") as work, pytest.raises(Refused):
        work.result()


def test_whoever_waits_sees_how_far_the_work_is() -> None:
    seen = threading.Event()

    def slow(progress: Progress) -> str:
        progress(3, 9)
        assert seen.wait(PATIENCE_S)
        return "done"

    told: list[tuple[int, int]] = []

    def note(done_bytes: int, total_bytes: int) -> None:
        told.append((done_bytes, total_bytes))
        seen.set()

    with Beside(slow, "work") as work:
        assert work.result(note) == "done"
    assert (3, 9) in told


def test_work_that_nobody_waits_for_ends_when_it_next_tells_its_progress() -> None:
    began, ended = threading.Event(), threading.Event()

    def endless(progress: Progress) -> None:
        try:
            began.set()
            while True:
                progress(1, 2)
        finally:
            ended.set()

    def interrupted() -> None:
        with Beside(endless, "work"):
            assert began.wait(PATIENCE_S)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert ended.wait(PATIENCE_S), "it went on after everybody had left"
