"""Run by test_checkpoint.py in a process of its own: saves in forks of itself, each killed at another place.

    killing.py FOLDER KIND

KIND is "calls" (SIGKILL before each call that changes the disk, one fork for each), "bytes" (killed by the system in
the middle of a file) or "full" (the disk takes no more, and the process lives). Prints one JSON object: how often which
step was found afterwards.
"""

import json
import os
import resource
import shutil
import signal
import sys
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from bloomery.errors import CheckpointError
from runs import Run, checkpoints_of, differences, saved

BEFORE, AFTER = 3, 5
FILE_BYTES = 20_000
"""A few files: every one is several places more."""
CHANGES = {"os.mkdir", "os.rename", "os.remove", "os.rmdir"}


def killed_at(place: int) -> Callable[[], None]:
    """Arms a process: it is killed before its `place`-th change of the disk; -1 counts them into a file instead."""

    def arm() -> None:
        seen = 0

        def hook(event: str, arguments: tuple[Any, ...]) -> None:
            nonlocal seen
            writes = event == "open" and isinstance(arguments[2], int) and arguments[2] & (os.O_WRONLY | os.O_RDWR)
            if writes or event in CHANGES:
                seen += 1
                if seen == place:
                    os.kill(os.getpid(), signal.SIGKILL)

        sys.addaudithook(hook)

    return arm


def limited_to(size: int, action: Any) -> Callable[[], None]:
    """Arms a process: no file of it can be larger; what happens then."""

    def arm() -> None:
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        signal.signal(signal.SIGXFSZ, action)
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))

    return arm


def forked(work: Callable[[], None]) -> int:
    """How a fork ended: 0, or the signal that killed it."""
    child = os.fork()
    if not child:
        code = 1
        try:
            work()
            code = 0
        finally:
            os._exit(code)
    status = os.waitpid(child, 0)[1]
    if os.WIFEXITED(status) and os.WEXITSTATUS(status):
        raise SystemExit("a fork failed")
    return os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0


def save(folder: Path, arm: Callable[[], None]) -> None:
    run = Run().go(AFTER)
    checkpoints = checkpoints_of(run, folder, keep=1, file_bytes=FILE_BYTES)
    arm()
    checkpoints.save(run.decoder, run.optimizer, run.progress)
    checkpoints.wait()


def save_on_full_disk(folder: Path, size: int) -> None:
    """The error comes, nothing else has changed, and when there is room the run saves."""
    run = Run().go(AFTER)
    checkpoints = checkpoints_of(run, folder, keep=1, file_bytes=FILE_BYTES)
    limited_to(size, signal.SIG_IGN)()
    before = run.tensors()
    checkpoints.save(run.decoder, run.optimizer, run.progress)
    with pytest.raises(CheckpointError, match="make room") as error:
        checkpoints.wait()
    assert "\n" not in str(error.value)
    assert not differences(before, run.tensors())
    assert {file.name for file in checkpoints.folder.iterdir()} <= {f"step-{BEFORE}", "latest", ".lock"}
    assert found_in(folder) == BEFORE
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    checkpoints.save(run.decoder, run.optimizer, run.progress)
    checkpoints.wait()


def found_in(folder: Path) -> int:
    """The step that a new process goes on from, which must be as it was, bit for bit."""
    run = Run(seed=9)
    progress = checkpoints_of(run, folder).load(None, run.decoder, run.optimizer, what="all")
    expected = Run().go(progress.step)
    assert progress == expected.progress
    assert not differences(run.tensors(), expected.tensors())
    return progress.step


def find_and_go_on(folder: Path) -> None:
    """The next save finds nothing in its way and leaves no rubbish."""
    (folder / "found").write_text(str(found_in(folder)))
    run = Run().go(AFTER + 2)
    saved(run, folder, AFTER + 2, keep=1, file_bytes=FILE_BYTES)
    names = {file.name for file in (folder / "checkpoints").iterdir()}
    assert names <= {f"step-{AFTER + 2}", "latest", ".lock"}, names
    assert found_in(folder) == AFTER + 2


def main(root: Path, kind: str) -> None:
    torch.set_num_threads(1)
    Run().go(1)  # imports what every fork would import again
    base = root / "base"
    forked(lambda: saved(Run(), base, BEFORE).wait())
    found: Counter[str] = Counter()
    places = range(1, 500) if kind == "calls" else [0, 1, 500, 1500, 5000, 15_000]
    for place in places:
        folder = Path(shutil.copytree(base, root / str(place)))
        if kind == "full":
            forked(partial(save_on_full_disk, folder, place))
            found[str(found_in(folder))] += 1
            continue
        arm = killed_at(place) if kind == "calls" else limited_to(place, signal.SIG_DFL)
        ended = forked(partial(save, folder, arm))
        forked(partial(find_and_go_on, folder))
        found[(folder / "found").read_text()] += 1
        shutil.rmtree(folder)
        if not ended:  # there were fewer places
            break
        assert ended in (signal.SIGKILL, signal.SIGXFSZ), ended
    print(json.dumps(found))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
