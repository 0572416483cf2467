"""Transfer between models of anybody's own, from the function that loads them to the page."""

import math
import re
import shutil
import signal
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
import pytest
from flax import nnx
from support import attack_names, commands, run_folder

from halfway import plots, storage, transfer
from halfway.lab.config.user import UserError
from halfway.lab.report import page, transfer_page, transfer_summary
from halfway.lab.runtime import processes
from halfway.lab.runtime.runs import Run
from halfway.lab.study.conditions import condition
from halfway.lab.study.wording import format_estimate
from halfway.lab.user_models import loading

CLASSES, SHAPE = 3, (4, 4, 1)
MODULE = """
import jax, jax.numpy as jnp
from flax import nnx

class Net(nnx.Module):
    def __init__(self, rngs):
        self.first, self.last = nnx.Linear(16, 8, rngs=rngs), nnx.Linear(8, 3, rngs=rngs)

    def __call__(self, x):
        return self.last(nnx.tanh(self.first(x.reshape(len(x), -1))))

def linear(params, x):
    return 4 * x.reshape(len(x), -1) @ params - 2 * params.sum(0)[None]

def load_models():
    weights = jax.random.normal(jax.random.key(0), (3, 16, 3))
    net = Net(nnx.Rngs(0))
    return {"linear": (linear, weights), "nnx": lambda x: net(x)}

def one():
    return {"nnx": load_models()["nnx"]}

def alike():
    return {"linear": load_models()["linear"]}
"""


def problem():
    rng = np.random.default_rng(0)
    images = rng.uniform(0, 1, (30, *SHAPE)).astype(np.float32)
    weights = jax.random.normal(jax.random.key(0), (3, 16, 3))
    labels = np.asarray((images.reshape(30, -1) - 0.5) @ np.asarray(weights[0])).argmax(-1)
    return images, labels.astype(np.int32)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Where the models and the images lie."""
    folder = tmp_path_factory.mktemp("transfer")
    (folder / "own_models.py").write_text(MODULE)
    images, labels = problem()
    storage.write_arrays(folder / "x.npz", {"images": images, "labels": labels})
    return folder


def options(folder, **given):
    chosen = {
        "surrogates": "own_models:load_models",
        "data": str(folder / "x.npz"),
        "num_steps": "3",
        "epsilon": "0.1,0.3",
        "attacks": "pgd,fgsm",
        "compilation_cache": "off",
        "out_dir": str(folder / "out"),
    } | given
    return [f"--{name}={value}" for name, value in chosen.items() if value]


@pytest.fixture(scope="module")
def out(folder):
    """The folder that one run of the command wrote."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(transfer_summary, "NUM_RESAMPLES", 50)
        result = commands.call(folder, "transfer", *options(folder))
    assert result.code == 0, result.err
    assert result.out.endswith("out/transfer.html\n")
    return folder / "out"


def test_models_of_one_kind_have_a_page_without_a_table_of_kinds(folder, monkeypatch):
    monkeypatch.setattr(transfer_summary, "NUM_RESAMPLES", 50)
    given = {"surrogates": "own_models:alike", "out_dir": "alike", "epsilon": "0.1"}
    result = commands.call(folder, "transfer", *options(folder, **given))
    assert result.code == 0, result
    assert 'id="cells"' not in (folder / "alike" / "transfer.html").read_text()


def test_everything_is_written(out):
    names = {path.name for path in out.iterdir()}
    assert names == {
        "cells",
        "figures",
        "outcomes.npz",
        "settings.json",
        "summary.parquet",
        "transfer.html",
        "transfer.parquet",
    }
    drawn = {path.stem for path in (out / "figures").glob("*.png")}
    cells = [f"{a}_{e}" for a in ("pgd", "fgsm") for e in ("0.1", "0.3")]
    assert drawn == {f"{what}_{c}" for what in ("rate", "coefficient") for c in cells} | {
        "mistakes",
        "budgets",
    }
    settings = storage.read_json(out / "settings.json")
    assert settings["surrogates"] == ["linear/0", "linear/1", "linear/2", "nnx"]
    assert settings["attacks"]["pgd"] == {"loss_fn": "margin", "num_steps": 3}
    assert settings["seed"] == 0 and settings["versions"]["jax"] == jax.__version__


