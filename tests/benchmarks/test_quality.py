"""What is said of a model's samples is true (loops, known words, longest copies), and of compressors too."""

import random
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from importlib import import_module
from pathlib import Path
from types import ModuleType

import pytest

BENCHMARKS = str(Path(__file__).parents[2] / "benchmarks")


def module(name: str) -> Iterator[ModuleType]:
    """A module of the benchmarks, which are no package that is installed."""
    sys.path.insert(0, BENCHMARKS)
    try:
        yield import_module(f"quality.{name}")
    finally:
        sys.path.remove(BENCHMARKS)


@pytest.fixture
def loops() -> Iterator[ModuleType]:
    yield from module("loops")


@pytest.fixture
def words() -> Iterator[ModuleType]:
    yield from module("words")


@pytest.fixture
def copies() -> Iterator[ModuleType]:
    yield from module("copies")


@pytest.fixture
def baselines() -> Iterator[ModuleType]:
    yield from module("baselines")


# --- loops -----------------------------------------------------------------------------------------------------------


def test_a_loop_is_a_stretch_that_is_followed_at_once_by_itself(loops: ModuleType) -> None:
    before, period = [90, 91, 92], [1, 2, 3, 4, 5]
    assert loops.longest_loop([*before, *period * 5, 93]) == loops.Loop(start=8, period=5, repeated=20)
    assert loops.longest_loop([*before, *period * 4, 1, 2, 3, 4, 93]) is None  # 19 tokens are repetition
    assert loops.longest_loop([7] * 21) == loops.Loop(start=1, period=1, repeated=20)
    assert loops.longest_loop([7] * 20) is None


def test_what_comes_back_later_or_only_in_part_is_no_loop(loops: ModuleType) -> None:
    stretch = list(range(30))
    assert loops.longest_loop([*stretch, 99, *stretch]) is None  # not at once
    assert loops.longest_loop([*stretch, *stretch[:29]]) is None  # not a whole period
    assert loops.longest_loop([*stretch, *stretch]) == loops.Loop(start=30, period=30, repeated=30)
    assert loops.longest_loop(range(400)) is None
    assert loops.longest_loop([]) is None


def test_of_equal_loops_the_one_with_the_shortest_period_is_named(loops: ModuleType) -> None:
    assert loops.longest_loop([*[1, 2, 3, 4] * 6, 99, *[7, 8] * 11]) == loops.Loop(start=27, period=2, repeated=20)


def test_the_longest_loop_is_that_of_trying_every_start_and_period(loops: ModuleType) -> None:
    def tried(ids: Sequence[int], least: int) -> int:
        most = 0
        for period in range(1, len(ids)):
            for start in range(period, len(ids)):
                size = 0
                while start + size < len(ids) and ids[start + size] == ids[start + size - period]:
                    size += 1
                most = max(most, size if size >= max(period, least) else 0)
        return most

    draw, seen = random.Random(5), set()
    for _ in range(300):
        ids = [draw.randrange(draw.choice((2, 3))) for _ in range(draw.randrange(40))]
        found, expected = loops.longest_loop(ids, least=6), tried(ids, 6)
        assert (found.repeated if found else 0) == expected
        if found:
            first = found.start - found.period
            assert ids[found.start : found.start + found.repeated] == ids[first : first + found.repeated]
        seen.add(expected)
    assert 0 in seen
    assert len(seen) > 5


# --- words -----------------------------------------------------------------------------------------------------------


def test_words_are_letters_and_apostrophes_between_them_in_lower_case(words: ModuleType) -> None:
    text = "'Don't!' cried Élise\u2014\u2018it\u2019s Mr. O'Neil's 2nd-best, tha\u2019\u2019."
    assert words.words_of(text) == {"don't", "cried", "élise", "it's", "mr", "o'neil's", "nd", "best", "tha"}
    assert words.vocabulary(["A b", "b C"]) == {"a", "b", "c"}


def test_words_of_the_prompt_and_a_cut_one_do_not_count(words: ModuleType) -> None:
    known = {"it", "was", "washed", "the", "cat"}
    assert words.check_words("It was", " the cat, zzz the", False, known) == words.Words(4, ["zzz"])
    assert words.check_words("It was", " the cat, zzz th", True, known) == words.Words(3, ["zzz"])
    assert words.check_words("It was", " the cat.", True, known) == words.Words(2, [])
    assert words.check_words("It was", "hed the Cat", False, known) == words.Words(3, [])  # it goes on with a word
    assert words.check_words("zzz it", ", it, it", False, known) == words.Words(2, [])
    assert words.check_words("It", "", True, known) == words.Words(0, [])


