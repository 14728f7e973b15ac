"""SamplingParams: how one request wants its tokens chosen. Knows no tensor and no model."""

from dataclasses import dataclass, fields
from typing import Literal

from bloomery.engine.contradictions import check_together
from bloomery.engine.form import Form, asked_form
from bloomery.engine.limits import DEFAULT_NEW_TOKENS, canonical


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingParams:
    """Names and meanings are those of Hugging Face's GenerationConfig, with three differences: temperature 0, the
    default, is greedy; unset means off; the text ends before a stop string instead of after it.

    Lists of any kind become tuples. Biases become texts, as a recipe writes them: `logit_bias` may be given as
    {15: 2.5} or as ["15=2.5"], `sequence_bias` as {(1, 2): -5.0} or ["1,2=-5.0"], `bad_words_ids` as [[1, 2]] or
    ["1,2"], `force_words_ids` as [[[1, 2], [3]]] or ["1,2|3"], `force_words` as [["cat", "dog"]] or ["cat|dog"].

    Raises:
        UsageError: a value is out of its range, would have no effect, or contradicts another.
    """

    max_new_tokens: int | None = None
    """Most tokens to generate; unset is 100, or what max_length leaves."""
    min_new_tokens: int = 0
    """Tokens before which no end-of-sequence token is chosen."""
    max_length: int | None = None
    """Most tokens of prompt and completion together; instead of max_new_tokens."""
    min_length: int | None = None
    """Tokens, the prompt's included, before which no end-of-sequence token is chosen."""
    max_time: float | None = None
    """Seconds after which no further token is begun, counted from where the request first runs."""
    temperature: float = 0.0
    """0 takes the most likely token; above 0 samples, the flatter the higher."""
    top_h: float | None = None
    """Sample among the likeliest tokens that hold this part of the entropy of the 100 likeliest."""
    top_k: int | None = None
    """Sample among the k most likely tokens only; with penalty_alpha, the number of candidates."""
    top_p: float | None = None
    """Sample among the smallest set of tokens whose probabilities reach p."""
    min_p: float | None = None
    """Sample among tokens at least this fraction as likely as the likeliest."""
    typical_p: float | None = None
    """Sample among the tokens nearest to the expected surprise whose probabilities reach this."""
    epsilon_cutoff: float | None = None
    """Sample among tokens at least this likely."""
    eta_cutoff: float | None = None
    """As epsilon_cutoff, but lower where the distribution is flat: min(eta, sqrt(eta) exp(-entropy))."""
    guidance_scale: float = 1.0
    """How much the text is led by what sets its prompt apart from the negative one; 1 is not at all."""
    negative_prompt: str | None = None
    """With guidance_scale: the text to lead away from; unset is the prompt's last token."""
    negative_prompt_ids: tuple[int, ...] = ()
    """The same as token ids."""
    repetition_penalty: float | None = None
    """Divide the logit of every token of prompt and text by this (multiply a negative one); above 1 repeats less."""
    encoder_repetition_penalty: float | None = None
    """The other way round for tokens of the prompt: above 1 stays nearer to it."""
    frequency_penalty: float | None = None
    """Subtract this from a token's logit for every time that it was generated (OpenAI's)."""
    presence_penalty: float | None = None
    """Subtract this once from the logit of every token that was generated (OpenAI's)."""
    no_repeat_ngram_size: int | None = None
    """No sequence of so many tokens comes twice in prompt and text."""
    encoder_no_repeat_ngram_size: int | None = None
    """No sequence of so many tokens of the prompt comes again."""
    sequence_bias: tuple[str, ...] = ()
    """Add to the logit of a sequence's last token behind its others: 1,2,3=-5.0; may be given several times."""
    logit_bias: tuple[str, ...] = ()
    """Add to a token's logit, from -100 to 100: 15=2.5 (OpenAI's); may be given several times."""
    bad_words: tuple[str, ...] = ()
    """Texts never generated, neither behind a space nor without one; may be given several times."""
    bad_words_ids: tuple[str, ...] = ()
    """Token sequences never generated: 1,2,3; may be given several times."""
    suppress_tokens: tuple[int, ...] = ()
    """Ids of tokens never generated; may be given several times."""
    begin_suppress_tokens: tuple[int, ...] = ()
    """Ids of tokens that are not generated first; may be given several times."""
    forced_bos_token_id: int | None = None
    """Id of the first token to generate, behind a prompt of one token."""
    forced_eos_token_id: tuple[int, ...] = ()
    """Ids, one or several, of which the last token of a text of full length is taken."""
    exponential_decay_length_penalty: tuple[float, ...] = ()
    """[START, FACTOR]: after START new tokens the end of the text becomes likelier by powers of FACTOR."""
    remove_invalid_values: bool = False
    """Go on where the model gives logits that are not finite: NaN becomes 0, infinities the largest numbers."""
    renormalize_logits: bool = False
    """Make log-probabilities of the processed logits, at the end; only scores that are added up see a difference."""
    num_return_sequences: int = 1
    """Texts to give for a prompt; greedy has only one."""
    best_of: int | None = None
    """Sample so many texts, and give those whose tokens the model finds likeliest on average."""
    num_beams: int = 1
    """Search with so many beams: the likeliest sequences, instead of the likeliest next token; 1 is no search."""
    num_beam_groups: int = 1
    """Search in so many groups of beams, each avoiding what those before it say; 1 is no group."""
    diversity_penalty: float | None = None
    """Subtract this from a token's log-probability for every time that a group before takes it in the same step."""
    force_words: tuple[str, ...] = ()
    """Words that a text must hold, found by a beam search; cat|dog is either; may be given several times."""
    force_words_ids: tuple[str, ...] = ()
    """Token sequences that a text must hold: 1,2,3, or 1,2|3 for either; may be given several times."""
    length_penalty: float = 1.0
    """A beam's score is its log-probability over its length to this power: above 0 longer texts win, below shorter."""
    early_stopping: bool | Literal["never"] = False
    """When a beam search ends: True with num_beams finished texts; False where no better one is to be expected; never
    where there can be none."""
    prompt_lookup_num_tokens: int | None = None
    """Guess up to so many tokens a step from what stood behind the last ones before; the tokens stay the same."""
    max_matching_ngram_size: int | None = None
    """With prompt_lookup_num_tokens: most of the last tokens that are looked up; unset is 2."""
    num_assistant_tokens: int | None = None
    """Most tokens that a draft model guesses a step; unset is 5, and 0 does without it."""
    penalty_alpha: float | None = None
    """Contrastive search: of the top_k likeliest tokens, the one that is also least like those before it; how much that
    counts, from 0 to 1."""
    seed: int | None = None
    """Fixes the tokens, whatever else runs in the batch; unset draws one."""
    ignore_eos: bool = False
    """Go on past end-of-sequence tokens."""
    stop_strings: tuple[str, ...] = ()
    """End the text before the first of these; may be given several times."""
    json_schema: str | None = None
    """The text is JSON of this schema, which is given itself, not as a file; Python may give a dict."""
    json_object: bool = False
    """The text is a JSON object, of any kind."""
    regex: str | None = None
    """The whole text matches this regular expression (Rust's, without look-around)."""
    grammar: str | None = None
    """The whole text follows this Lark grammar, from its rule start on."""
    logprobs: int | None = None
    """Report (with --json) each token's log-probability, and those of this many likeliest."""
    prompt_logprobs: int | None = None
    """Report (with --json) the same of every token of the prompt but the first."""

    def __post_init__(self) -> None:
        values = canonical({field.name: getattr(self, field.name) for field in fields(self)})
        for name, value in values.items():
            object.__setattr__(self, name, value)
        check_together(values)
        asked_form(values)

    def most_new_tokens(self, prompt: int) -> int:
        """Most tokens to generate behind a prompt of so many: below 1 where max_length has no room for it."""
        if self.max_length is not None:
            return self.max_length - prompt
        return self.max_new_tokens or DEFAULT_NEW_TOKENS

    @property
    def texts(self) -> int:
        """Texts that one request generates, of which it may give fewer."""
        return max(self.num_beams, self.best_of or 1, self.num_return_sequences)

    @property
    def guided(self) -> bool:
        """Whether a second sequence runs beside each."""
        return self.guidance_scale != 1

    @property
    def form(self) -> Form | None:
        """What the text must be."""
        return asked_form({field.name: getattr(self, field.name) for field in fields(self)})

    @property
    def sequences(self) -> int:
        """Most sequences that one request has at a time."""
        candidates = self.top_k if self.penalty_alpha is not None and self.top_k else 1
        return self.texts * candidates * (2 if self.guided else 1)
