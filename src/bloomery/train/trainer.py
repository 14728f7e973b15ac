"""One training run, from options to a model folder: nothing but the order of things."""

import time
from dataclasses import dataclass
from pathlib import Path

import torch

from bloomery.checkpoint.export import export_decoder
from bloomery.devices import DTYPES
from bloomery.log import logger
from bloomery.train.card import model_card
from bloomery.train.config import TrainConfig
from bloomery.train.data import Samples
from bloomery.train.evaluate import Evaluation, Evaluator
from bloomery.train.loss import SequenceLoss
from bloomery.train.metrics import Metrics
from bloomery.train.setup import build_decoder, find_family, find_text, make_folder, prepare_text
from bloomery.train.step import StepResult, TrainStep
from bloomery.train.stop import StopOnInterrupt
from bloomery.train.tokenizer import SPECIAL_IDS, byte_lengths, tokenizer_files


@dataclass(frozen=True)
class TrainResult:
    """What a run leaves: the model's folder, its quality, and how many updates were made or dropped."""

    model: Path
    evaluation: Evaluation
    steps: int
    dropped: int


class Trainer:
    """Runs one training run on the CPU.

    Raises:
        UsageError: an option is wrong, before any work is done.
    """

    def __init__(self, config: TrainConfig) -> None:
        self.config = config
        shape, run = config.model, config.run
        self.family = find_family(shape)
        files = find_text(config)
        self.out = make_folder(config)
        if run.threads is not None:
            torch.set_num_threads(run.threads)
        self.text = prepare_text(config, files, self.out / "tokens")
        self.samples = Samples(self.text.train.open(), shape.seq_len, run.seed)
        self.decoder = build_decoder(shape, self.family, run.seed)
        self.loss = SequenceLoss(self.decoder, DTYPES[run.dtype])
        self.take_step = TrainStep(self.loss, config.optim, run.steps)
        lengths = byte_lengths(self.text.tokenizer)
        held_out = self.text.valid.open()
        self.evaluate = Evaluator(held_out, lengths, shape.seq_len, run.batch_size, config.data.valid_windows)

    def run(self) -> TrainResult:
        """Train, measure, write the model; after Ctrl-C too, which is then raised again.

        Raises:
            BloomeryError: the numbers went astray.
            KeyboardInterrupt: it was asked for; the model has been written.
        """
        run, model = self.config.run, self.out / "model"
        with Metrics(self.out / "metrics.jsonl", run.steps) as metrics, StopOnInterrupt() as stop:
            began = time.perf_counter()
            for step in range(1, run.steps + 1):
                windows = self.samples.take((step - 1) * run.batch_size, run.batch_size)
                result = self.take_step(step - 1, torch.from_numpy(windows))
                last = step == run.steps or stop.asked
                if step % run.log_interval == 0 or last:
                    began = self._log(metrics, step, result, began)
                if step % run.eval_interval == 0 or last:
                    paused = time.perf_counter()
                    measured = self._measure_and_write(metrics, step)
                    began += time.perf_counter() - paused
                if last:
                    break
        if step < run.steps:
            logger.warning("stopped after step %d of %d: the model so far is in %s", step, run.steps, model)
            raise KeyboardInterrupt
        logger.info("model written to %s", model)
        return TrainResult(model, measured, step, self.take_step.dropped)

    def _log(self, metrics: Metrics, step: int, result: StepResult, began: float) -> float:
        """Write a line of metrics and show it; the time from which the next line counts."""
        run = self.config.run
        now = time.perf_counter()
        steps = (step - 1) % run.log_interval + 1
        seconds = (now - began) / steps
        tokens = run.batch_size * self.config.model.seq_len
        line = {
            "step": step,
            "samples": step * run.batch_size,
            "tokens": step * tokens,
            "loss": result.loss,
            "grad_norm": result.grad_norm,
            "lr": result.lr,
            "tokens_per_s": tokens / seconds,
            "ms_per_step": 1000 * seconds,
            "dropped": self.take_step.dropped,
        }
        metrics.write(line)
        metrics.show(step, f"loss {result.loss:.4f}  {tokens / seconds:,.0f} tok/s")
        return now

    def _measure_and_write(self, metrics: Metrics, step: int) -> Evaluation:
        """Loss on the held-out text, and the model as it is."""
        measured = self.evaluate(self.loss)
        metrics.write(
            {
                "step": step,
                "eval_loss": measured.loss,
                "eval_perplexity": measured.perplexity,
                "eval_bits_per_byte": measured.bits_per_byte,
                "eval_tokens": measured.tokens,
            }
        )
        metrics.show(step, f"held out: loss {measured.loss:.4f}, {measured.bits_per_byte:.4f} bits per byte")
        self._write_model(step, measured)
        return measured

    def _write_model(self, step: int, measured: Evaluation) -> None:
        config, text = self.config, self.text
        parameters = sum(p.numel() for p in self.decoder.parameters())
        files = (text.train_files, text.valid_files)
        card = model_card(config, self.decoder.config, parameters, files, step, measured)
        export_decoder(
            self.decoder,
            self.family,
            self.out / "model",
            dtype=DTYPES[config.run.dtype],
            config=SPECIAL_IDS,
            generation={k: v for k, v in SPECIAL_IDS.items() if k != "unk_token_id"},
            files=tokenizer_files(text.tokenizer, config.model.seq_len) | {"README.md": card},
        )
