"""Named tensors in safetensors files, by torch.distributed.checkpoint (DCP): its plans, and its writer and reader of
Hugging Face's format, so that no pickle is written or read. Knows no model and no run.

Files of many ranks are read here as those of one: DCP notes in each which part of a tensor it holds.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from torch import Tensor
from torch.distributed.checkpoint.default_planner import DefaultLoadPlanner, DefaultSavePlanner
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader, HuggingFaceStorageWriter
from torch.distributed.checkpoint.metadata import TensorStorageMetadata

from bloomery.checkpoint.files import MappedFile
from bloomery.checkpoint.folder import read_json
from bloomery.checkpoint.header import Kind
from bloomery.disk.place import Resumable

INDEX = "model.safetensors.index.json"
"""Where DCP's writer says which tensor it put into which file."""


def write_tensors(folder: Path, files: Mapping[str, Mapping[str, Tensor]]) -> None:
    """Write each of `files`, name -> tensors by name, none of them empty: the disk has all when this returns.

    The steps of `dcp.save` are taken here one by one: it warns whenever there is no process group, and wraps what the
    disk says into a traceback. One thread, as the writer loses the errors of others.

    Args:
        folder: is there, and has no safetensors files.

    Raises:
        OSError: the disk does not take it.
    """
    places = {name: number for number, tensors in enumerate(files.values(), 1) for name in tensors}
    writer = HuggingFaceStorageWriter(str(folder), fqn_to_index_mapping=places, thread_count=1)
    writer.per_thread_copy_ahead = 0  # the tensors are on the CPU: no stream of a GPU need be waited for
    planner = DefaultSavePlanner()
    planner.set_up_planner({name: tensor for tensors in files.values() for name, tensor in tensors.items()}, None, True)
    writer.set_up_storage_writer(True)
    plan = writer.prepare_local_plan(planner.create_local_plan())
    plans, metadata = planner.create_global_plan([plan])
    plan = planner.finish_plan(writer.prepare_global_plan(plans)[0])
    writer.finish(metadata, [writer.write_data(plan, planner).wait()])
    written = read_json(folder / INDEX)["weight_map"]
    for file, tensors in files.items():
        (folder / written[next(iter(tensors))]).rename(folder / file)
    (folder / INDEX).unlink()  # other programs would take the folder for one in their own names


def compare_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Read a file and compare all that is in it, bit for bit.

    Raises:
        Resumable: something differs.
        CheckpointError: it is no whole safetensors file.
    """
    file = MappedFile(path)
    same = set(file.names) == set(tensors) and all(
        file.kind(name) == (tensor.dtype, tuple(tensor.shape)) and torch.equal(_bits(file.read(name)), _bits(tensor))
        for name, tensor in tensors.items()
    )
    if not same:
        raise Resumable(f"{path} is not read back as it was written: check the disk, then save again")


def _bits(tensor: Tensor) -> Tensor:
    return tensor.reshape(-1).view(torch.uint8)


def kinds_of(folder: Path) -> dict[str, Kind]:
    """All tensors of a folder's safetensors files, whole, whichever ranks wrote them."""
    found = HuggingFaceStorageReader(str(folder)).read_metadata().state_dict_metadata
    return dict(_kinds(found))


def _kinds(found: Mapping[str, object]) -> Iterator[tuple[str, Kind]]:
    for name, tensor in found.items():
        if isinstance(tensor, TensorStorageMetadata):
            yield name, Kind(tensor.properties.dtype, tuple(tensor.size))


def read_tensors(folder: Path, tensors: Mapping[str, Tensor]) -> None:
    """Fill tensors, wherever they are, from the folder's files: each must be there, in its shape and dtype."""
    reader = HuggingFaceStorageReader(str(folder))
    planner = DefaultLoadPlanner()
    metadata = reader.read_metadata()
    planner.set_up_planner({name: tensor.detach() for name, tensor in tensors.items()}, metadata, True)
    reader.set_up_storage_reader(metadata, True)
    plan = reader.prepare_local_plan(planner.create_local_plan())
    plan = reader.prepare_global_plan(planner.create_global_plan([plan]))[0]
    reader.read_data(planner.finish_plan(plan), planner).wait()
