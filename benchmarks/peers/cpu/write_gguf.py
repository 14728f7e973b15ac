"""A BLOOM folder of Hugging Face -> a GGUF file in bf16, and from it others of fewer bits. Knows nothing of ours.

    python -m peers.cpu.write_gguf FOLDER TARGET.gguf
    python -m peers.cpu.write_gguf BF16.gguf TARGET.gguf Q8_0|Q4_0|Q4_0-pure

Names, the order of qkv and what stays fp32 are those of llama.cpp's own convert_hf_to_gguf.py (conversion/bloom.py). It
has no tokenizer: ids go in and come out. "pure" has all matrices in the one format; llama.cpp itself takes Q6_K for a
head.
"""

import json
import mmap
import sys
from pathlib import Path
from typing import Any

import gguf
import llama_cpp
import numpy as np

FTYPES = {"Q8_0": llama_cpp.LLAMA_FTYPE_MOSTLY_Q8_0, "Q4_0": llama_cpp.LLAMA_FTYPE_MOSTLY_Q4_0}


def main(source: str, target: str, quantization: str = "") -> int:
    if quantization:
        quantize(source, target, quantization)
    else:
        write(Path(source), Path(target))
    return 0


def write(folder: Path, target: Path) -> None:
    """All tensors of a bfloat16 folder."""
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    layers, heads = config["n_layer"], config.get("n_head") or config["num_attention_heads"]
    hidden = config.get("hidden_size") or config["n_embed"]
    writer = gguf.GGUFWriter(target, gguf.MODEL_ARCH_NAMES[gguf.MODEL_ARCH.BLOOM])
    writer.add_context_length(config["seq_length"])
    writer.add_embedding_length(hidden)
    writer.add_feed_forward_length(4 * hidden)
    writer.add_block_count(layers)
    writer.add_head_count(heads)
    writer.add_head_count_kv(heads)
    writer.add_layer_norm_eps(config["layer_norm_epsilon"])
    writer.add_file_type(llama_cpp.LLAMA_FTYPE_MOSTLY_BF16)
    writer.add_vocab_size(config["vocab_size"])
    writer.add_tokenizer_model("no_vocab")
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.BLOOM, layers)
    for file in sorted(folder.glob("model*.safetensors")):
        for theirs, tensor in tensors(file):
            name = names.get_name(theirs.removeprefix("transformer."), try_suffixes=(".weight", ".bias"))
            if name is None:
                raise ValueError(f"{file}: llama.cpp has no name for {theirs}")
            bits = by_kind(tensor, heads) if "query_key_value" in theirs else tensor
            if bits.ndim == 1:
                writer.add_tensor(name, as_fp32(bits))
            else:
                writer.add_tensor(name, bits.view(np.uint8), raw_dtype=gguf.GGMLQuantizationType.BF16)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def tensors(file: Path) -> Any:
    """(name, bits) of each, mapped: numpy has no bfloat16, so they are uint16."""
    with file.open("rb") as handle:
        mapped = mmap.mmap(handle.fileno(), 0, access=mmap.ACCESS_READ)
    size = int.from_bytes(mapped[:8], "little")
    for name, entry in json.loads(mapped[8 : 8 + size]).items():
        if name == "__metadata__":
            continue
        if entry["dtype"] != "BF16":
            raise ValueError(f"{file}: {name} is {entry['dtype']}, and BF16 is needed")
        begin, end = entry["data_offsets"]
        bits = np.frombuffer(mapped, np.uint16, (end - begin) // 2, 8 + size + begin)
        yield name, bits.reshape(entry["shape"])


def by_kind(tensor: Any, heads: int) -> Any:
    """(heads, 3, size) rows -> (3, heads, size): all queries, all keys, all values."""
    parts = tensor.reshape(heads, 3, -1, *tensor.shape[1:])
    return np.ascontiguousarray(parts.swapaxes(0, 1)).reshape(tensor.shape)


def as_fp32(bits: Any) -> Any:
    return (bits.astype(np.uint32) << 16).view(np.float32)


def quantize(source: str, target: str, name: str) -> None:
    """With llama.cpp's own rules, as its llama-quantize does."""
    params = llama_cpp.llama_model_quantize_default_params()
    params.ftype = FTYPES[name.removesuffix("-pure")]
    params.pure = name.endswith("-pure")
    failed = llama_cpp.llama_model_quantize(source.encode(), target.encode(), params)
    if failed:
        raise RuntimeError(f"llama_model_quantize to {name} gave {failed}")


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
