"""Weights -> the bytes of a scheme, and back: whole panels at a time. Knows no module and no file.

The bytes are laid out as `scheme` says. Rounding is to the nearest, ties to even. A group's scale is its value of
largest magnitude / -8, so that this value is kept best (llama.cpp's Q4_0); an output's is its largest magnitude / 127.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

from bloomery.errors import CheckpointError
from bloomery.quant.scheme import OUTPUTS, Scheme

AT_ONCE = 2**20
"""Numbers that are packed or unpacked at a time, or a panel of them: what is computed on the way is some times as large
in fp32, and stays in a processor's cache."""


def pack(weight: Tensor, scheme: Scheme, what: str = "the weight") -> Tensor:
    """(N, K) of any floating dtype -> uint8 (ceil(N / 16), S), on the same device.

    Args:
        what: names the weight in errors.

    Raises:
        CheckpointError: a number is NaN or infinite, and has no place between others.
    """
    outputs, inputs = weight.shape
    packed = torch.empty(scheme.packed_shape(outputs, inputs), dtype=torch.uint8, device=weight.device)
    weight = weight.detach()
    for panels in _slices(len(packed), scheme.filled_up(inputs)):
        rows = weight[panels.start * OUTPUTS : panels.stop * OUTPUTS]
        filled = rows.new_zeros(len(panels) * OUTPUTS, scheme.filled_up(inputs), dtype=torch.float32)
        filled[: len(rows), :inputs] = rows
        pieces = _pack_outputs(filled) if scheme.group is None else _pack_groups(filled, scheme.group)
        if pieces is None:
            lost = sum(int((~part.isfinite()).sum()) for part in weight.split(OUTPUTS))
            raise CheckpointError(
                f"{what}: {lost:,} numbers are NaN or infinite, which {scheme.name} has no place for: take another "
                "checkpoint, or keep it as it is"
            )
        packed[panels.start : panels.stop] = pieces
    return packed


def unpack(packed: Tensor, scheme: Scheme, outputs: int, inputs: int) -> Tensor:
    """Bytes of a weight (N, K) -> what they stand for, (N, K) in fp32."""
    weight = torch.empty(outputs, inputs, dtype=torch.float32, device=packed.device)
    for rows, part in unpacked_slices(packed, scheme, outputs, inputs):
        weight[rows.start : rows.stop] = part
    return weight


def unpacked_slices(packed: Tensor, scheme: Scheme, outputs: int, inputs: int) -> Iterator[tuple[range, Tensor]]:
    """As `unpack`, a slice of outputs at a time: which, and what they stand for, (some, K) in fp32."""
    _check(packed, scheme, outputs, inputs)
    for panels in _slices(len(packed), scheme.filled_up(inputs)):
        part = packed[panels.start : panels.stop]
        filled = _unpack_outputs(part) if scheme.group is None else _unpack_groups(part, scheme.group)
        rows = range(panels.start * OUTPUTS, min(panels.stop * OUTPUTS, outputs))
        yield rows, filled[: len(rows), :inputs]


def scales(packed: Tensor, scheme: Scheme) -> Tensor:
    """All scales of a packed weight, those of what fills up included: (P, 16) or (P, groups, 16). No copy."""
    if scheme.group is None:
        return packed[:, : OUTPUTS * 4].view(torch.float32)
    return _grouped(packed, scheme.group)[..., : OUTPUTS * 2].view(torch.bfloat16)


def _check(packed: Tensor, scheme: Scheme, outputs: int, inputs: int) -> None:
    expected = scheme.packed_shape(outputs, inputs)
    if packed.dtype != torch.uint8 or tuple(packed.shape) != expected:
        raise ValueError(
            f"{outputs} × {inputs} in {scheme.name} is uint8 {expected}, not {packed.dtype} {packed.shape}"
        )


def _slices(panels: int, inputs: int) -> Iterator[range]:
    step = max(1, AT_ONCE // (OUTPUTS * max(1, inputs)))
    return (range(first, min(first + step, panels)) for first in range(0, panels, step))


def _grouped(packed: Tensor, group: int) -> Tensor:
    """(P, S) -> (P, groups, bytes of 16 scales and of a group's numbers)."""
    return packed.unflatten(1, (-1, OUTPUTS * (2 + group // 2)))


def _rounded(values: Tensor, scale: Tensor, least: int, most: int) -> Tensor:
    """Values in units of a scale; where that is 0, so are they."""
    return (values / scale.masked_fill(scale == 0, torch.inf)).round_().clamp_(least, most)


def _pack_outputs(filled: Tensor) -> Tensor | None:
    """(16P, K) -> (P, S); None where a number is not finite."""
    scale = filled.abs().amax(1, keepdim=True) / 127  # (16P, 1)
    if not scale.isfinite().all():
        return None
    numbers = _rounded(filled, scale, -127, 127).to(torch.int8).view(torch.uint8)
    blocks = numbers.view(-1, OUTPUTS, filled.shape[1] // 4, 4).transpose(1, 2)  # (P, K / 4, 16, 4)
    return torch.cat([scale.view(-1, OUTPUTS).view(torch.uint8), blocks.flatten(1)], 1)


def _unpack_outputs(packed: Tensor) -> Tensor:
    """(P, S) -> (16P, K)."""
    scale, numbers = packed[:, : OUTPUTS * 4], packed[:, OUTPUTS * 4 :]
    blocks = numbers.view(torch.int8).unflatten(1, (-1, OUTPUTS, 4)).transpose(1, 2)  # (P, 16, K / 4, 4)
    return (blocks.float() * scale.view(torch.float32)[..., None, None]).flatten(2).flatten(0, 1)


def _pack_groups(filled: Tensor, group: int) -> Tensor | None:
    """(16P, K) -> (P, S); None where a number is not finite."""
    groups = filled.view(-1, OUTPUTS, filled.shape[1] // group, group)  # (P, 16, groups, group)
    largest = groups.gather(-1, groups.abs().argmax(-1, keepdim=True))  # of several, the first
    scale = (largest / -8).to(torch.bfloat16)
    scale = scale.masked_fill(scale == 0, 0)  # without a sign
    if not largest.isfinite().all():
        return None
    numbers = _rounded(groups, scale.float(), -8, 7).add_(8).to(torch.uint8)
    low, high = numbers.unflatten(-1, (group // 8, 2, 4)).unbind(-2)  # (P, 16, groups, group / 8, 4) each
    blocks = (low | high << 4).permute(0, 2, 3, 1, 4)  # (P, groups, group / 8, 16, 4)
    heads = scale.squeeze(-1).transpose(1, 2).contiguous().view(torch.uint8)  # (P, groups, 32)
    return torch.cat([heads, blocks.flatten(2)], 2).flatten(1)


def _unpack_groups(packed: Tensor, group: int) -> Tensor:
    """(P, S) -> (16P, K)."""
    parts = _grouped(packed, group)
    scale = parts[..., : OUTPUTS * 2].view(torch.bfloat16).float()  # (P, groups, 16)
    blocks = parts[..., OUTPUTS * 2 :].unflatten(2, (group // 8, OUTPUTS, 4))
    halves = torch.stack([blocks & 15, blocks >> 4], -2)  # (P, groups, group / 8, 16, 2, 4)
    numbers = (halves.float() - 8).permute(0, 3, 1, 2, 4, 5)  # (P, 16, groups, group / 8, 2, 4)
    return (numbers * scale.permute(0, 2, 1)[..., None, None, None]).flatten(2).flatten(0, 1)
