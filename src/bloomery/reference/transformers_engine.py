"""The same model run by plain transformers, in fp32 on the CPU: the other side of `verify`. Knows nothing of ours."""

from pathlib import Path

import torch
from torch import Tensor

from bloomery.reference.load import load_model


class TransformersEngine:
    """A Hugging Face folder, loaded by transformers.

    Raises:
        MissingExtra: transformers is not installed.
    """

    def __init__(self, folder: Path) -> None:
        self.model = load_model(folder, torch.float32)

    @torch.inference_mode()
    def logits(self, ids: list[int]) -> Tensor:
        """Logits at every position: (T, V) fp32."""
        return self.model(torch.tensor([ids])).logits[0].float()

    @torch.inference_mode()
    def greedy(self, ids: list[int], new: int) -> list[int]:
        """The next `new` tokens, end-of-sequence tokens included and passed over."""
        prompt = torch.tensor([ids])
        out = self.model.generate(
            prompt,
            attention_mask=torch.ones_like(prompt),
            max_new_tokens=new,
            do_sample=False,
            eos_token_id=None,
            pad_token_id=0,
        )
        return out[0, len(ids) :].tolist()
