"""docs/migrating.md names options and tests that exist: of every flag of generation, or why there is none."""

import ast
import re
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple, get_args, get_type_hints

import pytest

from bloomery import LLM, SamplingParams
from bloomery.cli import VERBS

ROOT = Path(__file__).parent.parent
PAGE = "docs/migrating.md"
TEST = re.compile(r"`(tests/[\w/]+\.py)::(\w+)`")
NONE_YET = ("none", "not there yet")


class Row(NamedTuple):
    """A line of a table, under its headings. `shown` is None where the table has no such column."""

    section: str
    theirs: str
    ours: str
    shown: str | None


def rows(text: str) -> Iterator[Row]:
    """Those of tables, their heads left out."""
    section, columns = "", list[str]()
    for line in text.splitlines():
        if line.startswith("#"):
            section = line.strip("# ")
        if line.startswith("|-"):
            continue
        if not line.startswith("| "):
            columns = []
            continue
        cells = [cell.strip() for cell in line.strip("|").split(" | ")]
        if not columns:
            columns = cells
        elif "shown by" in columns:
            yield Row(section, cells[0], cells[1], cells[2])
        else:
            yield Row(section, cells[0], cells[1], None)


@cache
def page() -> tuple[Row, ...]:
    return tuple(rows((ROOT / PAGE).read_text(encoding="utf-8")))


@cache
def names_in(file: str) -> frozenset[str]:
    path = ROOT / file
    tree = ast.parse(path.read_text(encoding="utf-8")) if path.is_file() else ast.Module([], [])
    return frozenset(node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef))


def unknown_tests(row: Row) -> list[str]:
    return [f"{file}::{name}" for file, name in TEST.findall(row.shown or "") if name not in names_in(file)]


def options_of(kind: Any) -> Iterator[str]:
    """Every option of a verb, as it is written, sections of a recipe included."""
    for name, hint in get_type_hints(kind).items():
        inner = [one for one in (hint, *get_args(hint)) if is_dataclass(one)]
        if inner:
            yield from options_of(inner[0])
        yield f"--{name.replace('_', '-')}"


@cache
def known_options() -> frozenset[str]:
    found = {"--help"}
    for verb in VERBS.values():
        module, _, name = verb.options.partition(":")
        found |= set(options_of(getattr(import_module(module), name)))
    return frozenset(found)


def code(text: str) -> str:
    return " ".join(re.findall(r"`([^`]*)`", text))


def unknown_options(row: Row) -> list[str]:
    return [option for option in re.findall(r"--[a-z][a-z-]*", code(row.ours)) if option not in known_options()]


@pytest.mark.parametrize("row", page(), ids=lambda row: f"{row.section}-{row.theirs}"[:60])
def test_what_a_line_names_exists(row: Row) -> None:
    assert unknown_tests(row) == []
    if "Faults" not in row.section:
        assert unknown_options(row) == []
        verbs = re.findall(r"bloomery ([a-z]+)", code(row.ours))
        assert [verb for verb in verbs if verb not in {known.split()[0] for known in VERBS}] == []
        assert [name for name in re.findall(r"LLM\.(\w+)", code(row.ours)) if not hasattr(LLM, name)] == []


@pytest.mark.parametrize("row", [r for r in page() if r.shown is not None], ids=lambda row: row.theirs[:60])
def test_a_line_about_generation_names_a_test_or_says_that_there_is_nothing(row: Row) -> None:
    if row.shown == "–":
        assert row.ours.startswith(NONE_YET), row.theirs
    else:
        assert re.sub(TEST, "", row.shown or "").strip(" ,") == "", f"{row.shown} is no list of tests"


def test_the_page_has_the_tables_that_it_speaks_of() -> None:
    counts = {section: sum(row.section == section for row in page()) for section in {row.section for row in page()}}
    assert counts["Generation"] > 90  # of four systems
    assert counts["Faults of generation that do not happen here"] > 30
    assert len(re.findall(r"^### Generation$", (ROOT / PAGE).read_text(encoding="utf-8"), re.MULTILINE)) == 4


def test_an_option_a_test_or_a_verb_that_is_not_there_is_found() -> None:
    table = "| theirs | ours | shown by |\n|---|---|---|\n| a | `--num-beam 3` | `tests/test_llm.py::test_no` |\n"
    wrong = next(rows(table))
    assert unknown_options(wrong) == ["--num-beam"]
    assert unknown_tests(wrong) == ["tests/test_llm.py::test_no"]
    right = wrong._replace(ours="`--num-beams 3`", shown="`tests/test_llm.py::test_chunked_equals_whole`")
    assert unknown_options(right) + unknown_tests(right) == []
    assert {f"--{field.name.replace('_', '-')}" for field in fields(SamplingParams)} <= known_options()
