"""`bloomery tokenize`: text into token files; the prefix to stdout, everything else to stderr."""

import json
import os
import signal
import threading
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from pathlib import Path
from time import perf_counter
from types import FrameType

from tokenizers import Tokenizer

from bloomery.checkpoint.folder import BESIDE_TOKENIZER, TOKENIZER_FILES, tokenizer_of
from bloomery.cli.bar import counted
from bloomery.cli.options import TokenizeOptions
from bloomery.data.documents import find_files
from bloomery.data.ending import end_of_document, named_ends
from bloomery.data.learn import learn_tokenizer
from bloomery.data.merge import merge_tokens
from bloomery.data.tokenize import tokenize
from bloomery.data.tokens import TokenFile, prefix_of, with_suffix
from bloomery.data.unfinished import Totals
from bloomery.errors import UsageError
from bloomery.hub.client import HubClient
from bloomery.hub.fetch import fetch
from bloomery.hub.resolve import BUILT_IN, find, is_hub_name, parse, resolve
from bloomery.log import logger
from bloomery.progress import Progress, as_size
from bloomery.text.tokenizer import read_tokenizer

SAY_EVERY = 30
"""Seconds between two lines where there is no bar."""
BESIDE = (*TOKENIZER_FILES, *BESIDE_TOKENIZER, "config.json", "generation_config.json")
"""What of a model of the Hub is fetched for its tokenizer alone."""


def run(options: TokenizeOptions) -> int:
    """Tokenize, or merge token files. Ctrl-C, SIGTERM and SIGHUP keep what is done and exit with 3."""
    if not options.sources or options.to is None:
        raise UsageError("text and a place for its tokens are needed: bloomery tokenize SOURCE… --to PREFIX")
    prefix = prefix_of(options.to.expanduser())
    if options.merge:
        _refuse_beside(options, "--merge", "tokenizer", "keys", "eod", "jobs", "train_tokenizer", "vocab_size")
        with _stopping():
            done = merge_tokens([Path(name).expanduser() for name in options.sources], prefix)
        logger.info("%s, %s tokens", counted(done.documents, "document"), f"{done.tokens:,}")
    else:
        if options.train_tokenizer:
            _refuse_beside(options, "--train-tokenizer", "tokenizer", "eod")
        try:
            with _stopping():
                done = _tokenize(options, prefix)
        except KeyboardInterrupt as stop:
            by = str(stop) or "Ctrl-C"
            logger.warning("stopped by %s; what is done is kept, and the same command goes on from there", by)
            return 3
    print(json.dumps(_row(done)) if options.json else done.prefix)
    return 0


@contextmanager
def _stopping() -> Iterator[None]:
    """While the block runs, SIGTERM and SIGHUP do as Ctrl-C does. What was ignored before stays so, as under nohup."""
    before = {}
    if threading.current_thread() is threading.main_thread():  # signals reach that one alone
        for number in (getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)):
            if signal.getsignal(number) is not signal.SIG_IGN:
                before[number] = signal.signal(number, _interrupt)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt(signal.Signals(number).name)


def _refuse_beside(options: TokenizeOptions, what: str, *names: str) -> None:
    """An option that would have no effect is a mistake."""
    for name in (*names, "revision", "token", "offline"):
        if getattr(options, name) != getattr(TokenizeOptions, name):
            raise UsageError(f"--{name.replace('_', '-')} has no meaning beside {what}: leave one of them out")


def _tokenize(options: TokenizeOptions, prefix: Path) -> TokenFile:
    keys = [key.strip() for key in options.keys.split(",")]
    if not all(keys):
        raise UsageError(f"--keys '{options.keys}' holds an empty name: write them as text,title")
    files = find_files("tokenize", options.sources)
    tokenizer, eod = _tokenizer(options, files, prefix, keys)
    with ExitStack() as stack:
        shown = _Shown(stack)
        done = tokenize(
            files,
            prefix,
            tokenizer,
            eod=eod,
            keys=keys,
            jobs=options.jobs if options.jobs is not None else os.cpu_count() or 1,
            begun=shown.begun,
            moved=shown.moved,
        )
    logger.info("%s, %s tokens of %d bytes%s", *_sizes(done), done.dtype.itemsize, shown.speed())
    return done


