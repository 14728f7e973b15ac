"""What the library `datasets` saved is read as it reads it. Apart, since importing it takes seconds."""

from pathlib import Path
from typing import Any

import pytest

from bloomery.data import documents
from bloomery.data.documents import find_files, plan_shards, read_documents
from bloomery.errors import UsageError

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def datasets() -> Any:
    import datasets

    return datasets


def test_a_saved_dataset_of_several_files_is_read_in_order(
    datasets: Any, texts: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = datasets.Dataset.from_dict({"text": texts, "n": list(range(len(texts)))})
    rows.save_to_disk(tmp_path / "saved", num_shards=3)
    expected = datasets.load_from_disk(tmp_path / "saved")["text"][:]
    assert list(read_documents(find_files("x", [str(tmp_path / "saved")]))) == expected == texts
    monkeypatch.setattr(documents, "SHARD_BYTES", 1)
    assert len(plan_shards([tmp_path / "saved"])) == 3
    assert list(read_documents([tmp_path / "saved"])) == texts


def test_rows_that_were_selected_and_mixed_are_read_as_datasets_reads_them(
    datasets: Any, texts: list[str], tmp_path: Path
) -> None:
    datasets.Dataset.from_dict({"text": texts}).shuffle(seed=3).select(range(5, 30)).save_to_disk(tmp_path / "saved")
    expected = datasets.load_from_disk(tmp_path / "saved")["text"][:]
    assert list(read_documents([tmp_path / "saved"])) == expected != texts[5:30]


def test_several_splits_must_be_told_apart(datasets: Any, tmp_path: Path) -> None:
    rows = datasets.Dataset.from_dict({"text": ["a"]})
    datasets.DatasetDict({"train": rows, "test": rows}).save_to_disk(tmp_path / "saved")
    with pytest.raises(UsageError, match=r"several splits \(test, train\): name one, such as .*saved/train"):
        find_files("x", [str(tmp_path / "saved")])
    assert list(read_documents(find_files("x", [str(tmp_path / "saved" / "train")]))) == ["a"]
