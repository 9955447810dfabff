"""Ranges of files and disks: bounds, sizes beyond 4 GiB, direct access, failures."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from updater.blocks import paged
from updater.errors import EnvironmentFailure
from updater.partition import FileBlocks, WholeDisk

GIB = 1 << 30


def sparse(path: Path, length: int) -> Path:
    """Make a file of zeros that takes no space."""
    with path.open("wb") as file:
        file.truncate(length)
    return path


def direct_works(folder: Path) -> bool:
    """Tell whether this folder's file system takes O_DIRECT."""
    try:
        FileBlocks(sparse(folder / "probe", 4096), direct=True).close()
    except EnvironmentFailure:
        return False
    return True


@pytest.mark.parametrize("direct", [False, True])
def test_what_is_written_is_read_back_and_nothing_else_changes(tmp_path: Path, direct: bool) -> None:
    if direct and not direct_works(tmp_path):
        pytest.skip("this file system has no O_DIRECT")
    image = tmp_path / "disk"
    before = os.urandom(1 << 20)
    image.write_bytes(before)
    with FileBlocks(image, offset_bytes=65536, length_bytes=262144, writable=True, direct=direct) as blocks:
        fresh = os.urandom(40960)
        blocks.write(8192, memoryview(b"xx" + fresh)[2:])
        blocks.flush()
        assert blocks.read(8192, 40960) == fresh
        assert blocks.read(0, 262144) == before[65536:73728] + fresh + before[114688:327680]
    assert image.read_bytes() == before[:73728] + fresh + before[114688:]


@pytest.mark.parametrize("direct", [None, False, True])
def test_memory_is_filled_and_large_pieces_are_written_whatever_memory_they_lie_in(
    tmp_path: Path, direct: bool | None
) -> None:
    if direct and not direct_works(tmp_path):
        pytest.skip("this file system has no O_DIRECT")
    image = tmp_path / "disk"
    before = os.urandom(1 << 20)
    image.write_bytes(before)
    with FileBlocks(image, offset_bytes=65536, length_bytes=786432, writable=True, direct=direct) as blocks:
        fresh = os.urandom(1 << 17)
        on_a_page, off_it = paged(1 << 17), memoryview(b"xxx" + fresh)[3:]
        on_a_page[:] = fresh
        blocks.write(0, on_a_page)
        blocks.write(1 << 17, off_it)
        blocks.write(1 << 18, fresh[:4096])
        room = paged(786432)
        blocks.read_into(0, room)
        expected = fresh + fresh + fresh[:4096] + before[65536 + (1 << 18) + 4096 : 65536 + 786432]
        assert bytes(room) == blocks.read(0, 786432) == expected
        blocks.flush()
        blocks.read_into(4096, room[:8192])
        assert room[:8192] == fresh[4096:12288]
    assert image.read_bytes() == before[:65536] + expected + before[65536 + 786432 :]


def test_a_partition_that_begins_between_blocks_goes_through_the_cache(tmp_path: Path) -> None:
    image = tmp_path / "disk"
    image.write_bytes(bytes(512) + b"\x5a" * 131072)
    with FileBlocks(image, offset_bytes=512, writable=True) as blocks:
        assert blocks.read_back == "fsync and POSIX_FADV_DONTNEED"
        room = paged(131072)
        blocks.read_into(0, room)
        assert bytes(room) == b"\x5a" * 131072
        blocks.write(0, paged(131072))
    assert image.read_bytes() == bytes(512 + 131072)


@pytest.mark.parametrize("direct", [False, True])
def test_offsets_beyond_four_gibibytes_are_reached(tmp_path: Path, direct: bool) -> None:
    if direct and not direct_works(tmp_path):
        pytest.skip("this file system has no O_DIRECT")
    image = sparse(tmp_path / "disk", 20 * GIB)
    with FileBlocks(image, offset_bytes=5 * GIB, length_bytes=10 * GIB, writable=True, direct=direct) as blocks:
        assert blocks.length_bytes == 10 * GIB
        blocks.write(10 * GIB - 4096, b"\xa5" * 4096)
        blocks.write(4 * GIB, b"\x5a" * 4096)
        blocks.flush()
        assert blocks.read(10 * GIB - 4096, 4096) == b"\xa5" * 4096
        assert blocks.read(4 * GIB - 4096, 12288) == bytes(4096) + b"\x5a" * 4096 + bytes(4096)
    with image.open("rb") as file:
        file.seek(15 * GIB - 4096)
        assert file.read(8192) == b"\xa5" * 4096 + bytes(4096)