def _sizes(done: TokenFile) -> tuple[str, str]:
    return counted(done.documents, "document"), f"{done.tokens:,}"


def _row(done: TokenFile) -> dict[str, object]:
    facts = {"documents": done.documents, "tokens": done.tokens, "dtype": done.dtype.name}
    return {"prefix": str(done.prefix), **facts, **(asdict(done.about) if done.about else {})}


def _tokenizer(
    options: TokenizeOptions, files: Sequence[Path], prefix: Path, keys: Sequence[str]
) -> tuple[Tokenizer, int]:
    """The tokenizer, and the id that ends a document."""
    if options.train_tokenizer:
        if options.vocab_size is None:
            raise UsageError("--train-tokenizer needs --vocab-size, such as 4096")
        learned = with_suffix(prefix, ".tokenizer")
        tokenizer = learn_tokenizer(files, learned, options.vocab_size, keys=keys)
        return tokenizer, end_of_document(tokenizer, named_ends(learned / "tokenizer.json"))
    if options.vocab_size is not None:
        raise UsageError("--vocab-size is for --train-tokenizer: a tokenizer that is there has its own")
    if options.tokenizer is None:
        raise UsageError("no tokenizer: name one with --tokenizer, or learn one with --train-tokenizer")
    file = _tokenizer_file(options, options.tokenizer)
    backend = read_tokenizer(file)
    ends = named_ends(file) if options.eod is None else [options.eod]
    eod = end_of_document(backend, ends)
    logger.info("documents end with token %d, %s", eod, backend.id_to_token(eod))
    return backend, eod


def _tokenizer_file(options: TokenizeOptions, name: str) -> Path:
    path = Path(name).expanduser()
    if path.is_file():
        if options.revision is not None:
            raise UsageError(f"'{name}' is on this machine and has no revisions: leave --revision out")
        return path
    folder = path if path.is_dir() and options.revision is None else _model_folder(options, name)
    found = tokenizer_of(folder)
    if found is None:
        raise UsageError(f"{folder} has no tokenizer ({', '.join(TOKENIZER_FILES)}): name another")
    return found


def _model_folder(options: TokenizeOptions, name: str) -> Path:
    """A built-in model's folder, or one with all that makes the tokenizer of a model of the Hub."""
    if name in BUILT_IN or Path(name).expanduser().exists() or not is_hub_name(name):
        return resolve(name, options.revision, options.offline, options.token)
    hub = parse(name, options.revision)
    here = find(hub, offline=options.offline)
    if here is not None:
        return here
    client = HubClient(options.token)
    listed = [file.path for file in client.listing(hub.model, hub.revision).files if file.path in BESIDE]
    if not listed:
        raise UsageError(f"{hub.model} has no tokenizer on the Hub: name another")
    return fetch(hub.model, hub.revision, client=client, include=listed).folder


class _Shown:
    """How far it is: a bar on a terminal, now and then a line elsewhere, and a speed at the end."""

    def __init__(self, stack: ExitStack) -> None:
        self.stack = stack
        self.before = self.now = Totals()
        self.since = self.said = perf_counter()
        self.progress: Progress | None = None

    def begun(self, total: int, done: int, totals: Totals) -> None:
        self.before = self.now = totals
        self.since = self.said = perf_counter()
        self.progress = self.stack.enter_context(Progress("tokenizing", total, done))

    def moved(self, size: int, totals: Totals) -> None:
        self.now = totals
        if self.progress is None:
            return
        self.progress.moved(size)
        self.progress.retitle(f"tokenizing{self.speed()}")
        if self.progress.bar is None and perf_counter() - self.said > SAY_EVERY:
            self.said = perf_counter()
            logger.info(
                "%s of %s%s",
                as_size(self.progress.done + self.progress.received),
                as_size(self.progress.total),
                self.speed(),
            )

    def speed(self) -> str:
        """Of what this run did; empty where it had nothing to do."""
        seconds, documents = perf_counter() - self.since, self.now.documents - self.before.documents
        if not documents:
            return ""
        size = self.now.text_bytes - self.before.text_bytes
        return f": {documents / seconds:,.0f} docs/s, {size / seconds / 1e6:.2f} MB/s"
