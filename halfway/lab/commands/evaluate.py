"""Evaluate how robust a model of yours is: any JAX classifier, at several budgets, with intervals.

What it takes is in `halfway.lab.flags.evaluate`.
"""

import functools
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np

from halfway import attacks, robustness, storage
from halfway.attacks import Threat
from halfway.attacks.minimum_norm.nearest import MAKE
from halfway.lab.ahead import programs, slices
from halfway.lab.config.place import Place
from halfway.lab.config.user import LOG, UserError, writing
from halfway.lab.entry import launch
from halfway.lab.flags.evaluate import (
    ADVERSARIAL,
    ATTACKS,
    AUTO_VERSION,
    BATCH_SIZE,
    COMPILATION_CACHE,
    CURVES,
    DATA,
    DATA_DIR,
    MAX_READ,
    MODEL_FN,
    NUM_EXAMPLES,
    OUT_DIR,
    SEED,
    THREAT,
    TOPOLOGY,
)
from halfway.lab.report import evaluation_page
from halfway.lab.report.page import write
from halfway.lab.runtime import devices, environment, processes, progress
from halfway.lab.study.wording import format_duration
from halfway.lab.user_models import evaluations, loading, stored
from halfway.robustness import Step
from halfway.types import LogitsFn

SAVE_EVERY = 30.0
"""Seconds from one time that the state is stored to the next."""
SAY_EVERY = 10.0
"""Seconds from one line about the progress to the next."""


def main() -> None:
    """Writes one page about a model, and what attacks have found."""
    devices.start(Place(compilation_cache=COMPILATION_CACHE.value))
    hardware = slices.choose(TOPOLOGY.value)
    folder = Path(OUT_DIR.value)
    stored.check_folder(folder, evaluations.FILE_NAME)
    fns = _attacks()
    threats = tuple(MAKE[threat.norm](threat.epsilon) for threat in THREAT.value)
    examples = loading.load_examples(
        DATA.value, DATA_DIR.value, NUM_EXAMPLES.value, SEED.value, max_gb=MAX_READ.value
    )
    model = loading.load_model("model", MODEL_FN.value)
    logits = loading.check_models({"model": {"model": model}}, examples)
    loading.check_attacks(fns, threats[0], model, examples)
    if hardware is not None:
        options = {"curves": CURVES.value, "batch_size": BATCH_SIZE.value}
        options |= {"threats": threats, "attacks": fns}
        print(programs.said_of_evaluation(hardware, model, examples, options))
        return
    step = _evaluated(model, examples, threats, fns, logits)
    page, tables = evaluation_page.page(
        step.robustness,
        examples.images,
        model=MODEL_FN.value,
        source=examples.source,
        command=launch.command_line(),
        settings=_settings() | environment.versions() | {"devices": jax.devices()[0].device_kind},
    )
    files = {"numbers.json": lambda path: storage.write_json(path, page.content["numbers"])}
    if ADVERSARIAL.value:
        arrays = evaluation_page.adversarial_arrays(step.robustness)
        files["adversarial.npz"] = lambda path: storage.write_arrays(path, arrays)
    path = write(folder, page, files, resumes=True)
    for sentence in page.content["sentences"]:
        print(sentence)
    for table in tables:
        print(f"\n{table}")
    print(f"\n{path}")


def _attacks() -> dict[str, Callable[..., Any]]:
    """Returns the attacks by name, AutoAttack in the version that was asked for."""
    fns = loading.named_attacks(ATTACKS.value)
    if not fns:
        raise UserError("--attacks needs at least one name, e.g. auto_attack")
    if "auto_attack" in fns:
        fns["auto_attack"] = functools.partial(attacks.auto_attack, version=AUTO_VERSION.value)
    return fns


def _settings() -> dict[str, Any]:
    """Returns what decides what is computed, by name."""
    return {
        "model": MODEL_FN.value,
        "data": DATA.value,
        "threat": [f"{threat.norm}:{threat.epsilon:.12g}" for threat in THREAT.value],
        "attacks": list(ATTACKS.value),
        "version": AUTO_VERSION.value,
        "num_examples": NUM_EXAMPLES.value,
        "seed": SEED.value,
        "batch_size": BATCH_SIZE.value,
        "curves": CURVES.value,
    }


def _evaluated(
    model: LogitsFn,
    examples: loading.Examples,
    threats: tuple[Threat, ...],
    fns: dict[str, Callable[..., Any]],
    logits: np.ndarray,
) -> Step:
    """Returns the last step, taken up where the folder has an earlier one."""
    folder = Path(OUT_DIR.value)
    facts = stored.identity(_settings(), examples)
    step = evaluations.load(folder, facts, logits, threats, examples.labels)
    if step is not None and step.share == 1:
        LOG.info("%s holds this evaluation: nothing is computed", folder)
        return step
    if step is not None:
        LOG.info("resumed at %d %%: %s", 100 * step.share, step.words)
    LOG.info("%d images of %s", len(examples.labels), examples.source)
    started = said = saved = time.monotonic()
    begun = 0.0 if step is None else step.share
    try:
        steps = robustness.evaluate_steps(
            model,
            examples.images,
            examples.labels,
            threats=threats,
            attacks=fns,
            key=jax.random.key(SEED.value),
            curves=CURVES.value,
            batch_size=BATCH_SIZE.value,
            step=step,
        )
    except ValueError as error:
        raise UserError(str(error)) from error
    with (
        processes.in_pieces(),
        writing(f"--out_dir={folder}", resumes=True),
        progress.doing(lambda: "first look at the model" if step is None else step.words),
    ):
        for step in steps:
            now = time.monotonic()
            if now - said > SAY_EVERY and step.share > begun + 0.02:
                left = (now - started) * (1 - step.share) / (step.share - begun)
                line = "%d %%, %s left: %s"
                LOG.info(line, 100 * step.share, format_duration(left), step.words)
                said = now
            ending = processes.is_ending()
            if now - saved > SAVE_EVERY or step.share == 1 or ending:
                evaluations.save(folder, step, facts, logits)
                saved = time.monotonic()
            if ending and step.share < 1:
                raise processes.Terminated
    assert step is not None
    return step
