"""NaN and infinite weights are named, counted, and found in every dtype and place."""

import math
from pathlib import Path

import pytest
import torch

from bloomery.checkpoint import finite
from bloomery.checkpoint.finite import Flaw, find_flaws
from bloomery.checkpoint.folder import read_folder
from bloomery.checkpoint.tensors import FolderTensors
from bloomery.model.layout import shapes
from bloomery.quant.swap import weights
from folders import KINDS, Source

NORM = "transformer.ln_f.weight"


def flaws(folder: Path) -> list[Flaw]:
    found = read_folder(folder)
    return list(find_flaws(FolderTensors(found, shapes(found.config)), weights(found.config, None)))


@pytest.mark.parametrize("kind", KINDS)
def test_sound_model_has_no_flaws(source: Source, kind: str) -> None:
    assert flaws(source.write(kind)) == []


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_nan_and_infinite_weights_are_named_and_counted(source: Source, kind: str, dtype: torch.dtype) -> None:
    fused = next(name for name in source.tensors if name.endswith(("h.1.attn.c_attn.weight", "query_key_value.weight")))
    for name in (NORM, fused):
        source.tensors[name] = source.tensors[name].to(dtype)
    source.tensors[NORM][-1] = math.nan
    source.tensors[fused][0, :3] = math.inf
    source.tensors[fused][-1, -1] = -math.inf
    source.tensors[fused][1, 0] = math.nan
    found = flaws(source.write(kind))
    total = source.tensors[fused].numel()
    assert [flaw[1:] for flaw in found] == [(1, 4, total), (1, 0, len(source.tensors[NORM]))]
    assert found[0].name.endswith("attn.qkv.weight")
    assert str(found[0]) == (f"tensor '{found[0].name}' is not finite: 1 NaN and 4 infinite of {total:,} numbers")
    assert str(found[1]) == f"tensor 'norm.weight' is not finite: 1 NaN of {len(source.tensors[NORM])} numbers"


@pytest.mark.parametrize("place", [0, 6, 7, 8, -1])
def test_flaw_is_found_in_every_chunk(source: Source, place: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(finite, "CHUNK", 7)
    source.tensors[NORM][place] = math.nan
    assert [flaw.name for flaw in flaws(source.write())] == ["norm.weight"]


def test_largest_numbers_of_a_dtype_are_no_flaw(source: Source) -> None:
    """A sum of them would be infinite."""
    source.tensors[NORM] = torch.full_like(source.tensors[NORM], torch.finfo(torch.float32).max)
    assert flaws(source.write()) == []
