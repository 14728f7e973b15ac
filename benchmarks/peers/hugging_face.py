"""The Trainer of transformers with their model and their loss. It logs each step, so that losses can be compared."""

from typing import Any

import torch
import transformers
from peers.job import Job, Pulse, adamw
from torch import Tensor
from torch.utils.data import Dataset
from transformers import AutoModelForCausalLM, PrinterCallback, Trainer, TrainerCallback, TrainingArguments
from transformers.loss.loss_utils import ForCausalLMLoss

VERSIONS = {"transformers": transformers.__version__, "torch": torch.__version__}


class Rows(Dataset[dict[str, Tensor]]):
    """Sample by sample, as their data loader asks for them."""

    def __init__(self, job: Job) -> None:
        self.rows = job.samples().reshape(-1, job.seq_len + 1)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        row = torch.from_numpy(self.rows[index].copy())
        return {"input_ids": row[:-1], "labels": row[1:]}


class Answering(TrainerCallback):
    def __init__(self, pulse: Pulse) -> None:
        self.pulse = pulse

    def on_log(self, *_: Any, logs: dict[str, float], **__: Any) -> None:
        if "loss" in logs:
            self.pulse.stepped(logs["loss"])


def loss_of(outputs: Any, labels: Tensor, num_items_in_batch: Tensor | None = None) -> Tensor:
    """Their own loss, of labels that are shifted already: T tokens are computed for T predictions, as everywhere.

    Its mean is over these labels: the Trainer's `num_items_in_batch` takes them for labels yet to be shifted, and
    counts one less in each sequence.
    """
    return ForCausalLMLoss(outputs.logits, None, outputs.logits.shape[-1], shift_labels=labels)


def train(job: Job, pulse: Pulse) -> None:
    transformers.utils.logging.disable_progress_bar()
    model = AutoModelForCausalLM.from_pretrained(job.model, dtype=torch.float32)
    model.config.use_cache = False
    optimizer, highest = adamw(model, job), job.rates[0]
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: job.rates[min(step, len(job.rates) - 1)] / highest
    )
    arguments = TrainingArguments(
        output_dir=job.scratch,
        max_steps=len(job.rates),
        per_device_train_batch_size=job.sequences,
        max_grad_norm=job.clip,
        bf16=job.bf16,
        use_cpu=True,
        torch_compile=job.compile,
        train_sampling_strategy="sequential",
        remove_unused_columns=False,
        dataloader_pin_memory=False,
        logging_steps=1,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        seed=job.seed,
    )
    trainer = Trainer(
        model=model,
        args=arguments,
        train_dataset=Rows(job),
        optimizers=(optimizer, schedule),
        compute_loss_func=loss_of,
        callbacks=[Answering(pulse)],
    )
    trainer.remove_callback(PrinterCallback)
    pulse.ready()
    trainer.train()
