"""Models of a user's own: every form gives parameters and logits, and what cannot be is said."""

import jax
import numpy as np
import pytest
from support import commands
from support.launcher import FOLDERS

from halfway import custom_models, landscapes, models
from halfway.custom_models import CustomModel
from halfway.lab import studies
from halfway.lab.config import config_file, settings
from halfway.lab.config.user import UserError

SOURCE = """
import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import nnx


class Linen(nn.Module):
    num_classes: int
    width: int = 8

    @nn.compact
    def __call__(self, x):
        hidden = nn.tanh(nn.Dense(self.width)(x.reshape(len(x), -1)))
        return nn.Dense(self.num_classes)(hidden)


def functions(num_classes, width: int = 8):
    def init(key, x):
        first, last = jax.random.split(key)
        return {
            "first": jax.random.normal(first, (x[0].size, width)) / 8,
            "last": jax.random.normal(last, (width, num_classes)) / 3,
        }

    def apply(params, x):
        return jnp.tanh(x.reshape(len(x), -1) @ params["first"]) @ params["last"]

    return init, apply


def permuted(num_classes):
    return *functions(num_classes), {"first": (None, "hidden"), "last": ("hidden", None)}


class Net(nnx.Module):
    def __init__(self, num_classes, rngs):
        self.layers = nnx.List(
            [nnx.Linear(64, 8, rngs=rngs), nnx.Linear(8, num_classes, rngs=rngs)]
        )
        self.dropout = nnx.Dropout(0.5, rngs=rngs)

    def __call__(self, x):
        hidden = self.dropout(nnx.relu(self.layers[0](x.reshape(len(x), -1))))
        return self.layers[1](hidden)


def of_nnx(num_classes):
    return lambda key: Net(num_classes, nnx.Rngs(key))


def of_equinox(num_classes):
    import equinox as eqx

    class Flat(eqx.Module):
        mlp: eqx.nn.MLP

        def __call__(self, x):
            return self.mlp(x.ravel())

    return lambda key: Flat(eqx.nn.MLP(64, num_classes, 8, 1, key=key))


class Batches(nn.Module):
    num_classes: int

    @nn.compact
    def __call__(self, x):
        x = nn.BatchNorm(use_running_average=True)(x.reshape(len(x), -1))
        return nn.Dense(self.num_classes)(x)


class BatchesNnx(nnx.Module):
    def __init__(self, num_classes, rngs):
        self.norm = nnx.BatchNorm(64, rngs=rngs)
        self.last = nnx.Linear(64, num_classes, rngs=rngs)

    def __call__(self, x):
        return self.last(self.norm(x.reshape(len(x), -1)))


def batches_of_nnx(num_classes):
    return lambda key: BatchesNnx(num_classes, nnx.Rngs(key))


def five(num_classes):
    return 5


def failing(num_classes):
    raise RuntimeError("no luck")


def without_parameters(num_classes):
    return lambda key: jax.tree_util.Partial(lambda x: x)
"""
X = jax.random.uniform(jax.random.key(0), (5, 8, 8, 1))
FORMS = ("Linen", "functions", "permuted", "of_nnx", "of_equinox")


@pytest.fixture(autouse=True, scope="module")
def module(tmp_path_factory):
    folder = tmp_path_factory.mktemp("custom")
    (folder / "custom_for_tests.py").write_text(SOURCE)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(folder)
        yield folder


def build(name, **fields):
    if name == "of_equinox":
        pytest.importorskip("equinox")
    return models.build({"kind": f"custom_for_tests:{name}", **fields}, num_classes=10)


@pytest.mark.quick
@pytest.mark.parametrize("name", FORMS)
def test_every_form_trains_as_a_population(name):
    """Starts differ by key, are plain dicts, and work under jit, vmap and grad."""
    module = build(name)
    keys = jax.random.split(jax.random.key(1), 3)
    starts = jax.jit(jax.vmap(lambda key: module.init(key, X)["params"]))(keys)
    assert all(
        isinstance(key.key, str) for path, _ in jax.tree.leaves_with_path(starts) for key in path
    )

    def logits(params):
        return module.apply({"params": params}, X)

    together = jax.jit(jax.vmap(logits))(starts)
    assert together.shape == (3, 5, 10)
    last = jax.tree.map(lambda leaf: leaf[-1], starts)
    np.testing.assert_allclose(together[-1], logits(last), rtol=1e-4, atol=1e-5)
    assert not np.allclose(together[0], together[1])
    gradient = jax.grad(lambda params: (logits(params) ** 2).sum())(last)
    assert all(np.abs(leaf).max() > 0 for leaf in jax.tree.leaves(gradient))


@pytest.mark.quick
def test_dropout_of_nnx_is_off():
    module = build("of_nnx")
    variables = module.init(jax.random.key(0), X)
    np.testing.assert_array_equal(module.apply(variables, X), module.apply(variables, X))
    layers = variables["params"]["layers"]
    hidden = jax.nn.relu(X.reshape(5, -1) @ layers["0"]["kernel"] + layers["0"]["bias"][None])
    expected = hidden @ layers["1"]["kernel"] + layers["1"]["bias"][None]
    np.testing.assert_allclose(module.apply(variables, X), expected, rtol=1e-4, atol=1e-6)


