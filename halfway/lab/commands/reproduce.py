"""Trains populations of pairs, measures where they meet, decides hypotheses, writes a report.

python -m experiments.reproduce [--config=configs/digits.py[:VARIANT]] [--only=G1,T1|all]
    [--dry_run]
"""

from halfway import sharding
from halfway.data import Split
from halfway.lab.commands import cli
from halfway.lab.runtime import environment, pipeline, processes, tensorboard
from halfway.lab.runtime.runs import Run


def main(options: cli.Options) -> None:
    """One run."""
    settings = cli.prepare(options)
    pool = settings.dataset.pool(settings.config.subset)
    if options.tensorboard:
        tensorboard.check()
    with sharding.use(settings.layout):
        if options.dry_run:
            processes.shared(lambda: print(_plan(settings, pool)))
            return
        run = Run.create(settings.workdir, cli.identity(settings), settings.layout.mesh.size)
        run.checkpoint_every = settings.checkpoint_every
        with run.locked():
            if not run.notes()["environment"]:
                run.note(environment=environment.describe(settings.dataset))
            pipeline.measure(run, settings.studies, pool)
            if options.tensorboard:
                processes.shared(lambda: pipeline.write_events(run, settings.studies))
            cli.finish(run)


def _plan(settings: cli.Settings, pool: Split) -> str:
    return pipeline.plan(settings.workdir, settings.config, settings.studies, pool, settings.layout)


def run() -> None:
    """Runs the command with the arguments of the process."""
    cli.launch(main, takes=(*cli.RUN_FLAGS, "dry_run", "tensorboard"))
