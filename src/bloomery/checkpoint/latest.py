"""The step folders of a training run, and which of them is the latest. Knows nothing of what is in one.

RUN/checkpoints/step-40/    one moment of the run, whole
RUN/checkpoints/latest      the name of the one to go on from
"""

import re
from pathlib import Path

from bloomery.disk.paths import open_regular
from bloomery.errors import CheckpointError
from bloomery.log import logger

CHECKPOINTS, LATEST = "checkpoints", "latest"
STEP = re.compile(r"step-(\d{1,18})")


def step_name(step: int) -> str:
    return f"step-{step}"


def step_of(path: Path) -> int | None:
    """The step of a step folder by its name; None for any other name."""
    match = STEP.fullmatch(path.name)
    return int(match[1]) if match else None


def named_latest(folder: Path) -> Path | None:
    """The step folder that `latest` names, whether or not it is there; None where nothing names one.

    Raises:
        CheckpointError: `latest` is there and names none.
    """
    file = refuse_folder(folder)
    try:
        with open_regular(file) as opened:
            name = opened.read(100).decode("ascii").strip()
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{file} cannot be read ({error}): name one of the step folders beside it") from None
    if not STEP.fullmatch(name):
        raise CheckpointError(f"{file} names {ascii(name)[:80]}, which is no step folder: name one of those beside it")
    return folder / name


def refuse_folder(folder: Path) -> Path:
    """The file `latest` of a folder of checkpoints, whether or not it is there.

    Raises:
        CheckpointError: it is a folder, as a copy that follows links leaves one: nothing could be put in its place.
    """
    file = folder / LATEST
    if file.is_dir() and not file.is_symlink():
        raise CheckpointError(
            f"{file} is a folder, and should be a file that names one: move it away, or name one of the step folders "
            "beside it"
        )
    return file


def model_in(path: Path) -> Path:
    """The folder of a model: of a training run, or its folder of checkpoints, the latest one; else `path` itself.

    Raises:
        CheckpointError: what should name the latest one names none that is there.
    """
    if (path / "config.json").exists():
        return path
    for folder in (path, path / CHECKPOINTS):
        latest = named_latest(folder)
        if latest is not None:
            if not latest.is_dir():
                raise CheckpointError(f"{folder / LATEST} names {latest.name}, which is not there: name another one")
            logger.info("%s is a training run: reading its latest checkpoint, %s", path, latest)
            return latest
    return path
