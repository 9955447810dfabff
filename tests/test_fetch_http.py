"""The fetcher against web servers that break, lie, hang and redirect."""

from __future__ import annotations

import datetime
import ipaddress
import random
import time
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from email.utils import format_datetime
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.hostile_server import Handler, hostile
from updater.errors import EnvironmentFailure, NetworkFailure, Untrusted
from updater.fetch import Fetcher, Retries, Timeouts

CONTENT = random.Random(1).randbytes(300_000)
# As short as a busy machine can keep: whoever is meant to answer in time must.
IMPATIENT = Timeouts(connect_s=5, stall_s=1.5, slowest_bytes_per_s=4096, grace_s=60)
ONCE = Retries(attempts=1)


MADE: list[Fetcher] = []


@pytest.fixture(autouse=True)
def closed() -> Iterator[None]:
    """Close what a test made, also where it failed: a server's answer may be left open for the next range."""
    yield
    while MADE:
        MADE.pop().close()


def fetcher(*addresses: str, pauses: list[float] | None = None, timeouts: Timeouts | None = None) -> Fetcher:
    """Return a fetcher that notes its pauses instead of making them."""
    noted = pauses if pauses is not None else []
    MADE.append(Fetcher(addresses, sleep=noted.append, timeouts=timeouts or Timeouts(connect_s=5, stall_s=10)))
    return MADE[-1]


def good(handler: Handler) -> None:
    handler.serve(CONTENT)


def test_a_range_is_one_request_for_exactly_those_bytes() -> None:
    with hostile(good) as server:
        source = fetcher(server.url)
        assert b"".join(source.stream("blobs/x", 1000, 50_000)) == CONTENT[1000:51_000]
        assert [seen.headers["Range"] for seen in server.seen] == ["bytes=1000-50999"]
        assert server.seen[0].path == "/repo/blobs/x"
        assert server.seen[0].headers["Accept-Encoding"] == "identity"
    assert (source.counters.requests, source.counters.bytes_fetched, source.counters.retries) == (1, 50_000, 0)


def test_an_empty_range_asks_nobody() -> None:
    with hostile(good) as server:
        assert list(fetcher(server.url).stream("x", 5, 0)) == []
        assert not server.seen


def test_requests_share_one_connection() -> None:
    with hostile(good) as server:
        source = fetcher(server.url)
        for offset in (0, 100_000, 200_000):
            assert b"".join(source.stream("x", offset, 1000)) == CONTENT[offset : offset + 1000]
        assert source.read("x", 300_000) == CONTENT
        assert len({seen.connection for seen in server.seen}) == 1


def test_a_broken_transfer_goes_on_where_it_stopped() -> None:
    cuts = iter([70_000, 50_000, 0])

    def play(handler: Handler) -> None:
        handler.serve(CONTENT, cut=next(cuts, None))

    pauses: list[float] = []
    with hostile(play) as server:
        assert b"".join(fetcher(server.url, pauses=pauses).stream("x", 0, 300_000)) == CONTENT
        starts = [int(seen.headers["Range"].removeprefix("bytes=").split("-")[0]) for seen in server.seen]
        assert starts == [0, 70_000, 120_000, 120_000]
    assert len(pauses) == 3
    assert 0.25 <= pauses[0] <= 0.5 <= pauses[1] <= 1.0 <= pauses[2] <= 2.0


def test_a_server_that_always_breaks_is_given_up() -> None:
    with hostile(lambda handler: handler.serve(CONTENT, cut=10)) as server:
        with pytest.raises(NetworkFailure) as caught:
            list(fetcher(server.url).stream("x", 0, 300_000))
        assert len(server.seen) == 4
    assert caught.value.reason in ("short-body", "unreachable")
    assert server.url in caught.value.message


def test_a_server_without_range_is_read_from_the_start() -> None:
    with hostile(lambda handler: handler.serve(CONTENT, ranges=False)) as server:
        assert b"".join(fetcher(server.url).stream("x", 123_456, 1000)) == CONTENT[123_456:124_456]


