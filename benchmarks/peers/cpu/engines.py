"""Which engines there are, in which forms, and what each is held against. Knows no measurement."""

from typing import NamedTuple


class NotAvailable(Exception):
    """An engine is not among the results from here on, and why."""


class Entry(NamedTuple):
    """An engine in one form. `bits` says with which of ours it is compared: there, weights have as many."""

    title: str
    module: str
    venv: str
    form: str
    bits: str
    bytes: float
    """About how many a parameter takes in memory."""


ENGINES = {
    "ours-bf16": Entry("bloomery bf16", "ours", "ours", "bfloat16", "bf16", 2),
    "ours-int8": Entry("bloomery int8", "ours", "ours", "int8", "int8", 1.2),
    "ours-int4": Entry("bloomery int4", "ours", "ours", "int4", "int4", 0.8),
    "ours-fp32": Entry("bloomery fp32", "ours", "ours", "float32", "fp32", 4),
    "transformers-bf16": Entry("transformers bf16", "hugging_face", "transformers", "bfloat16", "bf16", 2),
    "llama-bf16": Entry("llama.cpp bf16", "llama", "llama", "BF16", "bf16", 2),
    "llama-q8_0": Entry("llama.cpp Q8_0", "llama", "llama", "Q8_0", "int8", 1.2),
    "llama-q4_0": Entry("llama.cpp Q4_0", "llama", "llama", "Q4_0", "int4", 0.8),
    "llama-q4_0-pure": Entry("llama.cpp Q4_0, head too", "llama", "llama", "Q4_0-pure", "int4", 0.8),
    "ctranslate2-int8": Entry("CTranslate2 int8", "ctranslate", "ctranslate2", "int8", "int8", 1.5),
    "ctranslate2-fp32": Entry("CTranslate2 fp32", "ctranslate", "ctranslate2", "float32", "fp32", 4.5),
}


def ours(engine: str) -> str:
    """Ours with as many bits."""
    return f"ours-{ENGINES[engine].bits}"


def is_ours(engine: str) -> bool:
    return engine.startswith("ours-")
