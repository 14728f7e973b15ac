"""What a piece of work on text depends on, as values that can be compared. Knows no token."""

import os
from collections.abc import Sequence
from typing import Any

from bloomery.data.documents import SHARD_BYTES, Shard


def describe_text(shards: Sequence[Shard], keys: Sequence[str]) -> dict[str, Any]:
    """The files by place, size and time of change, and how they are read.

    Raises:
        OSError: a file is gone.
    """
    names = dict.fromkeys(file for shard in shards for file in shard.files)
    files = [[os.path.realpath(name), os.stat(name).st_size, os.stat(name).st_mtime_ns] for name in names]
    return {"files": files, "keys": list(keys), "shard": SHARD_BYTES}
