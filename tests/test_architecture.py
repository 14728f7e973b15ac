"""The rules of the house, held over every file of src/: rows of imports, names, sizes, nothing ambient, no torch early.

Each rule is also shown a file that breaks it: a rule that cannot fail holds nothing.
"""

import ast
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from bloomery.families import FAMILIES

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "src" / "bloomery"
FILES = sorted(path.relative_to(PACKAGE).as_posix() for path in PACKAGE.rglob("*.py"))

Rule = Callable[[str, ast.Module, str], Iterator[str]]
"""(path within the package, parsed file, its text) -> what is wrong with it."""


def no_global(path: str, tree: ast.Module, text: str) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Global):
            yield f"line {node.lineno}: global {', '.join(node.names)}"


def no_family_name(path: str, tree: ast.Module, text: str) -> Iterator[str]:
    """Names of families are data of `families/`. Prose may speak of them: documentation, and BLOOM in capitals."""
    if path.startswith("families/"):
        return
    documentation = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    for node in ast.walk(tree):
        if id(node) in documentation:
            continue
        for _, value in ast.iter_fields(node):
            for said in value if isinstance(value, list) else [value]:
                prose = isinstance(node, ast.Constant)
                if isinstance(said, str) and set(FAMILIES) & set(words(said, capitals=not prose)):
                    yield f"line {getattr(node, 'lineno', '?')}: {said!r} names a family"


def words(text: str, capitals: bool) -> list[str]:
    """The words of an identifier or a string, however joined: BloomModel and bloom_model hold 'bloom', and so does
    BLOOM when `capitals` count."""
    apart = re.sub(r"([a-z0-9])([A-Z])", r"\1 \2", re.sub(r"([A-Z]+)([A-Z][a-z])", r"\1 \2", text))
    found = re.findall(r"[A-Za-z0-9]+", apart)
    return [word.lower() for word in found if capitals or not word.isupper()]


def model_knows_no_ranks(path: str, tree: ast.Module, text: str) -> Iterator[str]:
    if not path.startswith("model/"):
        return
    for node in ast.walk(tree):
        named = dotted(node) if isinstance(node, ast.Attribute) else ""
        if isinstance(node, ast.Import):
            named = " ".join(alias.name for alias in node.names)
        if isinstance(node, ast.ImportFrom):
            named = " ".join(f"{node.module}.{alias.name}" for alias in node.names)
        if re.search(r"\btorch\.distributed\b", named):
            yield f"line {node.lineno}: torch.distributed"


def dotted(node: ast.expr) -> str:
    if isinstance(node, ast.Attribute):
        return f"{dotted(node.value)}.{node.attr}"
    return node.id if isinstance(node, ast.Name) else ""


def environment_is_read_in_four_places(path: str, tree: ast.Module, text: str) -> Iterator[str]:
    if path in ("environment.py", "settings.py", "devices.py", "parallel/launch.py"):
        return
    names = {"environ", "environb", "getenv", "getenvb", "putenv", "unsetenv"}
    for node in ast.walk(tree):
        through_os = isinstance(node, ast.Attribute) and node.attr in names and dotted(node.value) == "os"
        taken_out = isinstance(node, ast.ImportFrom) and node.module == "os" and names & {a.name for a in node.names}
        if through_os or taken_out:
            yield f"line {node.lineno}: only environment, settings, devices and parallel/launch read the environment"


def small(path: str, tree: ast.Module, text: str) -> Iterator[str]:
    if len(text.splitlines()) > 320:
        yield f"{len(text.splitlines())} lines: a file has about 300"
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            length = (node.end_lineno or node.lineno) - node.lineno + 1
            if length > 60:
                yield f"line {node.lineno}: {node.name} has {length} lines: a function has about 50"


def says_what_it_owns(path: str, tree: ast.Module, text: str) -> Iterator[str]:
    if not text.startswith('"""') or not ast.get_docstring(tree):
        yield "line 1 is no docstring that says what the file owns"


def has_a_name(path: str, tree: ast.Module, text: str) -> Iterator[str]:
    if set(re.split(r"[/._]", path)) & {"utils", "util", "common", "helpers", "helper", "misc"}:
        yield f"{path}: the name says nothing"


RULES: list[Rule] = [
    no_global,
    no_family_name,
    model_knows_no_ranks,
    environment_is_read_in_four_places,
    small,
    says_what_it_owns,
    has_a_name,
]


def complaints(rule: Rule, path: str, text: str) -> list[str]:
    return [f"{path}: {wrong}" for wrong in rule(path, ast.parse(text), text)]


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_every_file_keeps_the_rule(rule: Rule) -> None:
    found = [wrong for path in FILES for wrong in complaints(rule, path, (PACKAGE / path).read_text(encoding="utf-8"))]
    assert FILES
    assert not found, "\n".join(found)