def test_a_file_without_range_is_read_once_however_many_ranges_are_wanted() -> None:
    with hostile(lambda handler: handler.serve(CONTENT, ranges=False)) as server:
        source = fetcher(server.url)
        for offset in range(0, 300_000, 50_000):
            assert b"".join(source.stream("x", offset, 49_000)) == CONTENT[offset : offset + 49_000]
        assert len(server.seen) == 1
        # Another place, and another file, are asked for anew.
        assert b"".join(source.stream("x", 10, 1000)) == CONTENT[10:1010]
        assert b"".join(source.stream("y", 0, 1000)) == CONTENT[:1000]
        assert b"".join(source.stream("x", 2000, 1000)) == CONTENT[2000:3000]
        assert len(server.seen) == 4
        source.close()


def test_a_body_that_breaks_while_nobody_reads_it_is_asked_for_again() -> None:
    with hostile(lambda handler: handler.serve(CONTENT, ranges=False, cut=100_000)) as server:
        source = fetcher(server.url)
        assert b"".join(source.stream("x", 0, 60_000)) == CONTENT[:60_000]
        server.play = lambda handler: handler.serve(CONTENT, ranges=False)
        assert b"".join(source.stream("x", 60_000, 200_000)) == CONTENT[60_000:260_000]
        assert len(server.seen) == 2
        source.close()


def test_a_server_without_range_is_not_read_for_hundreds_of_megabytes() -> None:
    with hostile(lambda handler: handler.serve(CONTENT, ranges=False)) as server:
        with pytest.raises(NetworkFailure) as caught:
            list(fetcher(server.url).stream("x", 1 << 30, 1000))
        assert len(server.seen) == 1
    assert caught.value.reason == "server-misbehaves"
    assert "Range" in caught.value.message


@pytest.mark.parametrize(
    "content_range",
    [
        "bytes 0-999/300000",
        "bytes 1001-1999/300000",
        "bytes 1000-2000/300000",
        "bytes 1000-999/300000",
        "bytes 1000-1999/1500",
        "bytes */300000",
        "bytes 1000-1999",
        "items 1000-1999/300000",
        "bytes 1000-1999/300000, bytes 0-1/300000",
        "bytes 1000-99999999999999999999999999/300000",
        "",
    ],
)
def test_a_wrong_content_range_is_refused_and_the_next_mirror_asked(content_range: str) -> None:
    def lie(handler: Handler) -> None:
        handler.answer(206, CONTENT[1000:2000], Content_Range=content_range)

    with hostile(lie) as liar, hostile(good) as honest:
        assert b"".join(fetcher(liar.url, honest.url).stream("x", 1000, 1000)) == CONTENT[1000:2000]
        with pytest.raises(NetworkFailure) as caught:
            list(fetcher(liar.url).stream("x", 1000, 1000))
    assert caught.value.reason == "server-misbehaves"


def test_a_partial_answer_without_content_range_is_refused() -> None:
    def play(handler: Handler) -> None:
        handler.answer(206, CONTENT[:1000])

    with hostile(play) as server, pytest.raises(NetworkFailure) as caught:
        list(fetcher(server.url).stream("x", 0, 1000))
    assert caught.value.reason == "server-misbehaves"


def test_a_length_that_contradicts_the_range_is_refused() -> None:
    def play(handler: Handler) -> None:
        handler.answer(206, CONTENT[:1000], length=5000, Content_Range="bytes 0-999/300000")

    with hostile(play) as server, pytest.raises(NetworkFailure) as caught:
        list(fetcher(server.url).stream("x", 0, 1000))
    assert caught.value.reason == "server-misbehaves"


