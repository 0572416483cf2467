"""A model of anybody's own evaluated: from the function that loads it to the page."""

import json
import re
import signal

import jax.numpy as jnp
import numpy as np
import pytest
from support import commands

from halfway import attacks, robustness, storage
from halfway.lab.commands import evaluate as command
from halfway.lab.config.user import UserError
from halfway.lab.entry import launch
from halfway.lab.flags import evaluate as flags
from halfway.lab.report import evaluation_page
from halfway.lab.runtime import processes
from halfway.lab.user_models import evaluations, loading

MODULE = """
import numpy as np

WEIGHTS = np.random.default_rng(3).normal(size=(16, 3)).astype(np.float32)

def logits_fn(x):
    return (x.reshape(len(x), -1) - 0.5) @ WEIGHTS

def load():
    return logits_fn

def broken():
    raise RuntimeError("no weights here")

def many():
    return {"a": logits_fn, "b": logits_fn}

def number():
    return 3

def other():
    return lambda x: 2 * logits_fn(x)
"""
WEIGHTS = np.random.default_rng(3).normal(size=(16, 3)).astype(np.float32)


def logits_fn(x):
    return (x.reshape(len(x), -1) - 0.5) @ WEIGHTS


def problem():
    images = np.random.default_rng(0).uniform(0, 1, (30, 4, 4, 1)).astype(np.float32)
    labels = np.array(logits_fn(images).argmax(-1))
    labels[:4] = (labels[:4] + 1) % 3
    return images, labels


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("evaluate")
    (folder / "my_model.py").write_text(MODULE)
    images, labels = problem()
    storage.write_arrays(folder / "x.npz", {"images": images, "labels": labels})
    return folder


def options(**given):
    chosen = {
        "model": "my_model:load",
        "data": "x.npz",
        "threat": "linf:0.05,8/255,l2:0.2",
        "attacks": "pgd,fgsm",
        "batch_size": "8",
        "compilation_cache": "off",
        "out_dir": "out",
    } | given
    return [f"--{name}={value}" for name, value in chosen.items() if value]


def call(folder, **given):
    return commands.call(folder, "evaluate", *options(**given))


@pytest.fixture(scope="module")
def done(folder):
    result = call(folder, adversarial="True")
    assert result.code == 0, result
    return result


def test_it_says_and_writes_what_the_library_finds(folder, done):
    images, labels = problem()
    threats = [attacks.linf(0.05), attacks.linf(8 / 255), attacks.l2(0.2)]
    fns = {"pgd": attacks.pgd, "fgsm": attacks.fgsm}
    truth = robustness.evaluate(logits_fn, images, labels, threats=threats, attacks=fns)
    numbers = json.loads((folder / "out" / "numbers.json").read_text())
    assert numbers["clean_accuracy"]["estimate"] == pytest.approx(26 / 30)
    for place, row in enumerate(numbers["robust_accuracy"]):
        share = truth.robust_accuracy(place)
        assert row["all together"]["estimate"] == pytest.approx(share.estimate)
        assert row["pgd"]["estimate"] == pytest.approx(truth.robust_accuracy(place, "pgd").estimate)
    shares = [f"{100 * truth.robust_accuracy(place).estimate:.1f}" for place in range(3)]
    for share, budget in zip(shares, ("0.05", "8/255", "0.2"), strict=True):
        assert re.search(rf"^{share} .*at most {budget} ", done.out, flags=re.M), done.out
    assert done.out.startswith("The model classifies 86.7 [70.3, 94.7] % of 30 images")
    page = (folder / "out" / "evaluation.html").read_text()
    for words in ("How robust is it?", "my_model:load", "Class by class", "Square"):
        assert words in page
    arrays = storage.read_arrays(folder / "out" / "adversarial.npz")
    rows = arrays["linf_0.05_rows"]
    points = arrays["linf_0.05_images"]
    assert len(rows) == truth.fooled[:, 0].any(0).sum() > 0
    assert (logits_fn(points).argmax(-1) != labels[rows]).all()
    assert np.abs(points - images[rows]).max() <= 0.05 + 1e-6


def test_the_same_command_answers_from_disk_and_another_is_refused(folder, done, monkeypatch):
    monkeypatch.setattr(robustness, "evaluate_steps", None)
    again = call(folder)
    assert again.code == 0 and "nothing is computed" in again.err
    assert again.out == done.out
    differs = call(folder, threat="linf:0.07").complaint
    assert "holds another evaluation (threat differ)" in differs
    (folder / "full").mkdir()
    (folder / "full" / "letter.txt").write_text("dear")
    assert "holds something else" in call(folder, out_dir="full").complaint


def test_a_model_that_changed_under_its_name_is_noticed(folder, done):
    facts, images, step = {}, problem(), _a_step()
    logits = logits_fn(images[0])
    evaluations.save(folder / "changed", step, facts, logits)
    arguments = step.robustness.threats, images[1]
    assert evaluations.load(folder / "changed", facts, logits, *arguments) is not None
    with pytest.raises(UserError, match="logits of the models differ"):
        evaluations.load(folder / "changed", facts, 2 * logits, *arguments)


