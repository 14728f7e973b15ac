"""A model folder to take apart, of each family. Knows nothing of how folders are loaded."""

from pathlib import Path

import pytest

from folders import Source
from tiny import Tiny


@pytest.fixture
def source(either: Tiny, tmp_path: Path) -> Source:
    """Of each family in turn."""
    return Source(either, tmp_path / "model")


@pytest.fixture
def bloom_source(bloom: Tiny, tmp_path: Path) -> Source:
    return Source(bloom, tmp_path / "model")


@pytest.fixture
def gpt2_source(gpt2: Tiny, tmp_path: Path) -> Source:
    return Source(gpt2, tmp_path / "model")