@pytest.mark.quick
@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("Batches", "keeps batch_stats beside its parameters"),
        ("batches_of_nnx", "keeps norm/mean beside its parameters"),
        ("five", "must return a linen module, .* got int"),
        ("failing", "fails: RuntimeError: no luck"),
        ("without_parameters", "has no floating-point arrays"),
        ("nowhere", "cannot be imported"),
    ],
)
def test_what_is_no_model_is_said(name, message):
    with pytest.raises(ValueError, match=message):
        build(name).init(jax.random.key(0), X)


@pytest.mark.quick
def test_fields_are_those_of_the_function():
    assert build("functions", width=3).init(jax.random.key(0), X)["params"]["first"].shape == (
        64,
        3,
    )
    with pytest.raises(ValueError, match=r"unknown field 'wdth' .* it has \['source', 'width'\]"):
        build("functions", wdth=3)


@pytest.mark.quick
def test_declared_permutations_leave_the_model_as_it_is():
    module = build("permuted")
    assert isinstance(module, CustomModel)
    one, other = (module.init(jax.random.key(i), X)["params"] for i in (0, 1))
    specification = landscapes.derive_permutations(module, one)
    match = landscapes.weight_match(specification, one, other, jax.random.key(2))
    matched = landscapes.apply_permutations(specification, match.permutations, other)
    assert not np.allclose(matched["first"], other["first"])
    np.testing.assert_allclose(
        module.apply({"params": matched}, X), module.apply({"params": other}, X), atol=1e-5
    )
    with pytest.raises(ValueError, match="no specification can be derived"):
        landscapes.derive_permutations(build("functions"), one)


def config_of(**overrides):
    return config_file.load("digits:tiny", {"architectures": "mine", **overrides}).config


@pytest.mark.quick
def test_a_flag_names_a_model_and_its_fields():
    config = config_of(**{"models.mine": "custom_for_tests:functions", "models.mine.width": "5"})
    model = config.models["mine"]
    assert model["width"] == 5 and config.architectures == ("mine",)
    assert model["source"] == custom_models.source_digest("custom_for_tests:functions")
    with pytest.raises(UserError, match=r"did you mean models\.mine\.width"):
        config_of(**{"models.mine": "custom_for_tests:functions", "models.mine.widht": "5"})
    with pytest.raises(UserError, match=r"config\.models\.mine: .*cannot be imported"):
        config_of(**{"models.mine": "custom_for_tests:nowhere"})
    with pytest.raises(UserError, match="width"):
        config_of(**{"models.mine": "custom_for_tests:functions", "models.mine.width": "0"})


@pytest.mark.quick
def test_a_stored_run_is_read_where_the_file_is_not_and_not_trained_where_it_changed():
    plain = config_of(**{"models.mine": "custom_for_tests:functions"}).to_dict()
    plain["models"]["mine"] = {"kind": "gone_since:build", "source": "0123456789ab"}
    assert settings.parse(plain).models["mine"]["kind"] == "gone_since:build"
    with pytest.raises(ValueError, match="has changed since this run began"):
        build("functions", source="0123456789ab")


@pytest.mark.quick
def test_what_a_model_cannot_answer_is_said_before_training():
    every = studies.choose(["all"])
    config = config_of(**{"models.mine": "custom_for_tests:functions"})
    reasons = studies.unsuitable(every, config)
    assert set(reasons) == {"G3", "G6", "T3", "T11", "T12", "T13"}
    assert reasons["G6"] == "mine declares no permutations of its hidden units"
    declared = config_of(**{"models.mine": "custom_for_tests:permuted"})
    assert "G6" not in studies.unsuitable(every, declared)
    beside = config_of(**{"models.mine": "custom_for_tests:permuted", "architectures": "mlp,mine"})
    assert not studies.unsuitable(every, beside)
    assert not studies.unsuitable(every, config_file.load("digits").config)


def test_a_run_of_ones_own_architecture_decides_and_its_file_is_watched(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "mine_of_a_run.py").write_text(SOURCE)
    flags = (
        *FOLDERS,
        "--config=digits:tiny",
        "--config.models.mine=mine_of_a_run:functions",
        "--config.architectures=mine",
        "--config.num_pairs=2",
        "--config.training.probe_steps=0,20",
        "--only=G1,G6",
        "--workdir=run",
    )
    done = commands.call(tmp_path, "reproduce", *flags)
    assert done.code == 0, done
    assert "G6 is not for this architecture: mine declares no permutations" in done.err
    assert "mine: M_θ in error" in done.out
    page = (tmp_path / "run" / "report.html").read_text()
    assert "G6 is not for this architecture" in page
    again = commands.call(tmp_path, "reproduce", *flags, "--only=G1")
    assert again.code == 0, again
    assert "G6 is not for this architecture" in (tmp_path / "run" / "report.html").read_text()
    none = commands.call(tmp_path, "reproduce", *flags, "--only=D1")
    assert none.code == 2 and "none of these hypotheses is for this architecture" in none.err
    (tmp_path / "mine_of_a_run.py").write_text(SOURCE + "\nchanged = True\n")
    changed = commands.call(tmp_path, "reproduce", *flags)
    assert changed.code == 2 and "config.models.mine.source is" in changed.err
