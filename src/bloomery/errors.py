"""Every exception a user can cause; knows nothing of what raises it.

    BloomeryError
    ├── UsageError        an option, a parameter or a prompt that cannot be right
    ├── CheckpointError   a file that is missing, damaged or not what it says
    └── MissingExtra      an optional package is not installed

A message is one line: what is wrong, where, what to do.
"""


class BloomeryError(Exception):
    """Base of everything bloomery raises on purpose. The command line prints it in one line and exits with 2."""


class UsageError(BloomeryError, ValueError):
    """An option, a sampling parameter, a recipe or a prompt is wrong."""


class CheckpointError(BloomeryError):
    """A checkpoint file is missing, damaged or of a kind we do not know."""


class MissingExtra(BloomeryError, ImportError):
    """An optional dependency is needed for what was asked."""

    def __init__(self, package: str, extra: str) -> None:
        super().__init__(f"this needs the package '{package}': pip install 'bloomery[{extra}]'")
