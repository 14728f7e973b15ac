"""TrainConfig: everything a training run can be told. Knows no tensor, no file's contents and no command line."""

from dataclasses import dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Any

from bloomery.train.recipe.checked import check
from bloomery.train.recipe.log_options import LogOptions
from bloomery.train.recipe.lora_options import LoraOptions
from bloomery.train.recipe.pace_options import Batch, Optim, Schedule, Stop
from bloomery.train.recipe.run_options import Begin, Data, ModelShape, Run, Save


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """One training run.

    Raises:
        UsageError: the options contradict each other.
    """

    data: Data
    run: Run
    model: ModelShape = field(default_factory=ModelShape)
    optim: Optim = field(default_factory=Optim)
    schedule: Schedule = field(default_factory=Schedule)
    batch: Batch = field(default_factory=Batch)
    stop: Stop = field(default_factory=Stop)
    save: Save = field(default_factory=Save)
    begin: Begin = field(default_factory=Begin)
    lora: LoraOptions = field(default_factory=LoraOptions)
    log: LogOptions = field(default_factory=LogOptions)

    def __post_init__(self) -> None:
        total, warmup = self.length(self.schedule.unit), self.schedule.warmup
        check(
            total is None or warmup <= total,
            f"schedule.warmup {warmup} is more than the run's {total} {self.schedule.unit}: lower it",
        )
        enough = self.schedule.kind == "constant" or (self.schedule.kind != "wsd" and self.schedule.decay is not None)
        check(
            total is not None or enough,
            f"how many {self.schedule.unit} the run has is not known before it, but schedule.kind {self.schedule.kind}"
            f" needs it: give the run's length in {self.schedule.unit}",
        )
        last, recorded = self.length("steps"), self.run.profile
        check(
            not recorded or last is None or recorded[-1] <= last,
            f"run.profile is {list(recorded)}, and the run has {last} steps: lower it",
        )
        check(
            self.lora.rank == 0 or bool(self.model.start),
            "lora.rank is for a model that is there: name it with model.start",
        )
        check(
            self.lora.rank == 0 or self.optim.name == "adamw",
            "optim.name muon is for whole matrices: an adapter (lora.rank) takes adamw",
        )

    def length(self, unit: str) -> int | None:
        """How long the run is, in steps, samples or tokens; None where it is said in another unit and the batches
        change on the way, so that only running it tells."""
        run, batch = self.run, self.batch
        per_step = {"steps": 1, "samples": batch.size, "tokens": batch.size * (self.model.seq_len or 0)}
        said = {"steps": run.steps, "samples": run.samples, "tokens": run.tokens}
        if said[unit] is not None:
            return said[unit]
        name, count = next((name, count) for name, count in said.items() if count is not None)
        if batch.changes or not per_step[name] or not per_step[unit]:
            return None
        return -(-count // per_step[name]) * per_step[unit]

    def as_tables(self) -> dict[str, Any]:
        """The options as a recipe holds them, the unset ones left out."""
        return _tables(self)


def _tables(section: Any) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for option in fields(section):
        value = getattr(section, option.name)
        if is_dataclass(value):
            value = _tables(value)
        elif isinstance(value, Path):
            value = str(value)
        if value is not None:
            values[option.name] = value
    return values
