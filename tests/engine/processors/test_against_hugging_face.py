"""Each processor is Hugging Face's of that name, on random logits and histories; OpenAI's are OpenAI's formula."""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from torch import Tensor
from transformers.generation import logits_process as hf
from transformers.utils import ModelOutput

from bloomery.engine.processors import forbid, penalties, warp
from bloomery.engine.processors.guidance import Guidance

# Not shrunk: an example is small as it is.
FEW = settings(max_examples=30, derandomize=True, deadline=None, database=None, phases=[Phase.generate])
VOCABULARY = 11
EOS = (3, 8)


class Case(NamedTuple):
    """Rows of one request: a prompt that they share, what each has generated, and logits."""

    prompt: Tensor  # (P,)
    history: Tensor  # (R, T)
    logits: Tensor  # (R, V)

    def hf_prompt(self) -> Tensor:
        return self.prompt.expand(len(self.history), -1)


@st.composite
def cases(draw: st.DrawFn) -> Case:
    """Few tokens, so that they repeat; some logits forbidden, some equal."""
    rows, ids = draw(st.sampled_from([1, 3])), st.integers(0, VOCABULARY - 1)
    prompt = draw(st.lists(ids, min_size=1, max_size=8))
    new = draw(st.integers(0, 8))
    histories = [prompt + draw(st.lists(ids, min_size=new, max_size=new)) for _ in range(rows)]
    torch.manual_seed(draw(st.integers(0, 2**32)))
    logits = torch.randn(rows, VOCABULARY) * draw(st.sampled_from([0.1, 1.0, 6.0]))
    if draw(st.booleans()):
        logits = logits.round()
    forbidden = torch.rand(rows, VOCABULARY) < draw(st.sampled_from([0.0, 0.4]))
    forbidden[:, 0] = False
    return Case(torch.tensor(prompt), torch.tensor(histories), logits.masked_fill(forbidden, -torch.inf))


Make = Callable[[Any, Case], Any]
fraction, positive = st.floats(0.01, 0.99), st.floats(0.2, 5.0)
sizes, lengths, keeps = st.integers(1, 5), st.integers(0, 20), st.integers(1, 3)
id_lists = st.lists(st.integers(0, VOCABULARY - 1), min_size=1, max_size=3, unique=True)
kept_fraction, cutoff = st.tuples(fraction, keeps), st.tuples(st.floats(0.02, 0.3), keeps)
sequences = st.lists(st.integers(0, VOCABULARY - 1), min_size=1, max_size=3).map(tuple)
biases = st.dictionaries(sequences, st.sampled_from([-5.0, 0.3, 7.0, -torch.inf]), min_size=1, max_size=12)
bad = st.lists(sequences.map(list).filter(lambda ids: ids not in ([3], [8])), min_size=1, max_size=12)
eos_start_factor = st.tuples(st.integers(0, 6), st.floats(0.5, 3.0))

