"""`bloomery generate` as a person meets it: stdout, stderr, exit codes, and every kind of bad input in one line."""

import json
import os
import signal
import subprocess
import sys
import time
import tomllib

import pytest

from bloomery import LLM, SamplingParams
from bloomery.cli import VERBS, main
from talker import build_talker


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return str(build_talker(tmp_path_factory.mktemp("cli") / "talker"))


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("BLOOMERY_CACHE_DIR", str(tmp_path / "cache"))


def run(capsys, *argv):
    code = main(list(argv))
    out, err = capsys.readouterr()
    return code, out, err


def start(*argv, **options):
    """A real process, for what only a process has."""
    command = [sys.executable, "-m", "bloomery", *argv]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, **options)


def refused(capsys, *argv):
    """The one line that a wrong command gives."""
    code, out, err = run(capsys, *argv)
    assert (code, out) == (2, "")
    assert err.count("\n") == 1, err
    assert err.startswith("bloomery: error: ")
    return err


def test_text_goes_to_stdout_and_the_figures_to_stderr(capsys, folder):
    code, out, err = run(capsys, "generate", "the cat", "--model", folder, "--max-new-tokens", "20", "--ignore-eos")
    assert code == 0
    assert out == LLM(folder).generate("the cat", SamplingParams(max_new_tokens=20, ignore_eos=True))[0].text + "\n"
    assert err.count("\n") == 1
    for figure in ("20 tokens", "TTFT", "tok/s", "GB/s of weights read", "% of", "read bandwidth"):
        assert figure in err


def test_keys_and_values_in_8_bits_are_asked_for_by_the_same_name(capsys, folder):
    words = ("--max-new-tokens", "30", "--ignore-eos", "--json", "--logprobs", "1")
    params = SamplingParams(max_new_tokens=30, ignore_eos=True, logprobs=1)
    said = []
    for cache_dtype in ("int8", "float32"):
        code, out, _ = run(capsys, "generate", "the cat", "--model", folder, "--cache-dtype", cache_dtype, *words)
        expected = LLM(folder, cache_dtype=cache_dtype).generate("the cat", params)[0]
        said.append([token["logprob"] for token in json.loads(out)["logprobs"]])
        assert (code, json.loads(out)["text"]) == (0, expected.text)
        assert said[-1] == [token.logprob for token in expected.logprobs]
    assert said[0] != said[1]


def test_quiet_says_nothing_beside_the_text(capsys, folder):
    assert run(capsys, "generate", "the cat", "--model", folder, "-q")[2] == ""


def test_json_gives_one_object_a_prompt_in_order(capsys, folder):
    options = ("--model", folder, "--json", "--max-new-tokens", "5", "--ignore-eos", "--logprobs", "2")
    code, out, _ = run(capsys, "generate", "the cat", "a", "the dog saw", *options)
    rows = [json.loads(line) for line in out.splitlines()]
    assert code == 0
    assert [len(row["token_ids"]) for row in rows] == [5, 5, 5]
    llm = LLM(folder)
    assert [row["prompt_ids"] for row in rows] == [llm.encode(text) for text in ("the cat", "a", "the dog saw")]
    assert all(len(token["top"]) == 2 for token in rows[0]["logprobs"])


@pytest.mark.parametrize(
    "way",
    [
        ["--num-beams", "3", "--num-return-sequences", "2"],
        ["--temperature", "1", "--seed", "4", "--num-return-sequences", "3"],
        ["--penalty-alpha", "0.6", "--top-k", "4"],
        ["--guidance-scale", "1.5", "--negative-prompt", "a dog"],
    ],
    ids=lambda words: words[0],
)
def test_json_gives_the_log_probabilities_of_prompt_and_text_in_every_way_to_generate(capsys, folder, way):
    options = ("--json", "--max-new-tokens", "5", "--ignore-eos", "--logprobs", "2", "--prompt-logprobs", "1")
    code, out, _ = run(capsys, "generate", "the cat sat", "a", "--model", folder, *options, *way)
    assert code == 0
    llm = LLM(folder)
    for row in map(json.loads, out.splitlines()):
        for name, given, ids in (
            ("logprobs", row["prompt_ids"], row["token_ids"]),
            ("prompt_logprobs", row["prompt_ids"][:1], row["prompt_ids"][1:]),
        ):
            assert [token["id"] for token in row[name]] == ids
            wanted = llm.score([(given, ids)])[0].logprobs if ids else []
            assert [token["logprob"] for token in row[name]] == pytest.approx(wanted, abs=1e-4)
        assert {len(token["top"]) for token in row["logprobs"]} == {2}
        assert {len(token["top"]) for token in row["prompt_logprobs"]} <= {1}


