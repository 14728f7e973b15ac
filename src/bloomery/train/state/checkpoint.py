"""A run's whole state on disk and back: weights, optimizer, position. Knows no loss and no data.

RUN/checkpoints/step-40/ is a store of the model as it was then, which every verb takes, with the optimizer's tensors
and state.json beside. Nothing in it depends on how many ranks there were: a tensor has one name and its whole shape.
"""

import json
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Literal

from torch import Tensor

from bloomery.checkpoint.folder import describe, read_json
from bloomery.checkpoint.latest import CHECKPOINTS, step_of
from bloomery.checkpoint.manifest import NAME as MANIFEST
from bloomery.checkpoint.manifest import FileFacts, Manifest, Source
from bloomery.checkpoint.precision import dtype_name
from bloomery.checkpoint.write import read_back, write_bytes, write_json
from bloomery.errors import CheckpointError
from bloomery.families import Family
from bloomery.log import logger
from bloomery.model.config import DecoderConfig
from bloomery.model.decoder import Decoder
from bloomery.train.state.publish import PART, Steps, Whole, check_folder
from bloomery.train.state.run_tensors import (
    OPTIM,
    HasState,
    copied,
    model_tensors,
    optimizer_tensors,
    refuse_differences,
)
from bloomery.train.state.tensor_files import compare_tensors, kinds_of, read_tensors, write_tensors

FILE_BYTES = 2**28
"""Where a new file begins: its writer needs memory for two copies of a file. A tensor stays whole."""
STATE, VERSION = "state.json", 1
What = Literal["all", "weights", "weights+optimizer"]


@dataclass(kw_only=True)
class Progress:
    """How far a run is. `samples`, `tokens`: learned from; `skipped`: steps whose numbers were not finite;
    `skipped_in_a_row`: how many of them are the last ones; `extra`: what else is to be known again, as JSON has it."""

    step: int = 0
    samples: int = 0
    tokens: int = 0
    skipped: int = 0
    skipped_in_a_row: int = 0
    seconds: float = 0.0
    extra: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class _Moment:
    """All that is written of one moment: copies, which nobody else has."""

    step: int
    is_model: bool
    files: dict[str, dict[str, Tensor]]
    state: bytes

    @property
    def size(self) -> int:
        return sum(tensor.nbytes for tensors in self.files.values() for tensor in tensors.values())


