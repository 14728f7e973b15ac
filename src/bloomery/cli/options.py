"""What each verb can be told: one frozen dataclass a verb. Imports nothing heavy, so that a wrong option fails at once.

The text under a field is its help.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter

from bloomery.engine.options import CacheDtype, EngineOptions
from bloomery.engine.params import SamplingParams
from bloomery.settings import VerbOptions
from bloomery.train.recipe.config import TrainConfig

Scheme = Literal["none", "int8", "int4", "int4-g128"]


@dataclass(frozen=True, kw_only=True)
class HubOptions(VerbOptions):
    """How a model of the Hub is found."""

    revision: str | None = None
    """Branch, tag or commit of a model of the Hub; unset is its main branch. ORG/NAME@REVISION says the same."""
    offline: bool = False
    """Send nothing: use what is here. HF_HUB_OFFLINE does the same."""
    token: str | None = None
    """Token for a private or gated model; unset takes HF_TOKEN, which other users of this machine do not see."""


@dataclass(frozen=True, kw_only=True)
class ComputeOptions(HubOptions):
    """On what a verb computes."""

    threads: int | None = None
    """CPU threads to compute on; unset takes OMP_NUM_THREADS, or the physical cores that this process may run on, fewer
    where a CPU quota of its control group is less."""


@dataclass(frozen=True, kw_only=True)
class ModelOptions(ComputeOptions):
    """Which model, and how to run it."""

    model: str = "dickens"
    """Built-in model (dickens), path of a model folder or store, or ORG/NAME on the Hub, fetched if it is not here."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Precision to compute in; auto is the checkpoint's."""
    device: str = "auto"
    """auto, cpu, cuda, cuda:1, …"""
    quant: Scheme = "none"
    """Round the weights of linear layers to few bits while loading; a store made so by convert needs no option."""
    adapter: str | None = None
    """What peft wrote for this model (LoRA, IA3, prompt or prefix tuning): a folder, or ORG/NAME on the Hub."""
    shape: str | None = None
    """Instead of a model, random weights of a published shape, such as bloom-560m, or of a config.json."""
    shape_seed: int | None = None
    """Seed of a shape's weights; unset is 0."""


@dataclass(frozen=True, kw_only=True)
class GenerateOptions(ModelOptions):
    """Options of `generate`, those of the engine, and those of SamplingParams."""

    prompts: tuple[str, ...] = ()
    """Texts to continue, also as words without a dash; none, or '-', reads one from stdin."""
    ids: bool = False
    """Prompts are token ids separated by spaces, and so is what is printed."""
    truncate: Literal["left", "right"] | None = None
    """Cut a prompt that is too long at this side instead of refusing it."""
    draft: str | None = None
    """A smaller model with the same tokens, which guesses the next ones: the model checks all guesses in one step."""
    json: bool = False
    """Print one JSON object a text."""
    engine: Literal["bloomery", "transformers"] = "bloomery"
    """What runs the model; transformers answers the same requests, one prompt at a time."""
    running: Annotated[EngineOptions, Parameter(name="*")] = EngineOptions()
    sampling: Annotated[SamplingParams, Parameter(name="*")] = SamplingParams()


@dataclass(frozen=True, kw_only=True)
class BenchOptions(ModelOptions):
    """Options of `bench latency`, and those of the engine."""

    batch: int = 1
    """Texts at once."""
    prompt_length: int = 32
    """Tokens of each prompt, which are drawn at random."""
    new_tokens: int = 64
    """Tokens to generate for each, greedily and past every end of sequence."""
    rounds: int = 5
    """How often, after a round that is not measured."""
    seed: int = 0
    """Of the prompts."""
    engine: Literal["bloomery", "transformers"] = "bloomery"
    """What runs the model; transformers does so one prompt at a time."""
    to: Path | None = None
    """File for all figures, as JSON."""
    json: bool = False
    """Print all figures as one JSON object instead of a table."""
    running: Annotated[EngineOptions, Parameter(name="*")] = EngineOptions()


@dataclass(frozen=True, kw_only=True)
class ThroughputOptions(BenchOptions):
    """Options of `bench throughput`, and those of the engine."""

    batch: int = 16
    """Texts that run at once; the next request begins where one ends."""
    requests: int = 64
    """Prompts of a round, all asked for at its beginning."""
    rounds: int = 2
    """How often, after a round that is not measured."""


@dataclass(frozen=True, kw_only=True)
class FetchOptions(HubOptions):
    """Options of `fetch`."""

    model: str = ""
    """ORG/NAME on the Hub, or ORG/NAME@REVISION."""
    include: tuple[str, ...] = ()
    """Patterns of files to take, such as '*.json', instead of those that make the model."""
    to: Path | None = None
    """Folder for the files instead of the cache: a new or an empty one."""
    jobs: int = 4
    """Files that are fetched at once."""
    json: bool = False
    """Print one JSON object instead of the folder's path."""