def test_guidance_is_told_by_text_by_ids_and_by_a_recipe_alike(capsys, folder, tmp_path):
    ids = LLM(folder).encode("a dog")
    (tmp_path / "recipe.toml").write_text(f"guidance_scale = 2.0\nnegative_prompt_ids = {ids}\n")
    command = ("generate", "the cat", "--model", folder, "--max-new-tokens", "12", "-q")
    outs = {
        run(capsys, *command, *way)[1]
        for way in (
            ["--guidance-scale", "2", "--negative-prompt", "a dog"],
            ["--guidance-scale", "2", "--negative-prompt-ids", str(ids)],
            ["--recipe", str(tmp_path / "recipe.toml")],
        )
    }
    assert len(outs) == 1
    assert outs != {run(capsys, *command)[1]}


def test_many_prompts_come_out_in_order_and_whole(capsys, folder):
    texts = ["the cat", "a", "dog", "saw the"]
    options = ("--model", folder, "--max-new-tokens", "6", "--ignore-eos", "--max-batch-size", "2")
    _, out, _ = run(capsys, "generate", *texts, *options)
    alone = LLM(folder).generate(texts, SamplingParams(max_new_tokens=6, ignore_eos=True))
    assert out == "\n\n".join(completion.text for completion in alone) + "\n"


def test_ids_in_ids_out(capsys, folder):
    _, out, _ = run(capsys, "generate", "5 6 7", "--ids", "--model", folder, "--max-new-tokens", "4", "--ignore-eos")
    expected = LLM(folder).generate([5, 6, 7], SamplingParams(max_new_tokens=4, ignore_eos=True))[0].token_ids
    assert [int(word) for word in out.split()] == list(expected)


def test_stdin_is_the_prompt_when_there_is_none(folder):
    with start("generate", "--model", folder, "--json", "--max-new-tokens", "2", stdin=subprocess.PIPE) as process:
        out, _ = process.communicate("the cat 猫\n".encode(), timeout=120)
    assert json.loads(out)["prompt_ids"] == LLM(folder).encode("the cat 猫")


def test_default_recipe_environment_and_command_line_win_in_this_order(capsys, folder, tmp_path, monkeypatch):
    recipe = tmp_path / "short.toml"
    recipe.write_text(f'model = "{folder}"\nmax_new_tokens = 3\nignore_eos = true\njson = true\n')

    def length(*argv):
        return len(json.loads(run(capsys, "generate", "the cat", "--recipe", str(recipe), *argv)[1])["token_ids"])

    assert length() == 3
    monkeypatch.setenv("BLOOMERY_MAX_NEW_TOKENS", "4")
    assert length() == 4
    assert length("--max-new-tokens", "5") == 5


def test_the_printed_config_is_a_recipe_that_means_the_same(capsys, folder, tmp_path):
    argv = ("--model", folder, "--temperature", "0.7", "--seed", "9", "--stop-strings", "zz", "--max-new-tokens", "9")
    _, first, _ = run(capsys, "generate", "the cat", *argv, "--print-config")
    recipe = tmp_path / "printed.toml"
    recipe.write_text(first)
    _, second, _ = run(capsys, "generate", "--recipe", str(recipe), "--print-config")
    assert first == second
    assert "recipe" not in first
    from_recipe = run(capsys, "generate", "--recipe", str(recipe))[1]
    assert from_recipe == run(capsys, "generate", "the cat", *argv)[1]


