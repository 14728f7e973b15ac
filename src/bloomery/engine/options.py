"""EngineOptions: how a model is run, the same for all its requests. Knows no tensor and no model."""

from dataclasses import dataclass, fields
from numbers import Integral
from typing import Any, Literal, TypedDict, get_args

from bloomery.engine.limits import Limit
from bloomery.errors import UsageError

CacheDtype = Literal["auto", "float32", "bfloat16", "float16", "int8"]
SoftmaxDtype = Literal["auto", "float32", "bfloat16"]
ShapesKind = Literal["static", "bucket", "dynamic"]
GraphsKind = Literal["off", "lazy", "all"]
MAX_STEP_TOKENS = 512
"""Tokens of one step, unless another number is asked for."""
_AT_LEAST_1 = Limit(1, float("inf"), "[)", "give at least 1")
WHOLE = {
    "max_seq_len": Limit(1, float("inf"), "[)", "give at least 1, or leave it out"),
    "max_batch_size": _AT_LEAST_1,
    "max_step_tokens": _AT_LEAST_1,
    "cache_positions": Limit(1, float("inf"), "[)", "give at least 1, or leave it out"),
    "bucket": Limit(2, float("inf"), "[)", "give at least 2, or shapes dynamic, which pads nothing"),
}
CHOICES = {"shapes": ShapesKind, "graphs": GraphsKind, "cache_dtype": CacheDtype, "softmax_dtype": SoftmaxDtype}
REQUIRED = ("max_batch_size", "max_step_tokens")


class EngineArguments(TypedDict, total=False):
    """The options as keyword arguments, each of which may be left out."""

    max_seq_len: int | None
    max_batch_size: int
    max_step_tokens: int
    cache_positions: int | None
    cache_dtype: CacheDtype
    softmax_dtype: SoftmaxDtype
    shapes: ShapesKind
    bucket: int | None
    graphs: GraphsKind
    exact_activations: bool
    huge_pages: bool
    compile: bool
    warmup: bool


@dataclass(frozen=True, kw_only=True)
class EngineOptions:
    """How a model is run. None of them changes what is generated, but those that round otherwise: the two dtypes, and
    exact_activations.

    Raises:
        UsageError: a value is out of its range, or contradicts another.
    """

    max_seq_len: int | None = None
    """Most tokens of a prompt and its completion, and of an adapter's virtual tokens; unset is the model's limit."""
    max_batch_size: int = 16
    """Sequences that run at once; more wait in order."""
    max_step_tokens: int = MAX_STEP_TOKENS
    """Most tokens of one step: a longer prompt is run in chunks, beside texts that are decoding."""
    cache_positions: int | None = None
    """Most positions of keys and values that are kept at once; unset is what a full batch of full length needs."""
    cache_dtype: CacheDtype = "auto"
    """Precision of keys and values; auto is the model's, but float32 on a CPU for which no kernels were compiled. int8
    rounds each key and each value of a head to 8 bits with a scale of its own."""
    softmax_dtype: SoftmaxDtype = "auto"
    """Precision of attention's scores and softmax; auto is a fused kernel, which has float32 inside."""
    shapes: ShapesKind = "dynamic"
    """static pads prompts and cache to the full length, bucket to multiples of bucket, dynamic nothing."""
    bucket: int | None = None
    """Tokens and positions are rounded up to multiples of this, with shapes bucket; unset is 128, or less where
    a step or a context has less."""
    graphs: GraphsKind = "off"
    """Capture steps as graphs of a GPU: lazy those that decode, all those with prompts too. Refused where there are
    none: so far everywhere."""
    exact_activations: bool = False
    """With packed weights on a CPU, take tokens as they are instead of rounded to 8 bits: to compare, as it is slow."""
    huge_pages: bool = False
    """Copy the weights once into memory of large pages, which a CPU reads faster; else they are mapped from the file,
    shared with other processes, and need not fit into memory."""
    compile: bool = False
    """Compile each block with torch.compile, all but its attention."""
    warmup: bool = False
    """Run every shape of a step once before the first request, so that this one does not pay for it."""

    def __post_init__(self) -> None:
        for field in fields(self):
            object.__setattr__(self, field.name, _checked(field.name, getattr(self, field.name)))
        if self.bucket is not None and self.shapes != "bucket":
            raise UsageError(
                f"bucket {self.bucket} and shapes {self.shapes} contradict each other: drop bucket, or give shapes "
                "bucket"
            )


def _checked(name: str, value: Any) -> Any:
    """A value as Python's own. Raises UsageError for one that the option of this name cannot have."""
    if name in CHOICES:
        known = get_args(CHOICES[name])
        if value not in known:
            raise UsageError(f"{name} '{value}' is not one of: {', '.join(known)}")
        return value
    if name not in WHOLE:
        if not isinstance(value, bool):
            raise UsageError(f"{name} is {value!r}: give True or False")
        return value
    if value is None and name not in REQUIRED:
        return None
    if not isinstance(value, Integral) or isinstance(value, bool):
        raise UsageError(f"{name} is {value!r}: give a whole number")
    if not WHOLE[name].holds(int(value)):
        raise UsageError(f"{name} is {value}: {WHOLE[name].advice}")
    return int(value)
