"""Streamed text is the decoded text: at every border, for valid and for broken UTF-8."""

import random

import pytest
from tokenizers import Tokenizer as Backend
from tokenizers import decoders, models
from tokenizers.pre_tokenizers import ByteLevel

from bloomery.text.stream import TextStream
from talker import byte_level_tokenizer

TOKENIZER = byte_level_tokenizer(300)
WINDOWS = "naïve café — “quotes” 猫と犬 🐈‍⬛👩‍👩‍👧 हिन्दी العربية \N{REPLACEMENT CHARACTER} end"


def decode(ids):
    return TOKENIZER.decode(list(ids), skip_special_tokens=True)


def streamed(ids, *stops):
    stream = TextStream(decode, stops)
    pieces = []
    for token in ids:
        stopped = stream.advance(token)
        pieces.append(stream.take())
        if stopped:
            break
    return [*pieces, stream.finish()], stream


def byte_ids(data: bytes):
    """One token a byte, also for bytes that are no UTF-8."""
    visible = [*range(33, 127), *range(161, 173), *range(174, 256)]
    names = {b: chr(b) for b in visible} | {
        b: chr(256 + n) for n, b in enumerate(b for b in range(256) if b not in visible)
    }
    assert sorted(names.values()) == sorted(ByteLevel.alphabet())
    return [TOKENIZER.token_to_id(names[b]) for b in data]


def test_pieces_are_whole_characters_and_add_up_to_the_text():
    ids = byte_ids(WINDOWS.encode())
    pieces, stream = streamed(ids)
    assert "".join(pieces) == decode(ids) == WINDOWS == stream.text
    assert all("\N{REPLACEMENT CHARACTER}" not in piece for piece in pieces[:-8])


def test_a_character_appears_with_its_last_byte():
    ids = byte_ids("a🐈b".encode())
    pieces, _ = streamed(ids)
    assert pieces == ["a", "", "", "", "🐈", "b", ""]


@pytest.mark.parametrize("seed", range(200))
def test_random_bytes_stream_to_what_they_decode_to(seed):
    rng = random.Random(seed)
    choices = [b"\xff", b"\x80", b"\xe2", b"\x82", b"\xac", b"\xf0\x9f", b"\x90", b"\x88", b"a", "é".encode(), b" "]
    data = b"".join(rng.choices(choices, k=rng.randrange(1, 40)))
    ids = byte_ids(data)
    pieces, _ = streamed(ids)
    assert "".join(pieces) == decode(ids)


@pytest.mark.parametrize("seed", range(50))
def test_random_tokens_stream_to_what_they_decode_to(seed):
    rng = random.Random(seed)
    ids = [rng.randrange(TOKENIZER.get_vocab_size()) for _ in range(60)]
    pieces, _ = streamed(ids)
    assert "".join(pieces) == decode(ids)


@pytest.mark.parametrize("stops", [("cat",), ("ca", "cat"), ("zz", "t s"), ("at sat",), ("t",)])
def test_text_ends_before_the_first_stop_string_and_none_of_it_was_shown(stops):
    text = "the big cat sat"
    pieces, stream = streamed(byte_ids(text.encode()), *stops)
    first = min(text.find(stop) for stop in stops if stop in text)
    assert stream.stopped
    assert "".join(pieces) == text[:first] == stream.text


def test_what_only_began_like_a_stop_string_is_given_in_the_end():
    pieces, stream = streamed(byte_ids(b"a cart, a ca"), "cat")
    assert "".join(pieces) == "a cart, a ca"
    assert not stream.stopped
    assert pieces[-1] == "ca"  # held back until no more tokens came


def test_text_outside_a_stop_strings_beginning_is_not_held_back():
    pieces, _ = streamed(byte_ids(b"xyz"), "cat")
    assert pieces == ["x", "y", "z", ""]


def test_a_stop_string_may_span_tokens_and_scripts():
    pieces, stream = streamed(byte_ids("ok 猫と犬 never".encode()), "と犬")
    assert "".join(pieces) == "ok 猫"
    assert stream.stopped


def like_llamas():
    """Words carry the space before them, characters may come as bytes, and a text's first space is dropped."""
    words = ["<unk>", "<s>", "▁", "▁a", "▁river", "cat", "é", "\n", *(f"<0x{byte:02X}>" for byte in range(256))]
    backend = Backend(models.BPE({word: n for n, word in enumerate(words)}, [], unk_token="<unk>", byte_fallback=True))
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    backend.decoder = decoders.Sequence(steps)
    backend.add_special_tokens(["<s>"])
    return backend


def test_a_text_begins_with_its_first_words_space_but_where_nothing_stands_before_it():
    llama = like_llamas()
    ids = [llama.token_to_id(word) for word in ("▁river", "▁a")]

    def text(*before):
        stream = TextStream(llama.decode, before=[llama.token_to_id(word) for word in before])
        for token in ids:
            stream.advance(token)
        return stream.take() + stream.finish()

    assert text("▁a") == " river a"
    assert text("<s>", "▁a", "<s>") == " river a"
    assert text("<s>") == "river a"


@pytest.mark.parametrize("seed", range(100))
def test_text_behind_a_prompt_is_what_the_whole_has_more_than_the_prompt(seed):
    rng = random.Random(seed)
    llama = like_llamas()
    words = [[word] for word in ("▁", "▁a", "▁river", "cat", "é", "\n")]
    words += [[f"<0x{byte:02X}>" for byte in character.encode()] for character in "猫🐈ñ"]
    before, after = (
        [llama.token_to_id(token) for word in rng.choices(words, k=rng.randrange(1, 12)) for token in word]
        for _ in range(2)
    )
    stream = TextStream(llama.decode, before=before)
    pieces = []
    for token in after:
        stream.advance(token)
        pieces.append(stream.take())
    assert "".join([*pieces, stream.finish()]) == llama.decode(before + after)[len(llama.decode(before)) :]
