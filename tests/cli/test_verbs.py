"""The other verbs, and what all of them share."""

import json
import shutil
import subprocess
import sys

import pytest
from safetensors.torch import load_file, save_file

from bloomery.cli import VERBS, main
from talker import build_talker


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return build_talker(tmp_path_factory.mktemp("verbs") / "talker")


def heavy_after(code):
    """Which of the slow packages are loaded once `code` has run."""
    look = f"import sys\n{code}\nprint(*(m for m in ('torch', 'numpy', 'transformers') if m in sys.modules))"
    process = subprocess.run([sys.executable, "-c", look], capture_output=True, text=True, check=True)
    return process.stdout.splitlines()[-1].split()


@pytest.mark.parametrize("argv", [["--help"], [], ["--version"], ["train", "--help"], ["generate", "--help"]])
def test_help_does_not_import_torch(argv):
    assert heavy_after(f"from bloomery.cli import main; main({argv})") == []


def test_a_wrong_option_is_refused_without_importing_torch():
    assert heavy_after("from bloomery.cli import main; main(['generate', '--wrong'])") == []


def test_help_names_every_verb(capsys):
    assert main([]) == 0
    out = capsys.readouterr().out
    assert all(verb in out for verb in VERBS)


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_explains_its_options(capsys, verb):
    assert main([*verb.split(), "--help"]) == 0
    out = capsys.readouterr().out
    assert "--recipe" in out
    assert "--print-config" in out


def test_verify_passes_a_model_that_agrees_and_fails_one_that_does_not(folder, tmp_path, capsys, monkeypatch):
    assert main(["verify", str(folder), "--tokens", "8"]) == 0
    assert "DIFFERS" not in capsys.readouterr().out
    from bloomery.ops import position

    true = position.alibi_slopes
    monkeypatch.setattr("bloomery.model.decoder.alibi_slopes", lambda heads: [*true(heads)[:-1], 0.3])
    assert main(["verify", str(folder), "--tokens", "8", "--json"]) == 1
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert not all(row["passed"] for row in rows)


def test_verify_refuses_more_tokens_than_fit(folder, capsys):
    assert main(["verify", str(folder), "--tokens", "512"]) == 2
    assert "tokens is 512: give 1 to 511" in capsys.readouterr().err


def test_info_describes_machine_and_model(folder, capsys):
    assert main(["info", str(folder), "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    weights = load_file(folder / "model.safetensors")
    assert facts["machine"]["native kernels"]
    assert facts["model"]["weights (bytes)"] == sum(tensor.nbytes for tensor in weights.values())
    assert facts["model"]["generation defaults"]["temperature"] == 0.7
    assert main(["info"]) == 0
    assert "torch" in capsys.readouterr().out


def test_info_of_a_broken_model_says_what_is_missing(folder, tmp_path, capsys):
    broken = tmp_path / "broken"
    shutil.copytree(folder, broken)
    weights = load_file(broken / "model.safetensors")
    del weights["transformer.ln_f.bias"]
    save_file(weights, broken / "model.safetensors")
    assert main(["info", str(broken)]) == 2
    err = capsys.readouterr().err
    assert "ln_f.bias" in err
    assert err.count("\n") == 1


def test_train_without_recipe_says_what_it_needs(capsys):
    assert main(["train"]) == 2
    err = capsys.readouterr().err
    assert "bloomery train needs --data.train, --run.out" in err
    assert err.count("\n") == 1


def test_a_wrong_value_in_a_nested_option_names_it(capsys, tmp_path):
    recipe = tmp_path / "r.toml"
    recipe.write_text(
        '[data]\ntrain = ["a"]\nvalid = ["b"]\n[run]\nout = "x"\n[model]\nfamily = "bloom"\n[optim]\nlr = -1.0\n'
    )
    assert main(["train", str(recipe)]) == 2
    assert "optim.lr is -1.0" in capsys.readouterr().err
    assert main(["train", str(recipe), "--optim.lrr", "3"]) == 2
    assert "--optim.lrr" in capsys.readouterr().err
