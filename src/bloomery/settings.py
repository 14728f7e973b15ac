"""One way from dataclass to options: default < recipe (TOML) < environment < command line. Knows no verb.

The environment is read here, in `environment`, `devices` and `parallel/launch` only.
"""

import os
import tomllib
from collections.abc import Iterable, Sequence
from dataclasses import MISSING, Field, dataclass, fields, is_dataclass, replace
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any, TypeVar, cast, get_args, get_origin

import cyclopts
import tomli_w
from cyclopts import App, Parameter
from cyclopts.config import Dict, Env

from bloomery.environment import PREFIX
from bloomery.errors import UsageError


@dataclass(frozen=True, kw_only=True)
class VerbOptions:
    """What every verb takes."""

    recipe: Path | None = None
    """TOML file with options; the environment and the command line win over it."""
    print_config: bool = False
    """Print the resolved options as a recipe and stop."""
    verbose: Annotated[bool, Parameter(alias="-v")] = False
    """Say more on stderr."""
    quiet: Annotated[bool, Parameter(alias="-q")] = False
    """Say only warnings and errors on stderr."""


Options = TypeVar("Options", bound=VerbOptions)
COMMAND_LINE, ENVIRONMENT = "cli", "env"
"""What cyclopts calls the sources of values."""


def parse(options: type[Options], argv: Sequence[str], *, name: str, summary: str, positional: str) -> Options | None:
    """Resolve a verb's options.

    Args:
        positional: the field that words without a dash go into: all of them when it is a tuple, else one; or several
            fields, with spaces between them, in the order of their words. A recipe stands first, since the other
            options depend on it.

    Returns: the options, or None when help was asked for and printed.

    Raises:
        UsageError: an unknown or impossible option, with its source and the nearest known one.
    """
    argv = _stdin_last(list(argv))
    if positional == "recipe" and argv and not argv[0].startswith("-"):
        argv.insert(0, "--recipe")
    required = list(_required(options))
    try:
        result = _app(options, name, summary, positional, _find_recipe(argv))(
            argv, exit_on_error=False, print_error=False
        )
    except cyclopts.MissingArgumentError as error:
        if not required or error.keyword is not None:
            raise UsageError(str(error)) from None
        raise UsageError(f"bloomery {name} needs {', '.join(required)}: give them here or in a recipe") from None
    except cyclopts.CycloptsError as error:
        cause = error.__cause__
        raise UsageError(str(cause if isinstance(cause, UsageError) else error)) from None
    if result is None:
        return None
    words, resolved = result
    named = argv[: argv.index("--")] if "--" in argv else argv
    for field, word in zip(positional.split(), words, strict=False):
        if any(option.partition("=")[0] == f"--{field}" for option in named):
            raise UsageError(f"{field}: '{word}' stands beside --{field}: give all of it in one of these ways")
    return _place_words(words, resolved, name, positional)


def read_recipe(path: Path) -> dict[str, Any]:
    """A recipe's tables.

    Raises:
        UsageError: it cannot be read, or is no TOML.
    """
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"recipe {path} cannot be read: {error.strerror}") from None
    except ValueError as error:
        raise UsageError(f"recipe {path} is not valid TOML: {error}") from None


def as_recipe(options: VerbOptions) -> str:
    """The options as TOML, readable again by `parse`. A token is a secret and stays out of it."""
    return tomli_w.dumps(_tables(options, leave_out=("recipe", "print_config", "token")))


def check_environment(known: Iterable[type[VerbOptions]]) -> None:
    """Refuse a BLOOMERY_ variable that is no verb's option: it would be ignored.

    Raises:
        UsageError: names the variable and the nearest known one.
    """
    names = {PREFIX + "CACHE_DIR"} | {name for options in known for name in _variables(options, PREFIX)}
    for variable in sorted(os.environ):
        if variable.startswith(PREFIX) and variable not in names:
            raise UsageError(f"environment variable {variable} is no option of any verb{nearest(variable, names)}")


def nearest(name: str, known: Iterable[str]) -> str:
    """The end of an error message: the known name that was probably meant, if one is near."""
    near = get_close_matches(name, list(known), 1)
    return f": did you mean '{near[0]}'?" if near else ""


def _app(options: type[VerbOptions], name: str, summary: str, positional: str, recipe: str | None) -> App:
    """A command line for one verb, which returns the words without a dash and the options."""
    app = App(
        name=f"bloomery {name}",
        help=summary,
        version_flags=[],
        result_action="return_value",
        default_parameter=Parameter(
            negative=(),
            show_env_var=False,
            env_var_split=_unsplit,
            # Elsewhere an entry that is a text may be one for a model, such as the stop string [1].
            converter=_convert_lists if positional == "recipe" else _convert_numbers,
            json_list=False,
        ),
        config=[
            Env(PREFIX, command=False, source=ENVIRONMENT),
            Dict({} if recipe is None else _tables_of(recipe), source=f"recipe {recipe}"),
        ],
    )

    def verb(*words: str, options: Any) -> tuple[tuple[str, ...], Any]:
        return words, options

    # cyclopts reads a signature; ours is only known now.
    same = " and ".join(f"--{field}" for field in positional.split())
    verb.__annotations__["words"] = Annotated[str, Parameter(help=f"The same as {same}.")]
    verb.__annotations__["options"] = Annotated[options, Parameter(name="*")]
    if not any(_required(options)):
        verb.__kwdefaults__ = {"options": options()}
    app.default(verb)
    return app