def test_the_page_is_whole_and_says_how_to_repeat_it(out):
    page = (out / "transfer.html").read_text()
    for words in ("Who fools whom", "What to distrust", "clean error", "linear → nnx"):
        assert words in page
    assert "An attack on one model (pgd, changes of at most 0.3) fools another one on" in page
    assert "The strongest surrogate is" in page and "fooled most easily is" in page
    assert "images by class" in page
    assert (
        "halfway transfer --surrogates=own_models:load_models" in page
        and page.count("<figure") == 10
        and "First budget" in page
    )
    assert not re.search(r'(?:src|href)="(?!#|data:)', page)


def test_the_table_is_what_the_outcomes_say(out):
    arrays, table = (
        storage.read_arrays(out / "outcomes.npz"),
        pd.read_parquet(out / "transfer.parquet"),
    )
    labels = arrays["labels"]
    np.testing.assert_array_equal(labels, problem()[1])
    read = table.set_index(
        ["attack", "budget", "points", "quantity", "subset", "surrogate", "target"]
    )
    assert read.index.is_unique
    predicted = {
        side: arrays[f"pgd_0.3/{side}_attack_predicted"] for side in ("surrogate", "target")
    }
    clean = {side: arrays[f"pgd_0.3/{side}_clean_predicted"] == labels for side in predicted}
    for k, m in ((0, 1), (1, 3), (3, 0)):
        both = clean["surrogate"][k] & clean["target"][m]
        fooled = both & (predicted["target"][k, m] != labels)
        alike = fooled & (predicted["target"][k, m] == predicted["surrogate"][k])
        where = arrays["surrogates"][k], arrays["targets"][m]
        for quantity, value in (
            ("num_examples", both.sum()),
            ("num_fooled", fooled.sum()),
            ("num_same_mistake", alike.sum()),
        ):
            assert (
                read.loc[("pgd", 0.3, "attack", quantity, "both_correct", *where), "value"] == value
            )
        rise = arrays["pgd_0.3/target_attack_loss"][k, m] - arrays["pgd_0.3/target_clean_loss"][m]
        sums = read.loc[("pgd", 0.3, "attack", "increase", "all", *where), "value"]
        assert sums == pytest.approx(rise.sum(), rel=1e-4)


def test_the_numbers_of_the_page_are_in_a_file(out):
    table = pd.read_parquet(out / "summary.parquet")
    pairs = {tuple(pair) for pair in table[["surrogate", "target"]].to_numpy()}
    kinds = {"linear", "nnx"}
    assert pairs == {("all", "all"), *((a, b) for a in kinds for b in kinds)}
    page = re.sub("<[^>]*>", "", (out / "transfer.html").read_text())
    for row in table[table.num_cells > 0].to_dict("records"):
        assert row["rate_low"] <= row["rate"] <= row["rate_high"]
        assert format_estimate(row["rate"], row["rate_low"], row["rate_high"]) in page
        assert f"{row['noise']:.3f}" in page


def with_shares(shares, summary):
    """Returns a summary with a share that is fooled, and how far above noise it is."""
    rate, beyond = shares
    return summary._replace(rate=(rate, rate, rate), beyond=(beyond, beyond - 0.1, beyond + 0.1))


