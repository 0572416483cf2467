"""A sweep file: which settings of a config are to be run."""

import itertools
import re
import tomllib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from absl import flags

from halfway import storage
from halfway.lab.commands import cli
from halfway.lab.config import config_file, settings
from halfway.lab.config.settings import Config
from halfway.lab.config.user import UserError

_FIELDS = ("config", "only", "grid", "settings")
_LONGEST = 80  # characters of a folder's name


class Setting(NamedTuple):
    """One run of a sweep.

    Attributes:
      name: made from what varies; names its folder.
      fields: config fields that are set, by dotted name.
      arguments: of `experiments.reproduce`, without its working directory.
      run_name: of config file and variant.
      config: as the run will have it.
      hypotheses: that it decides.
    """

    name: str
    fields: dict[str, Any]
    arguments: list[str]
    run_name: str
    config: Config
    hypotheses: tuple[str, ...]


class Sweep(NamedTuple):
    """All settings of a file, checked; its name is the file's."""

    name: str
    settings: list[Setting]


def load(text: str) -> Sweep:
    """Returns the sweep of a TOML file, every setting checked.

    Args:
      text: path; a relative one is looked for in the current folder, then in the repository.

    Raises:
      UserError: if there is no such file, it is no sweep, or a setting cannot be run.
    """
    path = config_file.find(text)
    if path is None:
        raise UserError(f"sweep file {text!r} does not exist: see configs/sweeps/example.toml")
    try:
        plain = tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, OSError) as error:
        raise UserError(f"sweep file {text!r} is no TOML file: {error}") from error
    if unknown := sorted(set(plain) - set(_FIELDS)):
        raise UserError(
            f"sweep file {text!r} has an unknown entry {unknown[0]!r}: there are "
            f"{', '.join(_FIELDS)}"
        )
    config, only = plain.get("config", "configs/digits.py"), plain.get("only")
    if not isinstance(config, str) or not isinstance(only, str | None):
        raise UserError(f"sweep file {text!r}: config and only are texts")
    chosen = [_setting(text, config, only, fields) for fields in _combinations(text, plain)]
    _check_distinct(text, chosen)
    return Sweep(path.stem, _named(chosen))


def _combinations(text: str, plain: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Returns the fields of each setting: every explicit one with every point of the grid."""
    explicit, grid = plain.get("settings", [{}]), plain.get("grid", {})
    explicit = [{}] if explicit == [] else explicit
    if not (isinstance(explicit, list) and all(isinstance(one, dict) for one in explicit)):
        raise UserError(f"sweep file {text!r}: settings are written as [[settings]]")
    if not isinstance(grid, dict):
        raise UserError(f"sweep file {text!r}: the grid is written as [grid]")
    axes = _flat(grid)
    for name, values in axes.items():
        if not isinstance(values, list) or not values:
            raise UserError(f"sweep file {text!r}: {name} in [grid] must be a list of values")
    points = [dict(zip(axes, point, strict=True)) for point in itertools.product(*axes.values())]
    combined = []
    for one in map(_flat, explicit):
        if both := sorted(set(one) & set(axes)):
            raise UserError(f"sweep file {text!r}: {both[0]} is both in [grid] and [[settings]]")
        combined += [one | point for point in points]
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
    arguments = [f"--config={config}", *([f"--only={only}"] if only is not None else [])]
    arguments += [f"--config.{name}={_value(value)}" for name, value in fields.items()]
    try:
        options = cli.parse(["sweep", *arguments], cli.RUN_FLAGS, flags.FlagValues())
        settings.validate(options.config)
        chosen = tuple(study.id for study in cli.choose(options.config, options.only))
    except (UserError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise UserError(f"sweep file {text!r}, setting {_name(fields)}: {error}") from error
    return Setting("", fields, arguments, options.name, options.config, chosen)


def _check_distinct(text: str, chosen: Sequence[Setting]) -> None:
    """Refuses the same run twice, however it is written: 0.001 and "1e-3", or a field's default."""
    seen: dict[str, str] = {}
    for setting in chosen:
        key, name = storage.json_digest(setting.config.to_dict()), _name(setting.fields)
        if key in seen:
            same = "" if seen[key] == name else f", which is the same run as {seen[key]}"
            raise UserError(f"sweep file {text!r} has a setting twice: {name}{same}")
        seen[key] = name


def _value(value: Any) -> str:
    if isinstance(value, list):
        return repr(tuple(tuple(v) if isinstance(v, list) else v for v in value))
    return str(value)


def _name(fields: Mapping[str, Any]) -> str:
    """Returns a name that says what is set, safe as the name of a folder."""
    last = [name.rsplit(".", 1)[-1] for name in fields]
    short = [one if last.count(one) == 1 else name for name, one in zip(fields, last, strict=True)]
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
