"""A sweep file, which lists the settings of a config that are to be run."""

import itertools
import re
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from halfway import files, storage
from halfway.lab import studies
from halfway.lab.config import config_file, user
from halfway.lab.config.settings import RunConfig
from halfway.lab.config.user import UserError
from halfway.lab.runtime.runs import Identity, Run

_FIELDS = ("config", "only", "grid", "settings")
_LONGEST = 80
"""The most characters in the name of a folder."""


class Setting(NamedTuple):
    """One run of a sweep.

    Attributes:
      name: the name of the folder, made from the fields that vary.
      fields: the values of config fields that are set, by dotted name.
      arguments: the arguments of `reproduce`, without its working directory.
      run_name: the name of config file and variant.
      config: the settings of the run.
      hypotheses: the ids of the hypotheses that it decides.
    """

    name: str
    fields: dict[str, Any]
    arguments: list[str]
    run_name: str
    config: RunConfig
    hypotheses: tuple[str, ...]


class Sweep(NamedTuple):
    """A sweep file that was read and checked.

    Attributes:
      name: the name of the file.
      settings: all settings of the file.
    """

    name: str
    settings: list[Setting]


def load(text: str) -> Sweep:
    """Returns the sweep of a TOML file after checking all settings.

    Args:
      text: the path; a relative path is searched in the current folder, then in the repository.

    Raises:
      UserError: if there is no such file, it is no sweep file, or a setting cannot be run.
    """
    path = _find(text)
    if path is None:
        user.check_regular(f"sweep file {text!r}", Path(text))
        raise UserError(f"sweep file {text!r} does not exist: see configs/sweeps/example.toml")
    try:
        plain = tomllib.loads(files.read_text(path))
    except (ValueError, RecursionError, OSError) as error:
        raise UserError(f"sweep file {text!r} is no TOML file: {error}") from error
    if unknown := sorted(set(plain) - set(_FIELDS)):
        raise UserError(
            f"sweep file {text!r} has an unknown entry {unknown[0]!r}: there are "
            f"{', '.join(_FIELDS)}"
        )
    config, only = plain.get("config", "digits"), plain.get("only")
    if not isinstance(config, str) or not isinstance(only, str | None):
        raise UserError(f"sweep file {text!r}: config and only are texts")
    chosen = [_setting(text, config, only, fields) for fields in _combinations(text, plain)]
    _check_distinct(text, chosen)
    return Sweep(path.stem, _named(chosen))


def _find(text: str) -> Path | None:
    """Returns the file of a path, relative to the current folder or else to the checkout."""
    places = [Path(text), *([config_file.CHECKOUT / text] if config_file.CHECKOUT else [])]
    return next((place.resolve() for place in places if place.is_file()), None)


def _combinations(text: str, plain: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Returns the fields of each setting: explicit settings times points of the grid."""
    explicit, grid = plain.get("settings", [{}]), plain.get("grid", {})
    explicit = [{}] if explicit == [] else explicit
    if not (isinstance(explicit, list) and all(isinstance(setting, dict) for setting in explicit)):
        raise UserError(f"sweep file {text!r}: settings are written as [[settings]]")
    if not isinstance(grid, dict):
        raise UserError(f"sweep file {text!r}: the grid is written as [grid]")
    axes = _flat(grid)
    for name, values in axes.items():
        if not isinstance(values, list) or not values:
            raise UserError(f"sweep file {text!r}: {name} in [grid] must be a list of values")
    points = [dict(zip(axes, point, strict=True)) for point in itertools.product(*axes.values())]
    combined = []
    for setting in map(_flat, explicit):
        if both := sorted(set(setting) & set(axes)):
            raise UserError(f"sweep file {text!r}: {both[0]} is both in [grid] and [[settings]]")
        combined += [setting | point for point in points]
    if not any(combined):
        raise UserError(f"sweep file {text!r} varies nothing: fill [grid] or [[settings]]")
    return combined


def _flat(table: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    fields: dict[str, Any] = {}
    for name, value in table.items():
        if isinstance(value, Mapping):
            fields |= _flat(value, f"{prefix}{name}.")
        else:
            fields[prefix + name] = value
    return fields


def _setting(text: str, config: str, only: str | None, fields: dict[str, Any]) -> Setting:
    overrides = {name: _value(value) for name, value in fields.items()}
    arguments = [f"--config={config}", *([f"--only={only}"] if only is not None else [])]
    arguments += [f"--config.{name}={value}" for name, value in overrides.items()]
    try:
        file = config_file.load(config, overrides)
        chosen = studies.choose(file.config.hypotheses if only is None else only.split(","))
    except UserError as error:
        raise UserError(f"sweep file {text!r}, setting {_name(fields)}: {error}") from error
    return Setting("", fields, arguments, file.name, file.config, tuple(s.id for s in chosen))


def _check_distinct(text: str, chosen: Sequence[Setting]) -> None:
    """Raises if two settings are the same run, even if written as 0.001 and "1e-3"."""
    names: dict[str, str] = {}
    for setting in chosen:
        digest, name = storage.json_digest(setting.config.to_dict()), _name(setting.fields)
        if digest in names:
            same = "" if names[digest] == name else f", which is the same run as {names[digest]}"
            raise UserError(f"sweep file {text!r} has a setting twice: {name}{same}")
        names[digest] = name


def _value(value: Any) -> str:
    if isinstance(value, list):
        return repr(tuple(tuple(v) if isinstance(v, list) else v for v in value))
    return str(value)


def _name(fields: Mapping[str, Any]) -> str:
    """Returns a name of the fields that are set and their values, safe as the name of a folder."""
    last = [name.rsplit(".", 1)[-1] for name in fields]
    short = [
        short_name if last.count(short_name) == 1 else name
        for name, short_name in zip(fields, last, strict=True)
    ]
    parts = (f"{n}={_brief(v)}" for n, v in zip(short, fields.values(), strict=True))
    return re.sub(r"[^\w.=,+-]+", "_", ",".join(parts)).strip("._") or "unchanged"


def _brief(value: Any) -> str:
    return "+".join(map(_brief, value)) if isinstance(value, list) else str(value)


def _named(chosen: Sequence[Setting]) -> list[Setting]:
    names = [_name(setting.fields) for setting in chosen]
    named = []
    for name, setting in zip(names, chosen, strict=True):
        if len(name) > _LONGEST or names.count(name) > 1:
            name = f"{name[:_LONGEST]}-{storage.json_digest(setting.arguments)[:6]}"
        named.append(setting._replace(name=name))
    return named


def is_finished(folder: Path, setting: Setting) -> bool:
    """Returns whether a folder holds this run with all its verdicts and its report.

    Only small files are read. The checksum of the data is not compared, since that would need
    the data.

    Args:
      folder: the folder of the run.
      setting: the setting.
    """
    try:
        run = Run.open(folder)
        decided = {verdict["id"] for verdict in run.verdicts()}
    except UserError:
        return False
    same = Identity(setting.run_name, setting.config.to_dict(), run.data_checksum)
    written = (folder / "report.html").is_file()
    return run.identity == same.to_json() and written and set(setting.hypotheses) <= decided
