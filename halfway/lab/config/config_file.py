"""A config file, where it is found, and the fields of it that flags set."""

import difflib
import importlib.machinery
import importlib.util
import math
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from halfway.lab.config.settings import Config
from halfway.lab.config.user import UserError

ROOT = Path(__file__).resolve().parents[3]
DEFAULT = ROOT / "configs" / "digits.py"
_OVERRIDE = re.compile(r"--?(?:no)?config\.([^=]*)")
_KINDS = {
    bool: "true or false",
    int: "an integer",
    float: "a number",
    str: "a text",
    tuple: "a tuple",
    ConfigDict: "a group of fields, which are set one by one",
}


class ConfigFile(NamedTuple):
    """A config as its file gives it, and a name for the run: file and variant."""

    config: Config
    name: str


def take(argv: Sequence[str]) -> tuple[list[str], ConfigFile]:
    """Returns the arguments without --config, and what it names; the last one counts.

    Args:
      argv: program and arguments.

    Raises:
      UserError: if there is no such file, it cannot be loaded, or it has no such variant.
    """
    rest, chosen, arguments = [], str(DEFAULT), iter(argv)
    for argument in arguments:
        flag, equals, value = argument.partition("=")
        if argument == "--":
            rest += [argument, *arguments]
        elif flag in ("--config", "-config"):
            chosen = value if equals else next(arguments, "")
            if not chosen:
                raise UserError("--config needs a file: FILE.py or FILE.py:VARIANT")
        else:
            rest.append(argument)
    return rest, load(chosen)


def find(text: str) -> Path | None:
    """Returns the file of a path, relative to the current folder or else the repository."""
    found = [path for path in (Path(text), ROOT / text) if path.is_file()]
    return found[0].resolve() if found else None


def load(text: str) -> ConfigFile:
    """Returns the config that FILE.py or FILE.py:VARIANT names, locked.

    Args:
      text: a relative path is looked for in the current folder, then in the repository.

    Raises:
      UserError: if there is no such file, it cannot be loaded, or it has no such variant.
    """
    given, _, variant = text.partition(":")
    path = find(given)
    if path is None:
        there = ", ".join(sorted(f"configs/{p.name}" for p in (ROOT / "configs").glob("*.py")))
        raise UserError(f"config file {given!r} does not exist: there is {there}")
    try:
        get_config = getattr(_module(path), "get_config", None)
        if get_config is None:
            raise UserError(f"config file {given!r} has no function get_config")
        config = get_config(*([variant] if variant else []))
    except UserError:
        raise
    except Exception as error:  # a user's own code may raise anything
        what = f"variant {variant!r} of " if variant else ""
        raise UserError(
            f"{what}config file {given!r} cannot be loaded: {type(error).__name__}: {error}"
        ) from error
    if not isinstance(config, ConfigDict):
        raise UserError(f"get_config of {given!r} must return a ConfigDict, got {config!r}")
    config.lock()
    return ConfigFile(config, "-".join(filter(None, (path.stem, variant))))


def _module(path: Path) -> Any:
    loader = importlib.machinery.SourceFileLoader(f"config_{path.stem}", str(path))
    spec = importlib.util.spec_from_loader(loader.name, loader)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    writes, sys.dont_write_bytecode = sys.dont_write_bytecode, True  # leave no cache beside it
    try:
        loader.exec_module(module)
    finally:
        sys.dont_write_bytecode = writes
    return module


def leaves(config: Config, prefix: str = "") -> dict[str, Any]:
    """Returns the values of all fields by dotted name."""
    return dict(_leaves(config, prefix))


def _leaves(config: Config, prefix: str) -> Iterator[tuple[str, Any]]:
    for name, value in config.items():
        if isinstance(value, ConfigDict):
            yield from _leaves(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def check_names(argv: Sequence[str], config: Config) -> None:
    """Checks that each --config.FIELD is a field.

    Raises:
      UserError: naming the nearest field that exists.
    """
    fields = leaves(config)
    for argument in argv:
        match = _OVERRIDE.match(argument)
        if argument == "--":
            return
        if match is None or match[1] in fields:
            continue
        name = match[1]
        inside = [field for field in fields if field.startswith(f"{name}.")]
        if inside:
            raise UserError(f"config.{name} is a group of fields: there are {', '.join(inside)}")
        close = difflib.get_close_matches(name, fields, n=1)
        close += [field for field in fields if field.endswith(f".{name}")]
        hint = f"did you mean {close[-1]}?" if close else f"there are {', '.join(fields)}"
        raise UserError(f"unknown config field {name!r} in {argument}: {hint}")


def explain(error: Exception, fresh: Mapping[str, Any]) -> str:
    """Returns one line for a value that a field's parser refused.

    Args:
      error: of absl, which begins with "flag --config.FIELD=VALUE:".
      fresh: what the file says.
    """
    text = str(error).strip()
    match = re.match(r"flag --config\.([^=]*)=(.*?): ", text, re.DOTALL)
    if match is None or match[1] not in fresh:
        return text.splitlines()[0]
    return f"config.{match[1]} must be {_kind(fresh[match[1]])}, got {match[2]!r}"


def settle(config: Config, fresh: Mapping[str, Any]) -> dict[str, Any]:
    """Checks the types of fields that flags have set; integers become floats where floats were.

    Args:
      config: changed in place.
      fresh: what the file says.

    Returns:
      The fields that differ from what the file says, however that came about.

    Raises:
      UserError: if a value is not finite, or an element of a tuple has another type than the
        file's.
    """
    changed = {}
    for name, value in leaves(config).items():
        if name in fresh and isinstance(value, tuple):
            value = tuple(_element(name, item, fresh[name], value) for item in value)
        for item in value if isinstance(value, tuple) else (value,):
            if isinstance(item, float) and not math.isfinite(item):
                raise UserError(f"config.{name} must be finite, got {value!r}")
        if value != fresh.get(name):
            changed[name] = value
            config.update_from_flattened_dict({name: value})
    return changed


def _element(name: str, item: Any, like: Any, value: tuple) -> Any:
    kinds = {type(element) for element in like} if isinstance(like, tuple) else set()
    if len(kinds) != 1 or type(item) in kinds:
        return item
    if kinds == {float} and type(item) is int:
        return float(item)
    raise UserError(f"config.{name} must be {_kind(like)}, got {value!r}")


def _kind(like: Any) -> str:
    kind = _KINDS.get(type(like), f"a {type(like).__name__}")
    return f"{kind} like {like!r}" if isinstance(like, tuple) else kind
