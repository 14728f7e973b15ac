"""Recipe sections that say what is trained, on what, and where to. Knows no tensor and no file's contents."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from bloomery.train.recipe.checked import LONGEST, MOST, check, check_between, check_counts


@dataclass(frozen=True, kw_only=True)
class ModelShape:
    """The model: of the sizes given here, of a published shape, or one that is there (`start`).

    Raises:
        UsageError: a size is out of its range, or the heads do not divide the hidden size.
    """

    start: str = ""
    """A model to go on from: a folder, a store, a training checkpoint, or ORG/NAME on the Hub. Sizes are its own."""
    shape: str = ""
    """A published shape, such as bloom-560m, or a config.json, with first weights of this run. Sizes are its own."""
    family: str = ""
    """Architecture of a model of these sizes, and the format in which it is written."""
    vocab_size: int = 4096
    """Tokens of the vocabulary, where one is learned from the text: the 256 bytes and 4 special ones included."""
    hidden_size: int = 256
    """Width of the model."""
    num_layers: int = 4
    """Blocks."""
    num_heads: int = 4
    """Attention heads; they divide the hidden size."""
    num_kv_heads: int | None = None
    """Heads of keys and values; unset: as many as attention heads."""
    ffn_size: int | None = None
    """Width of the feed-forward layer; unset: four times the hidden size."""
    num_experts: int = 1
    """Feed-forward layers of which each token takes a few; 1: one, without a router."""
    experts_per_token: int | None = None
    """How many experts a token takes, where there are several; unset: 2."""
    seq_len: int | None = None
    """Tokens of a training sequence, which is also the context that a new model declares; unset: 512, or the context
    of `start` or `shape`."""
    init_std: float = 0.02
    """Standard deviation of a new model's first matrices; those that write to the residual stream get less, the deeper
    the model is."""
    dropout: float = 0.0
    """Part of the numbers that are dropped where a block adds to the residual stream."""
    attention_dropout: float = 0.0
    """Part of the attention weights that are dropped."""

    def __post_init__(self) -> None:
        sizes = ("hidden_size", "num_layers", "num_heads", "num_kv_heads", "seq_len", "num_experts")
        check_counts("model", self, *sizes, "experts_per_token")
        check(not (self.start and self.shape), "model.start and model.shape are two models: give one")
        check(
            self.vocab_size >= 260,
            f"model.vocab_size is {self.vocab_size}: 256 bytes and 4 special tokens need 260 or more",
        )
        check_counts("model", self, "vocab_size")
        widest = MOST // 4  # the feed-forward layer is four times as wide
        check(self.hidden_size <= widest, f"model.hidden_size is {self.hidden_size}: give at most {widest}")
        check_counts("model", self, "ffn_size")
        check(
            self.hidden_size % self.num_heads == 0,
            f"model.num_heads {self.num_heads} does not divide model.hidden_size {self.hidden_size}: change one",
        )
        check(
            self.num_kv_heads is None or self.num_heads % self.num_kv_heads == 0,
            f"model.num_kv_heads {self.num_kv_heads} does not divide model.num_heads {self.num_heads}: change one",
        )
        check(
            self.experts_per_token is None or 1 < self.num_experts >= self.experts_per_token,
            f"model.experts_per_token is {self.experts_per_token} of {self.num_experts} experts: change one",
        )
        check_between("model", self, 0, 1, "init_std", open_at="low")
        check_between("model", self, 0, 1, "dropout", "attention_dropout", open_at="high")


@dataclass(frozen=True, kw_only=True)
class Data:
    """Where the text lies.

    Raises:
        UsageError: no text is named, or two options do not go together.
    """

    train: tuple[str, ...]
    """What to learn from: token files (by their prefix, with or without .bin), or UTF-8 text files and patterns such as
    corpus/*.txt, in which each file is one document."""
    keys: tuple[str, ...] = ("text",)
    """Fields of a row of JSON lines or of a table that make its document, joined by a newline."""
    weights: tuple[float, ...] = ()
    """How much of the run comes from each entry of `train`; unset: as much as it holds."""
    valid: tuple[str, ...] = ()
    """What is held out to measure on, in the same ways; each entry is a set of its own, named NAME=… or after its
    file. No file may be a training file."""
    split: str = ""
    """Instead of `valid`: parts of every entry of `train`, such as 949,50,1, by documents, to learn from, to measure on
    while training, and to keep for a test."""
    tokenizer: str = ""
    """A tokenizer.json, or a model whose tokenizer is taken. Unset: that of the model, or one learned from `train`."""
    isolate_documents: bool = False
    """No token sees another document of its sequence, and none is predicted from one."""
    skip: tuple[str, ...] = ()
    """Samples that are left out, as ranges FIRST-LAST of their numbers."""
    valid_windows: int | None = None
    """Most windows of seq_len tokens of each held-out set to measure on; unset: all."""

    def __post_init__(self) -> None:
        check(bool(self.train), "data.train names no file: give a text file, a pattern or a token file")
        check(bool(self.keys), "data.keys names no field: give one, or leave it out")
        check(bool(self.valid) != bool(self.split), "data.valid or data.split: give one, to measure on held-out text")
        check(
            not self.weights or len(self.weights) == len(self.train),
            f"data.weights has {len(self.weights)} numbers for {len(self.train)} entries of data.train: give one each",
        )
        check(len(self.weights) != 1, "data.weights is for several entries of data.train: leave it out for one")
        for weight in self.weights:
            check(0 < weight < float("inf"), f"data.weights holds {weight}: give numbers above 0")
        check(
            self.valid_windows is None or self.valid_windows >= 1,
            f"data.valid_windows is {self.valid_windows}: give 1 or more, or leave it out to measure on all",
        )


@dataclass(frozen=True, kw_only=True)
class Run:
    """How long, how fast, and where to.

    Raises:
        UsageError: a number is out of its range.
    """

    out: Path
    """Folder of the run: the model (model/), checkpoints, metrics (metrics.jsonl), options (recipe.toml), tokens."""
    steps: int | None = None
    """Updates of the weights; the run's length is given in steps, samples or tokens. Unset, all three: 1000 steps."""
    samples: int | None = None
    """Sequences to learn from."""
    tokens: int | None = None
    """Tokens to learn from."""
    eval_interval: int = 500
    """Steps between two measurements on the held-out text."""
    log_interval: int = 10
    """Steps between two lines of metrics."""
    dtype: Literal["bfloat16", "float32"] = "bfloat16"
    """Number type of the matrix products and of the written weights; the trained weights are float32."""
    device: str = "auto"
    """Where to train: auto, cpu, cuda or cuda:N."""
    seed: int = 0
    """Fixes the initial weights, the order of the data and what is dropped."""
    deterministic: bool = False
    """Refuse operations whose result depends on the order of threads, so that a run repeats itself bit for bit on a GPU
    too."""
    threads: int | None = None
    """CPU threads; unset: as many as PyTorch has, which bloomery train sets as --threads of other verbs."""
    compile: bool = False
    """Compile each block with torch.compile; on a CPU all but its attention."""
    recompute: bool = False
    """Keep each block's input alone and compute the block again on the way back (activation checkpointing)."""
    profile: tuple[int, ...] = ()
    """First and last step to record with PyTorch's profiler, into profile-FIRST-LAST.json."""
    description: str = ""
    """Words for the model card: what the text is, and under which licence."""

    def __post_init__(self) -> None:
        check_counts("run", self, "steps", "eval_interval", "log_interval")
        check_counts("run", self, "samples", "tokens", most=LONGEST)
        lengths = [name for name in ("steps", "samples", "tokens") if getattr(self, name) is not None]
        check(len(lengths) <= 1, f"run.{' and run.'.join(lengths)}: give the run's length once")
        if not lengths:
            object.__setattr__(self, "steps", 1000)
        check(self.dtype in ("bfloat16", "float32"), f"run.dtype '{self.dtype}' is not one of: bfloat16, float32")
        check(0 <= self.seed < 2**63, f"run.seed is {self.seed}: give a whole number from 0 to 2^63 - 1")
        first_last = len(self.profile) == 2 and 1 <= self.profile[0] <= self.profile[-1]
        check(
            not self.profile or first_last,
            f"run.profile is {list(self.profile)}: give the first and the last step, such as [10, 12]",
        )
        check(
            self.threads is None or 1 <= self.threads <= 1024,
            f"run.threads is {self.threads}: give 1 to 1024, or leave it out",
        )


@dataclass(frozen=True, kw_only=True)
class Save:
    """When a run's whole state is written, so that it can go on. It is always written when a run stops or ends.

    Raises:
        UsageError: a number is out of its range.
    """

    interval: int | None = None
    """Steps between two checkpoints; unset: only at the end."""
    keep: int = 2
    """Checkpoints that are kept, the newest ones."""

    def __post_init__(self) -> None:
        check_counts("save", self, "interval", "keep")


@dataclass(frozen=True, kw_only=True)
class Begin:
    """What a run begins with, where it is not the beginning.

    Raises:
        UsageError: the options do not go together.
    """

    path: Path | None = None
    """A checkpoint of another run to begin from, or that run's folder. To go on with this run itself, use --resume."""
    load: Literal["all", "weights", "weights+optimizer"] = "all"
    """all: weights, optimizer and position; weights+optimizer: begins at step 0; weights: and with new moments."""

    def __post_init__(self) -> None:
        kinds = ("all", "weights", "weights+optimizer")
        check(self.load in kinds, f"begin.load '{self.load}' is not one of: {', '.join(kinds)}")
        check(
            self.load == "all" or self.path is not None,
            "begin.load is for another run's checkpoint: name it with begin.path",
        )
