"""The compiled streaming read reads every byte once, whatever the widths, sizes, offsets and threads."""

import numpy as np
import pytest

from bloomery.ops import native

LEVELS = range(native.level() + 1 if native.library() else 0)
built = pytest.mark.skipif(native.library() is None, reason="this build has no compiled library")

# Around every boundary of the code: words (8), vectors (32, 64, 128), the 1024 bytes after which 16-bit lanes spill.
SIZES = [0, 1, 7, 8, 9, 31, 63, 64, 65, 127, 128, 129, 1023, 1024, 1025, 4097, 65537, 1_000_003]


def memory(size: int, offset: int) -> np.ndarray:
    """Bytes at a known distance from a 64-byte boundary, among others that must not be read."""
    room = np.full(size + 256, 255, np.uint8)
    first = -room.ctypes.data % 64 + offset
    room[first : first + size] = np.random.default_rng(size).integers(0, 256, size, np.uint8)
    return room[first : first + size]


def regions(arrays: list[np.ndarray]) -> list[tuple[int, int]]:
    return [(array.ctypes.data, array.size) for array in arrays]


@built
@pytest.mark.parametrize("level", LEVELS, ids=lambda level: native.LEVELS[level])
@pytest.mark.parametrize("threads", [1, 2, 3, 4])
def test_checksum_is_the_sum_of_all_bytes(level: int, threads: int) -> None:
    for size in SIZES:
        for offset in (0, 1, 8, 33, 63):
            array = memory(size, offset)
            reading = native.stream_read(regions([array]), threads, 1, level)
            assert reading.checksum == int(array.sum(dtype=np.uint64)), (size, offset)


@built
@pytest.mark.parametrize("threads", [1, 2, 3, 4, 7])
def test_many_regions_are_read_as_one_stream(threads: int) -> None:
    arrays = [memory(size, offset) for offset, size in enumerate(SIZES)]
    expected = sum(int(array.sum(dtype=np.uint64)) for array in arrays)
    assert native.stream_read(regions(arrays), threads, 3).checksum == expected


@built
@pytest.mark.parametrize("level", LEVELS, ids=lambda level: native.LEVELS[level])
def test_lanes_do_not_spill(level: int) -> None:
    array = np.full(1 << 20, 255, np.uint8)
    assert native.stream_read(regions([array]), 1, 1, level).checksum == 255 << 20


@built
def test_one_changed_byte_changes_the_checksum() -> None:
    array = memory(100_000, 3)
    before = native.stream_read(regions([array]), 2, 1).checksum
    array[77_777] ^= 1
    assert abs(native.stream_read(regions([array]), 2, 1).checksum - before) == 1


@built
def test_seconds_are_those_of_a_pass() -> None:
    array = np.zeros(1 << 22, np.uint8)
    assert native.stream_read(regions([array]), 2, 3).seconds > 0


@built
@pytest.mark.parametrize(
    ("threads", "passes", "level"), [(0, 1, None), (1, 0, None), (-1, 1, None), (1, 1, -1), (1, 1, len(native.LEVELS))]
)
def test_impossible_requests_are_refused(threads: int, passes: int, level: int | None) -> None:
    with pytest.raises(ValueError, match=r"at least 1|none of this processor's"):
        native.stream_read(regions([memory(64, 0)]), threads, passes, level)


def test_without_the_library_nothing_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native, "library", lambda: None)
    with pytest.raises(ValueError, match="natively"):
        native.stream_read(regions([memory(64, 0)]), 1, 1)
