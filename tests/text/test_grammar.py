"""What a grammar allows, against brute force over every text of a small language, for each kind of tokenizer."""

import itertools
import re
from types import SimpleNamespace

import pytest
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers

from bloomery import BloomeryError, UsageError
from bloomery.text.compile import Grammars
from bloomery.text.grammar import GuidedText
from talker import SPECIAL, byte_level_tokenizer

END, OTHER_END = 2, 3
PADDED = 37
"""Rows of a model for which the tokenizer has no token."""


def from_pieces(pieces, merges):
    """A byte-level tokenizer of a few tokens, which has the special ones of the other tests."""
    tokenizer = Tokenizer(models.BPE(vocab={piece: n for n, piece in enumerate([*SPECIAL, *pieces])}, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(SPECIAL)
    return tokenizer


def letters():
    merges = [("a", "b"), ("ab", "c"), ("b", "c"), ("c", "c")]
    return from_pieces(["a", "b", "c", "ab", "abc", "bc", "cc"], merges)


def sentencepiece():
    """As Llama's: words begin with ▁, and what has no token is bytes."""
    pieces = [*SPECIAL, *(f"<0x{byte:02X}>" for byte in range(256)), *"▁abcé", "ab", "bc", "▁a", "▁ab", "abc", "▁abc"]
    merges = [("a", "b"), ("b", "c"), ("▁", "a"), ("▁", "ab"), ("ab", "c"), ("▁", "abc")]
    vocabulary = {piece: n for n, piece in enumerate(pieces)}
    tokenizer = Tokenizer(
        models.BPE(vocab=vocabulary, merges=merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True)
    )
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.add_special_tokens(SPECIAL)
    return tokenizer


def grammars(tokenizer, ends=(END,), rows=None):
    wrapped = SimpleNamespace(backend=tokenizer, decode=tokenizer.decode)
    return Grammars(wrapped, rows or tokenizer.get_vocab_size() + PADDED, ends)


def ids(mask):
    return mask.nonzero().flatten().tolist()


def spelled(tokenizer):
    """Bytes of every ordinary token."""
    found = {}
    for piece, index in tokenizer.get_vocab().items():
        if index >= len(SPECIAL):
            byte = re.fullmatch("<0x(..)>", piece)
            found[index] = bytes([int(byte[1], 16)]) if byte else piece.replace("▁", " ").encode()
    return found


LANGUAGES = ["(a|ab|abc)(c|bc)?", "a{2,4}b?", "(abc){1,2}", "(a|b|c){3}", "c(a|bc)*?", "(ab|cc)b?c{0,2}"]
LONGEST = 8


@pytest.mark.parametrize("make", [letters, sentencepiece])
@pytest.mark.parametrize("regex", LANGUAGES)
def test_a_token_is_allowed_where_a_text_of_the_language_goes_on_with_it(make, regex):
    """Every prefix that tokens can spell, beside all texts up to a length. Where all texts go on with the same
    character, the library may leave only the token that the tokenizer would take: then what it leaves is some of it."""
    tokenizer = make()
    tokens = {index: piece for index, piece in spelled(tokenizer).items() if set(piece) <= set(b"abc")}
    words = ("".join(word) for length in range(1, LONGEST + 1) for word in itertools.product("abc", repeat=length))
    language = {word.encode() for word in words if re.fullmatch(regex, word)}
    seen, left, exact = set(), [(b"", grammars(tokenizer).grammar("regex", regex))], 0
    while left:
        prefix, grammar = left.pop()
        rest = [word[len(prefix) :] for word in language if word.startswith(prefix)]
        expected = {index for index, piece in tokens.items() if any(tail.startswith(piece) for tail in rest)}
        expected |= {END} if b"" in rest else set()
        allowed = set(ids(grammar.allowed()))
        assert allowed, prefix
        if len({tail[:1] for tail in rest}) > 1:
            assert allowed == expected, prefix
            exact += 1
        assert allowed <= expected, prefix
        for index in allowed - {END}:
            longer = grammar.fork()
            complete = longer.advance(index)
            after = prefix + tokens[index]
            assert complete == ([word for word in language if word.startswith(after)] == [after]), after
            if after not in seen and len(after) <= LONGEST - 4 and not complete:
                seen.add(after)
                left.append((after, longer))
    assert exact


def test_a_character_may_be_written_by_tokens_of_parts_of_it():
    """The cat is four bytes, and the tokenizer of this test has no token of them all."""
    tokenizer = from_pieces(["ð", "Ł", "Ĳ", "Ī", "a", "ðŁ"], [("ð", "Ł")])
    grammar = grammars(tokenizer).grammar("regex", "🐈|a")
    assert ids(grammar.allowed()) == sorted(tokenizer.token_to_id(piece) for piece in ("ð", "ðŁ", "a"))
    text = GuidedText(tokenizer.decode, (), grammar)
    ended = [text.advance(tokenizer.token_to_id(piece)) for piece in ("ðŁ", "Ĳ", "Ī")]
    assert (ended, text.take() + text.finish()) == ([False, False, True], "🐈")


def test_bytes_of_sentencepiece_make_what_has_no_token():
    tokenizer = sentencepiece()
    grammar = grammars(tokenizer).grammar("regex", "猫é")
    text = GuidedText(tokenizer.decode, (), grammar)
    for _ in range(9):
        chosen = ids(text.allowed())[0]
        if text.advance(chosen):
            break
    assert text.take() + text.finish() == "猫é"


def test_special_tokens_and_rows_without_a_token_are_never_text():
    tokenizer = byte_level_tokenizer(400)
    grammar = grammars(tokenizer).grammar("regex", "(?s).+")
    allowed = ids(grammar.allowed())
    assert min(allowed) >= len(SPECIAL)
    assert max(allowed) < tokenizer.get_vocab_size()
    assert len(grammar.allowed()) == tokenizer.get_vocab_size() + PADDED
    grammar.advance(tokenizer.token_to_id("a"))
    assert {index for index in ids(grammar.allowed()) if index < len(SPECIAL)} == {END}


def test_a_model_may_have_fewer_rows_than_its_tokenizer_has_tokens():
    tokenizer = byte_level_tokenizer(400)
    assert len(grammars(tokenizer, rows=300).grammar("regex", "(?s).+").allowed()) == 300


def test_every_end_of_sequence_is_allowed_where_the_text_may_end_and_nowhere_else():
    grammar = grammars(letters(), ends=(END, OTHER_END)).grammar("regex", "a+b")
    for token, may_end in ((4, False), (4, False), (5, True)):
        assert not set(ids(grammar.allowed())) & {END, OTHER_END}
        assert grammar.advance(token) == may_end
    assert ids(grammar.allowed()) == [END, OTHER_END]


def test_an_end_of_sequence_that_reads_as_text_is_no_text():
    """Here the ordinary token a ends a text."""
    grammar = grammars(letters(), ends=(4,)).grammar("regex", "(a|b)c?")
    assert ids(grammar.allowed()) == [5, 9]  # b and bc
    assert not grammar.advance(5)
    assert ids(grammar.allowed()) == [4, 6]
    assert grammar.advance(4)


@pytest.mark.parametrize("special", [SPECIAL, []])
def test_a_model_without_an_end_goes_on_where_it_may_and_ends_where_it_must(special):
    tokenizer = Tokenizer(models.BPE(vocab={piece: n for n, piece in enumerate([*special, "a", "b", "c"])}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(special)
    first = len(special)
    grammar = grammars(tokenizer, ends=()).grammar("regex", "a{1,2}")
    assert ids(grammar.allowed()) == [first]
    assert not grammar.advance(first)
    assert ids(grammar.allowed()) == [first]
    assert grammar.advance(first)


def test_an_end_that_is_to_be_ignored_is_not_allowed():
    grammar = grammars(letters()).grammar("regex", "a*", closing=False)
    assert grammar.advance(4) is False
    assert END not in ids(grammar.allowed())
    assert ids(grammar.allowed())


def test_forks_go_their_own_ways():
    grammar = grammars(letters()).grammar("regex", "ab?c|bbb")
    fork = grammar.fork()
    before = ids(grammar.allowed())
    fork.advance(5)
    assert ids(grammar.allowed()) == before
    assert not grammar.advance(4)
    assert 5 in ids(fork.allowed())
    assert not fork.advance(5)
    assert fork.advance(5)
    assert grammar.advance(6)


def test_a_step_that_is_too_much_for_the_library_is_one_line():
    """Every letter more may be the first of as many parts as there are letters."""
    tokenizer = byte_level_tokenizer(400)
    grammar = grammars(tokenizer).grammar("grammar", 'start: a{1000}\na: "a"{0,1000} | "b"')
    for _ in range(200):
        grammar.advance(tokenizer.token_to_id("a"))
    with pytest.raises(BloomeryError, match=r"^grammar cannot be followed beyond generated token 200 \(.*\): simplify"):
        grammar.allowed()


def test_a_tokenizer_that_cannot_write_it_is_refused():
    with pytest.raises(UsageError, match="regex begins with nothing that the model has a token for"):
        grammars(letters()).grammar("regex", "xyz")


def test_a_grammar_may_name_a_special_token():
    grammar = grammars(letters()).grammar("grammar", 'start: "a" <pad> <[1]> "b"')
    for token in (4, SPECIAL.index("<pad>"), 1, 5):
        assert ids(grammar.allowed()) == [token]
        ended = grammar.advance(token)
    assert ended
