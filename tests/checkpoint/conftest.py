"""A model folder to take apart, of each family, and what is logged. Knows nothing of how folders are loaded."""

import logging
from collections.abc import Iterator
from pathlib import Path

import pytest

from bloomery.log import logger
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


@pytest.fixture
def log() -> Iterator[list[str]]:
    """What bloomery's logger says, whether or not somebody has configured it."""
    said: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: said.append(record.getMessage())
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.DEBUG)
    yield said
    logger.setLevel(level)
    logger.removeHandler(handler)
