"""`bloomery generate --adapter` as a person meets it."""

from collections.abc import Callable
from pathlib import Path

import pytest

from adapted import kind
from bloomery import LLM, SamplingParams
from bloomery.cli import main
from talker import build_talker
from tiny import Tiny

OPTIONS = ("--max-new-tokens", "12", "--ignore-eos")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(build_talker(tmp_path_factory.mktemp("adapter") / "talker"))


@pytest.fixture(scope="module")
def adapter(tiny: Callable[[str], Tiny], tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(kind(tiny("bloom-6-heads"), tmp_path_factory.mktemp("adapter"), "lora").path)


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BLOOMERY_CACHE_DIR", str(tmp_path / "cache"))


def run(capsys: pytest.CaptureFixture[str], *argv: str) -> tuple[int, str, str]:
    code = main(["generate", "the cat", *argv])
    out, err = capsys.readouterr()
    return code, out, err


def test_text_is_that_of_the_adapter(capsys: pytest.CaptureFixture[str], folder: str, adapter: str) -> None:
    code, out, err = run(capsys, "--model", folder, "--adapter", adapter, *OPTIONS)
    params = SamplingParams(max_new_tokens=12, ignore_eos=True)
    expected, without = (LLM(folder, adapter=one).generate("the cat", params)[0].text for one in (adapter, None))
    assert (code, out) == (0, expected + "\n")
    assert expected != without
    assert f"adapter {adapter}: LORA" in err


def test_environment_names_an_adapter_too(
    capsys: pytest.CaptureFixture[str], folder: str, adapter: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = run(capsys, "--model", folder, "--adapter", adapter, "-q", *OPTIONS)
    monkeypatch.setenv("BLOOMERY_ADAPTER", adapter)
    assert run(capsys, "--model", folder, "-q", *OPTIONS) == given


@pytest.mark.parametrize("wrong", ["nowhere/at-all/here", ""])
def test_adapter_that_is_nowhere_is_one_line(capsys: pytest.CaptureFixture[str], folder: str, wrong: str) -> None:
    code, out, err = run(capsys, "--model", folder, "--adapter", wrong)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert err.startswith("bloomery: error: adapter: ")


def test_model_in_place_of_an_adapter_is_one_line(capsys: pytest.CaptureFixture[str], folder: str) -> None:
    code, out, err = run(capsys, "--model", folder, "--adapter", folder)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert "adapter_config.json" in err
