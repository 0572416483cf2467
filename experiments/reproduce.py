"""Trains populations of pairs, measures where they meet, decides hypotheses, writes a report.

python -m experiments.reproduce [--config=configs/digits.py[:VARIANT]] [--only=G1,T1|all]
    [--dry_run]
"""

from experiments import cli, environment, pipeline, processes, tensorboard
from experiments.runs import Run
from halfway import placement
from halfway.data import Split


def main(options: cli.Options) -> None:
    """One run."""
    settings = cli.prepare(options)
    pool = settings.dataset.pool(settings.config.subset)
    if options.tensorboard:
        tensorboard.check()
    with placement.use(settings.layout):
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


if __name__ == "__main__":
    cli.launch(main, takes=(*cli.RUN_FLAGS, "dry_run", "tensorboard"))
