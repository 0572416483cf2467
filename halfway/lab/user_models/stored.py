"""What commands on a user's models store: taken up again only where it is of the same models."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

import halfway
from halfway import storage
from halfway.lab.config import user
from halfway.lab.config.user import UserError
from halfway.lab.user_models.loading import Examples

_SAME = 1e-3
"""Relative difference of logits up to which a model is the same one."""


def identity(settings: Mapping[str, Any], examples: Examples) -> dict[str, Any]:
    """Returns what makes results the same ones, as plain data; the models apart.

    Args:
      settings: that decide what is computed.
      examples: that are attacked.
    """
    digest = storage.tree_digest({"images": examples.images, "labels": examples.labels})
    return {**settings, "examples": digest, "halfway": halfway.__version__}


def check_folder(folder: Path, marker: str) -> None:
    """Checks that a folder is free, or holds results of the same command.

    Args:
      folder: of the results.
      marker: a file or folder in it that only this command writes.

    Raises:
      UserError: if it is no folder, or holds something else.
    """
    user.check_folder(f"--out_dir={folder}", folder)
    if folder.is_dir() and any(folder.iterdir()) and not (folder / marker).exists():
        raise UserError(f"--out_dir={folder} holds something else: choose another folder")


def write(
    path: Path,
    arrays: Mapping[str, np.ndarray],
    facts: Mapping[str, Any],
    logits: np.ndarray,
    **more: Any,
) -> None:
    """Writes arrays with what they are of.

    Args:
      path: of the file; its folder is made where it is missing.
      arrays: by name.
      facts: of `identity`.
      logits: of `loading.check_models`, by which models are recognized.
      **more: plain data to be kept with them.

    Raises:
      OSError: if the file cannot be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    storage.write_arrays(path, {**arrays, "logits": logits}, {"identity": facts, **more})


def read(
    path: Path, facts: Mapping[str, Any], logits: np.ndarray, *, folder: Path, what: str
) -> tuple[dict[str, np.ndarray], dict[str, Any]] | None:
    """Returns arrays and plain data that were written of the same models; None without a file.

    Args:
      path: of the file.
      facts: of `identity`.
      logits: of `loading.check_models`.
      folder: that the user named, for messages.
      what: it holds, for messages.

    Raises:
      UserError: if it is of something else, or cannot be read.
    """
    if not path.is_file():
        return None
    try:
        arrays, plain = storage.read_facts(path)
        known, before = dict(plain["identity"]), arrays["logits"]
    except storage.UNREADABLE as error:
        raise UserError(
            f"{path} cannot be read ({error}): remove it, or choose another --out_dir"
        ) from error
    other = sorted(name for name in {*known, *facts} if known.get(name) != facts.get(name))
    same = before.shape == logits.shape and np.allclose(
        before, logits, rtol=_SAME, atol=_SAME * np.ptp(logits)
    )
    if other or not same:
        differs = ", ".join(other) or "logits of the models"
        raise UserError(
            f"--out_dir={folder} holds another {what} ({differs} differ): choose another folder"
        )
    return arrays, plain
