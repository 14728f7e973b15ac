"""A model larger than the memory there is can be converted, one tensor at a time, and run, from where it is mapped,
under a limit the kernel holds."""

import json
import os
import shutil
import signal
import subprocess
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from bloomery.checkpoint.convert import FILE_BYTES
from bloomery.checkpoint.folder import Folder, read_folder
from bloomery.families import FAMILIES
from bloomery.model import layout
from stores import make_store, tensors_of

pytestmark = pytest.mark.slow

LIMIT = 400_000_000
CONFIGS = {
    "bloom": {"vocab_size": 40_000, "hidden_size": 2048, "n_layer": 4, "n_head": 16},
    "gpt2": {"vocab_size": 40_000, "n_embd": 2048, "n_layer": 4, "n_head": 16, "n_positions": 512},
}


class Limited:
    """A memory cgroup of version 1 or 2, for the processes that are started in it."""

    def __init__(self, limit: int) -> None:
        self.folder = _new_group()
        if (self.folder / "memory.limit_in_bytes").exists():
            (self.folder / "memory.limit_in_bytes").write_text(str(limit))
            more = self.folder / "memory.memsw.limit_in_bytes"
            if more.exists():
                more.write_text(str(limit))
        else:
            (self.folder / "memory.max").write_text(str(limit))
            swap = self.folder / "memory.swap.max"
            if swap.exists():
                swap.write_text("0")

    def run(self, *command: str) -> subprocess.CompletedProcess[str]:
        enter = f'echo $$ > "{self.folder}/cgroup.procs" && exec "$@"'
        return subprocess.run(["sh", "-c", enter, "sh", *command], capture_output=True, text=True, timeout=250)

    def remove(self) -> None:
        self.folder.rmdir()


def forgotten(folder: Path) -> Path:
    """A folder of whose files nothing is in memory: what a group is the first to read is what it pays for."""
    for file in folder.iterdir():
        with file.open("rb") as opened:
            os.fsync(opened.fileno())
            os.posix_fadvise(opened.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    return folder


def _new_group() -> Path:
    """A group below our own.

    Raises:
        OSError: there are none here, or we may not make one.
    """
    own = dict(line.split(":", 2)[1:] for line in Path("/proc/self/cgroup").read_text().splitlines())
    name = f"bloomery-test-{uuid.uuid4().hex[:8]}"
    for parent in (Path("/sys/fs/cgroup/memory") / own.get("memory", "").lstrip("/"), Path("/sys/fs/cgroup/memory")):
        if (parent / "memory.limit_in_bytes").exists():
            (parent / name).mkdir()
            return parent / name
    parent = Path("/sys/fs/cgroup") / own.get("", "").lstrip("/")
    (parent / name).mkdir()
    if not (parent / name / "memory.max").exists():
        (parent / name).rmdir()
        raise OSError("the memory controller is not handed down to new groups")
    return parent / name


@pytest.fixture
def limited() -> Iterator[Limited]:
    if sys.platform != "linux":
        pytest.skip("cgroups are Linux's")
    try:
        group = Limited(LIMIT)
    except OSError as error:
        pytest.skip(f"no memory cgroup can be made here: {error}")
    yield group
    group.remove()


@pytest.fixture(scope="module", params=CONFIGS)
def large(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Folder]:
    """A model of more than twice the limit, in fp32."""
    family, raw = FAMILIES[request.param], CONFIGS[request.param] | {"model_type": request.param}
    parameters = layout.shapes(family.to_config(raw))
    path = tmp_path_factory.mktemp("large")
    (path / "config.json").write_text(json.dumps(raw))
    numbers = torch.randn(max(parameter.numel() for parameter in parameters.values()))
    tensors = {}
    for ours, source in family.sources(family.to_config(raw), parameters).items():
        shape = parameters[ours]
        metas = [shape] if source.reorder is None else source.reorder.to_theirs(shape, family.to_config(raw))
        for theirs, meta in zip(source.theirs, metas, strict=True):
            tensors[family.written(theirs)] = numbers[: meta.numel()].view(meta.shape).clone()
    save_file(tensors, path / "model.safetensors")
    assert (path / "model.safetensors").stat().st_size > 2 * LIMIT
    yield read_folder(path)
    shutil.rmtree(path)


def bloomery(*words: str) -> list[str]:
    return [sys.executable, "-m", "bloomery", *words]


@pytest.mark.parametrize("options", [(), ("--dtype", "bfloat16", "--tp", "4")], ids=["as it is", "cut and rounded"])
def test_a_model_larger_than_memory_is_converted(
    large: Folder, limited: Limited, tmp_path: Path, options: tuple[str, ...]
) -> None:
    done = limited.run(*bloomery("convert", str(forgotten(large.path)), str(tmp_path / "store"), *options))
    assert done.returncode == 0, done.stderr
    dtype = torch.bfloat16 if options else torch.float32
    written = tensors_of(read_folder(tmp_path / "store"))
    for name, tensor in tensors_of(large).items():
        assert torch.equal(written[name], tensor.to(dtype)), name
    shutil.rmtree(tmp_path / "store")


def test_a_store_larger_than_memory_is_exported(large: Folder, limited: Limited, tmp_path: Path) -> None:
    done = limited.run(*bloomery("export", str(forgotten(large.path)), str(tmp_path / "model")))
    assert done.returncode == 0, done.stderr
    written = tensors_of(read_folder(tmp_path / "model"))
    for name, tensor in tensors_of(large).items():
        assert torch.equal(written[name], tensor), name
    shutil.rmtree(tmp_path / "model")


def test_a_model_larger_than_memory_generates_from_where_it_is_mapped(
    large: Folder, limited: Limited, tmp_path: Path
) -> None:
    """Of another family than BLOOM a store does; and its tokens are those that there would be with enough memory."""
    if large.family.name != "bloom":
        large = make_store(large, tmp_path / "store", file_bytes=FILE_BYTES)
    words = bloomery(
        "generate", "--ids", "5 6 7 8", "--model", str(forgotten(large.path)), "--max-new-tokens", "3", "--ignore-eos"
    )
    done = limited.run(*words)
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.split()) == 3
    assert done.stdout == subprocess.run(words, capture_output=True, text=True, check=True).stdout
    shutil.rmtree(tmp_path / "store", ignore_errors=True)


def test_the_limit_holds(limited: Limited) -> None:
    """Otherwise the tests above would say nothing."""
    done = limited.run(sys.executable, "-c", f"b'x' * {LIMIT}")
    assert done.returncode == -signal.SIGKILL
