"""Grammars that cannot be used are refused in one line that says where, and in time, whatever they would take."""

import json
import re
import sys
from types import SimpleNamespace

import pytest

from bloomery import MissingExtra, UsageError
from bloomery.text import compile as compiling
from bloomery.text.compile import Grammars
from talker import EOS, byte_level_tokenizer


@pytest.fixture(scope="module")
def grammars():
    backend = byte_level_tokenizer(400)
    return Grammars(SimpleNamespace(backend=backend, decode=backend.decode), 420, (EOS,))


def refusal(grammars, kind, source):
    with pytest.raises(UsageError) as caught:
        grammars.grammar(kind, source if isinstance(source, str) else json.dumps(source))
    message = str(caught.value)
    assert "\n" not in message
    return message


PATTERN = {"type": "array", "items": {"anyOf": [{"type": "integer"}, {"type": "string", "pattern": "(a"}]}}


@pytest.mark.parametrize(
    ("kind", "source", "message"),
    [
        ("regex", "[a-", "regex '[a-' at character 1: unclosed character class"),
        ("regex", "é(", "regex 'é(' at character 2: unclosed group"),
        ("regex", "a{5,2}", "regex 'a{5,2}' at character 2: invalid repetition count range, the start must be <= the"),
        ("regex", "x(?=y)", "regex 'x(?=y)' at character 2: look-around, including look-ahead and look-behind, is not"),
        ("regex", r"a\b", r"regex 'a\\b': lookarounds not supported yet"),
        ("regex", r"[^\s\S]", r"regex '[^\\s\\S]': it admits no text"),
        ("grammar", 'start: "a" b', 'grammar at line 1, column 8: unknown name: "b"'),
        ("grammar", 'start: "a"\nb "c"', "grammar at line 2, column 3: Expected token ':'"),
        (
            "grammar",
            "start: B\nB: /[/",
            'grammar at line 2, column 4: invalid regex "[" (in regex): unclosed character',
        ),
        ("grammar", 'begin: "a"', "grammar: no start rule found"),
        ("grammar", "start: a\na: start", "grammar: it admits no text"),
        ("json_schema", {"type": 5}, "json_schema: type must be a string or array of strings"),
        ("json_schema", {"properties": {"age": {"type": "int"}}}, "json_schema at /properties/age: Invalid type: int"),
        (
            "json_schema",
            {"$defs": {"x": PATTERN}, "properties": {"a": {"$ref": "#/$defs/x"}}},
            "json_schema at /$defs/x/items/anyOf/1: unclosed group",
        ),
        (
            "json_schema",
            {"minimum": 5, "maximum": 3, "type": "integer"},
            "json_schema: Unsatisfiable schema: minimum (5",
        ),
        ("json_schema", {"$ref": "#"}, "json_schema: it admits no text"),
        ("json_schema", {"not": {}}, 'json_schema: Unimplemented keys: ["not"]'),
        ("json_schema", {"items": {"uniqueItems": True}}, 'json_schema at /items: Unimplemented keys: ["uniqueItems"]'),
        (
            "json_schema",
            {"properties": {"a": {"oneOf": [{"type": "string"}, {"type": "string", "maxLength": 3}]}}},
            "json_schema at /properties/a: oneOf is not supported: write anyOf",
        ),
        ("json_schema", '{"items":' * 5000 + "{}" + "}" * 5000, "json_schema: recursion limit exceeded"),
    ],
)
def test_what_cannot_be_used_is_refused_with_its_place(grammars, kind, source, message):
    assert refusal(grammars, kind, source).startswith(message)


def test_a_schema_cannot_ask_for_its_unknown_keywords_to_be_ignored(grammars):
    schema = {"x-guidance": {"lenient": True}, "not": {}}
    assert "Unimplemented" in refusal(grammars, "json_schema", schema)


def test_what_takes_too_long_is_refused_in_time(grammars, monkeypatch):
    monkeypatch.setattr(compiling, "SECONDS", 1)
    schema = {"items": {"type": "integer", "multipleOf": 1_000_003}}
    assert refusal(grammars, "json_schema", schema) == "json_schema: compiling it takes more than 5 s: simplify it"


def test_what_takes_too_much_memory_is_refused_before_it_has_it(grammars, monkeypatch):
    monkeypatch.setattr(compiling, "SECONDS", 60)
    monkeypatch.setattr(compiling, "MEMORY", 256 << 20)
    schema = {"items": {"type": "integer", "multipleOf": 100_000_007}}
    assert refusal(grammars, "json_schema", schema).startswith("json_schema: compiling it takes more than 1 GiB")


def test_what_would_overflow_the_stack_is_refused(grammars):
    """The library itself has no limit for this: alone, it ends the process."""
    chain = "start: r0\n" + "\n".join(f"r{n}: r{n + 1}" for n in range(100_000)) + '\nr100000: "a"'
    assert refusal(grammars, "grammar", chain) == "grammar: it is nested too deeply: simplify it"


@pytest.mark.parametrize(
    ("kind", "source"),
    [
        ("regex", "|".join(f"w{n}x*" for n in range(100_000))),
        ("regex", "(" * 10_000 + "a" + ")" * 10_000),
        ("grammar", "start: R0\n" + "\n".join(f"R{n}: R{n + 1} R{n + 1}" for n in range(60)) + '\nR60: "a"'),
        ("json_schema", {"enum": [f"value {n}" for n in range(100_000)]}),
        (
            "json_schema",
            {
                "allOf": [
                    {"anyOf": [{"properties": {f"{n}_{m}": {"type": "integer"}}} for m in range(6)]} for n in range(20)
                ]
            },
        ),
    ],
    ids=["alternatives", "parentheses", "doubling", "values", "product"],
)
def test_what_explodes_is_refused(grammars, kind, source):
    assert re.search("too big|too large|nested", refusal(grammars, kind, source))


def test_a_grammar_is_compiled_once(grammars, monkeypatch):
    first = grammars.grammar("regex", "once[ab]")
    monkeypatch.setattr(compiling, "_try", None)  # would be called again
    again = grammars.grammar("regex", "once[ab]")
    again.advance(byte_level_tokenizer(400).token_to_id("o"))
    assert not first.allowed().equal(again.allowed())
    assert first.allowed().equal(grammars.grammar("regex", "once[ab]").allowed())


def test_without_the_library_the_extra_is_named(monkeypatch, grammars):
    monkeypatch.setitem(sys.modules, "llguidance", None)
    with pytest.raises(MissingExtra, match=r"pip install 'bloomery\[grammar\]'"):
        grammars.grammar("regex", "anything else")


def test_a_model_without_a_tokenizer_has_no_grammar():
    with pytest.raises(UsageError, match=r"the model has no tokenizer.json: regex needs one"):
        Grammars(None, 100, ()).grammar("regex", "a")
