"""A folder's tokenizer gives the ids and the text that transformers gives, whichever files it is made of."""

import json
import random
import shutil
from pathlib import Path
from threading import Event, Thread
from typing import Any

import pytest
from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers, processors, trainers
from tokenizers import Tokenizer as Backend
from transformers import AutoTokenizer, GPT2Tokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from bloomery.errors import CheckpointError
from bloomery.text import tokenizer
from bloomery.text.tokenizer import LazyTokenizer, Tokenizer

SIZE = 700
READ_ME = (Path(__file__).parent.parent.parent / "docs" / "architecture.md").read_text(encoding="utf-8")
TEXTS = [
    "",
    " ",
    "It was the best of times",
    "  two  spaces, then a tab\t\n\n\n  and lines \r\n end ",
    "don't we'll I'VE 12345 6.78 $9 x²",
    "naïve café Å — “quotes” … ☃ ½",
    "日本語 русский العربية हिन्दी ไทย 한국어",
    "emoji 👍🏽 👩‍👩‍👧 🇨🇭 and \u200b\ufeff zero width",
    "<|end|>begins<|end|> and <|end|> ends<|end|>",
    "<s>[INST] hi </s><pad> <x>y <y> z<zz>zz",
    "\0\x01\x7f\x80\xff\uffff\U0010ffff",
    READ_ME[:3000],
]


def noise(seed: int) -> str:
    """Words, spaces and letters of every kind, in no order."""
    dice = random.Random(seed)
    pieces = ["the", " ", "  ", "\n", "'s", "7", "<|end|>", "<s>", "<x>", "<pad>", "é", "ß", "▁", "Ġ", "👍"]
    letters = [chr(dice.choice([dice.randrange(32, 127), dice.randrange(0xA0, 0xD800)])) for _ in range(20)]
    return "".join(dice.choices(pieces + letters, k=dice.randrange(1, 60)))


TEXTS += [noise(seed) for seed in range(60)]


def assert_same(ours: Tokenizer, theirs: PreTrainedTokenizerBase) -> None:
    for text in TEXTS:
        ids = theirs(text)["input_ids"]
        assert ours.encode(text) == ids, text
        assert ours.decode(ids) == theirs.decode(ids, skip_special_tokens=True), text
    every = list(range(len(theirs)))
    assert ours.decode(every) == theirs.decode(every, skip_special_tokens=True)
    for index in every:
        assert ours.decode([index]) == theirs.decode([index], skip_special_tokens=True), index


def write(folder: Path, **files: Any) -> None:
    for name, content in files.items():
        if content is not None:
            (folder / f"{name}.json").write_text(json.dumps(content))


# --- vocab.json and merges.txt ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def trained() -> Backend:
    """A byte-level BPE."""
    backend = Backend(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=SIZE, initial_alphabet=alphabet, show_progress=False, special_tokens=["<|endoftext|>", "<|end|>"]
    )
    backend.train_from_iterator([READ_ME], trainer)
    return backend


@pytest.fixture
def published(trained: Backend, tmp_path: Path) -> Path:
    """A folder as GPT-2 was published in: vocab.json and merges.txt."""
    trained.model.save(str(tmp_path))
    assert sorted(file.name for file in tmp_path.iterdir()) == ["merges.txt", "vocab.json"]
    write(tmp_path, config={"model_type": "gpt2"})
    return tmp_path


def flags(content: str, **more: bool) -> dict[str, Any]:
    return {"content": content, "lstrip": False, "normalized": False, "rstrip": False, "single_word": False} | more


