"""A model's name -> the folder that holds it, fetched first where it is not here. Knows nothing of what is in it."""

import re
from contextlib import suppress
from difflib import get_close_matches
from pathlib import Path
from typing import NamedTuple

from bloomery import environment
from bloomery.errors import UsageError
from bloomery.hub import snapshots
from bloomery.hub.client import HubClient
from bloomery.hub.fetch import fetch
from bloomery.log import logger

BUILT_IN = {"dickens": Path(__file__).parent.parent / "assets" / "dickens"}
"""Models that come with the package."""


class HubName(NamedTuple):
    """A model of the Hub, and its branch, tag or commit; None: the main branch."""

    model: str
    revision: str | None


def resolve(model: str | Path, revision: str | None = None, offline: bool = False, token: str | None = None) -> Path:
    """The folder of a built-in model, of a path, or of a model of the Hub.

    A model of the Hub that is here, in our cache or in Hugging Face's, causes no network call: a branch is what it was
    when it was last fetched. One that is not here is fetched.

    Args:
        model: "dickens", a folder, "ORG/NAME" or "ORG/NAME@REVISION"; a Path is always a folder.
        revision: branch, tag or commit of a model of the Hub; None: the main branch.
        offline: send nothing; so do BLOOMERY_OFFLINE and HF_HUB_OFFLINE.
        token: for a private or gated model; None takes HF_TOKEN or the one that huggingface_hub has stored.

    Raises:
        UsageError: there is no such model, or it is not here and the network is forbidden.
        CheckpointError: fetching failed.
    """
    path = _local(model)
    if path is not None:
        if revision is not None:
            raise UsageError(f"'{model}' is on this machine and has no revisions: leave revision {revision} out")
        return path
    if isinstance(model, Path) or not is_hub_name(model):
        raise _unknown(model)
    name = parse(model, revision)
    found = find(name, offline=offline)
    if found is None:
        logger.info("no folder '%s' here: looking for it at %s", model, environment.hub_endpoint())
        found = fetch(name.model, name.revision, client=HubClient(token)).folder
    logger.debug("%s is in %s", model, found)
    return found


def find(name: HubName, *, offline: bool) -> Path | None:
    """The folder of a model of the Hub that is here; None where it is not and may be fetched.

    Raises:
        UsageError: it is not here, and the network is forbidden.
    """
    found = snapshots.find(*name)
    forbids = "--offline" if offline else environment.offline()
    if found is None and forbids is not None:
        asked = name.model if name.revision is None else f"{name.model}@{name.revision}"
        raise UsageError(
            f"no model '{asked}' here ({snapshots.why_not(*name)}), and {forbids} forbids the network: "
            f"run 'bloomery fetch {asked}' without it"
        )
    return found


def is_hub_name(model: str) -> bool:
    """Whether a text that is no folder here may be a model of the Hub; a near miss of a built-in model is not."""
    name = model.partition("@")[0]
    if "/" not in name and get_close_matches(name, BUILT_IN, 1):
        return False
    word = r"[A-Za-z0-9_]([A-Za-z0-9_.-]{0,94}[A-Za-z0-9_])?"
    return bool(re.fullmatch(rf"({word}/)?{word}", name)) and not re.search(r"--|\.\.|\.git$", name)


def parse(model: str, revision: str | None = None) -> HubName:
    """Take "ORG/NAME@REVISION" apart.

    Raises:
        UsageError: it is no name of a model, or its revision is none, or another than `revision`.
    """
    name, at, named = model.partition("@")
    if name in BUILT_IN:
        raise UsageError(f"'{name}' comes with bloomery: there is nothing to fetch")
    if not is_hub_name(name):
        raise UsageError(f"'{model}' is no name of a model on the Hub: give ORG/NAME or ORG/NAME@REVISION")
    if at and revision is not None and revision != named:
        raise UsageError(f"'{model}' and revision {revision} do not agree: give one of them")
    wanted = named if at else revision
    # Git's own rules for names, as far as they could lead out of a folder.
    if wanted is not None and (not re.fullmatch(r"[\w.+-]+(/[\w.+-]+)*", wanted) or ".." in wanted):
        raise UsageError(f"'{wanted}' is no name of a revision: give a branch, a tag or a commit")
    return HubName(name, wanted)


def _local(model: str | Path) -> Path | None:
    """The folder of a built-in model or of a path; None where there is none."""
    if str(model) in BUILT_IN:
        return BUILT_IN[str(model)]
    path = Path(model)
    with suppress(RuntimeError):  # '~' of somebody unknown stays as it is
        path = path.expanduser()
    if model != "" and path.is_dir():
        return path
    if model != "" and path.exists():
        raise UsageError(f"'{model}' is a file: give the folder that holds config.json and the weights")
    return None


def _unknown(model: str | Path) -> UsageError:
    near = get_close_matches(str(model).partition("@")[0], BUILT_IN, 1)
    hint = f": did you mean '{near[0]}'?" if near else ""
    return UsageError(
        f"no model '{model}'{hint} (built in: {', '.join(BUILT_IN)}; otherwise the path of a folder, or ORG/NAME of a "
        "model on the Hub)"
    )