def test_a_part_of_the_range_is_taken_and_the_rest_asked_for() -> None:
    big = random.Random(2).randbytes(3 << 20)

    def play(handler: Handler) -> None:
        assert handler.span is not None
        first, last = handler.span
        last = min(last, first + (1 << 20) + 4095)
        handler.answer(206, big[first : last + 1], Content_Range=f"bytes {first}-{last}/{len(big)}")

    with hostile(play) as server:
        assert b"".join(fetcher(server.url).stream("x", 0, len(big))) == big
        assert len(server.seen) == 3


def test_a_server_that_gives_crumbs_is_given_up() -> None:
    def play(handler: Handler) -> None:
        assert handler.span is not None
        first = handler.span[0]
        handler.answer(206, CONTENT[first : first + 1], Content_Range=f"bytes {first}-{first}/300000")

    with hostile(play) as server:
        with pytest.raises(NetworkFailure):
            list(fetcher(server.url).stream("x", 0, 300_000))
        assert len(server.seen) == 4


@pytest.mark.parametrize("encoding", ["gzip", "br", "zstd", "x-unknown", "identity, gzip"])
def test_an_encoded_body_is_refused(encoding: str) -> None:
    with hostile(lambda handler: handler.answer(200, b"\x1f\x8b" + bytes(50), Content_Encoding=encoding)) as server:
        with pytest.raises(NetworkFailure) as caught:
            fetcher(server.url).read("x", 1000)
        assert caught.value.reason == "server-misbehaves"
        with pytest.raises(NetworkFailure):
            list(fetcher(server.url).stream("x", 0, 10))


def test_a_larger_file_than_allowed_is_not_taken_in() -> None:
    with hostile(lambda handler: handler.serve(CONTENT)) as server:
        source = fetcher(server.url)
        with pytest.raises(Untrusted) as caught:
            source.read("x", 1000)
        assert source.counters.bytes_fetched <= 1001
        assert source.read("x", len(CONTENT)) == CONTENT
    assert caught.value.reason == "too-large"


def endless(handler: Handler) -> None:
    handler.answer(200, length=None)
    try:
        while not handler.server.over.is_set():
            handler.wfile.write(bytes(1 << 16))
    except OSError:
        pass


def test_an_endless_body_ends_at_the_limit() -> None:
    with hostile(endless) as server:
        source = fetcher(server.url)
        with pytest.raises(Untrusted) as caught:
            source.read("x", 1000)
        assert source.counters.bytes_fetched <= 1001
        assert b"".join(source.stream("x", 100, 1000)) == bytes(1000)
    assert caught.value.reason == "too-large"


def test_a_file_that_ends_early_is_told() -> None:
    with hostile(good) as server, pytest.raises(NetworkFailure) as caught:
        list(fetcher(server.url).stream("x", 299_000, 2000))
    assert caught.value.reason == "file-too-short"


def test_a_missing_file_is_asked_for_once() -> None:
    pauses: list[float] = []
    with hostile(lambda handler: handler.answer(404)) as server:
        with pytest.raises(NetworkFailure) as caught:
            fetcher(server.url, pauses=pauses).read("metadata/9.root.json", 1000)
        assert len(server.seen) == 1
    assert caught.value.reason == "not-found"
    assert not pauses


def test_retry_after_is_honoured() -> None:
    answers: list[Callable[[Handler], None]] = [
        lambda handler: handler.answer(503, Retry_After="7"),
        lambda handler: handler.answer(429, Retry_After=format_datetime(soon, usegmt=True)),
        good,
    ]
    soon = datetime.datetime.now(datetime.UTC) + datetime.timedelta(seconds=20)
    plays = iter(answers)
    pauses: list[float] = []
    with hostile(lambda handler: next(plays)(handler)) as server:
        assert fetcher(server.url, pauses=pauses).read("x", 300_000) == CONTENT
    assert pauses[0] == 7
    assert 15 <= pauses[1] <= 20


@pytest.mark.parametrize("value", ["soon", "-1", "1e9", "Fri, 99 Foo 2026", "\u00b2"])
def test_a_senseless_retry_after_is_ignored(value: str) -> None:
    plays = iter([lambda handler: handler.answer(503, Retry_After=value), good])
    pauses: list[float] = []
    with hostile(lambda handler: next(plays)(handler)) as server:
        assert fetcher(server.url, pauses=pauses).read("x", 300_000) == CONTENT
    assert pauses[0] <= 0.5


