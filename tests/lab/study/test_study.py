"""Requests and conditions are named so that what is stored is found again."""

import dataclasses

from halfway.lab.measurements.measurements import LEARNING
from halfway.lab.runtime import pipeline
from halfway.lab.study import plants, protocol
from halfway.lab.study.conditions import condition
from halfway.lab.study.protocol import Request

ONE = condition(plants.CONFIG, "mlp")


def many(number):
    return tuple(dataclasses.replace(ONE, seed=seed) for seed in range(number))


def test_a_request_of_few_conditions_names_them_all():
    few = many(protocol.MANY)
    assert Request(LEARNING, few).key == "-".join(["learning", *(one.key for one in few)])


def test_a_request_of_many_conditions_has_a_name_that_a_file_can_have():
    whole = many(40)
    keys = {Request(LEARNING, part).key for part in (whole, whole[:39], whole[:1] + whole[:0:-1])}
    assert len(keys) == 3  # by what they are, and by their order
    assert all(len(key) < 60 and key.startswith(f"learning-{ONE.key}-") for key in keys)
    assert Request(LEARNING, whole).key in keys


def test_a_condition_in_a_few_words():
    assert pipeline.label(ONE) == "mlp ρ=0"
    other = dataclasses.replace(ONE, overlap=0.25, shared_start=True, noise_rate=0.4)
    assert pipeline.label(other) == "mlp ρ=0.4 ω=0.25 one start"
    assert pipeline.label(dataclasses.replace(ONE, permuted=True)) == "mlp permuted"
