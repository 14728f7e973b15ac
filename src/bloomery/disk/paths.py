"""Which files of a model folder may be opened: regular ones that lie in it. Knows nothing of what is in them."""

import stat
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import BinaryIO

from bloomery.errors import CheckpointError


def contained(folder: Path, name: str) -> Path:
    """A file of the folder by its name there, whether or not it exists.

    In the cache of huggingface_hub a file is a link into the `blobs` of its model, or of the whole cache.

    Raises:
        CheckpointError: the name or a link leads out of the folder.
    """
    parts = PurePosixPath(name).parts
    escapes = PurePosixPath(name).is_absolute() or PureWindowsPath(name).anchor or "\\" in name or ".." in parts
    if escapes or not parts or not name.isprintable():
        raise CheckpointError(f"{folder} names a file {ascii(name)[:200]}, which is none of its own: fetch it again")
    file = folder / name
    try:
        home, real = folder.resolve(), file.resolve()
    except (OSError, RuntimeError):
        raise CheckpointError(f"{file} is a link that leads nowhere: fetch the folder again") from None
    homes = [home]
    if home.parent.name == "snapshots" and home.parent.parent.name.startswith("models--"):
        homes += [home.parent.parent / "blobs", home.parent.parent.parent / "blobs"]
    if not any(real.is_relative_to(place) for place in homes):
        raise CheckpointError(f"{file} is a link to {real}, out of the folder: put the file itself there")
    return file


def open_regular(path: Path) -> BinaryIO:
    """An open file of bytes. What is no file, such as a pipe, could be waited for without end.

    Raises:
        OSError: it is none, or cannot be opened.
    """
    if not stat.S_ISREG(path.stat().st_mode):
        raise OSError(f"{path.name} is no regular file")
    return path.open("rb")
