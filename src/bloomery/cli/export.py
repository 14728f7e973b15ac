"""`bloomery export`: a model in Hugging Face format; its folder to stdout, everything else to stderr."""

from pathlib import Path
from time import perf_counter

from bloomery.checkpoint.adapter import read_adapter
from bloomery.checkpoint.export import export_folder
from bloomery.checkpoint.folder import read_folder
from bloomery.cli.bar import bar, counted
from bloomery.cli.options import ExportOptions
from bloomery.errors import UsageError
from bloomery.hub.resolve import resolve
from bloomery.log import logger
from bloomery.progress import as_size


def run(options: ExportOptions) -> int:
    """Export, and print where the folder is."""
    if not options.source or not options.target:
        raise UsageError("a model and a folder are needed: bloomery export SOURCE TARGET")
    target = Path(options.target).expanduser()
    folder = read_folder(resolve(options.source, options.revision, options.offline, options.token))
    adapter = None
    if options.adapter is not None:
        adapter = read_adapter(resolve(options.adapter, None, options.offline, options.token), folder)
    began = perf_counter()
    with bar(f"exporting {options.source}") as reports:
        done = export_folder(folder, target, adapter=adapter, **reports._asdict())
    speed = done.size / 1e9 / (perf_counter() - began)
    files = counted(len(done.files), "file")
    logger.info("%s of weights, %s, written at %.2f GB/s", files, as_size(done.size), speed)
    print(target)
    return 0