GPT2: dict[str, Any] = {"tokenizer_class": "GPT2Tokenizer"}
DESCRIBED: dict[str, dict[str, Any]] = {
    "nothing": {},
    "class only": {"tokenizer_config": GPT2},
    "fast class": {"tokenizer_config": {"tokenizer_class": "GPT2TokenizerFast", "model_max_length": 1024}},
    "another end": {
        "tokenizer_config": GPT2 | {"bos_token": "<|end|>", "eos_token": "<|end|>", "unk_token": "<|end|>"}
    },
    "no unknown": {"tokenizer_config": GPT2 | {"unk_token": None, "pad_token": None}},
    "new tokens": {"tokenizer_config": GPT2 | {"pad_token": "<pad>", "additional_special_tokens": ["<x>", "<y>"]}},
    "bos": {"tokenizer_config": GPT2 | {"add_bos_token": True}},
    "no bos": {"tokenizer_config": GPT2 | {"add_bos_token": False, "add_eos_token": False}},
    "bos and a new eos": {
        "tokenizer_config": GPT2 | {"add_bos_token": True, "add_eos_token": True, "eos_token": "</s>"}
    },
    "a bos that is none": {"tokenizer_config": GPT2 | {"add_bos_token": True, "bos_token": None}},
    "space before": {"tokenizer_config": GPT2 | {"add_prefix_space": True}},
    "map": {"special_tokens_map": {"bos_token": "<|end|>", "pad_token": flags("<pad>", lstrip=True, rstrip=True)}},
    "map against config": {
        "tokenizer_config": GPT2 | {"eos_token": {"__type": "AddedToken"} | flags("<x>")},
        "special_tokens_map": {"eos_token": "<y>"},
    },
    "added": {
        "tokenizer_config": GPT2 | {"pad_token": "<pad>"},
        "added_tokens": {"<y>": SIZE, "<pad>": SIZE + 1, "<x>": SIZE + 2, "<zz>": SIZE + 3},
    },
    "added, out of order": {"added_tokens": {"<zz>": SIZE + 3, "<y>": SIZE, "<x>": SIZE + 2, "</s>": SIZE + 1}},
    "listed": {
        "tokenizer_config": GPT2
        | {
            "pad_token": "<pad>",
            "additional_special_tokens": ["<x>"],
            "added_tokens_decoder": {
                str(SIZE + 1): flags("<pad>", special=False),
                str(SIZE): flags("<y>", rstrip=True, special=False),
                "0": flags("<|endoftext|>", normalized=True, special=True),
            },
        },
        "special_tokens_map": {"pad_token": "<never>"},
        "added_tokens": {"<never>": 7},
    },
    "added and extra": {
        "tokenizer_config": GPT2 | {"additional_special_tokens": ["<x>"]},
        "added_tokens": {"<y>": SIZE, "<x>": SIZE + 1},
    },
    "listed and extra": {
        "tokenizer_config": GPT2
        | {
            "additional_special_tokens": ["<y>"],
            "added_tokens_decoder": {str(SIZE): flags("<y>", rstrip=True, special=True)},
        },
    },
    "own names": {"tokenizer_config": GPT2 | {"image_token": "<x>", "extra_special_tokens": {"audio_token": "<y>"}}},
}


@pytest.mark.parametrize("described", DESCRIBED)
def test_vocabulary_and_merges_give_what_transformers_gives(published: Path, described: str) -> None:
    write(published, **DESCRIBED[described])
    ours = Tokenizer(published / "vocab.json")
    for kind in (GPT2Tokenizer, AutoTokenizer):
        theirs = kind.from_pretrained(published)
        assert ours.backend.get_vocab() == theirs.get_vocab()
        assert_same(ours, theirs)


def test_codegen_is_read_as_its_own_tokenizer_json(published: Path) -> None:
    """Phi-2 names this class, and transformers writes tokenizer.json from the same two files."""
    write(published, tokenizer_config={"tokenizer_class": "CodeGenTokenizer"})
    theirs = GPT2Tokenizer.from_pretrained(published)
    assert_same(Tokenizer(published / "vocab.json"), theirs)
    theirs.save_pretrained(published / "new")
    assert_same(Tokenizer(published / "new" / "tokenizer.json"), theirs)


def refused(file: Path, *fragments: str) -> None:
    with pytest.raises(CheckpointError) as caught:
        Tokenizer(file)
    message = str(caught.value)
    assert "\n" not in message
    assert str(file.parent) in message
    for fragment in fragments:
        assert fragment in message, message


def test_vocabulary_without_merges_is_refused(published: Path) -> None:
    (published / "merges.txt").unlink()
    refused(published / "vocab.json", "needs merges.txt", "fetch")


