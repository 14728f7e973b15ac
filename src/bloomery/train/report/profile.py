"""What the steps of a run spend their time on, for Perfetto or chrome://tracing. Knows no model."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from torch.profiler import ProfilerActivity, profile

from bloomery.log import logger


@contextmanager
def profiling(steps: Sequence[int], out: Path) -> Iterator[Callable[[int], None]]:
    """Record steps FIRST to LAST into out/profile-FIRST-LAST.json. What is given is to be called after every step.

    Args:
        steps: (first, last), from 1; none: nothing is recorded.
    """
    if not steps:
        yield lambda done: None
        return
    first, last = steps
    recorder = profile(activities=_activities(), record_shapes=True, profile_memory=True)
    running = first == 1
    if running:
        recorder.start()

    def stepped(done: int) -> None:
        nonlocal running
        if done == first - 1 and not running:
            recorder.start()
            running = True
        elif running and done >= last:
            write()

    def write() -> None:
        nonlocal running
        recorder.stop()
        running = False
        file = out / f"profile-{first}-{last}.json"
        recorder.export_chrome_trace(str(file))
        logger.info("profile of steps %d to %d is in %s", first, last, file)

    try:
        yield stepped
    finally:
        if running:
            write()


def _activities() -> list[ProfilerActivity]:
    import torch

    return [ProfilerActivity.CPU] + ([ProfilerActivity.CUDA] if torch.cuda.is_available() else [])