def test_the_first_budget_of_each_pair():
    summary = transfer_summary.summarize(cell(2, 3))
    by_budget = {
        0.3: [(0.7, 0.5), (0.4, 0.2), (0.2, 0.05), (math.nan, math.nan)],
        0.1: [(0.5, 0.3), (0.3, 0.05), (0.1, 0.05), (math.nan, math.nan)],
        0.2: [(0.4, 0.3), (0.4, 0.2), (0.1, 0.05), (math.nan, math.nan)],
    }
    pairs = [("a", "c"), ("a", "d"), ("b", "c"), ("b", "d")]
    cells = {
        ("pgd", budget): {
            pair: with_shares(values, summary) for pair, values in zip(pairs, rows, strict=True)
        }
        for budget, rows in by_budget.items()
    }
    firsts = transfer_summary.first_budgets(cells)
    assert firsts[("a", "c", "pgd")] == (0.1, 0.1)
    assert firsts["a", "d", "pgd"].beyond_noise == 0.2
    assert math.isnan(firsts["a", "d", "pgd"].half)
    assert all(math.isnan(value) for value in firsts["b", "c", "pgd"])
    assert ("b", "d", "pgd") not in firsts
    table = transfer_page.first_budget_table(cells)
    assert table is not None
    assert [row[2:] for row in table.rows] == [["0.1", "0.1"], ["0.2", "none"], ["none", "none"]]
    assert "0.1, 0.2, 0.3" in table.caption
    only = {("pgd", 0.1): cells["pgd", 0.1]}
    assert transfer_page.first_budget_table(only) is None  # nothing to compare


def test_models_are_those_of_the_user(out, folder, monkeypatch):
    monkeypatch.chdir(folder)
    groups = loading.load_models("surrogates", "own_models:load_models")
    images, labels = problem()
    arrays = storage.read_arrays(out / "outcomes.npz")
    for place, (name, model) in enumerate(loading.members(groups)):
        assert arrays["targets"][place] == name
        expected = transfer.evaluate(model, jnp.asarray(images), jnp.asarray(labels)).predicted
        np.testing.assert_array_equal(arrays["pgd_0.1/target_clean_predicted"][place], expected)
    # The first model made the labels.
    assert (arrays["pgd_0.1/target_clean_predicted"][0] == labels).all()


def test_a_folder_that_holds_anything_else_is_left_alone(out, folder):
    before = (out / "transfer.html").read_bytes()
    (folder / "full").mkdir()
    (folder / "full" / "letter.txt").write_text("dear")
    for given, words in (
        ({"out_dir": "full"}, "holds something else: choose another folder"),
        ({"out_dir": "x.npz"}, "is not a folder"),
        ({"attacks": "pgd"}, "holds other attacks or budgets"),
        ({"num_steps": "4"}, "holds another grid (options differ)"),
        ({"seed": "1"}, "holds another grid (seed differ)"),
        ({"norm": "l2"}, "holds another grid (norm differ)"),
    ):
        assert words in commands.call(folder, "transfer", *options(folder, **given)).err, given
    assert (out / "transfer.html").read_bytes() == before


def test_the_same_command_answers_from_disk(out, folder, monkeypatch):
    monkeypatch.setattr(transfer_summary, "NUM_RESAMPLES", 50)
    monkeypatch.setattr(transfer, "transfer_grid", None)
    tables = (out / "transfer.parquet").read_bytes()
    again = commands.call(folder, "transfer", *options(folder))
    assert again.code == 0 and again.err.count("is there already") == 4, again
    assert (out / "transfer.parquet").read_bytes() == tables


def test_ended_by_a_signal_it_goes_on(out, folder, monkeypatch):
    monkeypatch.setattr(transfer_summary, "NUM_RESAMPLES", 50)
    whole, asked = transfer.transfer_grid, []

    def ended(*arguments, **options):
        asked.append(1)
        if len(asked) == 3:
            raise processes.Terminated
        return whole(*arguments, **options)

    given = {"out_dir": "ended"}
    with monkeypatch.context() as patch:
        patch.setattr(transfer, "transfer_grid", ended)
        first = commands.call(folder, "transfer", *options(folder, **given))
    assert first.code == processes.CODES[signal.SIGTERM]
    second = commands.call(folder, "transfer", *options(folder, **given))
    assert second.code == 0 and second.err.count("is there already") == 2
    ours, theirs = (storage.read_arrays(path / "outcomes.npz") for path in (folder / "ended", out))
    assert set(ours) == set(theirs)
    for name, values in ours.items():
        np.testing.assert_array_equal(values, theirs[name])