LISTS = {
    "logit_bias": (["--logit-bias", "15=2.5", "--logit-bias", "7=-100"], ["15=2.5", "7=-100.0"]),
    "sequence_bias": (['--sequence-bias=["1,2=-5", "3=1e-3"]'], ["1,2=-5.0", "3=0.001"]),
    "bad_words": (["--bad-words", "[a, b]"], ["[a, b]"]),  # a text, which may be any
    "bad_words_ids": (["--bad-words-ids", "1, 2"], ["1,2"]),
    "suppress_tokens": (["--suppress-tokens", "[5, 6]"], [5, 6]),
    "begin_suppress_tokens": (["--begin-suppress-tokens", "5", "--begin-suppress-tokens", "6"], [5, 6]),
    "forced_eos_token_id": (["--forced-eos-token-id", "5"], [5]),
    "exponential_decay_length_penalty": (["--exponential-decay-length-penalty", "[10, 1.5]"], [10, 1.5]),
}


@pytest.mark.parametrize("name", LISTS)
def test_lists_and_biases_mean_the_same_on_the_command_line_in_a_recipe_and_in_the_environment(
    capsys, tmp_path, monkeypatch, name
):
    argv, meant = LISTS[name]
    printed = run(capsys, "generate", "x", *argv, "--print-config")[1]
    assert tomllib.loads(printed)[name] == meant
    (tmp_path / "printed.toml").write_text(printed)
    assert run(capsys, "generate", "--recipe", str(tmp_path / "printed.toml"), "--print-config")[1] == printed
    monkeypatch.setenv(f"BLOOMERY_{name.upper()}", meant[0] if name == "bad_words" else json.dumps(meant))
    assert run(capsys, "generate", "x", "--print-config")[1] == printed


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["--max-new-toens", "5"], "Unknown option: --max-new-toens. Did you mean --max-new-tokens?"),
        (["--temperature", "-1"], "temperature is -1.0: give 0 (greedy) or a positive number"),
        (["--temperature", "hot"], "unable to convert"),
        (["--temperature", "1", "--top-p", "0"], "top_p is 0.0: give a number in (0, 1]"),
        (["--temperature", "1", "--top-p", "1.01"], "top_p is 1.01"),
        (["--top-k", "5"], "top_k would have no effect at temperature 0"),
        (["--top-k", "778", "--temperature", "1"], "top_k is 778, but the model has 777 tokens"),
        (["--logit-bias", "15"], "logit_bias has '15': write it as 15=2.5"),
        (["--logit-bias", "777=1"], "logit_bias names token 777, which is outside the model's vocabulary of 777"),
        (["--bad-words-ids", "cat"], "bad_words_ids has 'cat': write it as 1,2,3"),
        (["--bad-words", " "], "a bad word is empty"),
        (["--max-length", "9", "--max-new-tokens", "9"], "drop max_length"),
        (["--exponential-decay-length-penalty", "5"], "give two numbers"),
        (["--forced-bos-token-id", "5"], "forced_bos_token_id comes behind a prompt of one token"),
        (["--max-new-tokens", "0"], "max_new_tokens is 0: ask for at least 1 token"),
        (["--max-new-tokens", "512"], "max_new_tokens 512 leaves no room for a prompt in a context of 512"),
        (["--max-new-tokens"], "--max-new-tokens requires an argument"),
        (["--truncate", "middle"], 'Choose from: "left", "right"'),
        (["--device", "gpu"], "device 'gpu' cannot be used here"),
        (["--recipe", "nowhere.toml"], "recipe nowhere.toml cannot be read: No such file or directory"),
        (["--ids"], "--ids wants whole numbers"),
        (["--prompts", "b"], "'the cat' stands beside --prompts"),
        (["-"], "'-' reads one prompt from stdin: give it alone"),
        (["--recipe", ""], "the recipe's name is empty"),
        (["--max-new-tokens", "3.7"], '--max-new-tokens: unable to convert "3.7" into int'),
        (["--logprobs", "2"], "--logprobs needs --json"),
        (["--prompt-logprobs", "2"], "--prompt-logprobs needs --json"),
        (["--negative-prompt", "a"], "negative_prompt would have no effect without guidance: set guidance_scale"),
        (["--negative-prompt", "", "--guidance-scale", "2"], "negative_prompt: the prompt is empty"),
        (["--penalty-alpha", "0.6"], "penalty_alpha chooses among the top_k likeliest tokens: give top_k"),
        (["--max-batch-size", "0"], "max_batch_size is 0: give at least 1"),
    ],
)
def test_a_wrong_option_gives_one_line(capsys, folder, argv, said):
    assert said in refused(capsys, "generate", "the cat", "--model", folder, *argv)


