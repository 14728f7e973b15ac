"""A model's name becomes a folder, or an error that says what there is."""

from pathlib import Path

import pytest

from bloomery.checkpoint.hub import BUILT_IN, resolve
from bloomery.errors import UsageError


def test_built_in_model_is_known_by_name() -> None:
    assert resolve("dickens") == BUILT_IN["dickens"]


def test_folder_is_itself(tmp_path: Path) -> None:
    assert resolve(tmp_path) == tmp_path
    assert resolve(str(tmp_path)) == tmp_path


def test_home_is_expanded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "model").mkdir()
    assert resolve("~/model") == tmp_path / "model"


def test_file_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "model.safetensors"
    file.touch()
    with pytest.raises(UsageError, match="is a file: give the folder"):
        resolve(file)


@pytest.mark.parametrize(("name", "hint"), [("dikkens", "did you mean 'dickens'"), ("nothing/here", "no model")])
def test_unknown_name_is_refused_in_one_line(name: str, hint: str) -> None:
    with pytest.raises(UsageError) as caught:
        resolve(name)
    assert hint in str(caught.value)
    assert name in str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_home_of_nobody_is_no_model() -> None:
    with pytest.raises(UsageError, match="no model '~nobody-of-that-name/model'"):
        resolve("~nobody-of-that-name/model")
