"""`bloomery convert`: a store from a model; its folder to stdout, everything else to stderr."""

from pathlib import Path
from time import perf_counter

from bloomery.checkpoint.convert import Origin, convert
from bloomery.checkpoint.folder import read_folder
from bloomery.checkpoint.origin import origin_of
from bloomery.checkpoint.random_origin import random_origin
from bloomery.cli.bar import bar, counted
from bloomery.cli.options import ConvertOptions
from bloomery.devices import pick_dtype
from bloomery.errors import UsageError
from bloomery.hub.resolve import resolve
from bloomery.log import logger
from bloomery.progress import as_size
from bloomery.quant.scheme import scheme_named


def run(options: ConvertOptions) -> int:
    """Convert, and print where the store is."""
    origin, target = _origin(options)
    began = perf_counter()
    with bar(f"converting {origin.source.name}") as reports:
        done = convert(
            origin,
            target,
            dtype=pick_dtype(options.dtype),
            tp=options.tp,
            jobs=options.jobs,
            scheme=scheme_named(options.quant),
            **reports._asdict(),
        )
    seconds = perf_counter() - began
    files = counted(sum(map(len, done.manifest.weights)), "file")
    kept = f" ({as_size(done.kept)} of it were finished before)" if done.kept else ""
    speed = (done.size - done.kept) / 1e9 / seconds
    logger.info("%s of weights, %s%s, written and read back at %.2f GB/s", files, as_size(done.size), kept, speed)
    print(target)
    return 0


def _origin(options: ConvertOptions) -> tuple[Origin, Path]:
    """What is converted, and where to."""
    if options.shape is not None:  # no source, so that the one place named is the target
        if bool(options.source) == bool(options.target):
            raise UsageError("a shape and a folder for the store are needed: bloomery convert --shape NAME TARGET")
        if options.revision is not None or options.token is not None or options.offline:
            raise UsageError("a shape is made here: leave --revision, --token and --offline out")
        origin = random_origin(options.shape, options.shape_seed or 0, pick_dtype(options.dtype))
        return origin, Path(options.source or options.target).expanduser()
    if options.shape_seed is not None:
        raise UsageError("--shape-seed is for --shape: the weights of a model are as they are")
    if not options.source or not options.target:
        raise UsageError("a model and a folder for the store are needed: bloomery convert SOURCE TARGET")
    folder = read_folder(resolve(options.source, options.revision, options.offline, options.token))
    return origin_of(folder, options.source), Path(options.target).expanduser()