PAIRS: dict[str, tuple[st.SearchStrategy[Any], Make, Make]] = {
    "temperature": (positive, lambda v, c: warp.temperature(v), lambda v, c: hf.TemperatureLogitsWarper(v)),
    "top_h": (fraction, lambda v, c: warp.top_h(v), lambda v, c: hf.TopHLogitsWarper(v)),
    "top_k": (
        st.tuples(st.integers(1, VOCABULARY + 3), keeps),
        lambda v, c: warp.top_k(*v),
        lambda v, c: hf.TopKLogitsWarper(v[0], min_tokens_to_keep=v[1]),
    ),
    "top_p": (
        kept_fraction,
        lambda v, c: warp.top_p(*v),
        lambda v, c: hf.TopPLogitsWarper(v[0], min_tokens_to_keep=v[1]),
    ),
    "min_p": (
        kept_fraction,
        lambda v, c: warp.min_p(*v),
        lambda v, c: hf.MinPLogitsWarper(v[0], min_tokens_to_keep=v[1]),
    ),
    "typical_p": (
        kept_fraction,
        lambda v, c: warp.typical_p(*v),
        lambda v, c: hf.TypicalLogitsWarper(v[0], min_tokens_to_keep=v[1]),
    ),
    "epsilon_cutoff": (
        cutoff,
        lambda v, c: warp.epsilon_cutoff(*v),
        lambda v, c: hf.EpsilonLogitsWarper(v[0], min_tokens_to_keep=v[1]),
    ),
    "eta_cutoff": (
        cutoff,
        lambda v, c: warp.eta_cutoff(*v),
        lambda v, c: hf.EtaLogitsWarper(v[0], min_tokens_to_keep=v[1]),
    ),
    "renormalize_logits": (st.none(), lambda v, c: warp.renormalize, lambda v, c: hf.LogitNormalization()),
    "repetition_penalty": (
        positive,
        lambda v, c: penalties.repetition(v),
        lambda v, c: hf.RepetitionPenaltyLogitsProcessor(v),
    ),
    "encoder_repetition_penalty": (
        positive,
        lambda v, c: penalties.encoder_repetition(v, c.prompt),
        lambda v, c: hf.EncoderRepetitionPenaltyLogitsProcessor(v, c.hf_prompt()),
    ),
    "exponential_decay_length_penalty": (
        eos_start_factor,
        lambda v, c: penalties.decaying_length(*v, len(c.prompt), EOS),
        lambda v, c: hf.ExponentialDecayLengthPenalty(v, list(EOS), len(c.prompt)),
    ),
    "sequence_bias": (
        biases,
        lambda v, c: penalties.sequence_bias(list(v.items())),
        lambda v, c: hf.SequenceBiasLogitsProcessor(v),
    ),
    "bad_words_ids": (
        bad,
        lambda v, c: penalties.sequence_bias([(ids, -torch.inf) for ids in {tuple(ids) for ids in v}]),
        lambda v, c: hf.NoBadWordsLogitsProcessor(v, list(EOS)),
    ),
    "no_repeat_ngram_size": (
        sizes,
        lambda v, c: forbid.no_repeat_ngram(v),
        lambda v, c: hf.NoRepeatNGramLogitsProcessor(v),
    ),
    "encoder_no_repeat_ngram_size": (
        sizes,
        lambda v, c: forbid.encoder_no_repeat_ngram(v, c.prompt),
        lambda v, c: hf.EncoderNoRepeatNGramLogitsProcessor(v, c.hf_prompt()),
    ),
    "min_length": (
        lengths,
        lambda v, c: forbid.before_length(v, EOS),
        lambda v, c: hf.MinLengthLogitsProcessor(v, list(EOS)),
    ),
    "min_new_tokens": (
        lengths,
        lambda v, c: forbid.before_length(len(c.prompt) + v, EOS),
        lambda v, c: hf.MinNewTokensLengthLogitsProcessor(len(c.prompt), v, list(EOS)),
    ),
    "forced_bos_token_id": (
        st.integers(0, VOCABULARY - 1),
        lambda v, c: forbid.only_at_length(1, (v,)),
        lambda v, c: hf.ForcedBOSTokenLogitsProcessor(v),
    ),
    "forced_eos_token_id": (
        st.tuples(lengths, id_lists),
        lambda v, c: forbid.only_at_length(v[0] - 1, v[1]),
        lambda v, c: hf.ForcedEOSTokenLogitsProcessor(*v),
    ),
    "suppress_tokens": (
        id_lists,
        lambda v, c: forbid.always(v),
        lambda v, c: hf.SuppressTokensLogitsProcessor(v),
    ),
    "begin_suppress_tokens": (
        id_lists,
        lambda v, c: forbid.at_length(len(c.prompt), v),
        lambda v, c: hf.SuppressTokensAtBeginLogitsProcessor(v, len(c.prompt)),
    ),
}


@pytest.mark.parametrize("name", PAIRS)
def test_a_processor_equals_hugging_faces_of_its_name(name: str) -> None:
    values, ours, theirs = PAIRS[name]
    seen = []

    @FEW
    @given(case=cases(), value=values)
    def holds(case: Case, value: Any) -> None:
        expected = theirs(value, case)(case.history, case.logits.clone())
        got = ours(value, case)(case.history, case.logits)
        torch.testing.assert_close(got, expected, atol=0, rtol=1e-6)
        seen.append(not torch.equal(got, case.logits))

    holds()
    assert any(seen), "no example in which the processor does anything"


@pytest.mark.parametrize("name", PAIRS)
def test_a_processor_changes_no_input_and_no_row_sees_another(name: str) -> None:
    values, ours, _ = PAIRS[name]

    @FEW
    @given(case=cases(), value=values)
    def holds(case: Case, value: Any) -> None:
        history, logits = case.history.clone(), case.logits.clone()
        process = ours(value, case)
        together = process(case.history, case.logits)
        assert torch.equal(history, case.history)
        assert torch.equal(logits, case.logits)
        for row in range(len(history)):
            alone = process(history[row : row + 1], logits[row : row + 1])
            torch.testing.assert_close(together[row : row + 1], alone, atol=0, rtol=1e-6)

    holds()


