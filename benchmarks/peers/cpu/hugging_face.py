"""transformers: `generate` as its documentation has it, with its own cache. Knows nothing of ours."""

from collections.abc import Sequence
from typing import Any

import torch
import transformers
from peers.cpu.turn import Job, Texts
from torch import Tensor
from transformers import AutoModelForCausalLM, GenerationConfig
from transformers.generation.streamers import BaseStreamer


class Streamer(BaseStreamer):
    """Is handed the prompts first, (B, T), and then the tokens of each step, (B)."""

    def __init__(self, texts: Texts) -> None:
        self.texts = texts

    def put(self, value: Tensor) -> None:
        if value.ndim == 1:
            self.texts.came(enumerate(value.tolist()))

    def end(self) -> None:
        """Nothing is held back."""


class HuggingFace:
    def __init__(self, job: Job) -> None:
        self.versions = {"transformers": transformers.__version__, "torch": torch.__version__}
        torch.set_num_threads(job.threads)
        self.model = AutoModelForCausalLM.from_pretrained(job.model, dtype=getattr(torch, job.form)).eval()
        # Without an end of sequence: nothing stops early, and no processor has to forbid it.
        self.model.generation_config = GenerationConfig(do_sample=False, pad_token_id=0)

    def facts(self) -> dict[str, Any]:
        return {"attention": self.model.config._attn_implementation}

    def run(self, prompts: Sequence[list[int]], new_tokens: int) -> Texts:
        ids = torch.tensor(prompts)
        texts = Texts(len(prompts))
        streamer = Streamer(texts)
        self.model.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=new_tokens, streamer=streamer, use_cache=True
        )
        return texts


def load(job: Job) -> HuggingFace:
    return HuggingFace(job)
