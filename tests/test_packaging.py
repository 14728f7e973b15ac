"""What is installed is whole: version, pins, built-in model, a package that builds without a C compiler, `make run`."""

import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement

import bloomery

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
COMPILED = "bloomery/ops/native/libbloomery.so"


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def pins() -> dict[str, str]:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    return {normal(line.split("==")[0]): line.split("==")[1] for line in lines if line and not line.startswith("#")}


def required(package: str, extra: str = "") -> set[str]:
    """Names an installed package asks for on this machine."""
    asked = [Requirement(line) for line in metadata.requires(package) or ()]
    return {normal(one.name) for one in asked if one.marker is None or one.marker.evaluate({"extra": extra})}


def test_version_is_said_once() -> None:
    assert metadata.version("bloomery") == bloomery.__version__


def test_every_dependency_is_pinned_and_installed_as_pinned() -> None:
    pinned, seen, left = pins(), set(), required("bloomery") | required("bloomery", "dev")
    while left:
        name = left.pop()
        seen.add(name)
        assert name in pinned, f"{name} is missing in constraints.txt"
        assert metadata.version(name).split("+")[0] == pinned[name], name
        left |= required(name) - seen
    assert "torch" in seen


def test_no_build_of_torch_is_pinned() -> None:
    assert "+" not in pins()["torch"]


def checkout(folder: Path) -> Path:
    """A copy of what the package is built from, with nothing that was built."""
    built = shutil.ignore_patterns("*.so", "*.egg-info", "__pycache__")
    shutil.copytree(ROOT / "src", folder / "src", ignore=built)
    for name in ("pyproject.toml", "setup.py", "constraints.txt", "Makefile", "LICENSE", "README.md"):
        shutil.copy(ROOT / name, folder)
    return folder


def build_wheel(folder: Path, **environment: str) -> set[str]:
    """Build a checkout's wheel and extract it beside; returns the names in it."""
    source = checkout(folder / "source")
    command = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "-w", folder, source]
    done = subprocess.run(command, env=os.environ | environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    (wheel,) = folder.glob("bloomery-*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder / "installed")
        return set(archive.namelist())


def run(folder: Path, code: str) -> str:
    """What `code` prints when the package comes from the extracted wheel."""
    program = f"import sys; sys.path.insert(0, {str(folder / 'installed')!r})\n{code}"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=folder)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


MEASURE = """
import bloomery, torch
from bloomery.bench.bandwidth import read_bandwidth
print(bloomery.__file__.rpartition("/installed/")[2], read_bandwidth([torch.ones(1000)], 1, None).ruler)
"""


@pytest.mark.slow
def test_wheel_holds_the_package_its_assets_and_the_library(tmp_path: Path) -> None:
    if shutil.which(os.environ.get("CC", "cc").split()[0]) is None:
        pytest.skip("no C compiler")
    names = build_wheel(tmp_path)
    paths = [path for path in (ROOT / "src/bloomery").rglob("*") if path.is_file()]
    files = {str(path.relative_to(ROOT / "src")) for path in paths if path.suffix not in {".c", ".h", ".so", ".pyc"}}
    assert {"bloomery/assets/dickens/config.json", "bloomery/assets/dickens/model.safetensors"} <= files
    assert (files | {COMPILED}) <= names
    assert not {name for name in names if name.startswith("tests")}
    assert run(tmp_path, MEASURE) == "bloomery/__init__.py native"


@pytest.mark.slow
def test_without_a_compiler_the_package_builds_and_measures(tmp_path: Path) -> None:
    assert COMPILED not in build_wheel(tmp_path, CC="/bin/false")
    assert run(tmp_path, MEASURE) == "bloomery/__init__.py numpy"


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_make_run_goes_from_nothing_to_text(tmp_path: Path) -> None:
    source = checkout(tmp_path / "source")
    (tmp_path / "home").mkdir()
    of_make = {"MAKEFLAGS", "MAKELEVEL", "MFLAGS", "MAKEOVERRIDES"}  # this test may itself be run by make
    environment = {name: value for name, value in os.environ.items() if name not in of_make}
    environment |= {"HOME": str(tmp_path / "home")}

    def make(*goals: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(["make", *goals], cwd=source, env=environment, capture_output=True, text=True)

    first = make("run")
    assert first.returncode == 0, first.stderr[-3000:]
    assert first.stdout.strip()
    assert "bloomery: downloading" in first.stderr
    assert "nstall" not in first.stdout  # what is printed is the text alone
    again = make("run")
    assert again.stdout == first.stdout
    assert "Successfully" not in again.stderr
    (source / "constraints.txt").touch()
    assert make("--question", "setup").returncode == 1