# Mistakes of a user


@pytest.mark.quick
def test_a_mistake_is_one_line(folder, tmp_path):
    options = ("--surrogates=own:models", "--data=digits", "--compilation_cache=off")
    result = commands.call(folder, "transfer", *options, f"--out_dir={tmp_path}/out")
    assert "--surrogates=own:models cannot be imported" in result.complaint


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"surrogates": None}, "--surrogates is needed"),
        ({"data": None}, "--data is needed"),
        ({"surrogates": "own_models:one"}, "nothing to transfer to: name --targets"),
        ({"surrogates": "own_models"}, "names no function"),
        ({"surrogates": "own_models:none"}, "--surrogates=own_models:none cannot be imported"),
        ({"targets": "nowhere_at_all:f"}, "--targets=nowhere_at_all:f cannot be imported"),
        ({"attacks": "pgd,deepfool"}, "--attacks must be among apgd, .*, got 'deepfool'"),
        ({"epsilon": "0.1,"}, "--epsilon must be positive numbers"),
        ({"epsilon": "-1"}, "--epsilon must be positive numbers"),
        ({"norm": "l3"}, "--norm must be one of linf, l2, l1, got 'l3'"),
        ({"num_steps": "few"}, "--num_steps must be a positive integer, got 'few'"),
        ({"num_examples": "1"}, "at least 2 examples are needed"),
        ({"data": "nothing.npz"}, "cannot be read as an .npz"),
        ({"data": "no_such_set"}, "unknown data set 'no_such_set'"),
    ],
)
def test_flags_that_cannot_be(folder, monkeypatch, given, message):
    monkeypatch.chdir(folder)
    with pytest.raises(UserError, match=message):
        commands.main("transfer", *options(folder, out_dir=str(folder / "other"), **given))
    assert not (folder / "other").exists()


def weight(x, classes=CLASSES):
    values = x.reshape(len(x), -1)
    return values @ jnp.asarray(np.random.default_rng(1).normal(size=(values.shape[1], classes)))


def coupled(x):
    """A network whose batch normalization was left in training."""
    values = x.reshape(len(x), -1)
    return weight((values - values.mean(0)[None]) / (values.std(0)[None] + 0.1))


class Module:
    """What a PyTorch module looks like."""

    def state_dict(self):
        return {}

    def __call__(self, x):
        return x


class Counting(nnx.Module):
    """A module of NNX that changes its state in training."""

    def __init__(self):
        self.layer, self.drop = (
            nnx.Linear(16, 3, rngs=nnx.Rngs(0)),
            nnx.Dropout(0.5, rngs=nnx.Rngs(1)),
        )

    def __call__(self, x):
        return self.drop(self.layer(x.reshape(len(x), -1)))