def test_an_unknown_verb_or_model_names_what_there_is(capsys, tmp_path):
    said = refused(capsys, "genrate")
    assert f"no verb 'genrate': did you mean 'generate'? (verbs: {', '.join(VERBS)})" in said
    assert "no model 'nowhere/at/all' (built in: dickens" in refused(
        capsys, "generate", "x", "--model", "nowhere/at/all"
    )
    file = tmp_path / "file"
    file.touch()
    assert "is a file: give the folder" in refused(capsys, "generate", "x", "--model", str(file))


def test_an_empty_prompt_is_refused(capsys, folder):
    assert "the prompt is empty" in refused(capsys, "generate", "", "--model", folder)


def test_a_prompt_longer_than_the_context_is_refused_or_cut(capsys, folder):
    long = "cat " * 1000
    said = refused(capsys, "generate", long, "--model", folder)
    assert "leave room for 412 in the context of 512" in said
    assert run(capsys, "generate", long, "--model", folder, "--truncate", "left")[0] == 0


def test_a_recipe_with_an_unknown_key_names_the_nearest(capsys, tmp_path):
    recipe = tmp_path / "typo.toml"
    recipe.write_text("max_new_tokns = 3\n")
    said = refused(capsys, "generate", "x", "--recipe", str(recipe))
    assert "max_new_tokns" in said
    assert "typo.toml" in said
    assert "Did you mean --max-new-tokens?" in said
    recipe.write_text("not toml at all")
    assert "is not valid TOML" in refused(capsys, "generate", "x", "--recipe", str(recipe))


@pytest.mark.parametrize(
    ("text", "said"),
    [("max_new_tokens = 3.7", "[max_new_tokens] from recipe"), ('recipe = "b.toml"', "names another recipe")],
)
def test_a_recipes_value_is_neither_rounded_nor_left_unread(capsys, tmp_path, text, said):
    recipe = tmp_path / "a.toml"
    recipe.write_text(text)
    assert said in refused(capsys, "generate", "x", "--recipe", str(recipe))


def test_an_environment_variable_is_one_text(capsys, monkeypatch):
    monkeypatch.setenv("BLOOMERY_PROMPTS", "the cat sat")
    assert '"the cat sat",' in run(capsys, "generate", "--print-config")[1]


def test_a_dash_reads_stdin_and_a_closed_stdin_is_no_prompt(folder):
    options = ("--model", folder, "--json", "--max-new-tokens", "2")
    with start("generate", "-", *options, stdin=subprocess.PIPE) as process:
        out, _ = process.communicate(b"the cat", timeout=120)
    assert json.loads(out)["prompt_ids"] == LLM(folder).encode("the cat")
    with start("generate", *options, preexec_fn=lambda: os.close(0)) as process:
        out, err = process.communicate(timeout=120)
    assert (process.returncode, out) == (2, b"")
    assert err.startswith(b"bloomery: error: no prompt")


def test_an_unknown_environment_variable_names_the_nearest(capsys, monkeypatch):
    monkeypatch.setenv("BLOOMERY_TEMPRATURE", "1")
    said = refused(capsys, "generate", "x")
    assert "BLOOMERY_TEMPRATURE is no option of any verb: did you mean 'BLOOMERY_TEMPERATURE'?" in said


