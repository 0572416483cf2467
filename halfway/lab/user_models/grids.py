"""Cells of a grid of transfer on disk, one for each attack and budget, to be taken up again."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from halfway import transfer
from halfway.lab.config.user import UserError
from halfway.lab.user_models import stored
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
      facts: of `stored.identity`.
      logits: of `loading.check_models`.

    Raises:
      OSError: if it cannot be written.
    """
    arrays = {"norm": np.asarray(cell.norm)}
    for side in ("surrogate", "target"):
        for points, outcome in getattr(cell, side).items():
            for field, values in outcome._asdict().items():
                arrays[f"{side}.{points}.{field}"] = np.asarray(values)
    arrays |= {f"matched.{name}": np.asarray(values) for name, values in cell.matched.items()}
    stored.write(_path(folder, attack, budget), arrays, facts, logits)


def load_cell(
    folder: Path, attack: str, budget: float, facts: Mapping[str, Any], logits: np.ndarray
) -> TransferMatrix | None:
    """Returns what an attack at a budget did; None where it is not stored.

    Args:
      folder: of the command's results.
      attack: its name.
      budget: ε.
      facts: of `stored.identity`.
      logits: of `loading.check_models`.

    Raises:
      UserError: if the folder holds another grid, or the file cannot be read.
    """
    path = _path(folder, attack, budget)
    kept = stored.read(path, facts, logits, folder=folder, what="grid")
    if kept is None:
        return None
    arrays, _ = kept

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
    stored.check_folder(folder, FOLDER)
    ours = {_path(folder, attack, budget) for attack in attacks for budget in budgets}
    if set((folder / FOLDER).glob("*.npz")) - ours:
        raise UserError(f"--out_dir={folder} holds other attacks or budgets: choose another folder")
