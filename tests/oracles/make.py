"""Asks transformers 4.55.4, whose ways to generate are gone from transformers 5, and writes down what it answers.

    python tests/oracles/make.py [--python PYTHON]

By hand, not in CI: it makes a virtual environment (or takes the Python of one that has transformers 4.55.4), builds the
tiny models, runs answer.py and writes transformers-4.55.4.json. A new kind of case is a function in cases.py and one in
answer.py.
"""

import argparse
import hashlib
import json
import subprocess
import sys
import tempfile
import venv
from pathlib import Path

import torch

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))

from oracles.cases import ANSWERS, ENDS, PAD, cases  # noqa: E402
from tiny import SHAPES, Tiny, build  # noqa: E402

PACKAGES = ("transformers==4.55.4", "torch==2.13.0", "numpy<3")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--python", type=Path, help="of an environment that has transformers 4.55.4; unset makes one")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        python = asked.python or environment(Path(place) / "venv")
        models = {name: made(name, Path(place) / "models") for name in ENDS}
        questions = {n: case | {"ends": ENDS[case["shape"]], "pad": PAD} for n, case in cases().items()}
        run = subprocess.run(
            [python, HERE / "answer.py", Path(place) / "models"],
            input=json.dumps(questions),
            stdout=subprocess.PIPE,
            text=True,
            check=True,
        )
    found = json.loads(run.stdout)
    weights = {name: {"seed": tiny.shape.seed, "sha256": fingerprint(tiny)} for name, tiny in models.items()}
    answers = {name: found["answers"][name] for name in sorted(found["answers"])}
    lines = ",\n".join(f"    {json.dumps(name)}: {json.dumps(answer)}" for name, answer in answers.items())
    head = f'  "versions": {json.dumps(found["versions"])},\n  "weights": {json.dumps(weights)},\n'
    ANSWERS.write_text(f'{{\n{head}  "answers": {{\n{lines}\n  }}\n}}\n')
    print(f"{len(answers)} of {len(questions)} cases -> {ANSWERS}")


def environment(folder: Path) -> Path:
    """The Python of a new environment."""
    venv.create(folder, with_pip=True)
    python = folder / "bin" / "python"
    subprocess.run([python, "-m", "pip", "install", "--quiet", *PACKAGES], check=True)
    return python


def made(name: str, folder: Path) -> Tiny:
    return build(next(shape for shape in SHAPES if shape.name == name), folder / name)


def fingerprint(tiny: Tiny) -> str:
    """sha256 over names and bytes of all parameters."""
    digest = hashlib.sha256()
    with torch.no_grad():
        for name, parameter in sorted(tiny.model.named_parameters()):
            digest.update(name.encode() + parameter.numpy().tobytes())
    return digest.hexdigest()


if __name__ == "__main__":
    main()