def test_each_mirror_is_left_alone_for_as_long_as_it_asked() -> None:
    busy = iter([True])

    def asks_for_time(handler: Handler) -> None:
        if next(busy, False):
            handler.answer(503, Retry_After="20")
        else:
            good(handler)

    pauses: list[float] = []
    began = time.monotonic()
    with hostile(asks_for_time) as first, hostile(lambda handler: handler.answer(500)) as second:
        assert fetcher(first.url, second.url, pauses=pauses).read("x", 300_000) == CONTENT
        # The second one is asked in between, as often as it may.
        assert (len(first.seen), len(second.seen)) == (2, 4)
    # What has really passed meanwhile need not be waited for any more.
    assert sum(pauses) + time.monotonic() - began >= 20
    assert pauses[0] <= 0.5


def test_time_that_a_pause_would_use_up_is_not_waited_for() -> None:
    pauses: list[float] = []
    timeouts = Timeouts(connect_s=5, stall_s=10, grace_s=8)
    with hostile(lambda handler: handler.answer(503, Retry_After="9")) as server:
        with pytest.raises(NetworkFailure) as caught:
            fetcher(server.url, pauses=pauses, timeouts=timeouts).read("x", 10)
        assert len(server.seen) == 1
    assert pauses == []
    assert caught.value.reason == "server-busy"


def test_a_server_that_asks_for_an_hour_is_left_for_the_next() -> None:
    pauses: list[float] = []
    with hostile(lambda handler: handler.answer(503, Retry_After="3600")) as busy, hostile(good) as idle:
        assert fetcher(busy.url, idle.url, pauses=pauses).read("x", 300_000) == CONTENT
        assert len(busy.seen) == 1
        with pytest.raises(NetworkFailure) as caught:
            fetcher(busy.url, pauses=pauses).read("x", 300_000)
    assert caught.value.reason == "server-busy"
    assert all(pause < 1 for pause in pauses)


def test_a_silent_server_is_left_for_the_next() -> None:
    def silent(handler: Handler) -> None:
        handler.server.over.wait(20)

    with hostile(silent) as dead, hostile(good) as alive:
        source = fetcher(dead.url, alive.url, timeouts=IMPATIENT)
        assert b"".join(source.stream("x", 0, 300_000)) == CONTENT


def test_a_transfer_that_stops_midway_goes_on_elsewhere() -> None:
    def stops(handler: Handler) -> None:
        handler.answer(206, CONTENT[:1000], length=300_000, Content_Range="bytes 0-299999/300000")
        handler.server.over.wait(20)

    with hostile(stops) as dead, hostile(good) as alive:
        source = fetcher(dead.url, alive.url, timeouts=IMPATIENT)
        assert b"".join(source.stream("x", 0, 300_000)) == CONTENT
        assert alive.seen[0].headers["Range"] == "bytes=1000-299999"


def test_a_trickle_is_a_stall() -> None:
    def trickle(handler: Handler) -> None:
        handler.answer(200, length=300_000)
        try:
            while not handler.server.over.wait(0.05):
                handler.wfile.write(b"x")
        except OSError:
            pass

    with hostile(trickle) as slow, pytest.raises(NetworkFailure) as caught:
        Fetcher([slow.url], timeouts=IMPATIENT, retries=ONCE).read("x", 300_000)
    assert caught.value.reason == "stalled"


