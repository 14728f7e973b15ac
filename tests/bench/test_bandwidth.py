"""A bandwidth says what it read and how, is remembered, and never fails a run over its memory of earlier ones."""

import json
from pathlib import Path

import pytest
import torch

from bloomery.bench import bandwidth
from bloomery.bench.bandwidth import Bandwidth, read_bandwidth
from bloomery.ops import native


def weights(*shapes: tuple[int, ...]) -> list[torch.Tensor]:
    return [torch.ones(shape, dtype=torch.bfloat16) for shape in shapes]


SMALL = weights((300, 7), (64,), (3,), ())


@pytest.fixture
def numpy_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native, "library", lambda: None)


def test_says_what_was_read() -> None:
    result = read_bandwidth(SMALL, 2, None)
    assert result.bytes == 2 * (300 * 7 + 64 + 3 + 1)
    assert result.threads == 2
    assert result.ruler == ("numpy" if native.library() is None else "native")
    assert not result.cached
    assert result.gb_per_s > 0


@pytest.mark.usefixtures("numpy_only")
@pytest.mark.parametrize("threads", [1, 2, 3])
def test_without_the_library_numpy_is_the_ruler(threads: int) -> None:
    result = read_bandwidth(SMALL, threads, None)
    assert (result.ruler, result.bytes, result.cached) == ("numpy", 2 * (300 * 7 + 64 + 3 + 1), False)
    assert result.gb_per_s > 0


def test_both_rulers_read_the_same_regions(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []

    def spy(regions: list[tuple[int, int]], threads: int, passes: int) -> float:
        seen.append((regions, threads, passes))
        return 2.0

    monkeypatch.setattr(native, "library", lambda: None)
    monkeypatch.setattr(bandwidth, "_numpy_seconds", spy)
    result = read_bandwidth(SMALL, 3, None)
    assert seen == [([(t.data_ptr(), t.nbytes) for t in SMALL], 3, 5)]
    assert result.gb_per_s == pytest.approx(result.bytes / 2.0 / 1e9)


def test_a_large_model_is_read_in_part(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bandwidth, "MOST_BYTES", 1000)
    assert read_bandwidth(weights((400,), (400,), (400,)), 1, None).bytes == 1000


def test_is_remembered(tmp_path: Path) -> None:
    first = read_bandwidth(SMALL, 1, tmp_path / "new" / "folder")
    second = read_bandwidth(SMALL, 1, tmp_path / "new" / "folder")
    assert (first.cached, second.cached) == (False, True)
    assert second == Bandwidth(first.gb_per_s, first.bytes, 1, first.ruler, cached=True)
    assert len(list((tmp_path / "new" / "folder").iterdir())) == 1  # nothing half-written stays behind


def test_other_bytes_threads_or_processors_are_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read_bandwidth(SMALL, 1, tmp_path)
    assert not read_bandwidth(SMALL, 2, tmp_path).cached
    assert not read_bandwidth(SMALL[1:], 1, tmp_path).cached
    monkeypatch.setattr(bandwidth, "cpu_name", lambda: "another")
    assert not read_bandwidth(SMALL, 1, tmp_path).cached
    assert read_bandwidth(SMALL, 1, tmp_path).cached


@pytest.mark.skipif(native.library() is None, reason="this build has one ruler only")
def test_rulers_do_not_share_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read_bandwidth(SMALL, 1, tmp_path)
    monkeypatch.setattr(native, "library", lambda: None)
    second = read_bandwidth(SMALL, 1, tmp_path)
    assert (second.ruler, second.cached) == ("numpy", False)


@pytest.mark.parametrize("damage", ["", "{", "[]", "null", '"text"', "\x00\xff", "{}"])
def test_a_corrupt_file_is_measured_again_and_replaced(tmp_path: Path, damage: str) -> None:
    read_bandwidth(SMALL, 1, tmp_path)
    (file,) = tmp_path.iterdir()
    file.write_text(damage, encoding="latin-1")
    assert not read_bandwidth(SMALL, 1, tmp_path).cached
    assert read_bandwidth(SMALL, 1, tmp_path).cached


@pytest.mark.parametrize("value", [0.0, -1.0, "fast", None, True, float("nan"), float("inf")])
def test_an_impossible_number_is_measured_again(tmp_path: Path, value: object) -> None:
    read_bandwidth(SMALL, 1, tmp_path)
    (file,) = tmp_path.iterdir()
    file.write_text(json.dumps(json.loads(file.read_text()) | {"gb_per_s": value}))
    assert not read_bandwidth(SMALL, 1, tmp_path).cached


def test_a_file_of_another_measurement_is_not_believed(tmp_path: Path) -> None:
    read_bandwidth(SMALL, 1, tmp_path)
    (file,) = tmp_path.iterdir()
    file.write_text(json.dumps(json.loads(file.read_text()) | {"threads": 9}))
    assert not read_bandwidth(SMALL, 1, tmp_path).cached


def test_an_unwritable_folder_costs_nothing_but_time(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")  # not permissions: the superuser has them all
    for _ in range(2):
        result = read_bandwidth(SMALL, 1, tmp_path / "file" / "cache")
        assert not result.cached
        assert result.gb_per_s > 0


def test_a_folder_in_the_place_of_the_file_costs_nothing_but_time(tmp_path: Path) -> None:
    read_bandwidth(SMALL, 1, tmp_path)
    (file,) = tmp_path.iterdir()
    file.unlink()
    file.mkdir()
    (file / "full").touch()
    assert not read_bandwidth(SMALL, 1, tmp_path).cached
    assert [path.name for path in tmp_path.iterdir()] == [file.name]


@pytest.mark.parametrize(
    ("tensors", "threads"),
    [
        ([], 1),
        (weights((0,)), 1),
        (SMALL, 0),
        ([torch.ones(4, 4).T], 1),
        ([torch.ones(4, device="meta")], 1),
    ],
    ids=["none", "empty", "no threads", "strided", "no memory"],
)
def test_what_cannot_be_read_is_refused(tensors: list[torch.Tensor], threads: int) -> None:
    with pytest.raises(ValueError, match="bandwidth"):
        read_bandwidth(tensors, threads, None)


def test_the_processor_has_a_name() -> None:
    assert bandwidth.cpu_name()
