"""The lock: what decides, written down before a data set is opened.

`rules.lock` (JSON, committed) holds for each study the digest of its rule, its version and date;
for each shipped config its digest; numbers that were fitted once; the data sets on which a number
that a rule decides on was seen before; and the hypotheses that need no true labels. Where a version
only mends what ended in an error, it holds the earlier digest with the reason, written by hand:
whatever that one decided has the same numbers.
"""

import ast
import functools
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import halfway
from halfway.lab.config import config_file, settings
from halfway.lab.config.user import UserError
from halfway.lab.study.protocol import Study
from halfway.storage import json_digest

NAME = "rules.lock"
LOOKED_AT = ("digits", "mixture")
"""Data sets that were looked at while rules were made, or that are of our own making."""
FIRST_VERSION = 2
"""Of a rule that enters the lock: the framework's."""
_SAME = "same_numbers_as"
"""The field of an entry with earlier digests, each with the reason."""
_NOT_THE_RULE = ("figures", "__init__")
"""Modules of a study that decide nothing."""
_OF_A_RULE = (
    "halfway.lab.studies.",
    "halfway.lab.measurements",
    "halfway.lab.study.conditions",
    "halfway.lab.study.rules",
)
"""Where else what decides is written: what is measured, on which conditions, and what a test and a
gate are. The library is not among them: it computes what its docstrings say, and its own tests hold
it to that."""


def path() -> Path:
    """Returns the file of the lock, in the checkout or else in the package."""
    return config_file.shipped_folder().parent / NAME


@functools.cache
def read() -> Mapping[str, Any]:
    """Returns the lock.

    Raises:
      UserError: if there is none, or it cannot be read.
    """
    try:
        return json.loads(path().read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"the lock {path()} cannot be read: {error}") from error


def fitted(study_id: str) -> Mapping[str, Any]:
    """Returns the numbers that were fitted once for a study.

    Args:
      study_id: its id.

    Raises:
      UserError: if the lock has none.
    """
    numbers = read()["fitted"].get(study_id)
    if numbers is None:
        raise UserError(
            f"{study_id} predicts with numbers that are fitted once, on digits, and the lock has "
            "none yet: run halfway register --workdir=RUN with a run of digits that measured it"
        )
    return numbers


def without_labels() -> Mapping[str, str]:
    """Returns hypotheses that need no true labels, each with the reason; see `global_null`."""
    return read().get("without_labels", {})


def is_locked(study: Study) -> bool:
    """Returns whether the code that decides is the one of the lock.

    Args:
      study: the study.
    """
    return read()["rules"].get(study.id, {}).get("digest") == rule_digest(study)


def decides_alike(study_id: str, digest: str) -> bool:
    """Returns whether a rule is that of the lock, or one that had the same numbers.

    Args:
      study_id: its id.
      digest: of the rule.
    """
    entry = read()["rules"].get(study_id, {})
    return digest == entry.get("digest") or digest in entry.get(_SAME, {})


def was_seen(study: Study, dataset: str) -> bool:
    """Returns whether a number that the rule decides on was seen on a data set before.

    Args:
      study: the study.
      dataset: its name.
    """
    return dataset in read()["rules"].get(study.id, {}).get("seen", ())


def is_config_locked(name: str) -> bool:
    """Returns whether a shipped config is the one of the lock.

    Args:
      name: of the config, without a variant.
    """
    return read()["configs"].get(name, {}).get("digest") == config_digest(name)


def described_rule(study: Study) -> str:
    """Returns the rule that decides in words: its digest, and whether it is that of the lock.

    Args:
      study: the study.
    """
    return _described(read()["rules"].get(study.id), rule_digest(study))


def described_config(name: str) -> str:
    """Returns a shipped config in words: its digest, and whether it is that of the lock.

    Args:
      name: of the config, without a variant.
    """
    return f"{name}, {_described(read()['configs'].get(name), config_digest(name))}"


