"""The form that a text must have, as options say it: at most one of four. Compiles nothing and knows no tokenizer."""

import json
from collections.abc import Mapping
from typing import Any, NamedTuple

from bloomery.errors import UsageError

OBJECT = '{"type": "object"}'
"""json_object as a schema."""
FORMS = ("json_schema", "json_object", "regex", "grammar")
FORCED = ("forced_bos_token_id", "forced_eos_token_id")


class Form(NamedTuple):
    """An option and what it was given, as text."""

    option: str
    source: str


def form_texts(values: Mapping[str, Any]) -> dict[str, str | None]:
    """The options that are given as text, as such; a schema may be what json.loads makes of one.

    Raises:
        UsageError: one is no text, or a schema no JSON.
    """
    schema = values["json_schema"]
    given = {name: values[name] for name in ("regex", "grammar")}
    for name, value in given.items():
        if value is not None and not (isinstance(value, str) and value.strip()):
            raise UsageError(f"{name} is {value!r}: give a text that is not empty, or leave it out")
    return {"json_schema": None if schema is None else _schema_text(schema), **given}


def asked_form(values: Mapping[str, Any]) -> Form | None:
    """What the options ask for.

    Raises:
        UsageError: two of them do, or another one goes against it.
    """
    asked = [name for name in FORMS if values[name]]
    if len(asked) > 1:
        raise UsageError(f"{' and '.join(asked)} each say what the text is to be: drop all but one")
    if not asked:
        return None
    forced = [name for name in FORCED if values[name] not in (None, ())]
    if forced:
        raise UsageError(f"{asked[0]} says which tokens may come, and {forced[0]} forces others: drop {forced[0]}")
    return Form(asked[0], OBJECT if asked[0] == "json_object" else values[asked[0]])


def _schema_text(schema: Any) -> str:
    """A JSON schema as text: an object, or true for any JSON."""
    try:
        text = schema if isinstance(schema, str) else json.dumps(schema, ensure_ascii=False)
        read = json.loads(text)
    except json.JSONDecodeError as error:
        raise UsageError(
            f"json_schema is not JSON at line {error.lineno}, column {error.colno}: {error.msg}; give the schema itself"
        ) from None
    except (TypeError, ValueError, RecursionError) as error:
        raise UsageError(f"json_schema cannot be written as JSON ({error}): give a schema as text or dict") from None
    if read is True:
        return "{}"
    if not isinstance(read, dict):
        raise UsageError(f'json_schema is {text[:80]}: give an object, such as {{"type": "object"}}')
    return text
