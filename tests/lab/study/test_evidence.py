"""Kinds of evidence: whatever a user chose with the data in sight is not confirmatory."""

import types

import pytest

from halfway.lab import studies
from halfway.lab.config import config_file, settings
from halfway.lab.study import evidence, registration

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
    assert evidence.nearest(_config(name)) == name
    assert evidence.kind(_config(name)) == "confirmatory"


def test_what_was_looked_at_before_is_exploratory():
    assert evidence.kind(_config("digits")) == "exploratory"
    assert evidence.kind(_config("digits", seed=1)) == "exploratory"


@pytest.mark.parametrize(
    ("changes", "kind"),
    [
        ({"num_pairs": 15}, "none"),
        ({"num_pairs": 64}, "replication"),
        ({"seed": 7}, "replication"),
        ({"hypotheses": ("G2",)}, "confirmatory"),
    ],
)
def test_draws_and_number_of_pairs(changes, kind):
    assert evidence.kind(_config(**changes)) == kind


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
        {"num_examples": 99},
        {"num_classes": 3},
        {"shuffled_labels": True},
        {"dataset": "folder:mine"},
    ],
)
def test_other_settings_are_exploratory(changes):
    config = _config(**changes)
    assert evidence.changed(config) == tuple(changes)
    assert evidence.kind(config) == "exploratory"
    assert evidence.kind(_config(**changes, num_pairs=64)) == "exploratory"


# What the lock says


def _lock(monkeypatch, **changes):
    lock = dict(registration.read()) | changes
    monkeypatch.setattr(registration, "read", lambda: lock)


def test_a_config_that_is_not_the_locked_one_is_exploratory(monkeypatch):
    configs = dict(registration.read()["configs"])
    _lock(monkeypatch, configs=configs | {"mnist": configs["mnist"] | {"digest": "0"}})
    assert evidence.kind(_config("mnist")) == "exploratory"
    assert evidence.kind(_config("cifar10")) == "confirmatory"
    _lock(monkeypatch, configs={})
    assert evidence.kind(_config("cifar10")) == "exploratory"


def test_a_rule_that_is_not_the_locked_one_is_exploratory(monkeypatch):
    study = studies.available()["G7"]
    assert evidence.kind(_config(), study) == "confirmatory"
    rules = dict(registration.read()["rules"])
    _lock(monkeypatch, rules=rules | {"G7": rules["G7"] | {"digest": "0"}})
    assert evidence.kind(_config(), study) == "exploratory"
    assert evidence.kind(_config(), studies.available()["G8"]) == "confirmatory"


def test_a_number_that_was_seen_makes_a_rule_exploratory_there(monkeypatch):
    study = studies.available()["G7"]
    rules = dict(registration.read()["rules"])
    seen = rules["G7"] | {"seen": ["digits", "mnist"]}
    _lock(monkeypatch, rules=rules | {"G7": seen})
    assert evidence.kind(_config("mnist"), study) == "exploratory"
    assert evidence.kind(_config("cifar10"), study) == "confirmatory"


# Digests


def test_the_lock_has_every_rule_and_config_as_it_is():
    """Fails where a rule or a config changed: run `halfway register`, and say why in the commit."""
    known = {
        name: study for name, study in studies.available().items() if study.kind != "description"
    }
    assert set(registration.read()["rules"]) == set(known)
    changed = [name for name, study in known.items() if not registration.is_locked(study)]
    assert changed == []
    configs = registration.read()["configs"]
    assert {name for name in configs if not registration.is_config_locked(name)} == set()
    decisive = {n for n in config_file.shipped_names() if config_file.load(n).config.hypotheses}
    assert set(configs) == decisive
    for entry in registration.read()["rules"].values():
        assert set(registration.LOOKED_AT) <= set(entry["seen"])


def test_comments_words_and_layout_are_no_part_of_a_rule():
    bare = registration._rule_code
    assert bare('X = 1\n"""What X is."""\n') == bare("X   =  1  # what X is\n")
    assert bare('def f():\n    """Return 1."""\n    return 1\n') == bare("def f(): return 1")
    assert bare("X = 1") != bare("X = 2")
    assert bare('X = "a"') != bare('X = "b"')


def test_a_renewed_lock_counts_versions_and_keeps_what_is_not_its_own(monkeypatch):
    rules = dict(registration.read()["rules"])
    old = rules["G7"] | {"digest": "0", "version": 4, "seen": ["digits", "mixture", "mnist"]}
    old["same_numbers_as"] = {"1": "it only ended in errors"}
    _lock(monkeypatch, rules=rules | {"G7": old}, fitted={"T3": {"lines": {}}})
    today = "2031-02-03"
    renewed = registration.updated(studies.available().values(), {"T12": {"lines": {}}}, today)
    entry = renewed["rules"]["G7"]
    assert (entry["version"], entry["date"], entry["seen"]) == (5, today, old["seen"])
    assert "same_numbers_as" not in entry  # that was the version before
    assert renewed["rules"]["G8"] == rules["G8"]
    assert set(renewed["fitted"]) == {"T3", "T12"}


def test_a_version_that_had_the_same_numbers_decides_alike(monkeypatch):
    rules = dict(registration.read()["rules"])
    mended = rules["G7"] | {"digest": "2", "same_numbers_as": {"1": "it only ended in errors"}}
    _lock(monkeypatch, rules=rules | {"G7": mended})
    alike = [digest for digest in "0123" if registration.decides_alike("G7", digest)]
    assert alike == ["1", "2"]
    assert not registration.decides_alike("none", "1")


def test_numbers_that_were_never_fitted_are_asked_for(monkeypatch):
    _lock(monkeypatch, fitted={})
    with pytest.raises(registration.UserError, match="halfway register --workdir"):
        registration.fitted("T3")


def test_the_rule_of_a_study_is_its_code_and_claim(tmp_path):
    study = studies.available()["G7"]
    text = types.SimpleNamespace(claim="Another claim.")
    other = types.SimpleNamespace(
        id=study.id, kind=study.kind, claim=text.claim, stands_on=(), decide=study.decide
    )
    assert registration.rule_digest(other) != registration.rule_digest(study)


def test_what_is_measured_is_part_of_the_rule(tmp_path, monkeypatch):
    """T3 decides over the grid: a line of it that changes changes the rule."""
    study, file_of = studies.available()["T3"], registration._file
    before = registration.rule_digest(study)
    changed = tmp_path / "grid.py"
    source = file_of("halfway.lab.measurements.grid").read_text(encoding="utf-8")
    changed.write_text(source.replace("SGD_RATE = 0.1", "SGD_RATE = 0.2"), encoding="utf-8")
    monkeypatch.setattr(
        registration, "_file", lambda name: changed if name.endswith(".grid") else file_of(name)
    )
    assert registration.rule_digest(study) != before
    assert registration.is_locked(studies.available()["G7"])


def test_a_rule_and_a_config_say_in_words_whether_they_are_locked(monkeypatch):
    study, rules = studies.available()["G7"], dict(registration.read()["rules"])
    digest = registration.rule_digest(study)
    assert registration.described_rule(study).endswith(f"digest {digest}, as locked")
    _lock(monkeypatch, rules=rules | {"G7": rules["G7"] | {"digest": "0"}})
    assert registration.described_rule(study) == f"digest {digest}, not that of the lock, 0"
    _lock(monkeypatch, rules={})
    assert registration.described_rule(study) == f"digest {digest}, not in the lock"
    assert registration.described_config("digits").startswith("digits, version 2")
