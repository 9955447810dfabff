"""Several requests at once: order, coalescing, bounds, and mirrors that serve wrong bytes."""

from __future__ import annotations

import hashlib
import random
import threading

import pytest

from tests.hostile_server import Handler, hostile
from updater.errors import NetworkFailure, Untrusted
from updater.fetch import Fetcher, Rate, Retries, Timeouts
from updater.prefetch import Part, Span, fetch_spans, most_held_bytes, spans

CONTENT = random.Random(7).randbytes(400_000)


def part(offset: int, length: int, path: str = "x") -> Part:
    return Part(path, offset, length, hashlib.sha256(CONTENT[offset : offset + length]).digest())


def parts(length: int = 10_000) -> list[Part]:
    return [part(at, length) for at in range(0, len(CONTENT), length)]


def fetcher(*addresses: str, attempts: int = 2) -> Fetcher:
    return Fetcher(
        addresses,
        sleep=lambda seconds: None,
        timeouts=Timeouts(connect_s=60, stall_s=60),
        retries=Retries(attempts=attempts),
    )


def good(handler: Handler) -> None:
    handler.serve(CONTENT)


def test_neighbours_share_a_request_and_others_do_not() -> None:
    joined = list(spans([part(0, 10), part(10, 10), part(30, 10), part(40, 10, "y"), part(50, 100, "y")], 60))
    assert [(span.path, span.offset, span.length) for span in joined] == [
        ("x", 0, 20),
        ("x", 30, 10),
        ("y", 40, 10),
        ("y", 50, 100),
    ]


def test_parts_come_in_order_with_one_request_for_each_span() -> None:
    with hostile(good) as server:
        source = fetcher(server.url)
        wanted = list(spans(parts(), 50_000))
        got = [(given.offset, bytes(content)) for given, content in fetch_spans(source, wanted)]
    assert b"".join(content for _, content in got) == CONTENT
    assert [offset for offset, _ in got] == list(range(0, len(CONTENT), 10_000))
    assert (source.counters.requests, source.counters.bytes_fetched) == (8, len(CONTENT))


def test_requests_are_under_way_at_once_and_never_more_than_allowed() -> None:
    together = threading.Barrier(3, timeout=20)
    lock = threading.Lock()
    now: list[int] = [0]
    most: list[int] = [0]

    def play(handler: Handler) -> None:
        with lock:
            now[0] += 1
            most[0] = max(most[0], now[0])
        together.wait()
        with lock:
            now[0] -= 1
        handler.serve(CONTENT)

    with hostile(play) as server:
        wanted = [Span((item,)) for item in parts(40_000)[:9]]
        got = b"".join(bytes(content) for _, content in fetch_spans(fetcher(server.url), wanted, requests_ahead=3))
    assert got == CONTENT[:360_000]
    assert most[0] == 3


def test_bytes_ahead_are_bounded_however_slow_the_reader_is() -> None:
    with hostile(good) as server:
        source = fetcher(server.url)
        wanted = [Span((item,)) for item in parts(20_000)]
        running = fetch_spans(source, wanted, requests_ahead=8, bytes_ahead=50_000)
        next(running)
        running.close()
        assert source.counters.requests <= 3
    assert most_held_bytes(wanted, 50_000) == 70_000
    assert most_held_bytes(wanted, 10_000) == 40_000


def test_a_span_larger_than_the_bound_goes_alone() -> None:
    with hostile(good) as server:
        wanted = [Span((part(0, 300_000),)), Span((part(300_000, 100_000),))]
        got = [bytes(content) for _, content in fetch_spans(fetcher(server.url), wanted, bytes_ahead=1000)]
    assert b"".join(got) == CONTENT


