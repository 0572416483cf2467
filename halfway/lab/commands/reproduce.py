"""Train populations of pairs, measure where they meet, decide hypotheses, write a report.

What it takes is in `halfway.lab.flags.reproduce`.
"""

from pathlib import Path

from halfway import sharding
from halfway.lab import studies
from halfway.lab.ahead import programs, slices
from halfway.lab.config.user import LOG, UserError
from halfway.lab.entry import launch
from halfway.lab.flags.reproduce import (
    CHECKPOINT_EVERY,
    CONFIG,
    DATA_DIR,
    MAX_READ,
    ONLY,
    PLACE,
    PLAN_ONLY,
    TENSORBOARD,
    TOPOLOGY,
    WORKDIR,
)
from halfway.lab.runtime import datasets, devices, environment, pipeline, processes, runs
from halfway.lab.runtime.runs import Run


def main() -> None:
    """Goes from a config to a report; each stage reads what earlier stages left on disk."""
    devices.start(PLACE.value)  # first: a config may name a model whose file uses JAX
    hardware = slices.choose(TOPOLOGY.value)
    file = CONFIG.load()
    chosen = studies.choose(file.config.hypotheses if ONLY.value is None else ONLY.value)
    unsuitable = studies.unsuitable(chosen, file.config)
    for name, reason in unsuitable.items():
        LOG.info("%s is not for this architecture: %s", name, reason)
    chosen = [study for study in chosen if study.id not in unsuitable]
    if not chosen:
        raise UserError("none of these hypotheses is for this architecture")
    pipeline.check_tensorboard(TENSORBOARD.value)
    dataset = datasets.load_for(file.config, DATA_DIR.value, max_gb=MAX_READ.value)
    pool = datasets.pool_for(file.config, dataset)
    wanted = pipeline.conditions(chosen, file.config, pool)
    layout = devices.lay_out(PLACE.value, wanted, pool, hardware)
    folder = Path(WORKDIR.value or runs.default_folder(file))
    with sharding.use(layout):
        if hardware is not None:
            print(programs.said_of_run(hardware, file.config, chosen, pool))
            return
        if PLAN_ONLY.value:
            plan = processes.shared(
                lambda: pipeline.plan(folder, file.config, chosen, pool, layout)
            )
            processes.shared(lambda: print(plan))
            return
        identity = runs.identity(file, dataset)
        run = Run.create(folder, identity, layout.mesh.size)
        run.checkpoint_every = CHECKPOINT_EVERY.value
        with run.locked():
            run.describe(lambda: environment.describe(dataset, launch.command_line()))
            run.note(unsuitable=run.notes()["unsuitable"] | unsuitable)
            pipeline.measure(run, chosen, pool, with_events=TENSORBOARD.value)
            pipeline.write_events(run, chosen, TENSORBOARD.value)
            pipeline.finish(run)
