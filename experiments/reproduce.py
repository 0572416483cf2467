"""Trains populations of pairs, measures where they meet, decides hypotheses, writes a report.

python -m experiments.reproduce [--config=configs/digits.py[:VARIANT]] [--only=G1,T1|all]
"""

import jax

from experiments import cli, environment, pipeline
from experiments.runs import Run


def main(options: cli.Options) -> None:
    """One run."""
    settings = cli.prepare(options)
    run = Run.create(settings.workdir, cli.identity(settings), len(jax.devices()))
    with run.locked():
        if not run.notes()["environment"]:
            run.note(environment=environment.describe(settings.dataset))
        pipeline.measure(run, settings.studies, settings.dataset.pool(settings.config.subset))
        cli.finish(run)


if __name__ == "__main__":
    cli.launch(main)