@dataclass(frozen=True, kw_only=True)
class ConvertOptions(ComputeOptions):
    """Options of `convert`."""

    source: str = ""
    """Built-in model (dickens), path of a Hugging Face folder or of a store, or ORG/NAME on the Hub."""
    target: str = ""
    """The store's folder: a new or an empty one, or an older store, which is replaced at the end."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Precision of the weights, or of those that are not quantized; auto keeps the source's."""
    quant: Scheme = "none"
    """Round the weights of linear layers to few bits, each rank's portion on its own."""
    tp: int = 1
    """Into how many ranks' portions the weights are cut. Without --quant, any number of ranks can run the store."""
    jobs: int = 1
    """Threads that write, each with one more that reads back."""
    shape: str | None = None
    """Instead of a source, random weights of a published shape, such as bloom-560m, or of a config.json."""
    shape_seed: int | None = None
    """Seed of a shape's weights; unset is 0."""


@dataclass(frozen=True, kw_only=True)
class ExportOptions(ComputeOptions):
    """Options of `export`."""

    source: str = ""
    """Built-in model (dickens), path of a store or of a Hugging Face folder, or ORG/NAME on the Hub."""
    target: str = ""
    """The folder in Hugging Face format: a new or an empty one, or an older model, which is replaced at the end."""
    adapter: str | None = None
    """Merge what peft wrote for this model (LoRA or IA3) into the weights: a folder, or ORG/NAME on the Hub."""


@dataclass(frozen=True, kw_only=True)
class TokenizeOptions(HubOptions):
    """Options of `tokenize`."""

    sources: tuple[str, ...] = ()
    """Text files, JSON lines, Parquet, folders of them or of `datasets`, or patterns; with --merge token files."""
    to: Path | None = None
    """Prefix of the token file: PREFIX.bin, PREFIX.idx and PREFIX.json are written. PREFIX.bin means the same."""
    tokenizer: str | None = None
    """A tokenizer.json, a model folder, the built-in model (dickens), or ORG/NAME on the Hub."""
    keys: str = "text"
    """Fields of a row that make its document, with commas between them; their texts are joined by a newline."""
    eod: str | None = None
    """Token that ends every document; unset is what the tokenizer's files name."""
    jobs: int | None = None
    """Processes that tokenize; unset is one for each CPU core."""
    merge: bool = False
    """Put token files into one instead of reading text."""
    train_tokenizer: bool = False
    """Learn a byte-level BPE from the text first, and write it to PREFIX.tokenizer."""
    vocab_size: int | None = None
    """Tokens of the vocabulary to learn, the 256 bytes and 4 special ones included."""
    json: bool = False
    """Print one JSON object instead of the prefix."""


@dataclass(frozen=True, kw_only=True)
class InfoOptions(ComputeOptions):
    """Options of `info`."""

    model: str = ""
    """A model to describe, as for `generate`; unset describes the machine only."""
    tokens: int | None = None
    """Positions of each text that memory is computed for; unset is the model's context."""
    batch: int = 1
    """Texts at once that memory is computed for."""
    cache_dtype: CacheDtype = "auto"
    """Precision of keys and values that memory is computed for, as for `generate`."""
    local: bool = False
    """List the models that are on this machine: built-in and fetched ones."""
    json: bool = False
    """Print one JSON object."""


@dataclass(frozen=True, kw_only=True)
class VerifyOptions(ComputeOptions):
    """Options of `verify`."""

    model: str = "dickens"
    """Built-in model (dickens), path of a model folder or store, or ORG/NAME on the Hub, fetched if it is not here."""
    hashes: bool = False
    """Read every file and compare it with the hash that the store, or the Hub when it was fetched, has for it."""
    nan: bool = False
    """Read every weight and name the tensors that hold NaN or infinite numbers."""
    files_only: bool = False
    """Check the files, and do not compare the model's answers with those of transformers."""
    tokens: int = 64
    """Greedy tokens to compare."""
    device: str = "auto"
    """Where our side runs; transformers runs on the CPU."""
    json: bool = False
    """Print one JSON object a check and a prompt."""


@dataclass(frozen=True, kw_only=True)
class TrainOptions(VerbOptions):
    """Options of `train`: a run's sections."""

    config: Annotated[TrainConfig, Parameter(name="*")]
    resume: bool = False
    """Go on with the run that is in run.out, or begin it where there is none."""
    eval_only: bool = False
    """Measure the run's newest checkpoint, or what it begins with, on the held-out sets, and train nothing."""


@dataclass(frozen=True, kw_only=True)
class PlotOptions(VerbOptions):
    """Options of `train plot`."""

    runs: tuple[str, ...] = ()
    """Folders of training runs, or their metrics.jsonl; several are drawn over each other."""
    to: Path | None = None
    """Files to write, without the .png and .html that are added; unset is plot in the run's folder, or in the current
    one for several runs."""
    x: Literal["step", "samples", "tokens", "seconds"] = "step"
    """What the curves are drawn over."""