def test_vocabulary_of_another_kind_of_tokenizer_is_refused(published: Path) -> None:
    write(published, tokenizer_config={"tokenizer_class": "Qwen2Tokenizer"})
    refused(published / "vocab.json", "'Qwen2Tokenizer'", "tokenizer.json")


def test_vocabulary_that_would_lose_bytes_is_refused(published: Path) -> None:
    vocabulary = json.loads((published / "vocab.json").read_text())
    for byte in "Ġé":  # only bytes that no merge needs would be lost without a word
        vocabulary.pop(byte)
    (published / "vocab.json").write_text(json.dumps(vocabulary))
    (published / "merges.txt").write_text("#version: 0.2\n")
    refused(published / "vocab.json", "2 of the 256 bytes", "fetch")


@pytest.mark.parametrize("name", ["vocab.json", "merges.txt"])
@pytest.mark.parametrize("content", [b"", b"{", b"[1]", b"\xff\xfe", b"<html>not found</html>", b'{"a": "b"}'])
def test_broken_vocabulary_is_refused(published: Path, name: str, content: bytes) -> None:
    if (name, content) == ("merges.txt", b""):
        pytest.skip("a BPE without merges is one")
    (published / name).write_bytes(content)
    refused(published / "vocab.json", "fetch")


@pytest.mark.parametrize("name", ["tokenizer_config", "special_tokens_map", "added_tokens"])
@pytest.mark.parametrize("content", ["", "{", "[1]", "null", "[" * 100_000])
@pytest.mark.parametrize("main", ["vocab.json", "tokenizer.json"])
def test_broken_description_is_refused(published: Path, trained: Backend, name: str, content: str, main: str) -> None:
    trained.save(str(published / "tokenizer.json"))
    (published / f"{name}.json").write_text(content)
    refused(published / main, f"{name}.json", "fetch")


@pytest.mark.parametrize(
    "config",
    [
        {"bos_token": 7},
        {"bos_token": {"lstrip": True}},
        {"bos_token": {"content": None}},
        {"additional_special_tokens": "<x>"},
        {"additional_special_tokens": [7]},
        {"added_tokens_decoder": [1]},
        {"added_tokens_decoder": {"x": {"content": "y"}}},
        {"added_tokens_decoder": {"7": 7}},
    ],
    ids=str,
)
def test_token_that_is_none_is_refused(published: Path, config: dict[str, Any]) -> None:
    write(published, tokenizer_config=config)
    with pytest.raises(CheckpointError) as caught:
        Tokenizer(published / "vocab.json")
    assert "\n" not in str(caught.value)
    assert "fetch" in str(caught.value)


# --- tokenizer.json --------------------------------------------------------------------------------------------------


