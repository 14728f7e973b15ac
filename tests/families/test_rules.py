"""Rules lose nothing: each of our tensors from exactly one of theirs, and back, bit by bit."""

from dataclasses import replace

import torch
from safetensors.torch import load_file

from bloomery.families import FAMILIES
from bloomery.families.rules import Family, Rule
from bloomery.model import layout
from bloomery.model.config import DecoderConfig
from tiny import Tiny


def translated(tiny: Tiny) -> tuple[Family, DecoderConfig, dict[str, torch.Tensor]]:
    """A checkpoint's family, its config in our words, and the tensors transformers saved."""
    family = FAMILIES[tiny.shape.family]
    return family, family.to_config(tiny.model.config.to_dict()), load_file(tiny.path / "model.safetensors")


def test_every_parameter_of_ours_has_exactly_one_rule(checkpoint: Tiny) -> None:
    family, config, _ = translated(checkpoint)
    ours = layout.shapes(config)
    assert set(family.sources(config, ours)) == set(ours)
    rules = [rule for rule in family.rules if rule.when(config)]
    for field in ("ours", "theirs"):
        names = [getattr(rule, field) for rule in rules]
        assert len(names) == len(set(names))


def test_every_tensor_of_theirs_is_consumed(checkpoint: Tiny) -> None:
    family, config, tensors = translated(checkpoint)
    sources = [theirs for source in family.sources(config, layout.shapes(config)).values() for theirs in source.theirs]
    assert set(tensors) == {family.written(name) for name in sources}
    assert len(sources) == len(set(sources))


def test_reorder_and_its_inverse_are_exact(checkpoint: Tiny) -> None:
    family, config, tensors = translated(checkpoint)
    ours = layout.shapes(config)
    for name, source in family.sources(config, ours).items():
        theirs = [tensors[family.written(name)] for name in source.theirs]
        if source.reorder is None:
            assert [tensor.shape for tensor in theirs] == [ours[name].shape]
            continue
        mine = source.reorder.to_ours(theirs, config)
        assert mine.shape == ours[name].shape
        back = source.reorder.to_theirs(mine, config)
        assert all(torch.equal(one, other) for one, other in zip(back, theirs, strict=True))
        numbered = torch.arange(float(ours[name].numel())).view(ours[name].shape)
        assert torch.equal(source.reorder.to_ours(source.reorder.to_theirs(numbered, config), config), numbered)


def test_fused_rows_are_grouped_by_head(gpt2: Tiny) -> None:
    """Against transformers' own reading of the matrix: columns in thirds q, k, v, each cut into heads."""
    family, config, tensors = translated(gpt2)
    for suffix in ("weight", "bias"):
        theirs = tensors[f"transformer.h.0.attn.c_attn.{suffix}"]
        source = family.sources(config, layout.shapes(config))[f"blocks.0.attn.qkv.{suffix}"]
        assert source.reorder is not None
        ours = source.reorder.to_ours([theirs], config)
        thirds = theirs.split(config.hidden_size, dim=-1)
        for head in range(config.num_heads):
            for part in range(3):
                rows = ours.unflatten(0, (config.num_heads, 3, config.head_dim))[head, part]
                columns = thirds[part].unflatten(-1, (config.num_heads, config.head_dim))[..., head, :]
                assert torch.equal(rows, columns.T if suffix == "weight" else columns)


def test_layer_number_is_filled_in_everywhere() -> None:
    for family in FAMILIES.values():
        for rule in family.rules:
            for letter in ("{i}", "{e}"):
                assert (letter in rule.theirs) == (letter in rule.ours)


def test_families_are_registered_by_their_own_name() -> None:
    assert all(name == family.name for name, family in FAMILIES.items())


def test_untied_head_stands_outside_the_prefix(gpt2: Tiny) -> None:
    family, config, _ = translated(gpt2)
    assert "head.weight" not in layout.shapes(config)
    untied = replace(config, tied_head=False)
    (head,) = family.sources(untied, layout.shapes(untied))["head.weight"].theirs
    assert family.written(head) == "lm_head.weight"


def test_buffers_of_masks_are_ignored_and_weights_are_not() -> None:
    family = FAMILIES["gpt2"]
    assert family.is_ignored("h.11.attn.bias")
    assert family.is_ignored("h.0.attn.masked_bias")
    for rule in family.rules:
        assert not family.is_ignored(rule.theirs.replace("{i}", "0"))
    assert not family.is_ignored("h.0.attn.c_attn.biases")


def test_rule_without_reorder_means_the_same_bytes() -> None:
    assert Rule("a", "b").reorder is None


def test_what_transposes_says_so(checkpoint: Tiny) -> None:
    """Seen on a matrix with one column more, whose shape cannot be mistaken; adapters are told nothing else."""
    family, config, _ = translated(checkpoint)
    ours = layout.shapes(config)
    for name, source in family.sources(config, ours).items():
        if source.reorder is None or ours[name].dim() != 2:
            continue
        rows, columns = ours[name].shape
        wider = torch.empty(rows, rows + columns, device="meta")
        turned = {part.shape[0] == rows + columns for part in source.reorder.to_theirs(wider, config)}
        assert turned == {source.reorder.transposes}, name
