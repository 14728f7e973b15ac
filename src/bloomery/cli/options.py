"""What each verb can be told: one frozen dataclass a verb. Imports nothing heavy, so that a wrong option fails at once.

The text under a field is its help.
"""

from dataclasses import dataclass
from typing import Annotated, Literal

from cyclopts import Parameter

from bloomery.engine.params import SamplingParams
from bloomery.settings import VerbOptions
from bloomery.train.config import TrainConfig


@dataclass(frozen=True, kw_only=True)
class ModelOptions(VerbOptions):
    """Which model, and how to run it."""

    model: str = "dickens"
    """Built-in model (dickens) or the path of a Hugging Face folder."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Precision to compute in; auto is the checkpoint's."""
    device: str = "auto"
    """auto, cpu, cuda, cuda:1, …"""


@dataclass(frozen=True, kw_only=True)
class GenerateOptions(ModelOptions):
    """Options of `generate`, and those of SamplingParams."""

    prompts: tuple[str, ...] = ()
    """Texts to continue, also as words without a dash; none, or '-', reads one from stdin."""
    ids: bool = False
    """Prompts are token ids separated by spaces, and so is what is printed."""
    max_seq_len: int | None = None
    """Most tokens of prompt and completion together; unset is the model's limit."""
    max_batch_size: int = 16
    """Prompts that run at once."""
    truncate: Literal["left", "right"] | None = None
    """Cut a prompt that is too long at this side instead of refusing it."""
    json: bool = False
    """Print one JSON object a prompt."""
    sampling: Annotated[SamplingParams, Parameter(name="*")] = SamplingParams()


@dataclass(frozen=True, kw_only=True)
class InfoOptions(VerbOptions):
    """Options of `info`."""

    model: str = ""
    """A model to describe; unset describes the machine only."""
    json: bool = False
    """Print one JSON object."""


@dataclass(frozen=True, kw_only=True)
class VerifyOptions(VerbOptions):
    """Options of `verify`."""

    model: str = "dickens"
    """Built-in model (dickens) or the path of a Hugging Face folder."""
    tokens: int = 64
    """Greedy tokens to compare."""
    device: str = "auto"
    """Where our side runs; transformers runs on the CPU."""
    json: bool = False
    """Print one JSON object a prompt."""


@dataclass(frozen=True, kw_only=True)
class TrainOptions(VerbOptions):
    """Options of `train`: a run's sections."""

    config: Annotated[TrainConfig, Parameter(name="*")]
