"""Kinds of evidence: whatever a user chose with the data in sight is not confirmatory."""

import pytest

from halfway.lab.config import config_file, settings
from halfway.lab.study import evidence

pytestmark = pytest.mark.quick


def _config(name="mnist", **changes):
    plain = config_file.load(name).config.to_dict()
    for field, value in changes.items():
        *groups, last = field.split(".")
        place = plain
        for group in groups:
            place = place[group]
        place[last] = value
    return settings.parse(plain)


@pytest.mark.parametrize("name", ["mnist", "cifar10"])
def test_shipped_configs_are_confirmatory(name):
    assert evidence.changed(_config(name)) == ()
    assert evidence.kind(_config(name)) == "confirmatory"


def test_what_was_looked_at_before_is_exploratory():
    assert evidence.kind(_config("digits")) == "exploratory"
    # Its settings on another data set are not.
    assert evidence.kind(_config("digits", dataset="mine", num_classes=3)) == "confirmatory"


@pytest.mark.parametrize(("num_pairs", "kind"), [(15, "none"), (16, "confirmatory")])
def test_number_of_pairs(num_pairs, kind):
    assert evidence.kind(_config(num_pairs=num_pairs)) == kind
    assert evidence.kind(_config(num_pairs=num_pairs), min_pairs=8) == "confirmatory"


@pytest.mark.parametrize(
    "changes",
    [{"seed": 7}, {"num_pairs": 64}, {"hypotheses": ("G1",)}],
)
def test_what_a_confirmatory_run_may_set(changes):
    assert evidence.kind(_config(**changes)) == "confirmatory"


OF_THE_DATA = {"num_classes": 3, "num_examples": 99, "num_holdout": 50, "subset": "all"}


def test_sizes_may_differ_on_other_data_only():
    assert evidence.kind(_config(dataset="folder:mine", **OF_THE_DATA)) == "confirmatory"
    for name, value in OF_THE_DATA.items():
        changed = _config(**{name: value})
        assert evidence.kind(changed) == "exploratory"
        assert evidence.changed(changed) == (name,)


@pytest.mark.parametrize(
    "changes",
    [
        {"attack.epsilon": 0.2},
        {"attack.num_steps": 100},
        {"training.learning_rate": 1e-3},
        {"training.probe_steps": (0, 100)},
        {"noise_rates": (0.0, 0.5, 1.0)},
        {"architectures": ("mlp",)},
        {"models.cnn.features": (4, 4)},
    ],
)
@pytest.mark.parametrize("dataset", ["mnist", "folder:mine"])
def test_other_settings_are_exploratory(changes, dataset):
    config = _config(dataset=dataset, **changes)
    assert evidence.changed(config) == tuple(changes)
    assert evidence.kind(config) == "exploratory"