def _described(entry: Mapping[str, Any] | None, digest: str) -> str:
    if entry is None:
        return f"digest {digest}, not in the lock"
    if entry["digest"] == digest:
        return f"version {entry['version']} of {entry['date']}, digest {digest}, as locked"
    return f"digest {digest}, not that of the lock, {entry['digest']}"


def updated(studies: Iterable[Study], fitted_now: Mapping[str, Any], today: str) -> dict[str, Any]:
    """Returns the lock with what has changed: a higher version and the date where a digest differs.

    Args:
      studies: all studies.
      fitted_now: numbers fitted anew by id of the study; those of others stay.
      today: the date, e.g. "2026-11-29".
    """
    before: dict[str, Any] = dict(read()) if path().is_file() else {}
    rules = {
        study.id: _renewed(before.get("rules", {}).get(study.id), rule_digest(study), today)
        for study in studies
        if study.kind != "description"  # it has no rule
    }
    for entry in rules.values():
        entry.setdefault("seen", list(LOOKED_AT))
    configs = {
        name: _renewed(before.get("configs", {}).get(name), config_digest(name), today)
        for name in config_file.shipped_names()
        if config_file.load(name).config.hypotheses
    }
    return before | {
        "rules": rules,
        "configs": configs,
        "fitted": {**before.get("fitted", {}), **fitted_now},
    }


def _renewed(entry: Mapping[str, Any] | None, digest: str, today: str) -> dict[str, Any]:
    """Returns an entry of the lock as it is, or with a new digest, version and date."""
    if entry and entry["digest"] == digest:
        return dict(entry)
    version = entry["version"] + 1 if entry else FIRST_VERSION
    kept = {name: value for name, value in (entry or {}).items() if name != _SAME}
    return kept | {"digest": digest, "version": version, "date": today}


def rule_digest(study: Study) -> str:
    """Returns twelve digits that identify a study's rule: its claim and the code that decides.

    That is the study's own modules, and those of measurements, conditions, parts of rules and other
    studies that they import. Comments, docstrings, and the words and figures of the card do not
    count.

    Args:
      study: the study.
    """
    package = study.decide.__module__.rpartition(".")[0]
    folder = _file(study.decide.__module__).parent
    waiting = [f"{package}.{file.stem}" for file in folder.glob("*.py")]
    code: dict[str, str] = {}
    while waiting:
        name = waiting.pop()
        if name in code or name.rpartition(".")[2] in _NOT_THE_RULE:
            continue
        code[name], imported = _rule_code(_file(name).read_text(encoding="utf-8"))
        waiting += imported
    facts = [study.id, study.kind, study.claim, list(study.stands_on), sorted(code.items())]
    return json_digest(facts)[:12]


def config_digest(name: str) -> str:
    """Returns twelve digits that identify a shipped config.

    Args:
      name: of the config, without a variant.
    """
    config = settings.leaves(config_file.load(name).config)
    return json_digest({field: repr(value) for field, value in sorted(config.items())})[:12]


def _file(module: str) -> Path:
    """Returns where a module lies by its dotted name; for a package there is no such file."""
    return Path(halfway.__file__).parents[1].joinpath(*module.split(".")).with_suffix(".py")


@functools.cache
def _rule_code(source: str) -> tuple[str, list[str]]:
    """Returns code without comments, docstrings and layout; and what of `_OF_A_RULE` it imports."""
    tree = ast.parse(source)
    names = []
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module:
            # Of modules or from them; a package's own file decides nothing.
            names += [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        body = getattr(node, "body", None)
        if isinstance(body, list):
            # A text alone on a line is a docstring, of a module, a function or a constant.
            kept = [item for item in body if not _is_text(item)]
            node.body = kept or [ast.Pass()]  # pyright: ignore
    imported = [name for name in names if name.startswith(_OF_A_RULE) and _file(name).is_file()]
    return ast.dump(tree), imported


def _is_text(node: ast.AST) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