def sentence_pieces() -> Backend:
    """A BPE as Llama-2 has it: spaces are letters, what no piece spells is bytes, `<s>` comes first."""
    vocabulary = {"<unk>": 0, "<s>": 1, "</s>": 2} | {f"<0x{byte:02X}>": 3 + byte for byte in range(256)}
    for letter in "▁etaonhisrdlu ":
        vocabulary.setdefault(letter, len(vocabulary))
    merges = [("▁", "t"), ("h", "e"), ("▁t", "he"), ("i", "s"), ("▁", "▁"), ("a", "n"), ("an", "d")]
    for one, other in merges:
        vocabulary[one + other] = len(vocabulary)
    backend = Backend(models.BPE(vocabulary, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    backend.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    backend.add_special_tokens(
        [AddedToken(token, special=True, normalized=False) for token in ("<unk>", "<s>", "</s>")]
    )
    backend.post_processor = processors.TemplateProcessing(["<s>", "$A"], ["<s>", "$A", "<s>:1", "$B:1"], [("<s>", 1)])
    return backend


def llama_3(trained: Backend) -> Backend:
    """A byte-level BPE as Llama-3 has it: its own pattern of words, whole words first, a template after ByteLevel."""
    backend = Backend.from_str(trained.to_str())
    backend.model.ignore_merges = True
    pattern = Regex(r"(?i:'s|'t|'re)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s+(?!\S)|\s+")
    words = pre_tokenizers.Split(pattern, "isolated")
    backend.pre_tokenizer = pre_tokenizers.Sequence([words, pre_tokenizers.ByteLevel(False, use_regex=False)])
    backend.add_special_tokens(["<|begin|>"])
    template = processors.TemplateProcessing(
        ["<|begin|>", "$A"], None, [("<|begin|>", backend.token_to_id("<|begin|>"))]
    )
    backend.post_processor = processors.Sequence([processors.ByteLevel(trim_offsets=False), template])
    return backend


LLAMA: dict[str, Any] = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}


@pytest.mark.parametrize(
    "config",
    [
        None,
        LLAMA,
        LLAMA | {"add_bos_token": True, "add_eos_token": False},
        LLAMA | {"add_bos_token": False},
        LLAMA | {"add_eos_token": True},
        LLAMA | {"pad_token": "<pad>", "additional_special_tokens": ["<x>", "<y>"]},
        {"added_tokens_decoder": {"1": flags("<s>", special=True), "500": flags("<x>", special=False)}},
    ],
    ids=str,
)
def test_template_of_tokenizer_json_puts_its_token_first(tmp_path: Path, config: dict[str, Any] | None) -> None:
    """As transformers does: `add_bos_token` says nothing where tokenizer.json has its say."""
    sentence_pieces().save(str(tmp_path / "tokenizer.json"))
    write(tmp_path, tokenizer_config=config)
    ours = Tokenizer(tmp_path / "tokenizer.json")
    assert ours.encode("the")[0] == 1
    assert ours.encode("") == [1]
    assert_same(ours, PreTrainedTokenizerFast.from_pretrained(tmp_path))


def test_llama_2_is_read_as_by_transformers(tmp_path: Path) -> None:
    """Transformers 5 takes only the vocabulary from tokenizer.json, and has its own idea of spaces at the beginning and
    around special tokens. There we give what the file says, which is what SentencePiece gives."""
    sentence_pieces().save(str(tmp_path / "tokenizer.json"))
    write(tmp_path, tokenizer_config=LLAMA | {"tokenizer_class": "LlamaTokenizer"}, config={"model_type": "llama"})
    ours, theirs = Tokenizer(tmp_path / "tokenizer.json"), AutoTokenizer.from_pretrained(tmp_path)
    texts = [text for text in TEXTS if text[:1] not in (" ", "▁") and "<s>" not in text]
    assert len(texts) > 30
    for text in texts:
        assert ours.encode(text) == theirs(text)["input_ids"], text


def test_llama_3_is_read_as_by_transformers(trained: Backend, tmp_path: Path) -> None:
    backend = llama_3(trained)
    backend.save(str(tmp_path / "tokenizer.json"))
    write(tmp_path, tokenizer_config={"bos_token": "<|begin|>", "tokenizer_class": "PreTrainedTokenizerFast"})
    write(tmp_path, config={"model_type": "llama"})
    ours = Tokenizer(tmp_path / "tokenizer.json")
    assert ours.encode("")[0] == backend.token_to_id("<|begin|>")
    assert_same(ours, AutoTokenizer.from_pretrained(tmp_path))


def test_file_without_a_template_puts_nothing_first_and_says_so(tmp_path: Path, log: list[str]) -> None:
    """Transformers 4 took `add_bos_token`, transformers 5 does not: somebody may wonder."""
    backend = sentence_pieces()
    described = json.loads(backend.to_str()) | {"post_processor": None}
    write(tmp_path, tokenizer=described, tokenizer_config=LLAMA | {"add_bos_token": True})
    ours = Tokenizer(tmp_path / "tokenizer.json")
    theirs = PreTrainedTokenizerFast.from_pretrained(tmp_path)
    assert ours.encode("the") == theirs("the")["input_ids"]
    assert ours.encode("the")[0] != 1
    assert_same(ours, theirs)
    assert len(log) == 1
    assert "add_bos_token" in log[0]


@pytest.mark.parametrize("config", [LLAMA, LLAMA | {"add_bos_token": True}])
def test_file_with_a_template_says_nothing(tmp_path: Path, config: dict[str, Any], log: list[str]) -> None:
    sentence_pieces().save(str(tmp_path / "tokenizer.json"))
    write(tmp_path, tokenizer_config=config)
    Tokenizer(tmp_path / "tokenizer.json")
    assert log == []


def test_code_that_a_tokenizer_asks_for_is_not_run_and_that_is_said(
    published: Path, trained: Backend, log: list[str]
) -> None:
    (published / "evil.py").write_text(f"import pathlib; pathlib.Path({str(published / 'trace')!r}).mkdir()")
    auto_map = {"AutoTokenizer": ["evil.EvilTokenizer", "evil.EvilTokenizerFast"]}
    write(published, tokenizer_config=GPT2 | {"auto_map": auto_map})
    assert Tokenizer(published / "vocab.json").encode("the best") == trained.encode("the best").ids
    assert not (published / "trace").exists()
    assert len(log) == 1
    assert "auto_map" in log[0]


def test_settings_of_a_training_neither_cut_nor_pad(trained: Backend, tmp_path: Path) -> None:
    backend = Backend.from_str(trained.to_str())
    backend.enable_truncation(5)
    backend.enable_padding(length=9)
    backend.save(str(tmp_path / "tokenizer.json"))
    ours = Tokenizer(tmp_path / "tokenizer.json")
    for text in TEXTS:
        assert ours.encode(text) == trained.encode(text).ids


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{}",
        b"[]",
        b"\xff",
        b'{"model": {"type": "BPE", "vocab": {}, "merges": [["a", "b"]]}}',
        b'{"model": {"type": "Unigram", "unk_id": 9, "vocab": []}}',
        b"[" * 100_000,
    ],
)
def test_broken_tokenizer_json_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "tokenizer.json").write_bytes(content)
    refused(tmp_path / "tokenizer.json", "tokenizer.json", "fetch")