BROKEN = {
    "tuple": (lambda x: (weight(x), x), r"returns a tuple: return the logits alone"),
    "torch": (Module(), r"is a PyTorch module: return halfway\.interop\.torch_logits\(module\)"),
    "training": (Counting(), r"call model\.eval\(\) first"),
    "probabilities": (lambda x: jax.nn.softmax(weight(x)), "returns probabilities: return logits"),
    "nan": (lambda x: weight(x) * jnp.nan, "not a finite number: NaN"),
    "shape": (
        lambda x: x.reshape(-1, 9) @ jnp.ones((9, 3)),
        r"fails on images of shape \[4, 4, 1\], which --data has",
    ),
    "flat": (lambda x: weight(x)[:, 0], r"must return logits of shape \[30, classes\], got \[30\]"),
    "few": (lambda x: weight(x, 2), "has 2 classes, the labels go up to 2"),
    "coupled": (coupled, "other logits alone than among others"),
    "numpy": (lambda x: np.asarray(x).reshape(len(x), -1)[:, :3], "fails on images of shape"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_models_that_are_no_classifiers(name):
    images, labels = problem()
    examples = loading.Examples(images, labels, "x")
    model, message = BROKEN[name]
    good = {"good": weight}
    with pytest.raises(UserError, match=message) as caught:
        loading.check_models({"surrogates": good, "targets": {name: model}}, examples)
    assert f"--targets: model {name!r}" in str(caught.value)
    loading.check_models({"surrogates": good, "targets": good}, examples)


def test_models_of_other_classes_than_the_others():
    images, labels = problem()
    examples = loading.Examples(images, labels, "x")
    other = {"other": lambda x: weight(x, 5)}
    with pytest.raises(UserError, match="'other' has 5 classes, --surrogates: model 'good' has 3"):
        loading.check_models({"surrogates": {"good": weight}, "targets": other}, examples)


@pytest.mark.quick
@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("[1]", "must return a dict of names to models, got list"),
        ("{}", "must return a dict"),
        ("{'a': 3}", "'a' must be a function from images to logits"),
        ("{'a': (len, 1.0)}", "stacked along one leading axis"),
        ("1 / 0", "division by zero"),
    ],
)
def test_functions_that_return_no_models(tmp_path, monkeypatch, value, message):
    (tmp_path / "no_models.py").write_text(f"def load():\n    return {value}\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, "no_models", raising=False)
    with pytest.raises(UserError, match=message):
        loading.load_models("targets", "no_models:load")


@pytest.mark.quick
@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"images": 2 * np.ones((3, 4)), "labels": np.arange(3)}, r"must lie in \[0, 1\]"),
        ({"images": np.ones((3, 4)), "labels": np.ones(3)}, "labels .* from 0 on are needed"),
        ({"images": np.ones((3, 4)), "labels": np.arange(2)}, "labels .* from 0 on are needed"),
        ({"images": np.ones((3, 4))}, "cannot be read as an .npz of images and labels"),
    ],
)
def test_images_that_are_none(tmp_path, arrays, message):
    storage.write_arrays(tmp_path / "x.npz", arrays)
    with pytest.raises(UserError, match=message):
        loading.load_examples(str(tmp_path / "x.npz"), None, 10)


def test_bytes_and_data_sets_are_images_too(tmp_path, digits):
    whole = np.arange(48, dtype=np.uint8).reshape(3, 4, 4)
    storage.write_arrays(tmp_path / "x.npz", {"images": whole, "labels": np.arange(3)})
    examples = loading.load_examples(str(tmp_path / "x.npz"), None, 2)
    assert len(set(examples.labels)) == 2
    np.testing.assert_allclose(examples.images, whole[examples.labels] / 255.0, rtol=1e-6)
    mixture = loading.load_examples("mixture", str(tmp_path), 5)
    assert mixture.images.shape == (5, 8, 8, 1) and mixture.source == "mixture, test split"


# What is said of a grid


def cell(rows, columns, number=50, seed=0):
    """Random outcomes, of which copies of a surrogate among the targets have its clean losses."""
    rng = np.random.default_rng(seed)

    def outcomes(*shape):
        correct = rng.random(shape) < 0.7
        loss = rng.normal(size=shape).astype(np.float32)
        return transfer.Evaluation(loss, correct, np.where(correct, 0, 1).astype(np.int16))

    surrogate = {name: outcomes(rows, number) for name in ("clean", *transfer.KINDS)}
    target = {"clean": outcomes(columns, number)}
    target |= {name: outcomes(rows, columns, number) for name in transfer.KINDS}
    matched = {name: np.ones((rows, number), bool) for name in transfer.CONTROLS}
    return transfer.TransferMatrix(surrogate, target, matched, np.ones((rows, number)))


