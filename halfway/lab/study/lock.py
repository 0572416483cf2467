"""The lock: what decides, written down before a data set is opened.

`rules.lock` (JSON, committed) holds for each study the digest of its rule, its version and date;
for each shipped config its digest; numbers that were fitted once; and the data sets on which a
number that a rule decides on was seen before.
"""

import ast
import functools
import inspect
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from halfway.lab.config import config_file, settings
from halfway.lab.config.user import UserError
from halfway.lab.study.protocol import Study
from halfway.storage import json_digest

NAME = "rules.lock"
_NOT_THE_RULE = ("figures", "__init__")
"""Modules of a study that decide nothing."""


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
            "none yet: run halfway lock --workdir=RUN with a run of digits that measured it"
        )
    return numbers


def rule_digest(study: Study) -> str:
    """Returns twelve digits that identify a study's rule: its claim and the code that decides.

    Comments, docstrings, and the words and figures of the card do not count.

    Args:
      study: the study.
    """
    folder = Path(inspect.getfile(study.decide)).parent
    modules = sorted(file for file in folder.glob("*.py") if file.stem not in _NOT_THE_RULE)
    code = {file.stem: _bare(file.read_text(encoding="utf-8")) for file in modules}
    facts = [study.id, study.kind, study.claim, list(study.stands_on), code]
    return json_digest(facts)[:12]


def config_digest(name: str) -> str:
    """Returns twelve digits that identify a shipped config.

    Args:
      name: of the config, without a variant.
    """
    config = settings.leaves(config_file.load(name).config)
    return json_digest({field: repr(value) for field, value in sorted(config.items())})[:12]


def _bare(source: str) -> str:
    """Returns code without comments, docstrings and layout."""
    tree = ast.parse(source)
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        if isinstance(body, list):
            # A text alone on a line is a docstring, of a module, a function or a constant.
            kept = [item for item in body if not _is_text(item)]
            node.body = kept or [ast.Pass()]  # pyright: ignore
    return ast.dump(tree)


def _is_text(node: ast.AST) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
