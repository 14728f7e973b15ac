"""A model's licence is what its files say it is, and nothing where they say nothing."""

import json
from pathlib import Path

import pytest

from bloomery.checkpoint.folder import read_folder
from bloomery.checkpoint.license import license_of
from folders import Source
from stores import make_store


@pytest.mark.parametrize(
    ("card", "name"),
    [
        ("---\nlicense: mit\n---\n# Model\n", "mit"),
        ("---\nlanguage:\n- en\nlicense: bigscience-bloom-rail-1.0\ntags: [a]\n---\n", "bigscience-bloom-rail-1.0"),
        ("---\r\nlicense: 'mit'\r\n---\r\n", "mit"),
        ("---\nlicense:\n- mit\n- apache-2.0\n---\n", "mit, apache-2.0"),
        ('---\nlicense: other\nlicense_name: "llama-9"\n---\n', "llama-9"),
        ("---\nlicense: other\n---\n", "other"),
        ("---\nlicense:\n---\n", None),
        ("---\nlanguage: en\n---\nlicense: mit\n", None),
        ("license: mit\n", None),
        ("---\nlicense: mit\n", None),
        ("", None),
    ],
)
def test_licence_of_a_card(bloom_source: Source, card: str, name: str | None) -> None:
    path = bloom_source.write()
    (path / "README.md").write_bytes(card.encode())
    assert license_of(read_folder(path)) == name


@pytest.mark.parametrize("file", ["LICENSE", "LICENSE.txt", "LICENCE.md", "license"])
def test_title_of_a_licence_file(bloom_source: Source, file: str) -> None:
    path = bloom_source.write()
    (path / file).write_text("\n\n   # The Free License  \nAnything goes.\n")
    assert license_of(read_folder(path)) == f"The Free License ({file})"
    (path / file).write_bytes(b"\xff\n")
    license_of(read_folder(path))
    (path / file).write_bytes(b"\n")
    assert license_of(read_folder(path)) is None


def test_what_the_hub_said_comes_first_and_goes_into_a_store(bloom_source: Source, tmp_path: Path) -> None:
    path = bloom_source.write()
    (path / "README.md").write_text("---\nlicense: mit\n---\n")
    fetched = {"model": "org/name", "source": "https://hub", "commit": "a" * 40, "license": "rail", "complete": True}
    (path / "fetched.json").write_text(json.dumps({"format": 1, "files": []} | fetched))
    assert license_of(read_folder(path)) == "rail"
    assert license_of(make_store(read_folder(path), tmp_path / "store")) == "rail"


def test_a_card_that_is_a_folder_or_lies_elsewhere_says_nothing(bloom_source: Source, tmp_path: Path) -> None:
    path = bloom_source.write()
    (path / "README.md").mkdir()
    assert license_of(read_folder(path)) is None
    (path / "README.md").rmdir()
    (tmp_path / "card").write_text("---\nlicense: mit\n---\n")
    (path / "README.md").symlink_to(tmp_path / "card")
    assert license_of(read_folder(path)) is None
