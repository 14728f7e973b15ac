"""How fast a run is: time of its steps, apart from what is no step. Knows no model and no file."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from time import perf_counter

from bloomery.train.report.flops import StepCost
from bloomery.train.report.peak import Peak


class Meter:
    """Counts from its making on; `figures` gives the speed since it was last called.

    A step counts when `stepped` is called, so the device must have finished by then, as it has when the loss has been
    read from it.

    Args:
        seconds: of steps before this start of the run.
        clock: seconds, from any beginning.
    """

    def __init__(
        self, cost: StepCost, peak: Peak, seconds: float = 0.0, clock: Callable[[], float] = perf_counter
    ) -> None:
        self.cost, self.peak, self.seconds = cost, peak, seconds
        self._clock = clock
        self._from = clock()
        self._reset()

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Around what waits for data: part of the step's time, and shown apart."""
        began = self._clock()
        try:
            yield
        finally:
            self._waited += self._clock() - began

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Around what is no part of a step: measuring, saving."""
        began = self._clock()
        try:
            yield
        finally:
            self._from += self._clock() - began

    def stepped(self, sequences: int, seq_len: int) -> None:
        """Count a step of so many sequences, skipped ones too: they were computed."""
        now = self._clock()
        self._elapsed += now - self._from
        self.seconds += now - self._from
        self._from = now
        self._steps += 1
        self._sequences += sequences
        self._tokens += sequences * seq_len
        self._model += self.cost.model(sequences, seq_len)
        self._hardware += self.cost.hardware(sequences, seq_len)
        self._shape = sequences, seq_len

    def figures(self) -> dict[str, float]:
        """Means since the last call: `ms_per_step`, `data_wait_ms` of it, `tokens_per_s`, `samples_per_s`, `tflops`
        (of the model), `mfu` and `hfu` (fractions of the peak); `batch_size` and `seq_len` of the last step; `seconds`
        of all steps.

        Raises:
            ValueError: there was no step.
        """
        if not self._steps:
            raise ValueError("there was no step to measure since the last figures")
        elapsed = max(self._elapsed, 1e-9)
        tflops = self._model / elapsed / 1e12
        values = {
            "batch_size": self._shape[0],
            "seq_len": self._shape[1],
            "ms_per_step": 1000 * elapsed / self._steps,
            "data_wait_ms": 1000 * self._waited / self._steps,
            "tokens_per_s": self._tokens / elapsed,
            "samples_per_s": self._sequences / elapsed,
            "tflops": tflops,
            "mfu": tflops / self.peak.tflops,
            "hfu": self._hardware / elapsed / 1e12 / self.peak.tflops,
            "seconds": self.seconds,
        }
        self._reset()
        return values

    def explain(self) -> str:
        """How MFU is computed, and against which peak."""
        return f"MFU = FLOPs of the model / seconds / {self.peak.tflops:.4g} TFLOP/s ({self.peak.origin})"

    def _reset(self) -> None:
        self._elapsed = self._waited = 0.0
        self._steps = self._sequences = self._tokens = self._model = self._hardware = 0
        self._shape = (0, 0)
