"""A model with packed weights is the same model with the rounded numbers put in as plain weights, in every family."""

import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from adapted import kind
from bloomery import LLM, SamplingParams
from bloomery.checkpoint.folder import read_folder
from bloomery.checkpoint.load import load_decoder
from bloomery.errors import UsageError
from bloomery.model.decoder import Decoder
from bloomery.model.size import bytes_read, nbytes, weights_read
from bloomery.quant.pack import pack, unpack
from bloomery.quant.scheme import SCHEMES, Scheme
from bloomery.quant.swap import weights
from drive import TOLERANCE
from tiny import SHAPES, Tiny

TEXT = (
    "The housekeeper opened the door of the little parlour, and the old gentleman, who had been sitting before the "
    "fire with his hands upon his knees, rose hastily and came to meet them. He was not so tall as she had "
    "remembered him, nor so grave; but there was that in his face which had been in it from the first, and which "
    "she had never been able to forget. 'My dear,' he said, taking her hand in both of his, 'you have come a long "
    "way upon a cold night, and I have nothing to offer you but a chair and a cup of tea. But you are welcome to "
    "them.' She thanked him, and sat down; and for some time neither of them said a word. The clock upon the "
    "chimney-piece ticked very loud, and the wind, which had been rising since the morning, went round and round "
    "the house, and shook the windows, as if it wanted to be let in. 'I did not think,' said the young woman at "
    "last, 'that I should ever see this room again, sir. I went away from it in anger, and I have been sorry for it "
    "every day of my life. I have said to myself, a hundred times, that I would write, and ask your pardon; and a "
    "hundred times I have taken the pen in my hand, and have put it down again.' The old gentleman looked at the "
    "fire, and shook his head slowly. 'There was nothing to pardon, my dear,' he answered. 'We were both of us in "
    "the wrong, I dare say; and if I was more in the wrong than you were, it was because I was older, and had had "
    "more time to learn better.' Upon which he got up, and walked to the window, and stood there with his back "
    "towards her, looking out into the street, where the lamps were being lighted one after another, and the people "
    "were hurrying home through the rain."
)
"""Written for this test in the manner of the books that `dickens` has read, and in none of them."""

ONE_OF_EACH = {shape.family: shape.name for shape in SHAPES}
"""Family -> its last shape."""


def with_rounded_weights(path: Path, scheme: Scheme) -> LLM:
    """The plain model, every packed weight replaced by what its packed bytes stand for."""
    llm = LLM(path)
    parameters = dict(llm.decoder.named_parameters(remove_duplicate=False))
    for name, weight in weights(llm.folder.config, scheme).items():
        if weight.scheme is not None:
            near = unpack(pack(parameters[weight.plain], scheme), scheme, *weight.shape)
            module = llm.decoder.get_submodule(name.rpartition(".")[0])
            module.weight = nn.Parameter(near, requires_grad=False)
    return llm


def assert_same_answers(tiny: Tiny, scheme: Scheme) -> None:
    ours, theirs = LLM(tiny.path, quant=scheme.name, exact_activations=True), with_rounded_weights(tiny.path, scheme)
    for length in (1, 65):
        ids = tiny.prompt(length)
        one, other = ours.logits(ids), theirs.logits(ids)
        assert float((one - other).abs().max()) <= TOLERANCE * max(1.0, float(other.abs().max()))
        assert float((one - LLM(tiny.path).logits(ids)).abs().max()) > 1e-4, "nothing was rounded"
    params = SamplingParams(max_new_tokens=24, ignore_eos=True)
    prompts = [tiny.prompt(length) for length in (12, 40, 64)]
    tokens = [[done.token_ids for done in llm.generate(prompts, params)] for llm in (ours, theirs)]
    assert tokens[0] == tokens[1]


@pytest.mark.parametrize("scheme", SCHEMES.values(), ids=SCHEMES)
@pytest.mark.parametrize("family", ONE_OF_EACH)
def test_a_packed_model_is_the_plain_one_with_rounded_weights(
    tiny: Callable[[str], Tiny], family: str, scheme: Scheme
) -> None:
    assert_same_answers(tiny(ONE_OF_EACH[family]), scheme)


