"""Every shape through the whole engine: batched, queued and chunked, the tokens of transformers."""

from bloomery import LLM, SamplingParams
from tiny import GREEDY_STEPS, PROMPT_LENGTHS, Tiny


def test_engine_gives_the_tokens_of_transformers(checkpoint: Tiny) -> None:
    llm = LLM(checkpoint.path, dtype="float32", max_batch_size=3)
    llm.engine.scheduler.max_step_tokens = 33
    prompts = [checkpoint.prompt(length) for length in PROMPT_LENGTHS]
    done = llm.generate(prompts, SamplingParams(max_new_tokens=GREEDY_STEPS))
    assert [list(completion.token_ids) for completion in done] == [checkpoint.greedy(prompt) for prompt in prompts]