def _unsplit(_: Any, value: str, **__: Any) -> list[str]:
    """A variable of the environment is one value: a text may hold spaces."""
    return [value]


def _convert(kind: Any, tokens: Sequence[cyclopts.Token]) -> Any:
    """As cyclopts does, but a whole number that is asked for is not rounded from another."""
    if int in (kind, *get_args(kind)):
        for token in tokens:
            if token.value.partition(".")[2].strip("0"):
                raise ValueError  # cyclopts says where the value comes from, and that it is no int
    return cyclopts.convert(kind, tokens)


def _convert_numbers(kind: Any, tokens: Sequence[cyclopts.Token]) -> Any:
    """The same, but a list of numbers may be written as a TOML array."""
    return (_convert if str in get_args(kind) else _convert_lists)(kind, tokens)


def _convert_lists(kind: Any, tokens: Sequence[cyclopts.Token]) -> Any:
    """The same, but a list may be written as a TOML array."""
    if get_origin(kind) is tuple:
        tokens = [entry for token in tokens for entry in _entries(token)]
        if not tokens:
            return ()
    return _convert(kind, tokens)


def _entries(token: cyclopts.Token) -> Iterable[cyclopts.Token]:
    """What a value adds to a list: of the command line and the environment a TOML array its entries, an empty value
    none; any other value is an entry. In a recipe an entry is never anything else."""
    if token.source not in (COMMAND_LINE, ENVIRONMENT):
        return [token]
    array = _array(token.value)
    if array is None:
        return [token] if token.value else []
    if not all(isinstance(entry, str | int | float) and not isinstance(entry, bool) for entry in array):
        raise ValueError  # cyclopts says where the value comes from
    return [token.evolve(value=str(entry)) for entry in array]


def _array(value: str) -> list[Any] | None:
    """The TOML array that a value is; None where it is none, as a pattern of files such as [ab].txt."""
    if not value.lstrip().startswith("["):
        return None
    try:
        read = tomllib.loads(f"array = {value}")
    except ValueError:
        return None
    return cast(list[Any], read["array"]) if len(read) == 1 else None


def _tables_of(recipe: str) -> dict[str, Any]:
    """Tables of the recipe of a command line, which is one file and names no other."""
    if not recipe:
        raise UsageError("the recipe's name is empty: give a TOML file, or leave it out")
    tables = read_recipe(Path(recipe))
    if "recipe" in tables:
        raise UsageError(f"recipe {recipe} names another recipe, which would not be read: put its options here")
    return tables


def _stdin_last(argv: list[str]) -> list[str]:
    """Words '-' moved behind '--', where they are no options."""
    end = argv.index("--") if "--" in argv else len(argv)
    alone = argv[:end].count("-")
    return [word for word in argv[:end] if word != "-"] + ["--"] + ["-"] * alone + argv[end + 1 :] if alone else argv


def _find_recipe(argv: list[str]) -> str | None:
    """The recipe's path, which must be known before the other options can be resolved."""
    for place, word in enumerate(argv):
        if word == "--":
            break
        if word == "--recipe" and place + 1 < len(argv):
            return argv[place + 1]
        if word.startswith("--recipe="):
            return word.partition("=")[2]
    return os.environ.get(PREFIX + "RECIPE")


def _place_words(words: tuple[str, ...], options: Options, name: str, positional: str) -> Options:
    if not words:
        return options
    names = positional.split()
    default = next(field for field in fields(options) if field.name == names[0])
    if default.default is not MISSING and isinstance(default.default, tuple):
        return replace(options, **cast(Any, {positional: words}))
    if len(words) > len(names) or positional == "recipe":
        raise UsageError(f"bloomery {name} takes one {' and one '.join(names)}: '{words[-1]}' is too many")
    return replace(options, **cast(Any, dict(zip(names, words, strict=False))))


def _tables(options: Any, leave_out: tuple[str, ...] = ()) -> dict[str, Any]:
    """An options object as TOML can hold it: unset options are left out, flat sections are merged in."""
    table: dict[str, Any] = {}
    for field in fields(options):
        value = getattr(options, field.name)
        section, flat = _section(field)
        if section is not None:
            inner = _tables(value)
            table |= inner if flat else {field.name: inner}
        elif value is not None and field.name not in leave_out:
            table[field.name] = _plain(value)
    return table


def _plain(value: Any) -> Any:
    if isinstance(value, tuple):
        return [_plain(item) for item in value]
    return str(value) if isinstance(value, Path) else value


def _variables(options: Any, prefix: str) -> Iterable[str]:
    """Environment variables of an options class; a section's name stands before those of its fields."""
    for field in fields(options):
        section, flat = _section(field)
        if section is not None:
            yield from _variables(section, prefix if flat else f"{prefix}{field.name.upper()}_")
        else:
            yield prefix + field.name.upper()


def _required(options: Any, prefix: str = "--") -> Iterable[str]:
    """Options that have no default."""
    for field in fields(options):
        section, flat = _section(field)
        if field.default is MISSING and field.default_factory is MISSING:
            if section is None:
                yield prefix + field.name.replace("_", "-")
            else:
                yield from _required(section, prefix if flat else f"{prefix}{field.name}.")


def _section(field: Field[Any]) -> tuple[Any, bool]:
    """The dataclass of a field that is a section, else None; and whether its options stand beside the others."""
    kind, flat = field.type, False
    if get_origin(kind) is Annotated:
        kind, *marks = get_args(kind)
        flat = any(isinstance(mark, Parameter) and mark.name == ("*",) for mark in marks)
    return (kind if is_dataclass(kind) else None), flat