@pytest.mark.slow
@pytest.mark.parametrize("scheme", SCHEMES.values(), ids=SCHEMES)
def test_a_packed_model_of_any_shape_is_the_plain_one_with_rounded_weights(checkpoint: Tiny, scheme: Scheme) -> None:
    assert_same_answers(checkpoint, scheme)


@pytest.mark.parametrize("scheme", SCHEMES.values(), ids=SCHEMES)
def test_what_a_step_reads_is_counted_in_packed_bytes(checkpoint: Tiny, scheme: Scheme) -> None:
    folder = read_folder(checkpoint.path)
    decoder = load_decoder(folder, scheme=scheme)
    sizes = {name: parameter.nbytes for name, parameter in decoder.named_parameters()}
    read = list(weights_read(decoder))
    assert bytes_read(folder.config, sizes) == nbytes(iter(read))
    assert any(tensor is decoder.head.weight for tensor in read)
    assert not any(tensor is decoder.embed.tokens.weight for tensor in read)
    known = weights(folder.config, scheme)
    assert sizes == {name: weight.nbytes(4) for name, weight in known.items()}


def surprise(llm: LLM) -> float:
    """Nats a token."""
    scores = llm.score(TEXT).pop().logprobs
    return -sum(scores) / len(scores)


@pytest.mark.parametrize(("name", "allowed"), [("int8", 0.003), ("int4", 0.06), ("int4-g128", 0.08)])
def test_the_built_in_model_is_hardly_more_surprised(name: str, allowed: float) -> None:
    plain, packed, exact = surprise(LLM()), surprise(LLM(quant=name)), surprise(LLM(quant=name, exact_activations=True))
    assert 2 < plain < 5, "the text is not of the kind that it knows"
    assert abs(math.exp(packed - plain) - 1) < allowed
    assert abs(math.exp(exact - plain) - 1) < allowed


def test_keys_and_values_in_8_bits_hardly_surprise_the_built_in_model() -> None:
    for dtype in ("float32", "bfloat16"):
        exact, rounded = (surprise(LLM(dtype=dtype, cache_dtype=kept)) for kept in ("float32", "int8"))
        assert 0 < abs(math.exp(rounded - exact) - 1) < 0.003


def test_an_adapter_changes_the_weights_before_they_are_packed(bloom: Tiny, tmp_path: Path) -> None:
    adapted = kind(bloom, tmp_path, "lora")
    merged = dict(LLM(bloom.path, adapter=adapted.path).decoder.named_parameters())
    changed = 0
    for name, packed in LLM(bloom.path, adapter=adapted.path, quant="int4").decoder.named_parameters():
        if packed.dtype == torch.uint8 and name in merged:
            assert torch.equal(packed, pack(merged[name], SCHEMES["int4"])), name
            changed += not torch.equal(packed, dict(LLM(bloom.path, quant="int4").decoder.named_parameters())[name])
    assert changed


def test_a_model_on_its_own_and_in_a_batch_says_the_same(bloom: Tiny) -> None:
    llm = LLM(bloom.path, quant="int4")
    params = SamplingParams(max_new_tokens=16, ignore_eos=True)
    prompts = [bloom.prompt(length) for length in (1, 12, 65)]
    alone = [llm.generate([prompt], params)[0].token_ids for prompt in prompts]
    assert [done.token_ids for done in llm.generate(prompts, params)] == alone


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_dtype_is_that_of_what_is_not_packed(bloom: Tiny, dtype: str) -> None:
    ours, theirs = (LLM(bloom.path, quant="int8", dtype=one).decoder for one in (dtype, "float32"))
    assert isinstance(ours, Decoder)
    assert ours.dtype == getattr(torch, dtype)
    for (name, one), (_, other) in zip(ours.named_parameters(), theirs.named_parameters(), strict=True):
        assert one.dtype in (ours.dtype, torch.uint8)
        if one.dtype == torch.uint8:
            assert torch.equal(one, other), name


def test_exact_activations_are_refused_where_nothing_is_packed(bloom: Tiny) -> None:
    with pytest.raises(UsageError, match=r"^exact_activations is for packed weights, and there are none: drop it"):
        LLM(bloom.path, exact_activations=True)
