"""Cells of a grid of transfer on disk, one for each attack and budget, to be taken up again."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from halfway import storage, transfer
from halfway.lab.config.user import UserError
from halfway.lab.user_models.evaluations import is_same_model
from halfway.transfer import TransferMatrix

FOLDER = "cells"


def _path(folder: Path, attack: str, budget: float) -> Path:
    return folder / FOLDER / f"{attack}_{budget:.12g}.npz"


def save_cell(
    folder: Path,
    attack: str,
    budget: float,
    cell: TransferMatrix,
    facts: Mapping[str, Any],
    logits: np.ndarray,
) -> None:
    """Writes what an attack at a budget did.

    Args:
      folder: of the command's results; made where it is missing.
      attack: its name.
      budget: ε.
      cell: the outcomes.
      facts: what makes it the same grid.
      logits: `[M, B, C]` of all models on a few images, by which they are recognized.

    Raises:
      OSError: if it cannot be written.
    """
    arrays = {"norm": np.asarray(cell.norm), "logits": logits}
    for side in ("surrogate", "target"):
        for points, outcome in getattr(cell, side).items():
            for field, values in outcome._asdict().items():
                arrays[f"{side}.{points}.{field}"] = np.asarray(values)
    arrays |= {f"matched.{name}": np.asarray(values) for name, values in cell.matched.items()}
    path = _path(folder, attack, budget)
    path.parent.mkdir(parents=True, exist_ok=True)
    storage.write_arrays(path, arrays, facts)


def load_cell(
    folder: Path, attack: str, budget: float, facts: Mapping[str, Any], logits: np.ndarray
) -> TransferMatrix | None:
    """Returns what an attack at a budget did; None where it is not stored.

    Args:
      folder: of the command's results.
      attack: its name.
      budget: ε.
      facts: what makes it the same grid.
      logits: `[M, B, C]` of all models on a few images.

    Raises:
      UserError: if the folder holds another grid, or the file cannot be read.
    """
    path = _path(folder, attack, budget)
    if not path.is_file():
        return None
    try:
        arrays, known = storage.read_facts(path)
    except storage.UNREADABLE as error:
        raise UserError(
            f"{path} cannot be read ({error}): remove it, or choose another --out_dir"
        ) from error
    other = sorted(name for name in {*known, *facts} if known.get(name) != facts.get(name))
    if other or not is_same_model(arrays["logits"], logits):
        what = ", ".join(other) or "the models"
        raise UserError(
            f"--out_dir={folder} holds another grid ({what} differ): choose another folder"
        )

    def outcomes(side: str) -> dict[str, transfer.Evaluation]:
        return {
            points: transfer.Evaluation(
                *(arrays[f"{side}.{points}.{field}"] for field in transfer.Evaluation._fields)  # pyright: ignore
            )
            for points in ("clean", *transfer.KINDS)
        }

    matched: Any = {name: arrays[f"matched.{name}"] for name in transfer.CONTROLS}
    norm: Any = arrays["norm"]
    return TransferMatrix(outcomes("surrogate"), outcomes("target"), matched, norm)


def check_folder(folder: Path, attacks: Sequence[str], budgets: Sequence[float]) -> None:
    """Checks that a folder is free, or holds results of this command.

    Args:
      folder: of the command's results.
      attacks: names.
      budgets: ε.

    Raises:
      UserError: if it is no folder, or holds something else.
    """
    if folder.exists() and not folder.is_dir():
        raise UserError(f"--out_dir={folder} is not a folder: choose another")
    if not folder.is_dir() or not any(folder.iterdir()):
        return
    if not (folder / FOLDER).is_dir():
        raise UserError(f"--out_dir={folder} holds something else: choose another folder")
    ours = {_path(folder, attack, budget) for attack in attacks for budget in budgets}
    if set((folder / FOLDER).glob("*.npz")) - ours:
        raise UserError(f"--out_dir={folder} holds other attacks or budgets: choose another folder")