def test_invalid_utf8_on_stdin_names_the_byte(folder):
    with start("generate", "--model", folder, stdin=subprocess.PIPE) as process:
        out, err = process.communicate(b"the \xff cat", timeout=120)
    assert (process.returncode, out) == (2, b"")
    assert err == b"bloomery: error: stdin is not valid UTF-8 at byte 4: convert it first\n"


def test_a_prompt_that_is_no_unicode_is_refused(folder):
    with start("generate", b"the \xff cat", "--model", folder) as process:
        out, err = process.communicate(timeout=120)
    assert (process.returncode, out) == (2, b"")
    assert b"not valid Unicode at character 4" in err
    assert err.count(b"\n") == 1


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no device that is always full")
def test_output_that_cannot_be_written_gives_one_line(folder):
    with open("/dev/full", "w") as full:
        process = subprocess.run(
            [sys.executable, "-m", "bloomery", "generate", "the cat", "--model", folder],
            stdout=full,
            stderr=subprocess.PIPE,
            timeout=120,
        )
    assert process.returncode == 2
    assert process.stderr == b"bloomery: error: output: No space left on device\n"


def test_ctrl_c_keeps_the_text_so_far_and_leaves_no_traceback(folder):
    options = ("--model", folder, "--max-new-tokens", "480", "--ignore-eos", "--temperature", "1", "--seed", "1")
    with start("generate", "the cat", *options) as process:
        first = process.stdout.read(1)
        process.send_signal(signal.SIGINT)
        rest, err = process.stdout.read(), process.stderr.read()
        process.wait(timeout=120)
    text = (
        LLM(folder)
        .generate("the cat", SamplingParams(max_new_tokens=480, ignore_eos=True, temperature=1, seed=1))[0]
        .text
    )
    assert process.returncode == 130
    assert b"Traceback" not in err
    assert b"interrupted" in err
    shown = (first + rest).decode().removesuffix("\n")
    assert shown
    assert text.startswith(shown)
    assert len(shown) < len(text)


def test_ctrl_c_before_the_first_token_is_quiet_too(folder):
    with start("generate", "the cat", "--model", folder, "--max-new-tokens", "480") as process:
        time.sleep(0.3)  # while it still imports
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=120)
    assert process.returncode in (130, -signal.SIGINT)
    assert b"Traceback" not in err or process.returncode == -signal.SIGINT


def test_a_reader_that_leaves_early_is_no_error(folder):
    with start("generate", "the cat", "--model", folder, "--max-new-tokens", "400", "--ignore-eos") as process:
        process.stdout.read(1)
        process.stdout.close()
        err = process.stderr.read()
        process.wait(timeout=120)
    assert process.returncode == 0
    assert b"Traceback" not in err
    assert b"Exception ignored" not in err


def test_texts_that_a_search_does_not_find_keep_nothing_back(capsys, folder):
    """Two texts are all there are, of each of two prompts that ask for three."""
    options = ["--regex", "x|y", "--num-beams", "3", "--num-return-sequences", "3", "--model", folder]
    code, out, err = run(capsys, "generate", "the", "cat", *options)
    assert (code, sorted(out.split())) == (0, ["x", "x", "y", "y"])
    assert "2 of the texts asked for were not found" in err
    code, out, _ = run(capsys, "generate", "the", "cat", "--json", *options)
    assert [json.loads(line)["choice"] for line in out.splitlines()] == [0, 1, 0, 1]


