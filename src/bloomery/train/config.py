"""TrainConfig: everything a training run can be told. Knows no tensor, no file's contents and no command line."""

import math
from dataclasses import dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Any, Literal

from bloomery.errors import UsageError

MOST = 2**31 - 1
"""No count is larger, so that every product of two fits 64 bits."""


def _check(holds: bool, message: str) -> None:
    if not holds:
        raise UsageError(message)


def _check_counts(section: str, options: Any, *names: str) -> None:
    for name in names:
        value = getattr(options, name)
        _check(value >= 1, f"{section}.{name} is {value}: give a whole number from 1 up")
        _check(value <= MOST, f"{section}.{name} is {value}: give at most {MOST}")


@dataclass(frozen=True, kw_only=True)
class ModelShape:
    """The model to build.

    Raises:
        UsageError: a size is out of its range, or the heads do not divide the hidden size.
    """

    family: str
    """Architecture to build, and the format in which it is written."""
    vocab_size: int = 4096
    """Tokens of the vocabulary, the 256 bytes and 4 special ones included."""
    hidden_size: int = 256
    """Width of the model."""
    num_layers: int = 4
    """Blocks."""
    num_heads: int = 4
    """Attention heads; they divide the hidden size."""
    seq_len: int = 512
    """Tokens of a training sequence, which is also the context that the model declares."""

    def __post_init__(self) -> None:
        _check_counts("model", self, "hidden_size", "num_layers", "num_heads", "seq_len")
        _check(
            self.vocab_size >= 260,
            f"model.vocab_size is {self.vocab_size}: 256 bytes and 4 special tokens need 260 or more",
        )
        _check_counts("model", self, "vocab_size")
        widest = MOST // 4  # the feed-forward layer is four times as wide
        _check(self.hidden_size <= widest, f"model.hidden_size is {self.hidden_size}: give at most {widest}")
        _check(
            self.hidden_size % self.num_heads == 0,
            f"model.num_heads {self.num_heads} does not divide model.hidden_size {self.hidden_size}: change one",
        )


@dataclass(frozen=True, kw_only=True)
class Data:
    """Where the text lies.

    Raises:
        UsageError: no text is named, or the cap on windows is below 1.
    """

    train: tuple[str, ...]
    """UTF-8 text files to learn from, or patterns such as corpus/*.txt; each file is one document."""
    valid: tuple[str, ...]
    """UTF-8 text files, or patterns, held out to measure the model; none of them may be a training file."""
    valid_windows: int | None = None
    """Most windows of seq_len tokens to measure on; unset: all of the held-out text."""

    def __post_init__(self) -> None:
        for name in ("train", "valid"):
            _check(bool(getattr(self, name)), f"data.{name} names no file: give a text file or a pattern")
        _check(
            self.valid_windows is None or self.valid_windows >= 1,
            f"data.valid_windows is {self.valid_windows}: give 1 or more, or leave it out to measure on all",
        )


@dataclass(frozen=True, kw_only=True)
class Optim:
    """AdamW and its schedule: a linear warm-up, then half a cosine down to the end of the run.

    Raises:
        UsageError: a number is out of its range.
    """

    lr: float = 2e-3
    """Highest learning rate, reached at the end of the warm-up."""
    min_lr_ratio: float = 0.1
    """The last step's learning rate, as a fraction of the highest."""
    warmup_steps: int = 100
    """Steps in which the learning rate rises linearly."""
    beta1: float = 0.9
    """AdamW's decay of the mean gradient."""
    beta2: float = 0.95
    """AdamW's decay of the mean squared gradient."""
    eps: float = 1e-8
    """AdamW's guard against a division by zero."""
    weight_decay: float = 0.1
    """AdamW's weight decay, on matrices and embeddings only, never on norms and biases."""
    clip: float = 1.0
    """Largest norm of all gradients together; above it they are scaled down."""

    def __post_init__(self) -> None:
        for option in fields(self):
            value = getattr(self, option.name)
            _check(math.isfinite(value), f"optim.{option.name} is {value}: give a finite number")
        for name in ("lr", "eps", "clip"):
            _check(getattr(self, name) > 0, f"optim.{name} is {getattr(self, name)}: give a number above 0")
        for name in ("beta1", "beta2"):
            _check(0 <= getattr(self, name) < 1, f"optim.{name} is {getattr(self, name)}: give a number in [0, 1)")
        _check(0 <= self.min_lr_ratio <= 1, f"optim.min_lr_ratio is {self.min_lr_ratio}: give a number in [0, 1]")
        _check(self.weight_decay >= 0, f"optim.weight_decay is {self.weight_decay}: give 0 or more")
        _check(self.warmup_steps >= 0, f"optim.warmup_steps is {self.warmup_steps}: give 0 or more")


@dataclass(frozen=True, kw_only=True)
class Run:
    """How long, how fast, and where to.

    Raises:
        UsageError: a number is out of its range.
    """

    out: Path
    """New folder for the model (model/), the metrics (metrics.jsonl), the options (recipe.toml) and the tokens."""
    steps: int = 1000
    """Updates of the weights."""
    batch_size: int = 8
    """Sequences of one step."""
    eval_interval: int = 500
    """Steps between two measurements on the held-out text; the model is written at each, and at the end."""
    log_interval: int = 10
    """Steps between two lines of metrics."""
    dtype: Literal["bfloat16", "float32"] = "bfloat16"
    """Number type of the matrix products and of the written weights; the trained weights are float32."""
    seed: int = 0
    """Fixes the initial weights and the order of the data."""
    threads: int | None = None
    """CPU threads; unset: as many as PyTorch chooses."""
    description: str = ""
    """Words for the model card: what the text is, and under which licence."""

    def __post_init__(self) -> None:
        _check_counts("run", self, "steps", "batch_size", "eval_interval", "log_interval")
        _check(self.dtype in ("bfloat16", "float32"), f"run.dtype '{self.dtype}' is not one of: bfloat16, float32")
        _check(0 <= self.seed < 2**63, f"run.seed is {self.seed}: give a whole number from 0 to 2^63 - 1")
        _check(
            self.threads is None or 1 <= self.threads <= 1024,
            f"run.threads is {self.threads}: give 1 to 1024, or leave it out",
        )


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """One training run.

    Raises:
        UsageError: the warm-up is longer than the run.
    """

    data: Data
    model: ModelShape
    run: Run
    optim: Optim = field(default_factory=Optim)

    def __post_init__(self) -> None:
        _check(
            self.optim.warmup_steps <= self.run.steps,
            f"optim.warmup_steps {self.optim.warmup_steps} is more than run.steps {self.run.steps}: lower it",
        )

    def as_tables(self) -> dict[str, Any]:
        """The options as a recipe holds them, the unset ones left out."""
        return _tables(self)


def _tables(section: Any) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for option in fields(section):
        value = getattr(section, option.name)
        if is_dataclass(value):
            value = _tables(value)
        elif isinstance(value, Path):
            value = str(value)
        if value is not None:
            values[option.name] = value
    return values
