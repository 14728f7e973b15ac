"""Weights in large pages are the weights, copied once, and their file is let go; where that cannot be, it is said."""

import logging
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from bloomery import LLM, SamplingParams
from bloomery.checkpoint import load
from bloomery.checkpoint.folder import read_folder
from bloomery.checkpoint.huge import PAGE, SETTING, HugePages
from bloomery.checkpoint.load import load_decoder
from bloomery.errors import UsageError
from drafted import build_pair
from stores import make_store
from tiny import SHAPES, Tiny

HAS = SETTING.exists() and "[never]" not in SETTING.read_text()
needs_pages = pytest.mark.skipif(not HAS, reason="this system makes no huge pages")
PARAMS = SamplingParams(max_new_tokens=12, ignore_eos=True, logprobs=2)


def answers(llm: LLM, prompt: list[int]) -> list[object]:
    return [(one.token_ids, one.logprobs) for one in llm.generate([prompt], PARAMS)]


def is_mapped(path: Path) -> bool:
    return any(str(path) in line for line in Path("/proc/self/maps").read_text().splitlines())


@needs_pages
@pytest.mark.parametrize("options", [{}, {"dtype": "bfloat16"}, {"quant": "int4"}], ids=["plain", "bf16", "packed"])
@pytest.mark.parametrize("name", [shape.name for shape in SHAPES])
def test_copied_equals_mapped(tiny: Callable[[str], Tiny], name: str, options: dict[str, str]) -> None:
    one, other = tiny(name), LLM(tiny(name).path, **options)
    copied = LLM(one.path, huge_pages=True, **options)
    theirs = dict(other.decoder.named_parameters())
    for parameter, tensor in copied.decoder.named_parameters():
        assert torch.equal(tensor.view(torch.uint8), theirs[parameter].view(torch.uint8)), parameter
        assert tensor.data_ptr() % 64 == 0, parameter
    assert answers(copied, one.prompt(9)) == answers(other, one.prompt(9))


@needs_pages
def test_the_file_is_let_go(bloom: Tiny, tmp_path: Path) -> None:
    """Of a store, and of a draft as well."""
    store = make_store(read_folder(bloom.path), tmp_path / "store")
    mapped = load_decoder(store)
    assert is_mapped(store.path)
    del mapped
    copied = load_decoder(store, huge_pages=True)
    assert not is_mapped(store.path)
    del copied
    pair = build_pair(tmp_path)
    llm = LLM(pair.path, draft=pair.draft_path, huge_pages=True)
    assert llm.draft is not None
    assert not is_mapped(tmp_path)


@needs_pages
def test_a_mapped_file_asks_for_large_pages(bloom: Tiny, tmp_path: Path) -> None:
    store = make_store(read_folder(bloom.path), tmp_path / "store")
    mapped = load_decoder(store)
    flags, inside = [], False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if not line.split()[0].endswith(":"):  # the next area
            inside = str(store.path) in line
        elif inside and line.startswith("VmFlags:"):
            flags.append("hg" in line.split())
    assert len(flags) > 1
    assert all(flags)
    del mapped


@needs_pages
def test_pages_are_large_and_counted() -> None:
    pages = HugePages(3 * PAGE)
    first = pages.take((PAGE // 4,), torch.float32).fill_(1)
    assert first.data_ptr() % PAGE == 0
    assert (pages.take((3, 5), torch.bfloat16).data_ptr() - first.data_ptr()) == PAGE
    assert (pages.take((1,), torch.uint8).data_ptr() - first.data_ptr()) == PAGE + 64
    assert re.fullmatch(r"2\.1 MB, (2\.1 MB|0 bytes|0 B) of them in huge pages", str(pages)), str(pages)


def test_it_is_said_how_much_lies_in_large_pages(bloom: Tiny, caplog: pytest.LogCaptureFixture) -> None:
    if not HAS:
        pytest.skip("this system makes no huge pages")
    with caplog.at_level(logging.INFO):
        LLM(bloom.path, huge_pages=True)
    assert sum("weights were copied: " in message for message in caplog.messages) == 1


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        (None, "huge_pages is for Linux with transparent huge pages, which are not here: drop it"),
        ("always madvise [never]\n", "huge_pages: this system makes none: write madvise into "),
    ],
)
def test_a_system_without_them_is_named(tmp_path: Path, setting: str | None, said: str) -> None:
    file = tmp_path / "enabled"
    if setting is not None:
        file.write_text(setting)
    with pytest.raises(UsageError, match=f"^{re.escape(said)}"):
        HugePages(1000, file)


def test_a_copy_that_finds_no_room_is_refused(bloom: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(load, "memory_left", lambda device: 1000)
    with pytest.raises(UsageError, match=r"^huge_pages needs .* for a copy of the weights, and 1.0 kB"):
        LLM(bloom.path, huge_pages=True)


def test_it_is_for_a_cpu(bloom: Tiny) -> None:
    with pytest.raises(UsageError, match=r"^huge_pages is for weights on a CPU, and these go to cuda: drop it$"):
        load_decoder(read_folder(bloom.path), device="cuda", huge_pages=True)
