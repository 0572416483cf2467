"""Flags that several commands declare: a config, a data folder, places, budgets.

What needs JAX or NumPy is imported where a flag is used: a wrong flag is said before.
"""

import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from absl import flags

from halfway import files
from halfway.lab.config import user
from halfway.lab.config.place import Place
from halfway.lab.config.user import UserError
from halfway.norms import NORMS

if TYPE_CHECKING:
    from halfway.lab.config.config_file import ConfigFile

FIELD = "set"
"""The name of the flag that --config.FIELD=VALUE becomes."""
HIDDEN = (FIELD,)
_ARGUMENTS: dict[int, tuple[str, ...]] = {}


def arguments(values: flags.FlagValues) -> tuple[str, ...]:
    """Returns the arguments of a command that are no flags.

    Args:
      values: the flags of the command.
    """
    return _ARGUMENTS.get(id(values), ())


def set_arguments(values: flags.FlagValues, rest: Sequence[str]) -> None:
    """Stores the arguments of a command that are no flags.

    Args:
      values: the flags of the command.
      rest: the arguments that are no flags.
    """
    _ARGUMENTS[id(values)] = tuple(rest)


class ConfigFlag(NamedTuple):
    """The flags --config and --config.FIELD=VALUE.

    Attributes:
      file: --config, the name or file of a config.
      fields: the fields that are set, as FIELD=VALUE.
    """

    file: flags.FlagHolder
    fields: flags.FlagHolder

    @property
    def given(self) -> bool:
        """Whether the command line has any of these flags."""
        return bool(self.file.present or self.fields.present)

    def load(self) -> "ConfigFile":
        """Returns the settings that the flags name.

        Raises:
          UserError: if --config is empty, or `config_file.load` raises it.
        """
        from halfway.lab.config import config_file

        if not self.file.value:
            raise UserError(
                "--config needs a name or a file: NAME, FILE.py, or either with :VARIANT"
            )
        overrides = dict(text.split("=", 1) for text in self.fields.value)
        return config_file.load(self.file.value, overrides)


def config(values: flags.FlagValues) -> ConfigFlag:
    """Declares --config, whose fields are set by --config.FIELD=VALUE.

    Args:
      values: the flags of the command.
    """
    text = (
        "NAME or FILE.py, with :VARIANT where there are variants; fields are set by "
        "--config.FIELD=VALUE"
    )
    return ConfigFlag(
        flags.DEFINE_string("config", user.DEFAULT_CONFIG, text, flag_values=values),
        flags.DEFINE_multi_string(FIELD, [], "FIELD=VALUE", flag_values=values),
    )


def folder(
    values: flags.FlagValues, name: str, default: str | None, text: str, *, writes: bool = True
) -> flags.FlagHolder:
    """Declares a flag that names a folder, which is checked before the command begins.

    Args:
      values: the flags of the command.
      name: the name of the flag.
      default: the folder by default; None: none is checked.
      text: the help of the flag.
      writes: whether the command writes to the folder.
    """
    holder = flags.DEFINE_string(name, default, text, flag_values=values)
    check = functools.partial(user.check_folder, writes=writes)
    _check_path(values, name, check)
    return holder


def file(values: flags.FlagValues, name: str, text: str) -> flags.FlagHolder:
    """Declares a flag that names a file to write, which is checked before the command begins.

    Args:
      values: the flags of the command.
      name: the name of the flag.
      text: the help of the flag.
    """
    holder = flags.DEFINE_string(name, None, text, flag_values=values)
    _check_path(values, name, user.check_file)
    return holder


def _check_path(values: flags.FlagValues, name: str, check: Callable[[str, Path], None]) -> None:
    def is_usable(value: str | None) -> bool:
        if value:
            check(f"--{name}={value}", Path(value))
        return True

    flags.register_validator(name, is_usable, flag_values=values)


def data_dir(values: flags.FlagValues) -> flags.FlagHolder:
    """Declares --data_dir.

    Args:
      values: the flags of the command.
    """
    text = "data folder; $TFDS_DATA_DIR, else ~/tensorflow_datasets, by default"
    return folder(values, "data_dir", None, text, writes=False)


def max_gb(values: flags.FlagValues) -> flags.FlagHolder:
    """Declares --max_gb.

    Args:
      values: the flags of the command.
    """
    text = "gigabytes that data may take in memory; what declares more is not read"
    return flags.DEFINE_float("max_gb", files.MAX_GB, text, lower_bound=0.0, flag_values=values)


def checkpoint_every(values: flags.FlagValues) -> flags.FlagHolder:
    """Declares --checkpoint_every.

    Args:
      values: the flags of the command.
    """
    text = "seconds from one checkpoint of a training to the next"
    return flags.DEFINE_float("checkpoint_every", 60.0, text, lower_bound=0.0, flag_values=values)


class PlaceFlags(NamedTuple):
    """The flags of the fields of `Place`, which say where a run computes."""

    mesh: flags.FlagHolder
    at_once: flags.FlagHolder
    distributed: flags.FlagHolder
    coordinator: flags.FlagHolder
    num_processes: flags.FlagHolder
    process_id: flags.FlagHolder
    compilation_cache: flags.FlagHolder

    @property
    def value(self) -> Place:
        """The values of the flags."""
        return Place(*(holder.value for holder in self))


