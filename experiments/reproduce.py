"""Trains populations of pairs, measures where they meet, decides hypotheses, writes a report.

python -m experiments.reproduce [--config=configs/digits.py[:VARIANT]] [--only=G1,T1|all]
"""

from experiments import cli, environment, pipeline
from experiments.runs import Run
from halfway import placement


def main(options: cli.Options) -> None:
    """One run."""
    settings = cli.prepare(options)
    with placement.use(settings.layout):
        pool = settings.dataset.pool(settings.config.subset)
        run = Run.create(settings.workdir, cli.identity(settings), settings.layout.mesh.size)
        run.checkpoint_every = settings.checkpoint_every
        with run.locked():
            if not run.notes()["environment"]:
                run.note(environment=environment.describe(settings.dataset))
            pipeline.measure(run, settings.studies, pool)
            cli.finish(run)


if __name__ == "__main__":
    cli.launch(main)
