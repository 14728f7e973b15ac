"""Every command and every line of Python in README and docs runs, in order, as a newcomer would run it."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from bloomery.cli import VERBS
from hub_server import Repo, running, variables
from talker import build_talker

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]


def blocks(language):
    """(page, block) of every fenced block of a language."""
    pattern = re.compile(rf"^```{language}\n(.*?)^```", re.DOTALL | re.MULTILINE)
    return [(page.name, block) for page in PAGES for block in pattern.findall(page.read_text(encoding="utf-8"))]


def commands():
    return [(page, line) for page, block in blocks("sh") for line in block.splitlines() if line.strip()]


@pytest.fixture(scope="module")
def checkout(tmp_path_factory):
    """What a newcomer has in the current folder, so that what commands write does not land in the repository."""
    folder = tmp_path_factory.mktemp("checkout")
    for name in ("README.md", "CHANGELOG.md", "Makefile", "pyproject.toml", "setup.py", "constraints.txt"):
        shutil.copy(ROOT / name, folder)
    for name in ("docs", "recipes", "src/bloomery/ops/native"):
        shutil.copytree(ROOT / name, folder / name)
    return folder


@pytest.fixture(scope="module")
def hub(checkout, tmp_path_factory):
    """Variables of a Hub on this machine that has, under the names the pages use, a tiny model."""
    files = {file.name: file.read_bytes() for file in build_talker(tmp_path_factory.mktemp("talker")).iterdir()}
    with running() as server:
        server.repos["bigscience/bloom-560m"] = Repo()
        server.repos["bigscience/bloom-560m"].commit(files)
        yield variables(server, checkout)


def run(command, folder, hub, **options):
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    environment = os.environ | hub | {"PATH": path}
    return subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=280, check=False, **options
    )


def test_the_pages_show_what_they_should():
    lines = [line.removeprefix("bloomery ") for _, line in commands() if line.startswith("bloomery ")]
    unshown = [verb for verb in VERBS if not any(line.split()[: len(verb.split())] == verb.split() for line in lines)]
    assert unshown == []
    assert {line.split()[0] for line in lines} == {verb.split()[0] for verb in VERBS}
    assert {line for _, line in commands() if line.startswith("make ")} == {"make run", "make test"}
    assert len(blocks("python")) >= 1


def test_every_fenced_block_is_of_a_kind_that_is_run():
    for page in PAGES:
        fences = re.findall(r"^```(.*)$", page.read_text(encoding="utf-8"), re.MULTILINE)
        assert set(fences[::2]) <= {"sh", "python"}, page
        assert set(fences[1::2]) <= {""}, page


@pytest.mark.parametrize(("page", "command"), [c for c in commands() if not c[1].startswith("make ")])
def test_a_shown_command_works(page, command, checkout, hub):
    done = run(command, checkout, hub, shell=True, stdin=subprocess.DEVNULL)
    assert done.returncode == 0, done.stderr
    assert done.stdout or command.startswith("bloomery train")


@pytest.mark.parametrize(("page", "command"), [c for c in commands() if c[1].startswith("make ")])
def test_a_shown_make_target_exists(page, command, checkout, hub):
    """What it does is tested by test_packaging, in a checkout of its own."""
    assert run([*command.split(), "--dry-run"], checkout, hub).returncode == 0


@pytest.mark.parametrize(("page", "block"), blocks("python"))
def test_shown_python_works(page, block, checkout, hub):
    done = run([sys.executable, "-c", block], checkout, hub)
    assert done.returncode == 0, done.stderr
    assert done.stdout


def test_links_between_pages_lead_somewhere():
    for page in PAGES:
        for target in re.findall(r"\]\(([^)#]+)\)", page.read_text(encoding="utf-8")):
            if "://" not in target:
                assert (page.parent / target).exists(), f"{page.name}: {target}"