def _a_step():
    images, labels = problem()
    steps = robustness.evaluate_steps(
        logits_fn, images, labels, threats=[attacks.linf(0.05)], attacks=["fgsm"], batch_size=8
    )
    next(steps)
    return next(steps)


@pytest.mark.parametrize("attack", ["fgsm", "auto_attack"])
def test_ended_by_a_signal_it_goes_on(folder, monkeypatch, attack):
    name = f"ended_{attack}"
    few = {"num_steps": 3, "num_queries": 10}
    original = command._attacks

    def small():
        fns = original()
        for fn in fns.values():
            if getattr(fn, "func", None) is attacks.auto_attack:
                fn.keywords.update(few)
        return fns

    monkeypatch.setattr(command, "_attacks", small)
    asked = []

    def ending():
        asked.append(1)
        return len(asked) == 9

    given = {"out_dir": name, "attacks": attack, "threat": "linf:0.03,0.05"}
    with monkeypatch.context() as patch:
        patch.setattr(processes, "is_ending", ending)
        first = call(folder, **given)
    assert first.code == processes.CODES[signal.SIGTERM]
    assert "terminated: the same command goes on from here" in first.err and not first.out
    second = call(folder, **given)
    assert second.code == 0 and "resumed at" in second.err, second
    whole = call(folder, **given | {"out_dir": f"whole_{attack}"})
    assert second.out.replace(name, "") == whole.out.replace(f"whole_{attack}", "")


@pytest.mark.quick
@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"model": ""}, "--model is needed"),
        ({"data": ""}, "--data is needed"),
        ({"threat": "linf"}, "--threat must be norms of linf, l2, l1 with budgets"),
        ({"threat": "0.1"}, "e.g. linf:8/255,l2:0.5"),
        ({"threat": "l3:0.1"}, "--threat must be"),
        ({"threat": "linf:-1"}, "--threat must be"),
        ({"attacks": "pdg"}, "got 'pdg'"),
        ({"model": "my_model:broken"}, "no weights here"),
        ({"model": "my_model:many"}, "returns 2 models: return one"),
        ({"model": "my_model:number"}, "must return a function from images to logits, got int"),
        ({"model": "my_model"}, "write pkg.module:fn"),
        ({"model": "nowhere:load"}, "cannot be imported"),
        ({"data": "digits"}, "fails on images of shape [8, 8, 1]"),
        ({"data": "missing.npz"}, "cannot be read"),
    ],
)
def test_a_mistake_is_one_line(folder, given, words):
    assert words in call(folder, **given | {"out_dir": "never"}).complaint


@pytest.mark.quick
def test_budgets_are_read_with_their_norms():
    launch.parse(flags.FLAGS, ["--threat=linf:4/255,8/255,l2:0.5"])
    assert flags.THREAT.value == (("linf", 4 / 255), ("linf", 8 / 255), ("l2", 0.5))
    launch.parse(flags.FLAGS, [])
    assert flags.THREAT.value == (("linf", 8 / 255),)
    assert "(default linf:8/255)" in launch.usage("evaluate", flags.FLAGS)


@pytest.mark.quick
def test_images_are_drawn_evenly_from_sorted_classes():
    labels = np.repeat(np.arange(10), 100)
    rows = loading.draw_evenly(labels, 55, 0)
    assert (np.diff(rows) > 0).all()
    counts = np.bincount(labels[rows], minlength=10)
    assert set(counts) == {5, 6} and counts.sum() == 55
    assert (rows != loading.draw_evenly(labels, 55, 1)).any()
    assert loading.draw_evenly(labels, 1000, 0).tolist() == list(range(1000))
    few = np.array([0] * 8 + [1])
    assert np.bincount(few[loading.draw_evenly(few, 4, 0)]).tolist() == [3, 1]


# The page


def _page(result, images):
    facts = {"model": "m", "source": "s", "command": "c", "settings": {}}
    return evaluation_page.page(result, images, **facts)[0]


def test_where_all_are_fooled_and_where_none_is():
    images, labels = problem()
    for budget in (1e-6, 0.9):
        result = robustness.evaluate(
            logits_fn, images, labels, threats=[attacks.linf(budget)], attacks=["fgsm"]
        )
        page = _page(result, images)
        assert (page.content["worst"] is None) == (budget < 0.1)
        assert len(page.content["tables"][1].rows) == 3


@pytest.mark.quick
def test_doubts_are_said():
    images, labels = problem()
    result = robustness.evaluate(
        lambda x: jnp.eye(3)[(labels + 1) % 3],
        images,
        labels,
        threats=[attacks.linf(0.1)],
        attacks=["fgsm"],
        curves=False,
        batch_size=30,
    )
    said = " ".join(evaluation_page.warnings(result))
    assert "only 0 images are right" in said and "about that of a constant answer" in said
