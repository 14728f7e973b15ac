"""One training run, from options to a model: nothing but the order of things."""

from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from bloomery.data.samples import Ids, Samples
from bloomery.devices import DTYPES, keep_freed_memory, pick_device, set_threads
from bloomery.errors import BloomeryError
from bloomery.log import logger
from bloomery.train.evaluate import Evaluation, Evaluator, pooled
from bloomery.train.lora import add_lora_, lora_parameters
from bloomery.train.loss import SequenceLoss
from bloomery.train.model import build, describe
from bloomery.train.optim import Optimizers
from bloomery.train.pace import Pace, Reached
from bloomery.train.passes import add_dropout_, compile_, recompute_
from bloomery.train.recipe.config import TrainConfig
from bloomery.train.report.flops import StepCost, adapter_weights_used
from bloomery.train.report.log import RunLog
from bloomery.train.report.memory import describe_memory, memory_used
from bloomery.train.report.meter import Meter
from bloomery.train.report.peak import find_peak
from bloomery.train.report.profile import profiling
from bloomery.train.state.folder import keep_files, only_run, open_folder, refuse_nothing_to_measure
from bloomery.train.state.keep import Keeper, place_in, refuse_other_data, refuse_other_model
from bloomery.train.step import NotFinite, StepResult, TrainStep
from bloomery.train.stop import StopWatch, refuse_to_begin
from bloomery.train.text import find_words, plan_text, read_text
from bloomery.train.written import write_result


@dataclass(frozen=True)
class TrainResult:
    """What a run leaves. `model`: the folder of the finished model, None where the run was stopped, and `stopped` says
    why. `evaluation` is that of each held-out set, the last time they were measured."""

    model: Path | None
    evaluation: Mapping[str, Evaluation]
    reached: Reached
    skipped: int
    stopped: str | None = None


