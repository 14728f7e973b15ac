"""LLM with an adapter, as its users meet it: what fits, what is refused, and whose tokenizer reads the text."""

from collections.abc import Callable
from pathlib import Path

import pytest

from adapted import Adapted, kind
from bloomery import LLM, CheckpointError, SamplingParams, UsageError
from talker import byte_level_tokenizer
from tiny import Tiny

CONTEXT, VIRTUAL = 320, 70
FEW = SamplingParams(max_new_tokens=8, ignore_eos=True)


@pytest.fixture(scope="module")
def adapted(tiny: Callable[[str], Tiny], tmp_path_factory: pytest.TempPathFactory) -> Adapted:
    return kind(tiny("gpt2-tanh"), tmp_path_factory.mktemp("adapter"), "prompt")


@pytest.fixture(scope="module")
def llm(adapted: Adapted) -> LLM:
    return LLM(adapted.tiny.path, adapter=adapted.path)


def test_text_may_fill_what_virtual_tokens_leave(adapted: Adapted, llm: LLM) -> None:
    """The last learned position is used, and no position beyond it is asked for."""
    ids = adapted.tiny.prompt(CONTEXT - VIRTUAL - 8)
    assert list(llm.generate(ids, FEW)[0].token_ids) == adapted.greedy(ids, 8)
    whole = adapted.tiny.prompt(CONTEXT - VIRTUAL)
    assert llm.logits(whole).shape == (CONTEXT - VIRTUAL, 512)


def test_refusal_says_what_virtual_tokens_take(adapted: Adapted, llm: LLM) -> None:
    said = r"context of 250.* \(the adapter's virtual tokens take 70 more\)"
    with pytest.raises(UsageError, match=said):
        llm.generate(adapted.tiny.prompt(CONTEXT - VIRTUAL - 7), FEW)
    with pytest.raises(UsageError, match=said):
        llm.score([adapted.tiny.prompt(CONTEXT - VIRTUAL + 1)])
    with pytest.raises(UsageError, match=said):
        llm.generate([1], SamplingParams(max_new_tokens=CONTEXT - VIRTUAL))


def test_cut_prompt_leaves_room_for_virtual_tokens(adapted: Adapted, llm: LLM) -> None:
    ids = adapted.tiny.prompt(CONTEXT)
    done = llm.generate(ids, FEW, truncate="left")[0]
    assert list(done.prompt_ids) == ids[-(CONTEXT - VIRTUAL - 8) :]


def test_shorter_context_counts_virtual_tokens(adapted: Adapted) -> None:
    ids = adapted.tiny.prompt(20)
    short = LLM(adapted.tiny.path, adapter=adapted.path, max_seq_len=VIRTUAL + 28)
    assert list(short.generate(ids, FEW)[0].token_ids) == adapted.greedy(ids, 8)
    with pytest.raises(UsageError, match="context of 28"):
        short.generate([*ids, 1], FEW)
    with pytest.raises(UsageError, match=r"max_seq_len is 71: give 72 to 320.*70 go to the adapter's virtual tokens"):
        LLM(adapted.tiny.path, adapter=adapted.path, max_seq_len=VIRTUAL + 1)


def test_more_virtual_tokens_than_the_context_are_refused(adapted: Adapted, tmp_path: Path) -> None:
    config = (adapted.tiny.path / "config.json").read_text()
    for file in adapted.tiny.path.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    (tmp_path / "config.json").write_text(config.replace('"n_positions": 320', '"n_positions": 71'))
    with pytest.raises(UsageError, match="70 virtual tokens leave no text in a context of 71"):
        LLM(tmp_path, adapter=adapted.path)


def test_virtual_ids_are_no_tokens(llm: LLM) -> None:
    with pytest.raises(UsageError, match="512"):
        llm.generate([512], FEW)


def test_adapter_that_is_nowhere_is_refused_as_such(adapted: Adapted, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="adapter: no model"):
        LLM(adapted.tiny.path, adapter=tmp_path / "nowhere")
    with pytest.raises(CheckpointError, match=r"adapter_config\.json does not exist: an adapter's folder needs one"):
        LLM(adapted.tiny.path, adapter=tmp_path)


def test_text_is_read_with_the_adapters_own_tokenizer(tiny: Callable[[str], Tiny], tmp_path: Path) -> None:
    adapted = kind(tiny("bloom-6-heads"), tmp_path, "lora")
    assert LLM(adapted.tiny.path, adapter=adapted.path).tokenizer is None
    tokenizer = byte_level_tokenizer(300)
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    llm = LLM(adapted.tiny.path, adapter=adapted.path)
    assert llm.encode("the cat sat") == tokenizer.encode("the cat sat").ids
    done = llm.generate("the cat sat", FEW)[0]
    assert list(done.token_ids) == adapted.greedy(list(done.prompt_ids), 8)
