"""Small files that are there whole or not at all, JSON among them. Knows nothing of what they say."""

import json
import os
import threading
from contextlib import suppress
from pathlib import Path

from bloomery.errors import UsageError


def write_beside(file: Path, content: bytes) -> None:
    """Put a file where there may be an older one, which is whole until then; its folder is made.

    Two writers at once do not disturb each other. The disk need not have it when this returns.

    Raises:
        OSError: it cannot be written; what was there still is, and nothing else.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    fresh = file.with_name(f".{file.name}.{os.getpid()}-{threading.get_ident()}.new")
    try:
        fresh.write_bytes(content)
        fresh.replace(file)
    except BaseException:
        with suppress(OSError):
            fresh.unlink(missing_ok=True)
        raise


def as_json(value: object) -> bytes:
    """A value as a JSON file that people can read, too: indented, in UTF-8, with a newline at its end."""
    return (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode()


def save_json(file: Path, value: object) -> None:
    """Write a value as JSON, as `write_beside` does, where a user asked for it.

    Raises:
        UsageError: it cannot be written.
    """
    content = as_json(value)
    try:
        write_beside(file, content)
    except OSError as error:
        raise _unwritable(file, error) from None


def make_folder_of(file: Path) -> None:
    """Make the folder that a file is to be in, so that a place that cannot be is known before there is a file.

    Raises:
        UsageError: it cannot be made, or a folder is where the file is to be.
    """
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise _unwritable(file, error) from None
    if file.is_dir():
        raise UsageError(f"{file} cannot be written: it is a folder: name a file in it")


def _unwritable(file: Path, error: OSError) -> UsageError:
    return UsageError(f"{file} cannot be written: {error.strerror or error}: choose another place")
