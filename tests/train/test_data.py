"""Token files hold exactly the text; a sample is a function of seed and index."""

import errno
from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer

from bloomery.errors import UsageError
from bloomery.train.data import Samples, find_files, permuted, read_texts, write_tokens
from bloomery.train.tokenizer import EOS, byte_lengths, train_tokenizer


@pytest.fixture(scope="module")
def tokenizer(corpus: Path) -> Tokenizer:
    return train_tokenizer(read_texts(find_files("data.train", [str(corpus / "train-*.txt")])), 320)


def numbers(count: int) -> np.ndarray:
    return np.arange(count, dtype=np.uint16)


@pytest.mark.parametrize("size", [1, 2, 3, 16, 17, 100, 1000])
def test_the_keyed_permutation_is_one_to_one(size: int) -> None:
    assert sorted(permuted(i, size, key=7) for i in range(size)) == list(range(size))


def test_the_order_of_samples_looks_random() -> None:
    order = np.array([permuted(i, 2000, key=3) for i in range(2000)])
    assert abs(np.corrcoef(order, np.arange(2000))[0, 1]) < 0.1
    assert abs(np.corrcoef(order[1:], order[:-1])[0, 1]) < 0.1


def test_sample_is_a_pure_function_of_seed_and_index() -> None:
    text = numbers(1000)
    forward = Samples(text, 10, seed=5).take(0, 300)
    again = Samples(text, 10, seed=5)
    backward = np.concatenate([again.take(i, 1) for i in reversed(range(300))])[::-1]
    assert np.array_equal(forward, backward)
    assert np.array_equal(forward[40:48], Samples(text, 10, seed=5).take(40, 8))
    assert not np.array_equal(forward, Samples(text, 10, seed=6).take(0, 300))


def test_one_epoch_visits_every_window_once() -> None:
    samples = Samples(numbers(1003), 10, seed=1)
    assert samples.windows == 99
    for epoch in range(3):
        starts = sorted(samples.start(epoch * samples.windows + i) for i in range(samples.windows))
        assert starts == list(range(starts[0], starts[0] + 990, 10))
        assert 0 <= starts[0] < 10


def test_epochs_differ_in_order_and_in_where_the_text_is_cut() -> None:
    samples = Samples(numbers(5000), 50, seed=1)
    epochs = [[samples.start(epoch * samples.windows + i) for i in range(samples.windows)] for epoch in range(4)]
    assert len({min(starts) for starts in epochs}) > 1
    assert len({tuple(np.argsort(starts)) for starts in epochs}) == 4


def test_a_sample_is_the_text_and_one_token_more() -> None:
    samples = Samples(numbers(500), 20, seed=9)
    for i, window in enumerate(samples.take(0, 50)):
        assert window.tolist() == list(range(samples.start(i), samples.start(i) + 21))


@pytest.mark.parametrize("length", [40, 41, 59, 60])
def test_no_sample_reaches_over_the_end_of_the_text(length: int) -> None:
    for seed in range(40):
        samples = Samples(numbers(length), 20, seed)
        assert samples.take(0, 3 * samples.windows).shape == (3 * samples.windows, 21)


def test_a_text_without_a_whole_sample_is_refused() -> None:
    with pytest.raises(UsageError, match="39 tokens"):
        Samples(numbers(39), 20, seed=0)


def test_the_token_file_holds_each_document_and_an_end_after_it(tokenizer: Tokenizer, tmp_path: Path) -> None:
    texts = ["A café, and\r\nmore — of it…\n", "", "naïve 東京 \x00 </s> <pad>"]
    files = [tmp_path / f"{i}.txt" for i in range(3)]
    for file, text in zip(files, texts, strict=True):
        file.write_bytes(text.encode())
    written = write_tokens(tokenizer, files, tmp_path / "tokens.bin")
    ids = written.open()
    ends = np.flatnonzero(ids == EOS)
    assert written.count == len(ids)
    assert ends.size == 3  # those spelt out in a text are text
    parts = np.split(ids, ends + 1)[:3]
    assert [tokenizer.decode(part[:-1].tolist(), skip_special_tokens=False) for part in parts] == texts
    assert written.text_bytes == sum(len(text.encode()) for text in texts) == byte_lengths(tokenizer)[ids].sum()


def test_a_large_vocabulary_gets_wider_tokens(tmp_path: Path) -> None:
    class Wide:
        def get_vocab_size(self) -> int:
            return 2**16 + 1

        def encode(self, text: str, add_special_tokens: bool) -> "Wide":
            self.ids = [2**16]
            return self

    (tmp_path / "a.txt").write_text("x")
    written = write_tokens(Wide(), [tmp_path / "a.txt"], tmp_path / "a.bin")  # type: ignore[arg-type]
    assert written.open().tolist() == [2**16, EOS]


def test_an_interrupted_tokenisation_leaves_no_file(tokenizer: Tokenizer, tmp_path: Path) -> None:
    (tmp_path / "good.txt").write_text("good")
    (tmp_path / "bad.txt").write_bytes(b"\xff")
    (tmp_path / "out").mkdir()
    with pytest.raises(UsageError, match=r"bad\.txt"):
        write_tokens(tokenizer, [tmp_path / "good.txt", tmp_path / "bad.txt"], tmp_path / "out" / "tokens.bin")
    assert not list((tmp_path / "out").iterdir())


def test_an_interrupted_tokenisation_leaves_the_old_file(tokenizer: Tokenizer, tmp_path: Path) -> None:
    (tmp_path / "good.txt").write_text("good")
    (tmp_path / "tokens.bin").write_bytes(b"old")
    with pytest.raises(UsageError, match="cannot be read"):
        write_tokens(tokenizer, [tmp_path / "good.txt", tmp_path / "gone.txt"], tmp_path / "tokens.bin")
    assert (tmp_path / "tokens.bin").read_bytes() == b"old"
    assert sorted(file.name for file in tmp_path.iterdir()) == ["good.txt", "tokens.bin"]


def test_a_file_named_twice_is_taken_once_and_names_keep_their_order(tmp_path: Path) -> None:
    for name in ("a", "b", "c[1]"):
        (tmp_path / name).write_text(name)
    found = find_files("data.train", [str(tmp_path / name) for name in ("c[1]", "b", "*")])
    assert [file.name for file in found] == ["c[1]", "b", "a"]


def test_a_file_reached_by_two_ways_is_taken_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.txt").write_text("a")
    (tmp_path / "link.txt").symlink_to("a.txt")
    monkeypatch.chdir(tmp_path)
    assert find_files("data.train", ["a.txt", str(tmp_path / "a.txt"), "link.txt"]) == (Path("a.txt"),)


def test_a_full_disk_is_said_in_one_line_and_leaves_no_file(
    tokenizer: Tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    (tmp_path / "a.txt").write_text("x")
    (tmp_path / "out").mkdir()
    monkeypatch.setattr("bloomery.train.data.os.replace", full)
    with pytest.raises(UsageError, match=r"tokens\.bin cannot be written: No space left on device: make room"):
        write_tokens(tokenizer, [tmp_path / "a.txt"], tmp_path / "out" / "tokens.bin")
    assert not list((tmp_path / "out").iterdir())


def test_a_tilde_stands_for_the_home_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "a.txt").write_text("text")
    assert find_files("data.train", ["~/*.txt"]) == (tmp_path / "a.txt",)