class Checkpoints:
    """A run's checkpoints, in one folder.

    Args:
        folder: RUN/checkpoints.
        keep: how many are kept, the newest ones.
        beside: files that go with the model, by name: its config.json, and its tokenizer where there is one.
        family, config: of the model.
        file_bytes: where a new file begins.

    Raises:
        ValueError: the config.json is of another model.
        CheckpointError: a folder is where `latest` should be.
    """

    def __init__(
        self,
        folder: Path,
        *,
        keep: int,
        beside: Mapping[str, bytes],
        family: Family,
        config: DecoderConfig,
        file_bytes: int = FILE_BYTES,
    ) -> None:
        if describe(folder / "config.json", json.loads(beside["config.json"])) != (family, config):
            raise ValueError(f"config.json is not of a {family.name} of {config}")
        self.folder, self.beside, self.family, self.config = folder, dict(beside), family, config
        self._steps = Steps(folder, keep)
        self._file_bytes = file_bytes
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._pending: Future[Path] | None = None

    def save(self, decoder: Decoder, optimizer: HasState, progress: Progress) -> None:
        """Begin to write a checkpoint. When this returns everything has been copied and may change; one checkpoint is
        written at a time, so it waits for the one before.

        Where a decoder has more parameters than its model, only those that are trained are written: the step folder is
        then no model by itself.

        Raises:
            CheckpointError: the checkpoint before could not be written, and this one has not been begun.
        """
        self.wait()
        weights, is_model = model_tensors(decoder)
        files = dict(self._divided("weights-000", copied(weights)))
        files |= self._divided("optimizer", copied(optimizer_tensors(optimizer)))
        said = {"version": VERSION, "progress": asdict(progress)}
        moment = _Moment(progress.step, is_model, files, (json.dumps(said, indent=2) + "\n").encode())
        self._pending = self._pool.submit(self._publish, moment)

    def wait(self) -> None:
        """Until the checkpoint that is being written is there.

        Raises:
            CheckpointError: it could not be written; the run and the earlier checkpoints are as they were.
        """
        if self._pending is None:
            return
        try:
            self._pending.result()
        finally:
            if self._pending.done():
                self._pending = None

    def newest(self) -> Path | None:
        """The step folder to go on from, read and checked; None where there is none. What is wrong with others is said
        on stderr.

        Raises:
            CheckpointError: there are some, and none is whole.
        """
        found = self._steps.newest()
        return None if found is None else found.path

    def load(self, path: Path | None, decoder: Decoder, optimizer: HasState | None, *, what: What) -> Progress:
        """Fill a decoder, and an optimizer, from a checkpoint.

        Args:
            path: a step folder, or a run, whose newest good one is taken; None: this run.
            optimizer: is filled unless `what` is "weights".
            what: "all" goes on where the checkpoint was; the others begin at step 0, with the optimizer as it was then,
                or as it is now.

        Returns:
            Where the run is now.

        Raises:
            CheckpointError: nothing good is there, or it is of another model or another optimizer; nothing has been
                changed.
        """
        if what == "weights":
            optimizer = None
        elif optimizer is None:
            raise ValueError(f"no optimizer to load {what} into")
        found = self._find(path)
        self._refuse_other_model(found, what)
        progress = _read_progress(found.path / STATE)
        weights, is_model = model_tensors(decoder)
        if is_model != found.is_model:
            kinds = "a whole model", "what is trained beside a frozen model"
            has, wants = kinds if found.is_model else kinds[::-1]
            raise CheckpointError(f"{found.path} has {has}, and this run is of {wants}: choose another checkpoint")
        wanted = weights if optimizer is None else weights | optimizer_tensors(optimizer)
        there = kinds_of(found.path)
        if optimizer is None:
            there = {name: kind for name, kind in there.items() if not name.startswith(OPTIM)}
        refuse_differences(found.path, there, wanted)
        try:
            read_tensors(found.path, wanted)
        except OSError as error:
            raise CheckpointError(f"{found.path} cannot be read ({error}): check the disk") from error
        logger.info("%s loaded: %s", found.path, what)
        return progress if what == "all" else Progress()

    def _find(self, path: Path | None) -> Whole:
        if path is not None and (step_of(path.resolve()) is not None or (path / STATE).is_file()):
            return check_folder(path)
        steps = self._steps
        if path is not None:
            inner = path / CHECKPOINTS
            steps = Steps(inner if inner.is_dir() else path, self._steps.keep)
        found = steps.newest()
        if found is None:
            raise CheckpointError(f"{steps.folder} has no checkpoint: name a run that has one, or its step folder")
        return found

    def _refuse_other_model(self, found: Whole, what: What) -> None:
        """Shapes are compared later; what else differs could be meant where only weights are taken."""
        theirs, ours = found.manifest, (self.family.name, self.config)
        if (theirs.family, theirs.config) == ours:
            return
        names = [f.name for f in fields(self.config) if getattr(theirs.config, f.name) != getattr(self.config, f.name)]
        differs = f"{names[0]} {getattr(theirs.config, names[0])}" if names else f"family {theirs.family}"
        if what == "all" or theirs.family != self.family.name:
            raise CheckpointError(f"{found.path} is of a model with {differs}, unlike this run's: choose another one")
        logger.warning("%s is of a model with %s, unlike this run's: its weights are taken", found.path, differs)

    def _divided(self, stem: str, tensors: Mapping[str, Tensor]) -> Iterator[tuple[str, dict[str, Tensor]]]:
        """Files by name, in order."""
        groups: list[dict[str, Tensor]] = []
        size = 0
        for name, tensor in tensors.items():
            if not groups or size + tensor.nbytes > self._file_bytes:
                groups.append({})
                size = 0
            groups[-1][name] = tensor
            size += tensor.nbytes
        for number, group in enumerate(groups, 1):
            yield f"{stem}-{number:05}.safetensors", group

    def _publish(self, moment: _Moment) -> Path:
        try:
            path = self._steps.publish(moment.step, moment.size, lambda folder: self._write(folder, moment))
        except Exception as error:  # raised where the run next asks, which may be long after
            logger.warning("the checkpoint of step %d is not written: %s", moment.step, error)
            raise
        logger.info("checkpoint of step %d is in %s", moment.step, path)
        return path

    def _write(self, folder: Path, moment: _Moment) -> None:
        """All files of a step folder; the manifest, without which it is none, last."""
        write_tensors(folder, moment.files)
        files = {}
        for name, tensors in moment.files.items():
            files[name] = FileFacts(*read_back(folder / name))
            compare_tensors(folder / name, tensors)
        for name, content in {STATE: moment.state, **(self.beside if moment.is_model else {})}.items():
            files[name] = FileFacts(*write_bytes(folder / name, content))
        weights = [name for name in moment.files if name.startswith("weights-")]
        first = next(iter(moment.files[weights[0]].values()))
        described = Manifest(
            family=self.family.name,
            config=self.config,
            dtype=dtype_name(first.dtype),
            tp=1,
            source=Source(name=f"training run {self.folder.resolve().parent.name}, step {moment.step}"),
            weights=(tuple(weights),),
            files=files,
        )
        write_json(folder / MANIFEST, described.as_json() | ({} if moment.is_model else {"format": PART}))


def _read_progress(file: Path) -> Progress:
    said = read_json(file)
    known = {option.name for option in fields(Progress)}
    progress = said.get("progress")
    if said.get("version") != VERSION or not isinstance(progress, dict) or not set(progress) <= known:
        raise CheckpointError(f"{file} is of another version of bloomery: go on with that one")
    return Progress(**progress)