class Trainer:
    """Runs one training run.

    Args:
        resume: go on with the run that is in its folder.
        measure: only `evaluate` will be called, on what the run has reached; its options are not written down.

    Raises:
        UsageError: an option is wrong, before any work is done.
        CheckpointError: what the run begins with is damaged.
    """

    def __init__(self, config: TrainConfig, *, resume: bool = False, measure: bool = False) -> None:
        self.config = config
        run = config.run
        refuse_to_begin(config.stop)
        planned, self.described = plan_text(config.data), describe(config.model)
        seq_len, vocab_size = self.described.seq_len, self.described.config.vocab_size
        self.pace = Pace(config, seq_len)
        self.device = pick_device(run.device)
        if measure:
            refuse_nothing_to_measure(config)
        resume = resume or measure
        refuse_other_model(config, self.described, resume=resume)
        self.out = open_folder(config, resume=resume, record=not measure)
        if run.threads is not None:
            set_threads(run.threads)
        if self.device.type == "cpu" and not keep_freed_memory():
            logger.info("freed memory goes back to the system at every step: this C library cannot be asked to keep it")
        if run.deterministic:
            torch.use_deterministic_algorithms(True)
        words = find_words(config.data, planned, self.described, self.out / "tokenizer", resume)
        if words is not None:
            keep_files(self.out / "tokenizer", words.files)
        self.text = read_text(config.data, planned, words, vocab_size, self.out / "tokens", resume)
        self.samples = Samples(
            self.text.train,
            seq_len=seq_len,
            seed=run.seed,
            weights=config.data.weights or None,
            isolate_documents=config.data.isolate_documents,
            skip=config.data.skip,
        )
        before = memory_used(self.device)
        self.decoder = build(self.described, config.model, run.seed, self.device)
        if config.lora.rank:
            add_lora_(self.decoder, self.described.family, config.lora, run.seed)
        self.optimizers = Optimizers(self.decoder.named_parameters(), config.optim)
        self.keeper = Keeper(config, self.out, self.described, self.text.words, self.decoder, self.optimizers)
        begun = self.keeper.load(resume=resume)
        refuse_other_data(begun, self.text, self.samples)
        self.reached, self.seconds = Reached(begun.step, begun.samples, begun.tokens), begun.seconds
        self.memory = {"before_build": before, "after_build": memory_used(self.device)}
        self.loss = SequenceLoss(self.decoder, DTYPES[run.dtype], config.model.attention_dropout)
        self._add_passes()
        self.take_step = TrainStep(
            self.loss,
            self.optimizers,
            micro=config.batch.micro,
            clip=config.optim.clip,
            patience=config.stop.skipped,
            seed=run.seed,
        )
        self.take_step.skipped, self.take_step.in_a_row = begun.skipped, begun.skipped_in_a_row
        lengths = self.text.byte_lengths(vocab_size)
        size, apart = config.batch.micro or config.batch.size, config.data.isolate_documents
        self.evaluators = {
            name: Evaluator(source, lengths, seq_len, size, config.data.valid_windows, isolate_documents=apart)
            for name, source in self.text.valid.items()
        }

    def evaluate(self) -> dict[str, Evaluation]:
        """The loss on each held-out set."""
        return {name: evaluator(self.loss) for name, evaluator in self.evaluators.items()}

    def run(self) -> TrainResult:
        """Train until the run has its length, or until it is asked to stop; save, and write the model if it is done.

        Raises:
            NotFinite: the numbers went astray; the batch is in bad-batch.safetensors.
            CheckpointError: the state cannot be written.
        """
        config = self.config
        banded = self.device.type == "cpu"
        cost = StepCost(self.described.config, config.run.recompute, self._adapter_weights(), banded)
        peak = find_peak(self.device, DTYPES[config.run.dtype], config.log.peak_tflops)
        self.meter = Meter(cost, peak, self.seconds)
        self.measured: dict[str, Evaluation] = {}
        with ExitStack() as stack:
            stack.enter_context(only_run(self.out))
            steps = config.length("steps")
            recipe = config.as_tables()
            log = RunLog(self.out, config.log, steps=steps, done=self.reached.steps, recipe=recipe)
            self.log = stack.enter_context(log)
            logger.info("%s; %s", cost.formula, self.meter.explain())
            for when, used in self.memory.items():
                self.log.event(
                    "memory", {"when": when, **used}, f"memory {when.replace('_', ' ')}: {describe_memory(used)}"
                )
            stop = stack.enter_context(StopWatch(config.stop, self.out, self.reached))
            stack.enter_context(torch.random.fork_rng(devices=[]))  # what is dropped is drawn from the global generator
            profiler = stack.enter_context(profiling(config.run.profile, self.out))
            why, good = None, False
            while why is None and not good and not self.pace.done(self.reached):
                self._step()
                profiler(self.reached.steps)
                why = stop.reason(self.reached)
                good = self._between(last=why is not None or self.pace.done(self.reached))
            if not self.measured:  # resumed at its end
                self._measure()
            self.keeper.wait()
        return self._result(why if not self.pace.done(self.reached) and not good else None)

    def _step(self) -> None:
        """One step, and a line of metrics where one is due."""
        at = self.reached
        count, length = self.pace.sequences(at), self.pace.seq_len(at)
        with self.meter.waiting():
            windows = self.samples.take(at.samples, count)
            ids, segments = (self._moved(part, length) for part in windows)
        assert ids is not None
        after = at.after(count, count * length)
        try:
            result = self.take_step(at.steps, self.pace.learning_rate(after), ids, segments)
        except NotFinite as error:
            raise self._with_batch(error, ids, segments) from None
        self.reached = after
        self.meter.stepped(count, length)
        self.log.tick(after.steps)
        if after.steps % self.config.run.log_interval == 0 or self.pace.done(after):
            self._write_figures(result)

    def _moved(self, part: Ids | None, length: int) -> Tensor | None:
        """On the device, of the length that sequences have by now."""
        return None if part is None else torch.from_numpy(part)[:, : length + 1].to(self.device)

    def _write_figures(self, result: StepResult) -> None:
        reached = self.reached
        self.log.write(
            reached.steps,
            {
                "samples": reached.samples,
                "tokens": reached.tokens,
                "loss": result.loss,
                "grad_norm": result.grad_norm,
                "lr": result.lr,
                "skipped": self.take_step.skipped,
                **self.meter.figures(),
                **memory_used(self.device),
            },
        )

    def _between(self, *, last: bool) -> bool:
        """Save and measure where it is due; whether the model is as good as was asked for. The state comes first: who
        asks a run to stop may not wait until it is measured."""
        steps, config, good = self.reached.steps, self.config, False
        due = last or (config.save.interval is not None and steps % config.save.interval == 0)
        with self.meter.paused():
            if due:
                self._save()
            if last or steps % config.run.eval_interval == 0:
                self._measure()
                target = config.stop.loss
                good = target is not None and pooled(self.measured).loss <= target
            if good and not due:
                self._save()
        return good

    def _save(self) -> None:
        place, step = place_in(self.text, self.samples, self.reached), self.take_step
        self.keeper.save(self.reached, place, step.skipped, step.in_a_row, self.meter.seconds)

    def _measure(self) -> None:
        self.measured = self.evaluate()
        values = {key: value for name, one in self.measured.items() for key, value in one.values(name).items()}
        self.log.write(self.reached.steps, values)

    def _result(self, stopped: str | None) -> TrainResult:
        reached, skipped = self.reached, self.take_step.skipped
        if stopped is not None:
            logger.warning(
                "stopped after step %d (%s): the state is in %s; the same command with --resume goes on",
                reached.steps,
                stopped,
                self.keeper.folder,
            )
            return TrainResult(None, self.measured, reached, skipped, stopped)
        model = write_result(self.config, self.out, self.described, self.text, self.decoder, reached, self.measured)
        logger.info("model written to %s", model)
        return TrainResult(model, self.measured, reached, skipped)

    def _add_passes(self) -> None:
        run = self.config.run
        add_dropout_(self.decoder, self.config.model.dropout)
        if run.compile:
            compile_(self.decoder)
        if run.recompute:
            recompute_(self.decoder)

    def _adapter_weights(self) -> int | None:
        if not self.config.lora.rank:
            return None
        sizes = {name: parameter.numel() for name, parameter in lora_parameters(self.decoder).items()}
        return adapter_weights_used(self.described.config, sizes)

    def _with_batch(self, error: NotFinite, ids: Tensor, segments: Tensor | None) -> BloomeryError:
        """The error, once the batch that led to it is in a file."""
        file = self.out / "bad-batch.safetensors"
        parts = {"ids": ids.cpu()} | ({} if segments is None else {"segments": segments.cpu()})
        save_file({name: part.contiguous() for name, part in parts.items()}, file)
        return NotFinite(f"{error}; the batch is in {file}")
