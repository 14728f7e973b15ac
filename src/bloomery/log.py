"""The one logger: everything that is not generated text goes to stderr through it; knows nothing of ranks yet."""

import logging
import sys

logger = logging.getLogger("bloomery")


def configure(verbosity: int = 0) -> None:
    """Send our log to stderr. `verbosity`: -1 only warnings, 0 what a user should know, 1 every detail."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("bloomery: %(message)s"))
    logger.handlers[:] = [handler]
    logger.setLevel({-1: logging.WARNING, 0: logging.INFO}.get(verbosity, logging.DEBUG))
    logger.propagate = False