@FEW
@given(case=cases(), scale=st.floats(0.1, 5))
def test_guidance_equals_hugging_faces_given_what_the_model_says_behind_the_other_prompt(
    case: Case, scale: float
) -> None:
    against = torch.randn(case.logits.shape)
    said = ModelOutput(logits=against[:, None])
    theirs = hf.UnbatchedClassifierFreeGuidanceLogitsProcessor(scale, lambda *_, **__: said)
    expected = theirs(case.history, case.logits.clone())
    for row, text in enumerate(case.history.tolist()):
        ours, logits = Guidance(scale, prompt=0), case.logits[row : row + 1].clone()
        ours.against[tuple(text)] = against[row]
        got = ours(case.history[row : row + 1], logits)
        torch.testing.assert_close(got, expected[row : row + 1], atol=1e-6, rtol=1e-6)
        assert torch.equal(logits, case.logits[row : row + 1])


@FEW
@given(case=cases(), alpha=st.floats(-2, 2))
@pytest.mark.parametrize("name", ["frequency", "presence"])
def test_a_penalty_of_openai_is_its_formula(name: str, case: Case, alpha: float) -> None:
    """mu[j] -> mu[j] - c[j] * alpha_frequency - float(c[j] > 0) * alpha_presence, c over what was generated."""
    generated = case.history[:, len(case.prompt) :].numpy()
    counts = np.stack([np.bincount(row, minlength=VOCABULARY) for row in generated]).astype(np.float64)
    weights = counts if name == "frequency" else counts > 0
    expected = torch.tensor(case.logits.double().numpy() - weights * alpha)
    before = case.logits.clone()
    got = getattr(penalties, name)(alpha, len(case.prompt))(case.history, case.logits)
    torch.testing.assert_close(got.double(), expected, atol=1e-5, rtol=1e-5)
    assert torch.equal(case.logits, before)


@FEW
@given(case=cases(), penalty=st.floats(0.1, 5), taken=st.lists(st.integers(0, VOCABULARY - 1), max_size=6))
def test_diversity_is_the_hamming_distance_to_what_others_have_taken(
    case: Case, penalty: float, taken: list[int]
) -> None:
    """Vijayakumar et al. 2018, 4.1: less the penalty times how often the groups before have taken a token."""
    counts = np.bincount(taken, minlength=VOCABULARY) if taken else np.zeros(VOCABULARY)
    expected = torch.tensor(case.logits.double().numpy() - counts * penalty)
    before, known = case.logits.clone(), list[int]()
    process = penalties.diversity(penalty, known)
    known += taken  # known only when it runs
    torch.testing.assert_close(process(case.history, case.logits).double(), expected, atol=1e-5, rtol=1e-5)
    assert torch.equal(case.logits, before)


@FEW
@given(case=cases(), seed=st.integers(0, 2**32))
def test_remove_invalid_values_equals_hugging_faces(case: Case, seed: int) -> None:
    torch.manual_seed(seed)
    wrong = torch.tensor([torch.nan, torch.inf, -torch.inf, 1.5])
    logits = wrong[torch.randint(4, case.logits.shape)]
    assert torch.equal(forbid.invalid_values(case.history, logits), hf.InfNanRemoveLogitsProcessor()(None, logits))


def test_a_penalty_that_has_grown_beyond_numbers_is_still_one() -> None:
    process = penalties.decaying_length(0, 10.0, 1, EOS)
    logits = process(torch.zeros(1, 2000, dtype=torch.long), torch.randn(1, VOCABULARY))
    assert logits.isfinite().all()
    assert int(logits.argmax()) in EOS


def test_the_ngrams_of_a_long_history_are_found_without_a_loop_over_it() -> None:
    """A call makes the same few tensor operations whatever the length."""

    def operations(length: int) -> int:
        with torch.profiler.profile() as profile:
            forbid.no_repeat_ngram(3)(torch.zeros(1, length, dtype=torch.long), torch.zeros(1, VOCABULARY))
        return len(profile.events())

    assert operations(2000) == operations(20)