@pytest.mark.parametrize(
    "start", [b"HTTP/1.1 200 OK\r\nX-Slow: ", b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"]
)
def test_headers_and_chunk_lengths_that_trickle_do_not_hold_a_node(start: bytes) -> None:
    def trickle(handler: Handler) -> None:
        handler.close_connection = True
        handler.wfile.write(start)
        try:
            while not handler.server.over.wait(0.05):
                handler.wfile.write(b"0")
        except OSError:
            pass

    with hostile(trickle) as slow, hostile(good) as quick:
        timeouts = Timeouts(connect_s=1, stall_s=1.5)
        assert fetcher(slow.url, quick.url, timeouts=timeouts).read("x", 300_000) == CONTENT
        assert len(slow.seen) == 1


def test_a_tls_handshake_that_hangs_does_not_hold_a_node() -> None:
    def silent(handler: Handler) -> None:
        handler.server.over.wait(20)

    with hostile(silent) as server:
        address = server.url.replace("http:", "https:")
        with pytest.raises(NetworkFailure) as caught:
            Fetcher([address], timeouts=Timeouts(connect_s=0.5, stall_s=0.5), retries=ONCE).read("x", 1000)
    assert caught.value.reason in ("timeout", "unreachable", "tls-refused")


def test_a_call_ends_at_its_deadline_however_patient_its_retries() -> None:
    with hostile(lambda handler: handler.answer(503)) as server:
        source = Fetcher(
            [server.url],
            timeouts=Timeouts(grace_s=100, slowest_bytes_per_s=1 << 20),
            retries=Retries(attempts=10**6, first_pause_s=10, longest_pause_s=30),
            sleep=lambda seconds: None,
        )
        with pytest.raises(NetworkFailure) as caught:
            source.read("x", 1000)
        assert len(server.seen) < 15
    # What used the time up is told, not that it is up.
    assert caught.value.reason == "server-busy"


def test_redirects_are_followed_without_the_configured_headers() -> None:
    with hostile(good) as blob_store:
        target = f"{blob_store.url}/signed"

        def redirect(handler: Handler) -> None:
            handler.answer(302, Location=target)

        with hostile(redirect) as front:
            source = Fetcher([front.url], headers={"X-Token": "secret"})
            assert b"".join(source.stream("x", 10, 100)) == CONTENT[10:110]
            assert front.seen[0].headers["X-Token"] == "secret"
        assert "X-Token" not in blob_store.seen[0].headers
        assert blob_store.seen[0].headers["Range"] == "bytes=10-109"


def test_a_redirect_to_itself_ends() -> None:
    with hostile(lambda handler: handler.answer(302, Location=handler.path)) as server:
        with pytest.raises(NetworkFailure) as caught:
            fetcher(server.url).read("x", 1000)
        assert len(server.seen) == 6
    assert caught.value.reason == "server-misbehaves"


def test_the_body_of_a_redirect_is_not_read() -> None:
    sent = 0

    def redirect(handler: Handler) -> None:
        nonlocal sent
        handler.answer(302, length=None, Location=target)
        try:
            while not handler.server.over.is_set():
                handler.wfile.write(bytes(1 << 16))
                sent += 1 << 16
        except OSError:
            pass

    with hostile(good) as blob_store, hostile(redirect) as front:
        target = f"{blob_store.url}/x"
        assert fetcher(front.url).read("x", 300_000) == CONTENT
    assert sent < 32 << 20


@pytest.mark.parametrize("target", ["file:///etc/hostname", "ftp://127.0.0.1/x", "gopher:x"])
def test_a_redirect_out_of_the_web_is_refused(target: str) -> None:
    def play(handler: Handler) -> None:
        handler.answer(302, Location=target)

    with hostile(play) as server, pytest.raises(NetworkFailure) as caught:
        fetcher(server.url).read("x", 1000)
    assert caught.value.reason == "server-misbehaves"


def test_garbage_instead_of_http_is_a_network_failure() -> None:
    def garbage(handler: Handler) -> None:
        handler.wfile.write(b"\x00\xff SSH-2.0-nope\r\n" * 10)
        handler.close_connection = True

    with hostile(garbage) as server, pytest.raises(NetworkFailure) as caught:
        fetcher(server.url).read("x", 1000)
    assert caught.value.reason == "unreachable"


def test_every_mirror_that_failed_is_named() -> None:
    with hostile(lambda handler: handler.answer(404)) as empty, pytest.raises(NetworkFailure) as caught:
        fetcher("http://127.0.0.1:1/", empty.url).read("x", 1000)
    assert "http://127.0.0.1:1/" in caught.value.message
    assert empty.url in caught.value.message
    assert caught.value.reason == "not-found"


def test_a_failure_is_not_its_own_cause() -> None:
    with hostile(lambda handler: handler.answer(404)) as server, pytest.raises(NetworkFailure) as caught:
        fetcher(server.url).read("x", 1000)
    assert caught.value.__cause__ is not caught.value
    assert caught.value.__context__ is not caught.value


def test_a_mirror_to_avoid_is_asked_last() -> None:
    with hostile(good) as first, hostile(good) as second:
        source = fetcher(first.url, second.url)
        source.avoid(source.mirrors[0])
        assert source.read("x", 300_000) == CONTENT
        assert not first.seen


def test_secrets_in_an_address_stay_out_of_messages() -> None:
    with hostile(lambda handler: handler.answer(403)) as server:
        address = server.url.replace("http://", "http://node:pass-word@")
        with pytest.raises(NetworkFailure) as caught:
            fetcher(address).read("x", 1000)
        assert server.seen[0].headers["Authorization"].startswith("Basic ")
    assert "pass-word" not in str(caught.value)
    assert caught.value.reason == "forbidden"


def test_proxies_come_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    with hostile(good) as proxy:
        monkeypatch.setenv("http_proxy", proxy.url.removesuffix("/repo"))
        monkeypatch.setenv("no_proxy", "")
        assert fetcher("http://repository.invalid/acl").read("x", 300_000) == CONTENT
        assert proxy.seen[0].path == "http://repository.invalid/acl/x"


def test_https_goes_through_the_proxy_and_is_proven_at_its_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pem = certificate(tmp_path, "mirror", server=True)
    with hostile(good, certificate=pem) as server, hostile(good) as proxy:
        proxy.instead_of["localhost"] = "127.0.0.1"
        monkeypatch.setenv("https_proxy", proxy.url.removesuffix("/repo"))
        monkeypatch.setenv("no_proxy", "")
        source = Fetcher([server.url], ca_file=pem, headers={"X-Token": "secret"})
        assert source.read("x", 300_000) == CONTENT
        assert b"".join(source.stream("x", 5, 1000)) == CONTENT[5:1005]
        source.close()
        assert [seen.path for seen in proxy.seen] == [server.url.removeprefix("https://").removesuffix("/repo")]
        # What is meant for the mirror is not for the proxy to read.
        assert "X-Token" not in proxy.seen[0].headers
        # The certificate is for 127.0.0.1, wherever the proxy leads to.
        with pytest.raises(NetworkFailure) as caught:
            Fetcher([server.url.replace("127.0.0.1", "localhost")], ca_file=pem, retries=ONCE).read("x", 300_000)
        assert caught.value.reason == "tls-refused"


def test_what_no_proxy_names_is_asked_directly(monkeypatch: pytest.MonkeyPatch) -> None:
    with hostile(good) as server, hostile(good) as proxy:
        monkeypatch.setenv("http_proxy", proxy.url.removesuffix("/repo"))
        monkeypatch.setenv("no_proxy", "127.0.0.1")
        assert fetcher(server.url).read("x", 300_000) == CONTENT
        assert not proxy.seen


def test_a_proxy_that_is_down_is_a_network_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
    monkeypatch.setenv("no_proxy", "")
    with pytest.raises(NetworkFailure) as caught:
        fetcher("http://repository.invalid/acl").read("x", 300_000)
    assert caught.value.reason == "unreachable"


def test_the_environments_ca_bundle_is_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pem = certificate(tmp_path, "mirror", server=True)
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(pem))
    with hostile(good, certificate=pem) as server:
        assert fetcher(server.url).read("x", 300_000) == CONTENT


