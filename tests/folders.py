"""Model folders of every make, written from a tiny checkpoint's tensors. Knows nothing of how they are loaded."""

import json
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from tiny import Tiny

KINDS = ("safetensors", "sharded-safetensors", "bin", "sharded-bin", "old-bin")


class Source:
    """A tiny checkpoint taken apart, to be written again in another way."""

    def __init__(self, tiny: Tiny, folder: Path) -> None:
        self.tiny = tiny
        self.folder = folder
        self.config = json.loads((tiny.path / "config.json").read_text())
        self.tensors: dict[str, Tensor] = load_file(tiny.path / "model.safetensors")

    def write(self, kind: str = "safetensors") -> Path:
        """The folder, with its weights in files of a kind. May be called again for a second kind beside the first."""
        self.folder.mkdir(exist_ok=True)
        (self.folder / "config.json").write_text(json.dumps(self.config))
        stem, suffix = ("model", "safetensors") if kind.endswith("safetensors") else ("pytorch_model", "bin")
        if not kind.startswith("sharded"):
            self._save(self.tensors, self.folder / f"{stem}.{suffix}", kind)
            return self.folder
        index = {name: f"{stem}-{number % 3 + 1:05}-of-00003.{suffix}" for number, name in enumerate(self.tensors)}
        for file in set(index.values()):
            self._save({name: self.tensors[name] for name in index if index[name] == file}, self.folder / file, kind)
        (self.folder / f"{stem}.{suffix}.index.json").write_text(json.dumps({"metadata": {}, "weight_map": index}))
        return self.folder

    def _save(self, tensors: dict[str, Tensor], file: Path, kind: str) -> None:
        if kind.endswith("safetensors"):
            save_file(tensors, file, metadata={"format": "pt"})
        else:
            torch.save(tensors, file, _use_new_zipfile_serialization=kind != "old-bin")
