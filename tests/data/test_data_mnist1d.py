"""MNIST-1D is what its authors publish, scaled by a fixed map."""

import builtins
import random

import flax.linen as nn
import jax
import numpy as np
import optax
import pytest

from halfway import data

mnist1d = pytest.importorskip("mnist1d", reason="pip install mnist1d")


def test_signals_are_images_of_one_row():
    dataset = data.load("mnist1d")
    assert dataset.train.images.shape == (4000, 1, 40, 1)
    assert dataset.test.images.shape == (1000, 1, 40, 1)
    assert (np.bincount(dataset.pool().labels) == 500).all()
    # Greydanus standardizes all points together, so that the map is undone by numbers alone.
    signals = dataset.pool().images.astype(float) * 12 - 6
    assert abs(signals.mean()) < 1e-6 and abs(signals.std() - 1) < 1e-6
    assert dataset.checksum == data.load("mnist1d").checksum


def test_the_map_is_the_one_that_is_given():
    default, wide = data.load("mnist1d"), data.load("mnist1d", value_range=(-10.0, 10.0))
    np.testing.assert_allclose(
        wide.train.images * 20 - 10, default.train.images * 12 - 6, atol=1e-5
    )
    assert wide.checksum != default.checksum
    with pytest.raises(data.DataError, match=r"go from -5\.\d+ to 4\.\d+.*wider value_range"):
        data.load("mnist1d", value_range=(-1.0, 1.0))
    with pytest.raises(data.DataError, match=r"value_range is for signals.*'digits' has pixels"):
        data.load("digits", value_range=(0.0, 1.0))


def test_global_generators_are_left_as_they_were(monkeypatch):
    from halfway.data import mnist1d as loader

    calls = []
    monkeypatch.setattr("mnist1d.data.make_dataset", lambda args: calls.append(args) or _seeds())
    np.random.seed(3)  # noqa: NPY002
    random.seed(3)
    loader._signals.__wrapped__()
    after = np.random.rand(), random.random()  # noqa: NPY002
    np.random.seed(3)  # noqa: NPY002
    random.seed(3)
    assert after == (np.random.rand(), random.random())  # noqa: NPY002
    assert len(calls) == 1 and calls[0].seed == 42 and calls[0].num_samples == 5000


def _seeds():
    np.random.seed(0)  # noqa: NPY002
    random.seed(0)
    return {name: None for name in ("x", "y", "x_test", "y_test")}


def test_a_missing_package_is_said_with_the_remedy(monkeypatch):
    from halfway.data import mnist1d as loader

    real = builtins.__import__

    def without(name, *args, **kwargs):
        if name.startswith("mnist1d"):
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(data.DataError, match="pip install mnist1d"):
        loader._signals.__wrapped__()


class Published(nn.Module):
    """The models of arXiv 2011.14439 as its code has them: logistic regression, MLP, CNN."""

    kind: str

    @nn.compact
    def __call__(self, signals):
        x = signals
        if self.kind == "MLP":
            x = nn.relu(nn.Dense(100)(x))
            x = nn.relu(x + nn.Dense(100)(x))
        if self.kind == "CNN":
            x = signals[..., None]
            for width in (5, 3, 3):
                x = nn.relu(nn.Conv(25, (width,), strides=2, padding=1)(x))
            x = x.reshape(len(x), -1)
        return nn.Dense(10)(x)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "published"), [("logistic regression", 0.32), ("MLP", 0.68), ("CNN", 0.94)]
)
def test_accuracies_are_those_that_are_published(kind, published):
    """On the 1,000 after 6,000 steps of Adam on the 4,000, batch 100, rate .01."""
    dataset = data.load("mnist1d")
    parts = dataset.train, dataset.test
    train, test = (jax.numpy.asarray(part.images[:, 0, :, 0] * 12 - 6) for part in parts)
    labels = jax.numpy.asarray(dataset.train.labels)
    module = Published(kind)
    optimizer = optax.adam(0.01)

    def loss_fn(params, rows):
        logits = module.apply(params, train[rows])
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels[rows]).mean()

    def step(carry, rows):
        params, state = carry
        updates, state = optimizer.update(jax.grad(loss_fn)(params, rows), state, params)
        return (optax.apply_updates(params, updates), state), None

    params = module.init(jax.random.key(0), train[:1])
    orders = jax.vmap(lambda key: jax.random.permutation(key, len(labels)))(
        jax.random.split(jax.random.key(1), 150)
    )
    (params, _), _ = jax.jit(lambda carry, rows: jax.lax.scan(step, carry, rows))(
        (params, optimizer.init(params)), orders.reshape(-1, 100)
    )
    accuracy = (module.apply(params, test).argmax(-1) == dataset.test.labels).mean()
    assert abs(accuracy - published) < 0.03, accuracy
