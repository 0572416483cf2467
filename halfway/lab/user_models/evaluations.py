"""An evaluation on disk: stored after a while, taken up again by the same command."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from halfway.attacks import Diagnosis, Progress, StagedResult, Threat
from halfway.lab.user_models import stored
from halfway.robustness import Robustness, Step

FILE_NAME = "evaluation.npz"
_OUTCOMES = ("predicted", "fooled", "undecided", "adversarial", "found_by", "seen_as", "distance")


def save(folder: Path, step: Step, facts: Mapping[str, Any], logits: np.ndarray) -> None:
    """Writes how far an evaluation has come.

    Args:
      folder: of the evaluation, made where it is missing.
      step: where it stands.
      facts: of `stored.identity`.
      logits: of `loading.check_models`.

    Raises:
      OSError: if the file cannot be written.
    """
    result, progress = step.robustness, step.progress
    arrays = {name: getattr(result, name) for name in _OUTCOMES} | {"left": step.left}
    if result.diagnosis is not None:
        arrays |= {f"diagnosis.{k}": np.asarray(v) for k, v in result.diagnosis._asdict().items()}
    if progress is not None:
        arrays |= {f"result.{k}": v for k, v in progress.result._asdict().items()}
        arrays["stage_left"] = progress.left
    stored.write(
        folder / FILE_NAME,
        arrays,
        facts,
        logits,
        attacks=list(result.attacks),
        norms=list(result.norms),
        place=step.place,
        stage=None if progress is None else [progress.stage, progress.rank],
        share=step.share,
        words=step.words,
    )


def load(
    folder: Path,
    facts: Mapping[str, Any],
    logits: np.ndarray,
    threats: tuple[Threat, ...],
    labels: np.ndarray,
) -> Step | None:
    """Returns where the same evaluation stands; None where the folder has none.

    Args:
      folder: of the evaluation.
      facts: of `stored.identity`.
      logits: of `loading.check_models`.
      threats: that are asked for.
      labels: of the images.

    Raises:
      UserError: if the folder holds another evaluation, or a file that cannot be read.
    """
    path = folder / FILE_NAME
    kept = stored.read(path, facts, logits, folder=folder, what="evaluation")
    if kept is None:
        return None
    arrays, plain = kept
    diagnosis = None
    if "diagnosis.num_inputs" in arrays:
        diagnosis = Diagnosis(*(arrays[f"diagnosis.{name}"] for name in Diagnosis._fields))  # pyright: ignore
    result = Robustness(
        attacks=tuple(plain["attacks"]),
        threats=threats,
        labels=labels,
        norms=tuple(plain["norms"]),
        diagnosis=diagnosis,
        **{name: arrays[name] for name in _OUTCOMES},
    )
    progress = None
    if plain["stage"] is not None:
        staged = StagedResult(*(arrays[f"result.{name}"] for name in StagedResult._fields))  # pyright: ignore
        progress = Progress(staged, *plain["stage"], arrays["stage_left"])  # pyright: ignore
    return Step(result, plain["place"], arrays["left"], progress, plain["share"], plain["words"])
