"""A model's name -> the local folder that holds it. Knows nothing of what is in the folder."""

from contextlib import suppress
from difflib import get_close_matches
from pathlib import Path

from bloomery.errors import UsageError

BUILT_IN = {"dickens": Path(__file__).parent.parent / "assets" / "dickens"}
"""Models that come with the package."""


def resolve(model: str | Path) -> Path:
    """The folder of a built-in model or of a path.

    Raises:
        UsageError: there is no such model.
    """
    if str(model) in BUILT_IN:
        return BUILT_IN[str(model)]
    path = Path(model)
    with suppress(RuntimeError):  # '~' of somebody unknown stays as it is
        path = path.expanduser()
    if model != "" and path.is_dir():
        return path
    if model != "" and path.exists():
        raise UsageError(f"'{model}' is a file: give the folder that holds config.json and the weights")
    near = get_close_matches(str(model), BUILT_IN, 1)
    hint = f": did you mean '{near[0]}'?" if near else ""
    raise UsageError(
        f"no model '{model}'{hint or ''} (built in: {', '.join(BUILT_IN)}; otherwise the path of a folder)"
    )