def test_one_call_may_move_more_than_the_kernel_does_at_once(tmp_path: Path) -> None:
    image = sparse(tmp_path / "disk", 40 << 20)
    content = os.urandom(1 << 20) * 40
    with FileBlocks(image, writable=True, direct=direct_works(tmp_path)) as blocks:
        blocks.write(0, content)
        assert blocks.read(0, 40 << 20) == content


@settings(max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(offset=st.integers(-(1 << 64), 1 << 64), length=st.integers(0, 1 << 64))
def test_no_access_leaves_the_partition(tmp_path: Path, offset: int, length: int) -> None:
    image = sparse(tmp_path / "disk", 1 << 20)
    with FileBlocks(image, offset_bytes=4096, length_bytes=8192, writable=True) as blocks:
        inside = offset in (0, 4096, 8192) and offset + length <= 8192 and length % 4096 == 0
        if inside:
            assert blocks.read(offset, length) == bytes(length)
        else:
            with pytest.raises(ValueError):
                blocks.read(offset, length)


def test_a_partial_block_is_refused(tmp_path: Path) -> None:
    with FileBlocks(sparse(tmp_path / "disk", 8192), writable=True) as blocks:
        with pytest.raises(ValueError):
            blocks.write(0, b"short")
        with pytest.raises(ValueError):
            blocks.read(512, 4096)


def test_a_partition_beyond_the_end_of_its_disk_is_refused(tmp_path: Path) -> None:
    with pytest.raises(EnvironmentFailure) as caught:
        FileBlocks(sparse(tmp_path / "disk", 8192), offset_bytes=4096, length_bytes=8192)
    assert caught.value.reason == "beyond-disk"


def test_a_missing_disk_is_named(tmp_path: Path) -> None:
    with pytest.raises(EnvironmentFailure, match="nowhere"):
        FileBlocks(tmp_path / "nowhere")


def test_blocks_open_for_reading_are_not_written(tmp_path: Path) -> None:
    image = sparse(tmp_path / "disk", 8192)
    with FileBlocks(image) as blocks, pytest.raises(ValueError):
        blocks.write(0, b"\1" * 4096)
    assert image.read_bytes() == bytes(8192)


def test_a_disk_that_shrank_is_an_io_error_that_names_the_offset(tmp_path: Path) -> None:
    image = sparse(tmp_path / "disk", 16384)
    with FileBlocks(image, name="slot b root") as blocks:
        os.truncate(image, 8192)
        with pytest.raises(EnvironmentFailure, match="slot b root at byte 8192") as caught:
            blocks.read(0, 16384)
    assert caught.value.reason == "io-error"


def test_a_write_that_the_file_system_refuses_is_an_error_not_a_silence(tmp_path: Path) -> None:
    image = sparse(tmp_path / "disk", 16384)
    # The limit on file sizes belongs to a process, hence the child.
    child = f"""
import resource, signal, sys
from pathlib import Path
from updater.errors import EnvironmentFailure
from updater.partition import FileBlocks
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (8192, 8192))
blocks = FileBlocks(Path({str(image)!r}), writable=True)
blocks.write(0, b"a" * 8192)
try:
    blocks.write(4096, b"b" * 8192)
except EnvironmentFailure as error:
    assert error.reason == "io-error" and "byte 8192" in str(error), error
    sys.exit(17)
"""
    assert subprocess.run([sys.executable, "-c", child], check=False).returncode == 17
    assert image.read_bytes() == b"a" * 4096 + b"b" * 4096 + bytes(8192)


def test_a_whole_disk_is_read_and_written_by_sectors(tmp_path: Path) -> None:
    image = sparse(tmp_path / "disk", 1 << 20)
    with WholeDisk(image, writable=True) as disk:
        assert disk.sector_bytes is None
        disk.write(512, b"s" * 512)
        disk.flush()
        assert disk.read(0, 1536) == bytes(512) + b"s" * 512 + bytes(512)
        with pytest.raises(ValueError):
            disk.read(100, 512)