def test_a_form_means_the_same_on_the_command_line_in_a_recipe_and_in_the_environment(
    capsys, folder, tmp_path, monkeypatch
):
    schema = '{"type": "array", "items": {"enum": ["a", "b"]}, "minItems": 2, "maxItems": 2}'
    recipe = tmp_path / "form.toml"
    recipe.write_text(f"json_schema = '''\n{schema}'''\n")
    given = run(capsys, "generate", "the", "--model", folder, "--json-schema", schema)
    assert given[0] == 0
    assert {*json.loads(given[1])} <= {"a", "b"}
    assert run(capsys, "generate", "the", "--model", folder, "--recipe", str(recipe))[:2] == given[:2]
    monkeypatch.setenv("BLOOMERY_JSON_SCHEMA", schema)
    assert run(capsys, "generate", "the", "--model", folder)[:2] == given[:2]


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["--regex", "[0-9"], "regex '[0-9' at character 1: unclosed character class"),
        (["--json-schema", '{"items": {"type": "int"}}'], "json_schema at /items: Invalid type: int"),
        (["--json-schema", "person.json"], "json_schema is not JSON at line 1, column 1"),
        (["--grammar", 'start: "a" b'], 'grammar at line 1, column 8: unknown name: "b"'),
        (["--json-object", "--regex", "a"], "json_object and regex each say what the text is to be: drop all but one"),
    ],
)
def test_a_wrong_form_gives_one_line(capsys, folder, argv, said):
    assert said in refused(capsys, "generate", "the", "--model", folder, *argv)


BEAMS = ("--num-beams", "4", "--num-return-sequences", "2", "--max-new-tokens", "6")


def test_beams_print_their_texts_best_first(capsys, folder):
    texts = ["the cat", "and the dog"]
    params = SamplingParams(num_beams=4, num_return_sequences=2, max_new_tokens=6)
    expected = LLM(folder).generate(texts, params)
    code, out, _ = run(capsys, "generate", *texts, "--model", folder, "--json", *BEAMS)
    assert code == 0
    shown = [json.loads(line) for line in out.splitlines()]
    assert [one["text"] for one in shown] == [one.text for one in expected]
    assert [one["choice"] for one in shown] == [0, 1, 0, 1]
    assert [one["score"] for one in shown] == [one.score for one in expected]
    code, out, _ = run(capsys, "generate", *texts, "--model", folder, *BEAMS)
    assert (code, out) == (0, "\n\n".join(one.text for one in expected) + "\n")


def test_fewer_texts_than_were_asked_for_are_all_shown(capsys, folder):
    """Two tokens are allowed, so that one step finds two texts behind each prompt, and four were asked for."""
    suppressed = str([token for token in range(777) if token not in (300, 301)])
    options = ("--model", folder, "--num-beams", "4", "--num-return-sequences", "4", "--max-new-tokens", "1")
    options += ("--suppress-tokens", suppressed)
    code, out, _ = run(capsys, "generate", "the cat", "a dog", *options, "--json")
    shown = [json.loads(line) for line in out.splitlines()]
    assert code == 0
    assert [one["choice"] for one in shown] == [0, 1, 0, 1]
    assert all({one["token_ids"][0] for one in shown[n : n + 2]} == {300, 301} for n in (0, 2))
    code, out, _ = run(capsys, "generate", "the cat", "a dog", *options)
    assert (code, out) == (0, "\n\n".join(one["text"] for one in shown) + "\n")


@pytest.mark.parametrize("more", [(), ("--json",)])
def test_ctrl_c_during_a_search_says_so_and_nothing_else(folder, more):
    options = ("--model", folder, "--max-new-tokens", "480", "--ignore-eos", "--num-beams", "8", "-v", *more)
    with start("generate", *["the cat"] * 8, *options) as process:  # many, so that it does not end before
        before = process.stderr.readline()  # it has loaded the model
        time.sleep(1)  # and searches, most likely
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=120)
    assert b"loaded" in before
    assert process.returncode == 130
    assert out == b""
    assert err == b"" or b"interrupted" in err
    assert b"Traceback" not in err


def test_a_forced_word_stands_in_every_text(capsys, folder):
    code, out, _ = run(capsys, "generate", "the cat", "--model", folder, "--json", *BEAMS, "--force-words", "mat|dog")
    assert code == 0
    for line in out.splitlines():
        assert any(word in json.loads(line)["text"] for word in (" mat", " dog"))