def test_models_attacked_through_themselves_are_left_out():
    outcomes = cell(3, 3)
    outcomes.target["clean"] = outcomes.surrogate["clean"]
    assert (transfer_summary.itself(outcomes) == np.eye(3, dtype=bool)).all()
    before = transfer_summary.summarize(outcomes)
    assert before.num_cells == 6 and set(before.shares) == {"models", "examples"}
    attacked = outcomes.target["attack"]
    attacked.correct[np.arange(3), np.arange(3)] = False
    attacked.loss[np.arange(3), np.arange(3)] = 1e3
    assert transfer_summary.summarize(outcomes) == before
    assert transfer_summary.summarize(cell(3, 4)).num_cells == 12


def test_a_summary_is_of_sums():
    outcomes = cell(2, 3)
    summary = transfer_summary.summarize(outcomes)
    rate = transfer.success(outcomes, "both_correct")
    expected = np.sum(rate.num_fooled) / np.sum(rate.num_examples)
    assert summary.rate[0] == pytest.approx(expected)
    assert summary.rate[1] <= expected <= summary.rate[2]
    assert summary.same + summary.different == pytest.approx(expected)
    assert summary.beyond[0] == pytest.approx(expected - summary.noise)
    assert summary.clean == pytest.approx(1 - outcomes.target["clean"].correct.mean())
    alone = transfer_summary.summarize(transfer_summary.select(outcomes, [1], [2]))
    assert alone.rate[0] == pytest.approx(float(rate.num_fooled[1, 2] / rate.num_examples[1, 2]))


@pytest.mark.quick
def test_nobody_fooled_is_no_certainty():
    outcomes = cell(1, 1)
    outcomes.target["attack"].correct[:] = True
    low, high = transfer_summary.summarize(outcomes).rate[1:]
    assert low == pytest.approx(0, abs=1e-12) and 0.02 < high < 0.2


def test_many_kinds_are_drawn_without_intervals(monkeypatch):
    monkeypatch.setattr(transfer_page, "MOST_CELLS", 5)
    grid = transfer.TransferGrid(
        ("a", "b"), ("c", "d", "e"), ("pgd",), (0.1,), {("pgd", 0.1): cell(2, 3)}
    )
    whole, cells = transfer_page.summarize(grid)
    assert cells == {("pgd", 0.1): {}}
    drawn = transfer_page.figures(grid, whole, cells)
    assert [figure.name for figure in drawn] == ["rate_pgd_0.1", "coefficient_pgd_0.1", "mistakes"]
    assert len(transfer_page.tables(whole, cells)) == 2


def test_tables_fit_the_page():
    """By characters of what cannot be broken: an interval, or a word."""
    names = ("residual network/0", "residual network/1", "vision transformer/0")
    attacks, budgets = ("pgd", "admix_translation_invariant"), (8 / 255, 0.1)
    outcomes = {(name, budget): cell(3, 2, 400) for name in attacks for budget in budgets}
    grid = transfer.TransferGrid(names, ("convolutional/0", "mlp/0"), attacks, budgets, outcomes)
    shown = transfer_page.tables(*transfer_page.summarize(grid))
    assert [len(table.columns) for table in shown] == [8, 6, 11]
    for table in shown:
        widths = [
            max(len(part) for cell in column for part in re.findall(r"\[.*\]|\S+", cell))
            for column in zip(table.columns, *table.rows, strict=True)
        ]
        # 76 rem of a page at 8 pixels a character, less 13 beside each column.
        assert sum(widths) < (76 * 16 - 32 - 13 * len(widths)) / 8


def test_a_weak_attack_is_said_to_be_weak():
    outcomes = cell(2, 3)
    outcomes.surrogate["attack"].correct[:] = outcomes.surrogate["clean"].correct
    outcomes.matched["noise"][0] = False
    grid = transfer.TransferGrid(
        ("a", "b"), ("c", "d", "e"), ("pgd",), (0.1,), {("pgd", 0.1): outcomes}
    )
    labels = np.arange(outcomes.norm.shape[1]) % 10
    made, _ = transfer_page.page(
        grid,
        labels,
        *transfer_page.summarize(grid),
        lead="",
        source="x",
        command="",
        settings={},
    )
    words = " ".join(page.render(made).split())
    assert "fools its own surrogates on 0 %" in words and "50.0 % of the noise falls short" in words