def place(values: flags.FlagValues) -> PlaceFlags:
    """Declares the flags that say where a run computes.

    Args:
      values: the flags of the command.
    """
    here: dict[str, Any] = {"flag_values": values}
    return PlaceFlags(
        flags.DEFINE_string(
            "mesh", None, "devices for members and examples, e.g. member:4,data:2", **here
        ),
        flags.DEFINE_integer(
            "at_once", None, "members of one device that run at once, at most", 1, **here
        ),
        flags.DEFINE_bool(
            "distributed", False, "this is one of several processes of the same command", **here
        ),
        flags.DEFINE_string(
            "coordinator", None, "HOST:PORT of process 0, where no cluster says it", **here
        ),
        flags.DEFINE_integer(
            "num_processes", None, "how many there are, with --coordinator", 1, **here
        ),
        flags.DEFINE_integer(
            "process_id", None, "which one this is, from 0, with --coordinator", 0, **here
        ),
        compilation_cache(values),
    )


def topology(values: flags.FlagValues) -> flags.FlagHolder:
    """Declares --topology, and --dry_run where the command has none, which it needs.

    Args:
      values: the flags of the command.
    """
    always = "dry_run" in values
    if not always:
        text = "with --topology: compile every program, compute nothing"
        flags.DEFINE_bool("dry_run", False, text, flag_values=values)
    text = "a slice of TPUs that --dry_run compiles every program for, e.g. v5e:4x4"
    holder = flags.DEFINE_string("topology", None, text, flag_values=values)

    def belong_together(given: dict[str, Any]) -> bool:
        if given["topology"] is not None and not given["dry_run"]:
            raise UserError("--topology needs --dry_run: programs are compiled, none is run")
        if given["dry_run"] and given["topology"] is None and not always:
            raise UserError("--dry_run needs --topology here, e.g. --topology=v5e:4x4")
        return True

    names = ["topology", "dry_run"]
    flags.register_multi_flags_validator(names, belong_together, flag_values=values)
    return holder


def compilation_cache(values: flags.FlagValues) -> flags.FlagHolder:
    """Declares --compilation_cache.

    Args:
      values: the flags of the command.
    """
    text = "folder of compiled programs, or 'off'; the user's cache folder by default"
    return flags.DEFINE_string("compilation_cache", None, text, flag_values=values)


class ThreatText(NamedTuple):
    """A norm and a budget of it, as typed."""

    norm: str
    epsilon: float


class _ThreatParser(flags.ArgumentParser):
    """Reads "linf:4/255,8/255,l2:0.5" as norms with budgets."""

    syntactic_help = f"norms of {', '.join(NORMS)} with budgets, e.g. linf:8/255,l2:0.5"

    def parse(self, argument: Any) -> tuple[ThreatText, ...]:
        """Returns norms and budgets in the order of the text; a norm holds until the next one.

        Args:
          argument: the text of the flag, or what it stands for.

        Raises:
          ValueError: for another norm, or what is no positive number.
        """
        if isinstance(argument, tuple):
            return argument
        threats, norm = [], ""
        for word in argument.split(","):
            name, colon, budget = word.strip().rpartition(":")
            norm = name if colon else norm
            try:
                epsilon = user.number(budget)
            except ValueError:
                epsilon = -1.0
            if norm not in NORMS or not 0 < epsilon < float("inf"):
                raise ValueError(f"must be {self.syntactic_help}")
            threats.append(ThreatText(norm, epsilon))
        return tuple(dict.fromkeys(threats))


class _ThreatSerializer(flags.ArgumentSerializer):
    """Writes norms and budgets as they are typed."""

    def serialize(self, value: Any) -> str:
        """Returns a text as `_ThreatParser` reads it.

        Args:
          value: norms and budgets.
        """
        from halfway.lab.study.wording import format_budget

        return ",".join(f"{threat.norm}:{format_budget(threat.epsilon)}" for threat in value)


def threats(values: flags.FlagValues, name: str, default: str, text: str) -> Any:
    """Declares a flag of norms with budgets, such as "linf:8/255,l2:0.5".

    Args:
      values: the flags of the command.
      name: the name of the flag.
      default: as it would be typed.
      text: the help of the flag.
    """
    return flags.DEFINE(  # pyright: ignore
        _ThreatParser(), name, default, text, flag_values=values, serializer=_ThreatSerializer()
    )


class _BudgetParser(flags.ArgumentParser):
    """Reads "8/255,0.1" as an increasing tuple of positive numbers."""

    syntactic_help = "positive numbers with commas between, e.g. 8/255,0.1"

    def parse(self, argument: Any) -> tuple[float, ...]:
        """Returns the budgets of a text, sorted; the budgets of a default stay as they are.

        Args:
          argument: the text of the flag, or a tuple of numbers.

        Raises:
          ValueError: if a word is no positive number.
        """
        if isinstance(argument, tuple):
            return argument
        try:
            budgets = [user.number(word) for word in argument.split(",")]
        except ValueError:
            budgets = [-1.0]
        if not all(0 < budget < float("inf") for budget in budgets):
            raise ValueError("must be positive numbers, e.g. 8/255 or 0.05,0.1")
        return tuple(sorted(set(budgets)))


def budgets(values: flags.FlagValues, name: str, default: Sequence[float], text: str) -> Any:
    """Declares a flag of one or more budgets, which may be written as "8/255".

    Args:
      values: the flags of the command.
      name: the name of the flag.
      default: the budgets by default.
      text: the help of the flag.
    """
    return flags.DEFINE(  # pyright: ignore
        _BudgetParser(), name, tuple(default), text, flag_values=values
    )
