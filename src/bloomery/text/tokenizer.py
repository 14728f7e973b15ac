"""A tokenizer's files: text to ids and ids to text. Knows no model and no folder's other files."""

import json
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from pathlib import Path
from threading import Lock, Thread
from time import sleep
from typing import Any, TypeVar

from tokenizers import Tokenizer as Backend
from tokenizers import decoders, models, pre_tokenizers, processors

from bloomery.errors import CheckpointError, UsageError
from bloomery.log import logger
from bloomery.text.special import Described, Raw, add_special_tokens

T = TypeVar("T")
MERGES = "merges.txt"
BYTE_LEVEL = ("GPT2Tokenizer", "CodeGenTokenizer")
"""Their classes for a byte-level BPE kept as vocab.json and merges.txt, which all convert in the same way."""
END = "<|endoftext|>"
"""Their bos, eos and unk token where no file names another."""


class Tokenizer:
    """A tokenizer read from tokenizer.json, or from vocab.json with merges.txt beside it.

    Special tokens that only the files beside it name are added to it, as transformers does.

    Raises:
        CheckpointError: a file is missing, damaged, or of a kind that is not read.
    """

    def __init__(self, file: Path) -> None:
        self._backend = read_tokenizer(file)

    @property
    def backend(self) -> Backend:
        """The library's own."""
        return self._backend

    def encode(self, text: str) -> list[int]:
        """Ids of a text, with the special ids that the tokenizer itself puts around one.

        Raises:
            UsageError: the text holds lone surrogates, which no UTF-8 can carry.
        """
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise UsageError(f"the text is not valid Unicode at character {error.start}: {error.reason}") from None
        return self.backend.encode(text).ids

    def decode(self, ids: Sequence[int]) -> str:
        """Text of ids, without special tokens."""
        return self.backend.decode(list(ids), skip_special_tokens=True)


class LazyTokenizer(Tokenizer):
    """A tokenizer that is read when it is first needed, or from `start` on. What is wrong with it is said when it is
    needed.

    The library holds Python's lock while it reads (1 s for 250,000 merges), so that a thread only gains where the main
    one waits for the disk, computes in torch, or moves weights.
    """

    def __init__(self, read: Callable[[], Backend]) -> None:
        self._read = read
        self._lock = Lock()
        self._begun = False
        self._future: Future[Backend] = Future()

    def start(self) -> None:
        """Begin to read it, in a thread."""
        if self._is_mine():
            Thread(target=self._fill_soon, name="tokenizer", daemon=True).start()

    @property
    def backend(self) -> Backend:
        """The library's own, waited for.

        Raises:
            CheckpointError: as for `Tokenizer`.
        """
        if self._is_mine():
            self._fill()
        return self._future.result()

    def _is_mine(self) -> bool:
        """True for the first who asks."""
        with self._lock:
            begun, self._begun = self._begun, True
        return not begun

    def _fill_soon(self) -> None:
        sleep(0.01)  # else the lock may be held before `start` has returned, and whoever called it waits
        self._fill()

    def _fill(self) -> None:
        try:
            self._future.set_result(self._read())
        except BaseException as error:  # whoever waits must not wait for ever
            self._future.set_exception(error)


def read_tokenizer(file: Path) -> Backend:
    """The library's tokenizer of a file; raises as `Tokenizer`."""
    if file.suffix == ".model":
        raise CheckpointError(
            f"{file} is a SentencePiece model, and no tokenizer.json is beside it: make one where transformers and "
            f"sentencepiece are installed, by AutoTokenizer.from_pretrained('{file.parent}').save_pretrained(…)"
        )
    config = _json(file.with_name("tokenizer_config.json"))
    if config.get("auto_map"):
        logger.info("%s: the code that its tokenizer_config.json asks for (auto_map) is not run", file)
    if file.name == "vocab.json":
        backend = _byte_level(file, config)
    else:
        backend = _guarded(file, lambda: Backend.from_file(str(file)))
        add_special_tokens(backend, _described(file, config))
        if config.get("add_bos_token") is True and not backend.encode("").ids:
            logger.info(
                "%s puts no token before a text, although tokenizer_config.json has add_bos_token: none is put there, "
                "as by transformers 5",
                file,
            )
    # A tokenizer.json may carry the settings of its training: they would cut or pad prompts without a word.
    backend.no_truncation()
    backend.no_padding()
    return backend


def _byte_level(file: Path, config: Raw) -> Backend:
    """A byte-level BPE from vocab.json and merges.txt, put together as transformers does."""
    kind = config.get("tokenizer_class")
    if isinstance(kind, str) and kind.removesuffix("Fast") not in BYTE_LEVEL:
        raise CheckpointError(
            f"{file.parent} has a tokenizer of class {ascii(kind)[:80]} without tokenizer.json: fetch that too, or "
            "make it with transformers"
        )
    merges = file.with_name(MERGES)
    if not merges.is_file():
        raise CheckpointError(f"{file} needs {MERGES} beside it: fetch the folder again")
    parts = {"continuing_subword_prefix": "", "end_of_word_suffix": "", "fuse_unk": False}
    backend = Backend(_guarded(file, lambda: models.BPE.from_file(str(file), str(merges), **parts)))
    missing = [byte for byte in sorted(pre_tokenizers.ByteLevel.alphabet()) if backend.token_to_id(byte) is None]
    if missing:
        raise CheckpointError(f"{file} has no token for {len(missing)} of the 256 bytes: fetch the folder again")
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=config.get("add_prefix_space") is True)
    backend.decoder = decoders.ByteLevel()
    described = _described(file, config, bos_token=END, eos_token=END, unk_token=END)
    add_special_tokens(backend, described)
    before, after = (
        [described.named[name].content] if name in described.named and config.get(f"add_{name}") is True else []
        for name in ("bos_token", "eos_token")
    )
    if before or after:
        special = [(token, backend.token_to_id(token)) for token in {*before, *after}]
        backend.post_processor = processors.TemplateProcessing([*before, "$A", *after], None, special)
    return backend


def _described(file: Path, config: Raw, **defaults: str) -> Described:
    special, added = (_json(file.with_name(name)) for name in ("special_tokens_map.json", "added_tokens.json"))
    return Described(config, special, added, defaults)


def _json(file: Path) -> dict[str, Any]:
    """A JSON object beside the tokenizer, empty where there is none."""
    try:
        value = json.loads(file.read_bytes())
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{file} cannot be read as JSON ({error}): fetch it again") from None
    if not isinstance(value, dict):
        raise CheckpointError(f"{file} holds no JSON object: fetch it again")
    return value


def _guarded(file: Path, read: Callable[[], T]) -> T:
    """What the library reads. It raises bare Exception, and what its Rust panics with is not even one."""
    try:
        return read()
    except BaseException as error:
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        reason = str(error).split("\n")[0]
    raise CheckpointError(f"{file} is no tokenizer ({reason}): fetch it again")
