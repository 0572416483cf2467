"""Config files: where they are found, what they return, and the fields that flags set."""

import difflib
import importlib.machinery
import importlib.util
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from halfway import files, user_code
from halfway.lab.config import settings, user
from halfway.lab.config.settings import RunConfig
from halfway.lab.config.user import UserError

_PACKAGE = Path(__file__).resolve().parents[2]
CHECKOUT = _PACKAGE.parent if (_PACKAGE.parent / "pyproject.toml").is_file() else None
"""The repository that the code is run from; None where the package is installed."""


class ConfigFile(NamedTuple):
    """The settings that a config file and flags give.

    Attributes:
      config: the typed settings.
      name: the name of the file and its variant, which names the run.
      overrides: values of the fields that differ from the file, by dotted name.
    """

    config: RunConfig
    name: str
    overrides: dict[str, Any]


def shipped_folder() -> Path:
    """Returns the folder of the shipped configs, in the checkout or else in the package."""
    return CHECKOUT / "configs" if CHECKOUT else _PACKAGE / "lab" / "configs"


def shipped(text: str = user.DEFAULT_CONFIG) -> ConfigDict:
    """Returns a shipped config, which a user's config file may change.

    Args:
      text: the name of the config, or NAME:VARIANT.

    Raises:
      UserError: if no config of that name or variant is shipped.

    Examples:
      >>> config = config_file.shipped("digits:smoke")
      >>> config.num_pairs
      6
    """
    name, _, variant = text.partition(":")
    path = shipped_folder() / f"{name}.py"
    if not path.is_file():
        raise UserError(f"no config {name!r} is shipped: there are {', '.join(shipped_names())}")
    return ConfigDict(_get_config(path, name, variant).to_dict())


def shipped_names() -> list[str]:
    """Returns the names of the shipped configs, sorted."""
    return sorted(path.stem for path in shipped_folder().glob("*.py"))


def find(text: str) -> Path | None:
    """Returns the file of a path, or of a name: `digits` is `configs/digits.py`.

    The current folder is searched first, then the checkout, then the package.

    Args:
      text: a path, or the name of a config.
    """
    path = Path(text)
    places = [path, Path("configs") / f"{text}.py"]
    if CHECKOUT:
        places.append(CHECKOUT / text)
    if path.parts[:-1] in ((), ("configs",)):
        places.append(shipped_folder() / f"{path.stem}.py")
    return next((place.resolve() for place in places if place.is_file()), None)


def load(text: str = user.DEFAULT_CONFIG, overrides: Mapping[str, str] | None = None) -> ConfigFile:
    """Returns the settings of NAME, FILE.py, NAME:VARIANT or FILE.py:VARIANT.

    Args:
      text: a path or name as for `find`, with or without a variant.
      overrides: the texts of flags by dotted name of the field.

    Raises:
      UserError: if there is no such file, it cannot be loaded, it has no such variant, or a field
        is unknown, missing, of another type or out of range.
    """
    given, _, variant = text.partition(":")
    path = find(given)
    if path is None:
        user.check_regular(f"config file {given!r}", Path(given))
        close = difflib.get_close_matches(given, shipped_names(), n=1)
        hint = f"did you mean {close[0]}? " if close else ""
        raise UserError(
            f"config file {given!r} does not exist: {hint}there are "
            f"{', '.join(shipped_names())}, or the path of a file of yours"
        )
    plain = _get_config(path, given, variant).to_dict()
    fresh = settings.parse(plain)
    config = settings.parse(settings.override(plain, overrides or {}))
    before, after = settings.leaves(fresh), settings.leaves(config)
    changed = {name: value for name, value in after.items() if value != before.get(name)}
    return ConfigFile(config, "-".join(filter(None, (path.stem, variant))), changed)


def _get_config(path: Path, given: str, variant: str) -> ConfigDict:
    """Returns what the function `get_config` of a file returns for a variant."""
    what = f"variant {variant!r} of " if variant else ""
    with user.running(f"{what}config file {given!r} cannot be loaded"):
        get_config = getattr(_module(path), "get_config", None)
        if not callable(get_config):
            raise UserError(f"config file {given!r} has no function get_config")
        config = get_config(*([variant] if variant else []))
    if not isinstance(config, ConfigDict):
        raise UserError(f"get_config of {given!r} must return a ConfigDict, got {config!r}")
    return config


def _module(path: Path) -> Any:
    loader = importlib.machinery.SourceFileLoader(f"config_{path.stem}", str(path))
    spec = importlib.util.spec_from_loader(loader.name, loader)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    files.read_text(path)  # a regular file of a text, and no larger than a config can be
    user_code.remember(path)
    writes, sys.dont_write_bytecode = sys.dont_write_bytecode, True  # no cache beside the file
    try:
        loader.exec_module(module)
    finally:
        sys.dont_write_bytecode = writes
    return module
