"""What data.train and data.valid name is found as it is meant; what cannot be is refused before any text is read."""

from dataclasses import replace
from pathlib import Path

import pytest

from bloomery.errors import UsageError
from bloomery.train.recipe.config import TrainConfig
from bloomery.train.recipe.run_options import Data
from bloomery.train.text import plan_text
from bloomery.train.trainer import Trainer
from megatron import write_documents


@pytest.mark.parametrize("suffix", ["", ".bin", ".idx"])
def test_a_token_file_is_named_by_its_prefix_or_by_one_of_its_files(tmp_path: Path, suffix: str) -> None:
    for name in ("a.text", "b"):
        write_documents(tmp_path / name, 8, [[[1, 2]]])
    train, valid = f"{tmp_path}/a.text{suffix}", f"{tmp_path}/b{suffix}"
    for written, name in ((valid, "b"), (f"held={valid}", "held")):
        planned = plan_text(Data(train=(train,), valid=(written,)))
        assert [entry.prefix for entry in planned.train] == [tmp_path / "a.text"]
        assert [(entry.prefix, entry.name) for entry in planned.valid] == [(tmp_path / "b", name)]


def test_the_same_tokens_by_two_names_are_not_learned_from_and_held_out(tmp_path: Path) -> None:
    write_documents(tmp_path / "a", 8, [[[1, 2]]])
    with pytest.raises(UsageError, match="both hold"):
        plan_text(Data(train=(f"{tmp_path}/a.bin",), valid=(f"{tmp_path}/a.idx",)))


@pytest.mark.parametrize(
    ("more", "said"),
    [({"weights": (1e-9, 1.0)}, "data.weights are too fine"), ({"skip": ("5",)}, "data.skip '5' is no range")],
    ids=["weights", "skip"],
)
def test_an_order_that_cannot_be_kept_is_refused_before_any_work(
    options: TrainConfig, corpus: Path, more: dict[str, tuple[float, ...]], said: str
) -> None:
    train = (str(corpus / "train-1.txt"), str(corpus / "train-2.txt"))
    data = replace(options.data, train=train, **more)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match=said):
        Trainer(replace(options, data=data))
    assert not options.run.out.exists()