BREAKS: list[tuple[Rule, str, str]] = [
    (no_global, "a.py", "def f():\n    global x\n    x = 1"),
    (no_family_name, "a.py", "if kind == 'bloom': pass"),
    (no_family_name, "a.py", "def f(gpt2_config): pass"),
    (no_family_name, "a.py", "class BloomDecoder: pass"),
    (no_family_name, "a.py", "from bloomery.families.gpt2 import GPT2"),
    (no_family_name, "a.py", "f(bloom=1)"),
    (no_family_name, "a.py", "f'{x} is no bloom'"),
    (no_family_name, "a.py", "known = ['BloomForCausalLM']"),
    (no_family_name, "a.py", "BLOOM = 1"),
    (model_knows_no_ranks, "model/a.py", "import torch.distributed as dist"),
    (model_knows_no_ranks, "model/a.py", "from torch import distributed"),
    (model_knows_no_ranks, "model/a.py", "from torch.distributed.tensor import DTensor"),
    (model_knows_no_ranks, "model/a.py", "import torch\ntorch.distributed.barrier()"),
    (environment_is_read_in_four_places, "cli/a.py", "import os\nos.environ['X']"),
    (environment_is_read_in_four_places, "cli/a.py", "import os\nos.getenv('X')"),
    (environment_is_read_in_four_places, "cli/a.py", "from os import environ"),
    (small, "a.py", "x = 1\n" * 321),
    (small, "a.py", "def f():\n" + "    x = 1\n" * 60),
    (says_what_it_owns, "a.py", "import os"),
    (says_what_it_owns, "a.py", '# a comment first\n"""A docstring later."""'),
    (says_what_it_owns, "a.py", ""),
    (has_a_name, "text/utils.py", '"""Anything."""'),
    (has_a_name, "helpers/text.py", '"""Anything."""'),
]


@pytest.mark.parametrize(("rule", "path", "text"), BREAKS, ids=lambda value: getattr(value, "__name__", None))
def test_a_rule_sees_what_breaks_it(rule: Rule, path: str, text: str) -> None:
    assert complaints(rule, path, text)


KEEPS: list[tuple[Rule, str, str]] = [
    (no_family_name, "a.py", '"""BLOOM\'s own order."""\nfrom bloomery.errors import BloomeryError\nX = "bloomery"'),
    (no_family_name, "cli/a.py", "print('runs BLOOM and GPT-2')"),
    (no_family_name, "families/bloom.py", "NAME = 'bloom'"),
    (model_knows_no_ranks, "parallel/a.py", "import torch.distributed"),
    (environment_is_read_in_four_places, "settings.py", "import os\nos.environ['X']"),
    (environment_is_read_in_four_places, "a.py", "import os\nos.replace('a', 'b')"),
]


@pytest.mark.parametrize(("rule", "path", "text"), KEEPS, ids=lambda value: getattr(value, "__name__", None))
def test_a_rule_lets_pass_what_it_does_not_mean(rule: Rule, path: str, text: str) -> None:
    assert not complaints(rule, path, text)


# --- rows of imports -------------------------------------------------------------------------------------------------


def lint_imports(root: Path) -> subprocess.CompletedProcess[str]:
    """import-linter over a checkout, whatever bloomery is installed."""
    program = "import sys; sys.path.insert(0, 'src'); from importlinter.cli import lint_imports_command as c; c()"
    command = [sys.executable, "-P", "-c", program, "--no-cache"]
    return subprocess.run(command, cwd=root, capture_output=True, text=True)


def test_imports_point_down() -> None:
    done = lint_imports(ROOT)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize(
    ("path", "planted"),
    [
        ("ops/position.py", "import bloomery.engine"),
        ("text/__init__.py", "import bloomery.ops"),
        ("hub/resolve.py", "from bloomery.engine import params"),
        ("newroom/__init__.py", ""),
    ],
    ids=["up", "sideways", "sideways between packages", "a room without a row"],
)
def test_the_linter_sees_what_breaks_the_rows(tmp_path: Path, path: str, planted: str) -> None:
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    shutil.copytree(PACKAGE, tmp_path / "src" / "bloomery", ignore=shutil.ignore_patterns("assets", "__pycache__"))
    file = tmp_path / "src" / "bloomery" / path
    file.parent.mkdir(exist_ok=True)
    file.write_text((file.read_text() if file.exists() else '"""New."""\n') + planted + "\n")
    done = lint_imports(tmp_path)
    assert done.returncode == 1, done.stdout + done.stderr
    assert "BROKEN" in done.stdout


# --- light imports ---------------------------------------------------------------------------------------------------

LIGHT = [
    path
    for path in FILES
    if path in ("settings.py", "errors.py", "engine/params.py") or path.endswith(("__init__.py", "config.py"))
]

IMPORT_EACH = """
import importlib, sys
for name in sys.argv[1:]:
    importlib.import_module(name)
    heavy = {"torch", "numpy"} & set(sys.modules)
    if heavy:
        sys.exit(f"{name} imports {', '.join(sorted(heavy))}")
"""


def module(path: str) -> str:
    return ".".join(("bloomery", *Path(path).with_suffix("").parts)).removesuffix(".__init__")


def test_configuration_and_packages_import_neither_torch_nor_numpy() -> None:
    assert {"settings.py", "errors.py", "engine/params.py", "model/config.py", "train/recipe/config.py"} <= set(LIGHT)
    names = [module(path) for path in LIGHT]
    done = subprocess.run([sys.executable, "-c", IMPORT_EACH, *names], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_help_imports_neither_torch_nor_numpy() -> None:
    program = "import sys, bloomery.cli as c; c.main(['--help']); sys.exit({'torch', 'numpy'} & set(sys.modules) or 0)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_a_heavy_import_is_seen() -> None:
    command = [sys.executable, "-c", IMPORT_EACH, "bloomery.errors", "bloomery.devices"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 1
    assert "bloomery.devices imports" in done.stderr
