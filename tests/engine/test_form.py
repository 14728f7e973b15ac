"""Options that ask for a form: one at a time, and nothing beside them that goes against it."""

import json

import pytest

from bloomery import SamplingParams, UsageError
from bloomery.engine.form import Form


@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        ({"regex": "a", "grammar": 'start: "a"'}, "regex and grammar each say .*: drop all but one"),
        ({"json_schema": {}, "json_object": True}, "json_schema and json_object each say"),
        (
            {"regex": "a", "forced_eos_token_id": 3},
            "regex says .* forced_eos_token_id forces .*: drop forced_eos_token",
        ),
        ({"json_object": True, "forced_bos_token_id": 3}, "json_object says .*: drop forced_bos_token_id"),
        ({"regex": ""}, "regex is ''"),
        ({"grammar": " \n"}, "grammar is ' .n'"),
        ({"regex": 5}, "regex is 5"),
        ({"json_object": "yes"}, "json_object is 'yes'"),
        ({"json_schema": "{'type': 1}"}, "json_schema is not JSON at line 1, column 2: .*; give the schema itself"),
        ({"json_schema": "person.json"}, "json_schema is not JSON at line 1, column 1"),
        ({"json_schema": ""}, "json_schema is not JSON"),
        ({"json_schema": "[]"}, r"json_schema is \[\]: give an object"),
        ({"json_schema": False}, "json_schema is false: give an object"),
        ({"json_schema": {"enum": {1}}}, "json_schema cannot be written as JSON"),
        ({"json_schema": "[" * 100_000}, "json_schema cannot be written as JSON"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(wrong, named):
    with pytest.raises(UsageError, match=f"^{named}") as caught:
        SamplingParams(**wrong)
    assert "\n" not in str(caught.value)


def test_a_schema_means_the_same_as_text_and_as_dict():
    schema = {"type": "object", "properties": {"b": {"type": "string"}, "a": {"enum": ["é"]}}}
    params = SamplingParams(json_schema=schema)
    assert params == SamplingParams(json_schema=json.dumps(schema, ensure_ascii=False))
    assert params.form == Form("json_schema", params.json_schema)
    assert SamplingParams(json_schema=True).form == SamplingParams(json_schema="{}").form
    assert SamplingParams(json_object=True).form == Form("json_object", '{"type": "object"}')
    assert SamplingParams(regex="a").form == Form("regex", "a")
    assert SamplingParams().form is None
