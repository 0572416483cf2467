"""An evaluation on disk: stored after a while, taken up again by the same command."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from halfway import storage
from halfway.attacks import Diagnosis, Progress, StagedResult, Threat
from halfway.lab.config.user import UserError
from halfway.lab.user_models.loading import NUM_CHECKED, Examples
from halfway.robustness import Robustness, Step
from halfway.types import LogitsFn

FILE_NAME = "evaluation.npz"
_OUTCOMES = ("predicted", "fooled", "undecided", "adversarial", "found_by", "distance")
_SAME = 1e-3
"""Relative difference of logits up to which a model is the same one."""


def identity(settings: Mapping[str, Any], examples: Examples) -> dict[str, Any]:
    """Returns what makes an evaluation the same one, as plain data; the model apart.

    Args:
      settings: flags that decide what is computed.
      examples: that are attacked.
    """
    digest = storage.tree_digest({"images": examples.images, "labels": examples.labels})
    return {**settings, "examples": digest}


def logits_of(model: LogitsFn, examples: Examples) -> np.ndarray:
    """Returns logits of the first images, by which a model is recognized.

    Args:
      model: of the user.
      examples: that are attacked.
    """
    return np.asarray(jax.jit(lambda x: model(x))(jnp.asarray(examples.images[:NUM_CHECKED])))


def is_same_model(before: np.ndarray, logits: np.ndarray) -> bool:
    """Returns whether logits on the same images are the same but for rounding.

    Args:
      before: as they were stored.
      logits: as they are.
    """
    if before.shape != logits.shape:
        return False
    return np.allclose(before, logits, rtol=_SAME, atol=_SAME * np.ptp(logits))


def save(folder: Path, step: Step, facts: Mapping[str, Any], logits: np.ndarray) -> None:
    """Writes how far an evaluation has come.

    Args:
      folder: of the evaluation, made where it is missing.
      step: where it stands.
      facts: of `identity`.
      logits: of `logits_of`.

    Raises:
      OSError: if the file cannot be written.
    """
    result = step.robustness
    arrays = {name: getattr(result, name) for name in _OUTCOMES}
    arrays |= {"left": step.left, "logits": logits}
    if result.diagnosis is not None:
        arrays |= {f"diagnosis.{k}": np.asarray(v) for k, v in result.diagnosis._asdict().items()}
    if step.progress is not None:
        arrays |= {f"result.{k}": v for k, v in step.progress.result._asdict().items()}
        arrays["stage_left"] = step.progress.left
    stage = None if step.progress is None else [step.progress.stage, step.progress.rank]
    stored = {
        "identity": facts,
        "attacks": list(result.attacks),
        "norms": list(result.norms),
        "place": step.place,
        "stage": stage,
        "share": step.share,
        "words": step.words,
    }
    folder.mkdir(parents=True, exist_ok=True)
    storage.write_arrays(folder / FILE_NAME, arrays, stored)


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
      facts: of `identity`.
      logits: of `logits_of`.
      threats: that are asked for.
      labels: of the images.

    Raises:
      UserError: if the folder holds another evaluation, or something else.
    """
    path = folder / FILE_NAME
    if not path.is_file():
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise UserError(f"--out_dir={folder} holds something else: choose another folder")
        return None
    try:
        arrays, stored = storage.read_facts(path)
        known = stored["identity"]
    except storage.UNREADABLE as error:
        raise UserError(
            f"{path} cannot be read ({error}): remove it, or choose another --out_dir"
        ) from error
    other = sorted(name for name in {*known, *facts} if known.get(name) != facts.get(name))
    if other:
        raise UserError(
            f"--out_dir={folder} holds another evaluation ({', '.join(other)} differ): choose "
            "another folder"
        )
    if not is_same_model(arrays["logits"], logits):
        raise UserError(
            f"--out_dir={folder} holds an evaluation of a model with other logits: choose another "
            "folder"
        )
    diagnosis = None
    if "diagnosis.num_inputs" in arrays:
        diagnosis = Diagnosis(*(arrays[f"diagnosis.{name}"] for name in Diagnosis._fields))  # pyright: ignore
    result = Robustness(
        attacks=tuple(stored["attacks"]),
        threats=threats,
        labels=labels,
        norms=tuple(stored["norms"]),
        diagnosis=diagnosis,
        **{name: arrays[name] for name in _OUTCOMES},
    )
    progress = None
    if stored["stage"] is not None:
        staged = StagedResult(*(arrays[f"result.{name}"] for name in StagedResult._fields))  # pyright: ignore
        stage, rank = stored["stage"]
        progress = Progress(staged, stage, rank, arrays["stage_left"])
    return Step(result, stored["place"], arrays["left"], progress, stored["share"], stored["words"])
