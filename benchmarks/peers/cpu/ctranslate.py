"""CTranslate2: `generate_batch`, which reads a prompt at once and says each token when it comes. Knows none of ours."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import ctranslate2
from peers.cpu.turn import Job, Texts


class CTranslate:
    def __init__(self, job: Job) -> None:
        self.versions = {"ctranslate2": ctranslate2.__version__}
        self.generator = ctranslate2.Generator(
            job.model, compute_type=job.form, inter_threads=1, intra_threads=job.threads
        )
        self.size = sum(file.stat().st_size for file in Path(job.model).glob("model*.bin"))
        self.words = json.loads((Path(job.model) / "vocabulary.json").read_text(encoding="utf-8"))

    def facts(self) -> dict[str, Any]:
        return {"computes in": self.generator.compute_type, "file_bytes": self.size}

    def run(self, prompts: Sequence[list[int]], new_tokens: int) -> Texts:
        """As long as wished: below `min_length` it forbids the end of a sequence. Tokens go in by their words."""
        words = [[self.words[token] for token in prompt] for prompt in prompts]
        texts = Texts(len(prompts))
        results = self.generator.generate_batch(
            words,
            beam_size=1,
            min_length=new_tokens,
            max_length=new_tokens,
            include_prompt_in_result=False,
            callback=lambda step: texts.came([(step.batch_id, step.token_id)]),
        )
        given = [result.sequences_ids[0] for result in results]
        if given != texts.ids:
            raise ValueError(f"its texts have {list(map(len, given))} tokens, and {list(map(len, texts.ids))} came")
        return texts


def load(job: Job) -> CTranslate:
    return CTranslate(job)
