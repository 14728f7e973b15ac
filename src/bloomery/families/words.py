"""Words of config.json that several families share -> ours, and back. Knows no family and no tensor."""

from typing import Any

from bloomery.errors import CheckpointError
from bloomery.families.rules import Raw
from bloomery.model.config import DecoderConfig, RotaryConfig, RotaryScaling


def require(raw: Raw, *names: str) -> Any:
    """A size in config.json that has several spellings.

    Raises:
        CheckpointError: none of them is there, it is no whole number, or two are there and differ.
    """
    given = {name: raw[name] for name in names if raw.get(name) is not None}
    if not given:
        raise CheckpointError(f"config.json has no '{names[0]}': the model's shape cannot be known without it")
    for name, value in given.items():
        if not isinstance(value, int):
            raise CheckpointError(f"config.json has {name} = {value!r}, which is no whole number: check it")
    if len(set(given.values())) > 1:
        both = " and ".join(f"{name} = {value}" for name, value in given.items())
        raise CheckpointError(f"config.json has {both}, which are names of one size: remove the wrong one")
    return next(iter(given.values()))


def flag(raw: Raw, name: str, default: bool) -> bool:
    """A yes or no in config.json; null is no, as to transformers.

    Raises:
        CheckpointError: it is neither, such as the text "false", which would pass as yes.
    """
    value = raw.get(name, default)
    if value is not None and type(value) is not bool:
        raise CheckpointError(f"config.json has {name} = {value!r}: it must be true or false")
    return bool(value)


def refuse_unless(raw: Raw, **expected: Any) -> None:
    """Refuse a variant that would load and then give wrong numbers.

    Raises:
        CheckpointError: an entry is there and has another value.
    """
    for name, value in expected.items():
        if raw.get(name, value) != value:
            raise CheckpointError(
                f"config.json has {name} = {raw[name]!r}, a variant that is not supported: only {value!r} is"
            )


def head_size(hidden: int, heads: int) -> int:
    """The share of a head, where config.json has no size of its own for it.

    Raises:
        CheckpointError: the heads do not divide the hidden size.
    """
    if heads < 1 or hidden % heads:
        raise CheckpointError(f"hidden_size {hidden} is not a multiple of num_heads {heads}: check config.json")
    return hidden // heads


ACTIVATION_NAMES = {
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu": "gelu",
    "relu": "relu",
    "silu": "silu",
}


def activation(raw: Raw, name: str, default: str) -> Any:
    """Our word for their activation.

    Raises:
        CheckpointError: one we do not have.
    """
    theirs = raw.get(name, default)
    if not isinstance(theirs, str) or theirs not in ACTIVATION_NAMES:
        known = ", ".join(ACTIVATION_NAMES)
        raise CheckpointError(f"config.json has {name} = {theirs!r}, which is not one of: {known}")
    return ACTIVATION_NAMES[theirs]


def their_activation(config: DecoderConfig, gelu_tanh: str = "gelu_new") -> str:
    """Their word for our activation; for one of them there are several."""
    return {"gelu_tanh": gelu_tanh}.get(config.activation, config.activation)


def rotary(raw: Raw, head_dim: int, share: float | None = None) -> RotaryConfig:
    """Rotary positions as config.json has them: `rope_parameters`, or `rope_theta`, `partial_rotary_factor` and
    `rope_scaling` as before transformers 5.

    Args:
        share: how much of each head is rotary where config.json does not say; None: all, whatever config.json says.

    Raises:
        CheckpointError: a kind of scaling that we do not have, one without its numbers, or a share of heads that are
            rotary as a whole.
    """
    rope = {key: raw[key] for key in ("rope_theta", "partial_rotary_factor") if raw.get(key) is not None}
    rope |= _rope_table(raw)
    kind = rope.get("rope_type", rope.get("type", "default"))
    if not isinstance(kind, str) or kind not in ROTARY_SCALING:
        known = ", ".join(ROTARY_SCALING)
        raise CheckpointError(f"config.json scales its rotary positions by {kind!r}, which is not one of: {known}")
    if share is None:  # transformers ignores it here, or fails
        refuse_unless(rope, partial_rotary_factor=1.0)
    share = rope.get("partial_rotary_factor", share or 1.0)
    if type(share) not in (int, float) or not 0 < share <= 1:
        raise CheckpointError(f"config.json has partial_rotary_factor = {share!r}: it must be above 0, and at most 1")
    scaling = ROTARY_SCALING[kind]
    try:
        more = {ours: rope[theirs] for ours, theirs in ROTARY_NUMBERS[scaling].items()}
    except KeyError as error:
        raise CheckpointError(f"config.json scales its rotary positions by {kind!r}, but has no {error}") from None
    return RotaryConfig(dims=int(head_dim * share), theta=rope.get("rope_theta", 10000.0), scaling=scaling, **more)


def _rope_table(raw: Raw) -> dict[str, Any]:
    """Of the new and the old table the old one, where there are both, and what stands outside: as transformers."""
    for name in ("rope_parameters", "rope_scaling"):
        if raw.get(name) and not isinstance(raw[name], dict):
            raise CheckpointError(f"config.json has {name} = {raw[name]!r}, which is no table: check it")
    table = dict(raw.get("rope_scaling") or raw.get("rope_parameters") or {})
    outside = raw.get("original_max_position_embeddings")
    return table if outside is None else table | {"original_max_position_embeddings": outside}


def from_rotary(config: DecoderConfig) -> dict[str, Any]:
    """The inverse of `rotary`, in the words of before transformers 5, which everyone reads."""
    if config.rotary is None:
        return {}
    theirs = {"rope_theta": config.rotary.theta}
    if config.rotary.dims != config.head_dim:
        theirs["partial_rotary_factor"] = config.rotary.dims / config.head_dim
    kind = {ours: name for name, ours in ROTARY_SCALING.items()}[config.rotary.scaling]
    numbers = {name: getattr(config.rotary, ours) for ours, name in ROTARY_NUMBERS[config.rotary.scaling].items()}
    return theirs | ({"rope_scaling": {"rope_type": kind} | numbers} if numbers else {})


ROTARY_SCALING: dict[str, RotaryScaling] = {"default": "none", "linear": "linear", "llama3": "by_wavelength"}
ROTARY_NUMBERS: dict[str, dict[str, str]] = {
    "none": {},
    "linear": {"factor": "factor"},
    "by_wavelength": {
        "factor": "factor",
        "low_freq_factor": "low_freq_factor",
        "high_freq_factor": "high_freq_factor",
        "original_max_seq_len": "original_max_position_embeddings",
    },
}
