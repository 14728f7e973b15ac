"""bloomery: one toolkit for BLOOM and its relatives. The public face; nothing heavy is imported before it is used."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from bloomery.errors import BloomeryError, CheckpointError, MissingExtra, UsageError

if TYPE_CHECKING:
    from bloomery.completion import Completion, Piece, Score
    from bloomery.engine.params import SamplingParams
    from bloomery.llm import LLM
    from bloomery.model.config import DecoderConfig

__version__ = "0.1.0"

__all__ = [
    "LLM",
    "BloomeryError",
    "CheckpointError",
    "Completion",
    "DecoderConfig",
    "MissingExtra",
    "Piece",
    "SamplingParams",
    "Score",
    "UsageError",
]

_HOMES = {
    "LLM": "bloomery.llm",
    "Completion": "bloomery.completion",
    "Piece": "bloomery.completion",
    "Score": "bloomery.completion",
    "SamplingParams": "bloomery.engine.params",
    "DecoderConfig": "bloomery.model.config",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'bloomery' has no attribute '{name}'")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
