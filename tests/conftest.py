"""What every test may ask for: tiny checkpoints of each family, saved once a session; what is logged. Knows no test."""

import logging
import os
from collections.abc import Callable, Iterator

os.environ["HF_HUB_OFFLINE"] = "1"  # before huggingface_hub reads it
os.environ["OMP_NUM_THREADS"] = "1"  # tiny tensors: a second thread only waits

import pytest
import transformers

from bloomery.log import logger
from tiny import SHAPES, Tiny, build

transformers.logging.set_verbosity_error()
transformers.logging.disable_progress_bar()


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Tiny]:
    """The checkpoint of a shape by name (tests/tiny.py), made when first asked for. Its folder is not to be changed."""
    made: dict[str, Tiny] = {}
    root = tmp_path_factory.mktemp("tiny")

    def get(name: str) -> Tiny:
        if name not in made:
            shape = next(shape for shape in SHAPES if shape.name == name)
            made[name] = build(shape, root / name)
        return made[name]

    return get


@pytest.fixture(scope="session", params=[shape.name for shape in SHAPES])
def checkpoint(request: pytest.FixtureRequest, tiny: Callable[[str], Tiny]) -> Tiny:
    """Each shape in turn."""
    return tiny(request.param)


@pytest.fixture(scope="session")
def bloom(tiny: Callable[[str], Tiny]) -> Tiny:
    """A BLOOM."""
    return tiny("bloom-6-heads")


@pytest.fixture(scope="session")
def gpt2(tiny: Callable[[str], Tiny]) -> Tiny:
    """A GPT-2."""
    return tiny("gpt2-tanh")


@pytest.fixture(scope="session", params=["bloom-6-heads", "gpt2-tanh"])
def either(request: pytest.FixtureRequest, tiny: Callable[[str], Tiny]) -> Tiny:
    """One checkpoint of each family in turn, where the shape does not matter."""
    return tiny(request.param)


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