def test_a_mirror_with_wrong_bytes_is_left_for_the_next_and_asked_last_from_then_on() -> None:
    wrong = bytearray(CONTENT)
    wrong[123_456] ^= 1
    with hostile(lambda handler: handler.serve(bytes(wrong))) as liar, hostile(good) as honest:
        source = fetcher(liar.url, honest.url)
        wanted = list(spans(parts(), 100_000))
        got = b"".join(bytes(content) for _, content in fetch_spans(source, wanted, requests_ahead=1))
        assert got == CONTENT
        assert source.mirrors == [f"{honest.url}/", f"{liar.url}/"]
        assert [seen.headers["Range"] for seen in liar.seen] == ["bytes=0-99999", "bytes=100000-199999"]


def test_bytes_that_are_wrong_everywhere_are_never_handed_over() -> None:
    wrong = bytearray(CONTENT)
    wrong[123_456] ^= 1
    got: list[int] = []

    def take(source: Fetcher) -> None:
        for given, _ in fetch_spans(source, spans(parts(), 10_000)):
            got.append(given.offset)

    with hostile(lambda handler: handler.serve(bytes(wrong))) as liar, pytest.raises(Untrusted) as caught:
        take(fetcher(liar.url))
    assert caught.value.reason == "part-mismatch"
    assert "byte 120000 of x" in caught.value.message
    assert got == list(range(0, 120_000, 10_000))


def test_a_dead_mirror_costs_no_bytes_of_the_others() -> None:
    with hostile(lambda handler: handler.answer(503)) as dead, hostile(good) as alive:
        source = fetcher(dead.url, alive.url)
        assert b"".join(bytes(c) for _, c in fetch_spans(source, spans(parts(), 100_000))) == CONTENT
        assert source.counters.bytes_fetched == len(CONTENT)
    with hostile(lambda handler: handler.answer(503)) as dead, pytest.raises(NetworkFailure):
        list(fetch_spans(fetcher(dead.url), spans(parts())))


def test_a_reader_that_leaves_ends_what_is_under_way() -> None:
    def endless(handler: Handler) -> None:
        first, last = handler.span or (0, 0)
        handler.answer(206, CONTENT[first : first + 1000], length=last + 1 - first, Content_Range=_range(first, last))
        handler.server.over.wait(20)

    def play(handler: Handler) -> None:
        (good if handler.span and handler.span[0] == 0 else endless)(handler)

    before = threading.active_count()
    # It ends at once: neither the stalled connections nor the pauses between retries are waited for.
    patient = Timeouts(connect_s=600, stall_s=600, grace_s=600)
    with hostile(play) as server:
        source = Fetcher([server.url], timeouts=patient)
        running = fetch_spans(source, spans(parts(), 100_000))
        next(running)
        running.close()
        source.close()
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("fetch")]
    assert threading.active_count() <= before + 4


def _range(first: int, last: int) -> str:
    return f"bytes {first}-{last}/{len(CONTENT)}"


def test_the_rate_is_shared_and_allows_a_burst_of_one_second() -> None:
    now = [100.0]
    rate = Rate(1000, clock=lambda: now[0])
    assert rate.spend(1000) == 0
    assert [rate.spend(500), rate.spend(500)] == [0.5, 1.0]
    now[0] += 10
    assert rate.spend(1000) == 0


def test_whoever_leaves_does_not_wait_for_the_rate() -> None:
    with hostile(good) as server:
        # At this rate the file takes a minute and a half.
        source = Fetcher([server.url], rate_limit=4096)
        running = fetch_spans(source, [Span((item,)) for item in (part(0, 4096), *parts(50_000)[1:])])
        next(running)
        running.close()
        assert source.counters.bytes_fetched < len(CONTENT)
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("fetch")]


def test_a_limited_fetcher_pauses_for_what_it_read() -> None:
    pauses: list[float] = []
    with hostile(good) as server:
        source = Fetcher([server.url], rate_limit=100_000, sleep=pauses.append)
        assert source.read("x", 400_000) == CONTENT
    # Nothing really slept, so the last pause is what all bytes beyond the burst cost.
    assert 2.5 < pauses[-1] <= 3.0
