"""Which files of a repository make a model, whatever else lies there, and which names never reach a disk."""

import json

import pytest

from bloomery.checkpoint.folder import WEIGHT_FILES
from bloomery.errors import BloomeryError, CheckpointError, UsageError
from bloomery.hub.repository import WEIGHTS, Listing, RemoteFile, choose

CONFIG = ("config.json", "generation_config.json")
TEXT = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "vocab.json", "merges.txt")
OTHERS = ("tf_model.h5", "flax_model.msgpack", "rust_model.ot", "model.gguf", "onnx/model.onnx", "original/params.json")
SHARDS = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")
OLD_SHARDS = ("pytorch_model-00001-of-00002.bin", "pytorch_model-00002-of-00002.bin")


def listing(*names: str) -> Listing:
    return Listing("org/tiny", "0" * 40, tuple(RemoteFile(name, 1, f"git-sha1:{name}") for name in names))


def chosen(*names: str, include: tuple[str, ...] = (), index: object = None) -> set[str]:
    weights = {"weight_map": {str(n): name for n, name in enumerate(SHARDS)}} if index is None else index
    return {file.path for file in choose(listing(*names), include, lambda _: json.dumps(weights).encode())}


def test_safetensors_come_alone_where_there_are_both_kinds() -> None:
    names = (*CONFIG, *TEXT, *OTHERS, "model.safetensors", "pytorch_model.bin", "pytorch_model.bin.index.json")
    assert chosen(*names) == {*CONFIG, *TEXT, "model.safetensors"}


def test_a_sharded_checkpoint_is_its_index_and_what_the_index_names() -> None:
    names = (*CONFIG, "model.safetensors.index.json", *SHARDS, "model.fp16.safetensors", "pytorch_model.bin")
    assert chosen(*names) == {*CONFIG, "model.safetensors.index.json", *SHARDS}


def test_bin_comes_only_where_there_is_nothing_else() -> None:
    assert chosen(*CONFIG, *OTHERS, "pytorch_model.bin") == {*CONFIG, "pytorch_model.bin"}
    index = {"weight_map": {"a": OLD_SHARDS[0], "b": OLD_SHARDS[1], "c": OLD_SHARDS[0]}}
    assert chosen(*CONFIG, *OLD_SHARDS, "pytorch_model.bin.index.json", index=index) == {
        *CONFIG,
        *OLD_SHARDS,
        "pytorch_model.bin.index.json",
    }


def test_what_says_how_to_talk_and_what_is_allowed_comes_along() -> None:
    words = {"tokenizer.model", "added_tokens.json", "chat_template.jinja", "LICENSE", "LICENSE.txt", "README.md"}
    assert chosen("config.json", "model.safetensors", "modeling_own.py", "logo.png", *words) >= words
    assert not chosen("config.json", "model.safetensors", "modeling_own.py") & {"modeling_own.py"}


@pytest.mark.parametrize("weights", ["adapter_model.safetensors", "adapter_model.bin"])
def test_an_adapter_is_fetched_too(weights: str) -> None:
    assert chosen("adapter_config.json", weights, "README.md", "training_args.bin") == {
        "adapter_config.json",
        weights,
        "README.md",
    }
    assert "adapter_model.bin" not in chosen("adapter_config.json", "adapter_model.safetensors", "adapter_model.bin")


def test_a_repository_without_weights_that_we_read_says_what_it_has() -> None:
    with pytest.raises(UsageError, match=r"no weights as .* \(its files: gguf, h5, json, msgpack, ot\)"):
        chosen("config.json", *OTHERS)
    with pytest.raises(UsageError, match=r"org/tiny has no config\.json .*--include"):
        chosen("model.safetensors", "README.md")


def test_patterns_replace_the_choice() -> None:
    assert chosen(*CONFIG, *OTHERS, "model.safetensors", include=("*.gguf", "onnx/*")) == {
        "model.gguf",
        "onnx/model.onnx",
    }
    assert chosen(*CONFIG, include=("*.json", "config.json")) == set(CONFIG)


@pytest.mark.parametrize(
    "name",
    ["../x.json", "/x.json", "a/../x.json", "a//x.json", "./x.json", "a\\x.json", "x\n.json", "x\0.json", "",
     "fetched.json", ".fetching", "x.part", "x.part.json"],
)  # fmt: skip
def test_a_name_that_leads_out_of_the_folder_or_into_our_own_files_is_refused(name: str) -> None:
    with pytest.raises(CheckpointError, match="not safe to write"):
        chosen("config.json", name, include=("*",))
    index = {"weight_map": {"a": name}}
    with pytest.raises(CheckpointError, match="not safe to write"):
        chosen("config.json", "model.safetensors.index.json", name, index=index)


def test_an_index_that_names_what_is_not_there_is_refused() -> None:
    with pytest.raises(CheckpointError, match=r"names 'model-00002-of-00002\.safetensors', which is not in the repo"):
        chosen("config.json", "model.safetensors.index.json", SHARDS[0])


@pytest.mark.parametrize("index", [[], {}, {"weight_map": {}}, {"weight_map": []}, {"weight_map": {"a": 1}}, 7])
def test_an_index_that_is_none_is_refused(index: object) -> None:
    with pytest.raises(CheckpointError, match="has no weight_map"):
        chosen("config.json", "model.safetensors.index.json", index=index)


def test_what_is_preferred_when_fetched_is_preferred_when_loaded() -> None:
    assert tuple(name for kind in WEIGHTS for name in kind) == WEIGHT_FILES


def test_every_message_is_one_line() -> None:
    with pytest.raises(BloomeryError) as caught:
        chosen("config.json", "a\nb", include=("*",))
    assert "\n" not in str(caught.value)
