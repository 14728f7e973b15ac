"""`bloomery fetch`: a model of the Hub onto this machine; its folder to stdout, everything else to stderr."""

import json

from bloomery import environment
from bloomery.cli.options import FetchOptions
from bloomery.errors import UsageError
from bloomery.hub.client import HubClient
from bloomery.hub.fetch import fetch
from bloomery.hub.resolve import HubName, find, parse
from bloomery.log import logger


def run(options: FetchOptions) -> int:
    """Fetch what is missing and print where all of it is."""
    if not options.model:
        raise UsageError("no model to fetch: give ORG/NAME or ORG/NAME@REVISION")
    name = parse(options.model, options.revision)
    forbidden = options.offline or environment.offline() is not None
    row = _from_here(options, name) if forbidden else _from_hub(options, name)
    print(json.dumps(row, ensure_ascii=False) if options.json else row["path"])
    return 0


def _from_here(options: FetchOptions, name: HubName) -> dict[str, object]:
    if options.include or options.to is not None or options.jobs != FetchOptions.jobs:
        raise UsageError(
            "--include, --to and --jobs need the network: leave them out, or leave out --offline (HF_HUB_OFFLINE)"
        )
    folder = find(name, offline=options.offline)
    logger.info("offline: %s is as it was when it was fetched", name.model)
    return {"model": name.model, "commit": folder.name if folder else None, "path": str(folder)}


def _from_hub(options: FetchOptions, name: HubName) -> dict[str, object]:
    done = fetch(
        name.model,
        name.revision,
        client=HubClient(options.token),
        include=options.include,
        to=options.to.expanduser() if options.to is not None else None,
        jobs=options.jobs,
    )
    return {
        "model": name.model,
        "commit": done.listing.sha,
        "path": str(done.folder),
        "license": done.listing.license,
        "files": [file.path for file in done.files],
        "bytes": done.size,
        "fetched_bytes": done.moved,
    }