def test_sentence_piece_model_is_refused_with_the_remedy(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.model").write_bytes(b"\x0a\x05")
    refused(tmp_path / "tokenizer.model", "SentencePiece", "save_pretrained", "transformers")


# --- when it is needed -----------------------------------------------------------------------------------------------


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The files that are read, as they are."""
    files: list[Path] = []
    read = tokenizer.read_tokenizer

    def counting(file: Path) -> Backend:
        files.append(file)
        return read(file)

    monkeypatch.setattr(tokenizer, "read_tokenizer", counting)
    return files


def test_lazy_tokenizer_is_read_once_and_when_it_is_needed(published: Path, counted: list[Path]) -> None:
    lazy = LazyTokenizer(lambda: tokenizer.read_tokenizer(published / "vocab.json"))
    assert counted == []
    eager = Tokenizer(published / "vocab.json")
    assert [lazy.encode(text) for text in TEXTS] == [eager.encode(text) for text in TEXTS]
    assert lazy.decode([1, 2, 3]) == eager.decode([1, 2, 3])
    assert len(counted) == 2


def test_lazy_tokenizer_is_read_in_a_thread_while_others_work(
    published: Path, counted: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    read, go_on = tokenizer.read_tokenizer, Event()

    def waiting(file: Path) -> Backend:
        assert go_on.wait(60)
        return read(file)

    monkeypatch.setattr(tokenizer, "read_tokenizer", waiting)
    lazy = LazyTokenizer(lambda: tokenizer.read_tokenizer(published / "vocab.json"))
    lazy.start()
    lazy.start()
    found: list[list[int]] = []
    threads = [Thread(target=lambda: found.append(lazy.encode("the best"))) for _ in range(3)]
    for thread in threads:
        thread.start()
    assert found == []
    go_on.set()
    for thread in threads:
        thread.join(60)
    assert found == 3 * [Tokenizer(published / "vocab.json").encode("the best")]
    assert len(counted) == 2


@pytest.mark.parametrize("started", [True, False])
def test_what_is_wrong_with_a_lazy_tokenizer_is_said_whenever_it_is_needed(published: Path, started: bool) -> None:
    shutil.copy(published / "merges.txt", published / "tokenizer.json")
    lazy = LazyTokenizer(lambda: tokenizer.read_tokenizer(published / "tokenizer.json"))
    if started:
        lazy.start()
    for _ in range(2):
        with pytest.raises(CheckpointError, match="is no tokenizer"):
            lazy.encode("the")