def test_mistakes_are_drawn_as_shares():
    ax = plots.mistakes([0.2, 0.1], [0.1, 0.3], names=["a", "b"], noise=[0.05, 0.02])
    widths = [[bar.get_width() for bar in bars] for bars in ax.containers]
    np.testing.assert_allclose(widths, [[0.2, 0.1], [0.1, 0.3], [0.7, 0.6]])
    with pytest.raises(ValueError, match="for 1 names"):
        plots.mistakes([0.2, 0.1], [0.1, 0.3], names=["a"])


# Models of a run


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run of one architecture."""
    return Run.open(run_folder.make(tmp_path_factory.mktemp("trained"))[0])


def test_models_of_a_run_are_those_of_its_halves(trained):
    population = trained.load_population(condition(trained.config, "linear"))
    images = jax.random.uniform(jax.random.key(0), (7, 8, 8, 1))
    for place, ending in enumerate(("", ":B")):
        models = loading.load_models("surrogates", f"run:{trained.path}{ending}")
        members = loading.members(models)
        assert [name for name, _ in members] == [
            f"linear/{index}" for index in range(trained.config.num_pairs)
        ]
        for index, (_, logits_fn) in enumerate(members):
            params = jax.tree.map(lambda leaf, i=index, p=place: leaf[i, p], population.params)
            expected = population.apply_fn(params, images)
            np.testing.assert_allclose(logits_fn(images), expected, rtol=1e-5)


def test_a_folder_that_is_no_run_has_no_models(trained, tmp_path):
    with pytest.raises(UserError, match=r"--surrogates=run:.*holds no run"):
        loading.load_models("surrogates", f"run:{tmp_path}")
    shutil.copytree(trained.path, tmp_path / "empty")
    shutil.rmtree(tmp_path / "empty" / "populations")
    with pytest.raises(UserError, match="holds no population at ρ = 0 of linear"):
        loading.load_models("targets", f"run:{tmp_path / 'empty'}:B")


@pytest.mark.quick
def test_every_attack_with_a_threat_on_one_model_can_be_named():
    """But for the one perturbation of all images, which is none of an image."""
    with_threat = attack_names.taking("logits_fn", "threat")
    assert set(loading.attack_names()) == with_threat - {"universal", "auto_attack_steps"}


def test_a_rate_that_is_undefined_colours_no_other_white():
    """The first kind has no replicate: its cell is empty, and the scale is that of the others."""
    outcomes = cell(2, 2)
    for side in (outcomes.surrogate, outcomes.target):
        side["clean"].loss[:] = 0.5  # every target is its surrogate
    outcomes.target["clean"].loss[1] += 1.0
    outcomes.surrogate["clean"].loss[1] += 1.0
    grid = transfer.TransferGrid(("a", "b"), ("a", "b"), ("pgd",), (0.1,), {("pgd", 0.1): outcomes})
    whole, cells = transfer_page.summarize(grid)
    assert np.isnan(cells["pgd", 0.1]["a", "a"].rate[0])
    figure = transfer_page.figures(grid, whole, cells)[0].figure
    (image,) = figure.axes[0].images
    assert np.isfinite(image.get_clim()).all()


def test_few_images_and_guessing_models_are_warned_of():
    outcomes = cell(1, 1, 12)
    outcomes.target["clean"].correct[:] = False
    outcomes.target["clean"].correct[:, 0] = True
    grid = transfer.TransferGrid(("a",), ("b",), ("pgd",), (0.1,), {("pgd", 0.1): outcomes})
    whole, _ = transfer_page.summarize(grid)
    said = " ".join(transfer_page.warnings(grid, np.arange(12) % 3, whole))
    assert "fewer than 20 say little" in said and "Accuracy of b is about that" in said
