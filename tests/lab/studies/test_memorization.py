"""Passes over a half, by hand."""

import dataclasses

from support import tiny_run

from halfway.lab.studies.g8 import measure
from halfway.lab.study.conditions import condition


def test_passes_are_steps_over_the_half_and_end_with_training():
    one = dataclasses.replace(condition(tiny_run.digits(), "mlp"), probe_steps=(0, 200))
    assert one.num_examples == 600 and one.batch_size == 64
    assert measure.pass_steps(one) == (9, 19, 38, 75, 150, 200)