def test_memory_stays_bounded_over_a_large_file() -> None:
    block = bytes(1 << 20)

    def large(handler: Handler) -> None:
        handler.answer(206, length=64 << 20, Content_Range=f"bytes 0-{(64 << 20) - 1}/{64 << 20}")
        for _ in range(64):
            handler.wfile.write(block)

    with hostile(large) as server:
        source = fetcher(server.url)
        tracemalloc.start()
        try:
            total = sum(len(piece) for piece in source.stream("x", 0, 64 << 20))
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
    assert total == 64 << 20
    assert peak < 8 << 20


def certificate(folder: Path, name: str, *, server: bool) -> Path:
    """Write a self-signed certificate with its key as one PEM file."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.x509.oid import NameOID

    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    now = datetime.datetime.now(datetime.UTC)
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
    )
    if server:
        names = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))])
        builder = builder.add_extension(names, critical=False)
    made = builder.sign(key, hashes.SHA256())
    at = folder / f"{name}.pem"
    at.write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
        + made.public_bytes(serialization.Encoding.PEM)
    )
    return at


def test_https_is_proven_by_the_ca_file(tmp_path: Path) -> None:
    pem = certificate(tmp_path, "mirror", server=True)
    with hostile(good, certificate=pem) as server:
        assert Fetcher([server.url], ca_file=pem).read("x", 300_000) == CONTENT
        with pytest.raises(NetworkFailure) as caught:
            fetcher(server.url).read("x", 300_000)
    assert caught.value.reason == "tls-refused"
    assert "certificate" in caught.value.message


def test_a_client_certificate_is_presented(tmp_path: Path) -> None:
    pem = certificate(tmp_path, "mirror", server=True)
    node = certificate(tmp_path, "node", server=False)
    with hostile(good, certificate=pem, client_ca=node) as server:
        assert Fetcher([server.url], ca_file=pem, client_cert=str(node)).read("x", 300_000) == CONTENT
        with pytest.raises(NetworkFailure):
            Fetcher([server.url], ca_file=pem, sleep=lambda seconds: None).read("x", 300_000)


def test_a_downgrade_from_https_is_refused(tmp_path: Path) -> None:
    pem = certificate(tmp_path, "mirror", server=True)
    with ExitStack() as enter:
        plain = enter.enter_context(hostile(good))
        secure = enter.enter_context(hostile(lambda handler: handler.answer(302, Location=plain.url), certificate=pem))
        with pytest.raises(NetworkFailure) as caught:
            Fetcher([secure.url], ca_file=pem).read("x", 1000)
        assert not plain.seen
    assert caught.value.reason == "server-misbehaves"


def test_a_missing_ca_file_is_told_before_anything_is_asked(tmp_path: Path) -> None:
    with pytest.raises(EnvironmentFailure) as caught:
        Fetcher(["https://127.0.0.1/"], ca_file=tmp_path / "none.pem")
    assert caught.value.reason == "ca-file-missing"


@settings(max_examples=40, deadline=None)
@given(
    offset=st.integers(0, 250_000),
    length=st.integers(0, 50_000),
    cuts=st.lists(st.tuples(st.integers(0, 2), st.integers(0, 60_000), st.booleans()), max_size=6),
)
def test_whatever_breaks_the_bytes_are_right_or_there_is_an_error(
    offset: int, length: int, cuts: list[tuple[int, int, bool]]
) -> None:
    plays = iter(cuts)

    def play(handler: Handler) -> None:
        kind, cut, ranges = next(plays, (0, 1 << 30, True))
        if kind == 2:
            handler.answer(500)
        else:
            handler.serve(CONTENT, cut=cut, ranges=ranges)

    with hostile(play) as server, closing(fetcher(server.url)) as source:
        received = b""
        try:
            for piece in source.stream("x", offset, length):
                received += piece
        except NetworkFailure:
            assert len(server.seen) >= 4
            assert CONTENT[offset:].startswith(received)
        else:
            assert received == CONTENT[offset : offset + length]