# --- copies ----------------------------------------------------------------------------------------------------------


def longest_common(sample: str, text: str) -> int:
    """By trying every stretch."""
    stretches = (sample[i:j] for i in range(len(sample)) for j in range(i + 1, len(sample) + 1))
    return max((len(stretch) for stretch in stretches if stretch in text), default=0)


def test_the_longest_copy_is_that_of_trying_every_stretch(copies: ModuleType) -> None:
    draw, sizes = random.Random(3), set()
    for letters in ("ab", "abcd", "aé—\U0001f600 \n", "abcdefghijklmnopqrstuvwxyz"):
        for _ in range(12):
            texts = {name: "".join(draw.choices(letters, k=draw.randrange(1, 200))) for name in ("one", "two")}
            samples = ["".join(draw.choices(letters, k=draw.randrange(30))) for _ in range(4)]
            for size in (5, 33, 70):  # longer than what is compared at once, between other text, and at either end
                start = draw.randrange(100)
                samples.append(samples[0] + texts["two"][start : start + size] + samples[1])
            found = copies.longest_copies(samples, texts)
            for sample, copy in zip(samples, found, strict=True):
                expected = max(longest_common(sample, text) for text in texts.values())
                assert (len(copy.text) if copy else 0) == expected
                if copy:
                    assert sample[copy.start :].startswith(copy.text)
                    assert texts[copy.source][copy.place :].startswith(copy.text)
                sizes.add(expected)
    assert min(sizes) == 0
    assert max(sizes) >= 70


def test_a_copy_does_not_go_on_in_the_next_text(copies: ModuleType) -> None:
    texts = {"one": "the first half of", "two": " a sentence that goes on"}
    (copy,) = copies.longest_copies(["".join(texts.values())], texts)
    assert copy == copies.Copy(" a sentence that goes on", 17, "two", 0)


@pytest.mark.parametrize("length", [1, 2, 8, 32])
def test_fingerprints_tell_stretches_apart(copies: ModuleType, length: int) -> None:
    text = "".join(random.Random(length).choices("ab\U0001f600", k=3000))
    stretches = [text[start : start + length] for start in range(len(text) - length + 1)]
    prints = copies.fingerprints(text, length).tolist()
    assert len(prints) == len(stretches)
    assert len(set(prints)) == len(set(stretches)) == len(set(zip(prints, stretches, strict=True)))
    assert copies.fingerprints("a" * (length - 1), length).tolist() == []


def test_stretches_with_one_fingerprint_are_no_copy_unless_they_are_the_same(
    copies: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = copies.fingerprints
    monkeypatch.setattr(copies, "fingerprints", lambda text, length: real(text, length) % 3)
    (copy, none) = copies.longest_copies(["a cat sat there", "zzz"], {"one": "where the cat sat on the mat"})
    assert copy.text == " cat sat "
    assert none is None


# --- compressors -----------------------------------------------------------------------------------------------------


@pytest.mark.skipif(shutil.which("xz") is None, reason="needs the program xz")
def test_xz_is_what_the_program_makes(baselines: ModuleType) -> None:
    data = Path(__file__).read_bytes()
    ran = subprocess.run(["xz", "-9e", "-c"], input=data, capture_output=True, check=True)
    assert baselines.xz(data) == len(ran.stdout)


def test_a_primed_compressor_pays_for_the_held_out_text_alone(baselines: ModuleType) -> None:
    assert baselines.primed(lambda data: 100 + len(set(data)), [b"abc", b"cd"], b"dxyz") == 3


def test_ppmd_is_measured_untrained_and_primed(baselines: ModuleType) -> None:
    ppmd = pytest.importorskip("pyppmd")
    held_out = Path(__file__).read_bytes()
    (_, untrained, primed), left_out = baselines.measure_baselines([held_out], held_out)
    packed = ppmd.compress(held_out, max_order=10, mem_size=2**24, variant="H")
    assert untrained["bytes"] == pytest.approx(len(packed), abs=8)  # the one or the other way to end
    assert untrained["bits_per_byte"] == 8 * untrained["bytes"] / len(held_out)
    assert primed["bytes"] < untrained["bytes"] / 5  # it has seen this very text
    assert not left_out
