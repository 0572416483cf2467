import collections
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from scipy.special import log_softmax, softmax

from halfway import losses, populations
from halfway.types import Sample

KEY = jax.random.key(0)


def apply_linear(params, x):
    return x.reshape(x.shape[0], -1) @ params["w"] + params["b"][None]


def draw_problem(num_examples=12, num_features=4, num_classes=3, seed=0):
    rng = np.random.default_rng(seed)
    params = {
        "w": rng.standard_normal((num_features, num_classes)),
        "b": rng.standard_normal(num_classes),
    }
    x = rng.standard_normal((num_examples, num_features))
    labels = rng.integers(num_classes, size=num_examples)
    params, x = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32), (params, x))
    return params, x, jnp.asarray(labels, jnp.int32)


def mean_gradient(params, x, labels):
    """Of the mean cross-entropy of a linear model, in closed form."""
    x = np.asarray(x, np.float64).reshape(len(x), -1)
    residual = softmax(x @ params["w"] + params["b"], axis=1) - np.eye(len(params["b"]))[labels]
    return {"w": x.T @ residual / len(x), "b": residual.mean(0)}


# The stream of batches


@functools.partial(jax.jit, static_argnames=("num_steps", "batch_size"))
def stream(key, n, num_steps=9, batch_size=4):
    return populations.index_stream(key, n, capacity=12, num_steps=num_steps, batch_size=batch_size)


@pytest.mark.parametrize("n", [1, 5, 7, 12])
def test_every_epoch_is_a_permutation(n):
    batches = stream(KEY, n)
    assert batches.shape == (9, 4)
    assert batches.dtype == jnp.int32
    # Batches of 4 straddle epochs of 5 and 7; the last epoch is cut.
    epochs = np.split(np.asarray(batches).ravel(), np.arange(n, 36, n))
    for epoch in epochs[:-1]:
        np.testing.assert_array_equal(np.sort(epoch), np.arange(n))
    last = epochs[-1]
    assert len(set(last)) == len(last) and set(last) <= set(range(n))
    if n > 1:
        assert len({tuple(epoch) for epoch in epochs}) > 1  # shuffled anew


def test_orders_are_uniform_and_depend_on_the_key():
    batches = jax.jit(jax.vmap(lambda key: stream(key, 3)))(jax.random.split(KEY, 2000))
    flat = np.asarray(batches).reshape(2000, -1)
    # Both epochs together: 36 equally likely pairs of orders.
    counts = collections.Counter(map(tuple, flat[:, :6]))
    assert len(counts) == 36
    assert scipy.stats.chisquare(list(counts.values())).pvalue > 1e-4


def test_sizes_share_one_program():
    traces = []

    @jax.jit
    def fn(n):
        traces.append(1)
        return populations.index_stream(KEY, n, capacity=12, num_steps=9, batch_size=4)

    assert int(fn(5).max()) == 4
    assert int(fn(12).max()) == 11
    assert len(traces) == 1


# One step


def adam_by_hand(params, gradients, learning_rate, weight_decay):
    m = {name: 0.0 for name in params}
    v = {name: 0.0 for name in params}
    for t, gradient_fn in enumerate(gradients, start=1):
        gradient = gradient_fn(params)
        for name, g in gradient.items():
            m[name] = 0.9 * m[name] + 0.1 * g
            v[name] = 0.999 * v[name] + 0.001 * g**2
            step = m[name] / (1 - 0.9**t) / (np.sqrt(v[name] / (1 - 0.999**t)) + 1e-8)
            params = params | {
                name: params[name] - learning_rate * (step + weight_decay * params[name])
            }
    return params


def sgd_by_hand(params, gradients, learning_rate, weight_decay):
    for gradient_fn in gradients:
        gradient = gradient_fn(params)
        params = {
            name: p - learning_rate * (gradient[name] + weight_decay * p)
            for name, p in params.items()
        }
    return params


@pytest.mark.parametrize("name, by_hand", [("adam", adam_by_hand), ("sgd", sgd_by_hand)])
def test_steps_against_numpy(name, by_hand):
    params, x, labels = draw_problem()
    traces = []

    @jax.jit
    def three_steps(learning_rate, weight_decay):
        traces.append(1)
        optimizer = populations.make_optimizer(name, learning_rate, weight_decay)
        state = populations.init_state(params, optimizer)
        for i in range(3):
            batch = slice(4 * i, 4 * i + 4)
            state = populations.train_step(apply_linear, optimizer, state, x[batch], labels[batch])
        return state

    gradients = [
        functools.partial(mean_gradient, x=x[4 * i : 4 * i + 4], labels=labels[4 * i : 4 * i + 4])
        for i in range(3)
    ]
    start = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), params)
    for learning_rate, weight_decay in [(0.1, 0.0), (0.02, 0.5)]:
        state = three_steps(learning_rate, weight_decay)
        expected = by_hand(start, gradients, learning_rate, weight_decay)
        for leaf in params:
            np.testing.assert_allclose(state.params[leaf], expected[leaf], rtol=1e-4, atol=1e-5)
        assert int(state.step) == 3
    assert len(traces) == 1  # learning rate and decay are data


def test_a_step_follows_the_loss_that_is_asked_for():
    params, x, labels = draw_problem()
    optimizer = populations.make_optimizer("sgd", 1.0)

    @jax.jit
    def step(params):
        state = populations.init_state(params, optimizer)
        state = populations.train_step(
            apply_linear, optimizer, state, x, labels, loss_fn=losses.brier
        )
        return state.params

    def objective(params):
        p = jax.nn.softmax(apply_linear(params, x))
        return ((p - jax.nn.one_hot(labels, 3)) ** 2).sum() / len(x)

    gradient = jax.jit(jax.grad(objective))(params)
    expected = jax.tree.map(lambda p, g: p - g, params, gradient)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), step(params), expected
    )


@pytest.mark.quick
def test_unknown_optimizers_are_named():
    with pytest.raises(ValueError, match=r"'adma'.*adam, sgd"):
        populations.make_optimizer("adma", 0.1)


# A fit with probes


def numbered_step(state, i):
    """Adds the number of the step in a way that order matters."""
    params = jax.tree.map(lambda leaf: 0.5 * leaf + i, state.params)
    return state._replace(params=params, step=state.step + 1)


def numbered_params(num_steps, start):
    for i in range(num_steps):
        start = 0.5 * start + i
    return start


@pytest.mark.parametrize("probe_steps", [(0,), (3,), (0, 1, 4, 9), (2, 5)])
def test_probes_see_the_parameters_after_exactly_their_steps(probe_steps):
    state = populations.TrainState({"w": jnp.array([3.0, -1.0])}, (), jnp.zeros((), jnp.int32))
    final, probes = jax.jit(
        lambda state: populations.fit(
            numbered_step, lambda p: {"seen": p["w"]}, state, probe_steps=probe_steps
        )
    )(state)
    expected = [numbered_params(t, np.array([3.0, -1.0])) for t in probe_steps]
    np.testing.assert_array_equal(probes["seen"], expected)
    np.testing.assert_array_equal(final.params["w"], expected[-1])
    assert int(final.step) == probe_steps[-1]


@pytest.mark.parametrize("probe_steps", [(), (3, 1), (0, 2, 2), (-1, 2)])
def test_probe_steps_must_increase(probe_steps):
    state = populations.TrainState(jnp.zeros(2), (), jnp.zeros((), jnp.int32))
    with pytest.raises(ValueError, match="must increase from 0 or more"):
        populations.fit(numbered_step, lambda p: p, state, probe_steps=probe_steps)


def test_a_vmapped_fit_equals_a_loop_of_steps():
    params, x, labels = draw_problem()
    optimizer = populations.make_optimizer("adam", 0.05, 0.01)
    members = jax.tree.map(lambda leaf: jnp.stack([leaf, -leaf, 0.3 * leaf]), params)
    rows = stream(KEY, 12)[:7]

    def step(state, i):
        return populations.train_step(apply_linear, optimizer, state, x[rows[i]], labels[rows[i]])

    def fit(params):
        state = populations.init_state(params, optimizer)
        return populations.fit(step, lambda p: p["w"], state, probe_steps=(0, 3, 7))

    states, probes = jax.jit(jax.vmap(fit))(members)
    one_step = jax.jit(step)
    for k in range(3):
        state = populations.init_state(jax.tree.map(lambda leaf, k=k: leaf[k], members), optimizer)
        points = [state.params["w"]]
        for i in range(7):
            state = one_step(state, i)
            points += [state.params["w"]] if i + 1 in (3, 7) else []
        np.testing.assert_allclose(probes[k], points, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(states.params["b"][k], state.params["b"], rtol=1e-5, atol=1e-6)


# What a probe reports


@pytest.fixture
def samples():
    """A linear model, a pool of images, and two samples with NaN images behind their padding."""
    params, x, labels = draw_problem(num_examples=10)
    x = x.at[9].set(jnp.nan)
    images = x.reshape(10, 2, 2, 1)
    noisy = (labels + 1) % 3

    def sample(rows, num_valid):
        indices = jnp.array(rows + [9] * (6 - len(rows)), jnp.int32)
        return Sample(indices, noisy[indices], jnp.arange(6) < num_valid)

    return params, images, sample([3, 0, 5, 1], 4), sample([2, 8, 7, 6, 4], 5)


def rows_of(sample):
    mask = np.asarray(sample.mask)
    return np.asarray(sample.indices)[mask], np.asarray(sample.labels)[mask]


@pytest.mark.parametrize("chunk_size", [None, 1, 4, 6])
def test_landscapes_are_means_over_the_valid_examples_as_labelled(samples, chunk_size):
    params, images, own_half, other_half = samples
    landscape_fn = jax.jit(
        lambda s: populations.landscape_losses(
            apply_linear, params, images, s, chunk_size=chunk_size
        )
    )
    for sample in (own_half, other_half):
        rows, labels = rows_of(sample)
        logits = np.asarray(images)[rows].reshape(len(rows), -1) @ params["w"] + params["b"][None]
        onehot = np.eye(3)[labels]
        expected = {
            "cross_entropy": -(log_softmax(logits, axis=1) * onehot).sum(1).mean(),
            "brier": ((softmax(logits, axis=1) - onehot) ** 2).sum(1).mean(),
            "error": (logits.argmax(1) != labels).mean(),
        }
        result = landscape_fn(sample)
        assert result.keys() == expected.keys() == populations.LOSSES.keys()
        for name, value in expected.items():
            np.testing.assert_allclose(result[name], value, rtol=1e-5, err_msg=name)


@pytest.mark.parametrize("chunk_size", [None, 1, 4, 6])
def test_gradient_products_against_the_closed_form(samples, chunk_size):
    params, images, own_half, other_half = samples
    # Gradients of padding would be NaN times 0: finite images here, wrong labels only.
    images = jnp.nan_to_num(images, nan=5.0)
    products = functools.partial(populations.gradient_products, apply_linear, chunk_size=chunk_size)
    result = jax.jit(products)(params, images, own_half, other_half)
    params = jax.tree.map(np.asarray, params)
    g = {}
    for name, sample in (("own", own_half), ("other", other_half)):
        rows, labels = rows_of(sample)
        gradient = mean_gradient(params, np.asarray(images)[rows], labels)
        g[name] = np.concatenate([gradient["w"].ravel(), gradient["b"]])
    assert result.keys() == {"own_own", "own_other", "other_other"}
    for name, value in result.items():
        u, v = name.split("_")
        np.testing.assert_allclose(value, g[u] @ g[v], rtol=1e-4, err_msg=name)


def test_gradient_products_of_a_network_against_flat_gradients():
    rng = np.random.default_rng(1)
    images = jnp.asarray(rng.uniform(size=(6, 2, 2, 1)), jnp.float32)
    params = [jnp.asarray(rng.standard_normal(s), jnp.float32) for s in ((4, 5), (5, 3))]
    labels = jnp.array([0, 1, 2, 2, 1, 0], jnp.int32)
    own_half, other_half = (
        Sample(jnp.array(rows), labels[jnp.array(rows)], jnp.ones(3, bool))
        for rows in ([0, 2, 4], [1, 3, 5])
    )

    def apply_fn(params, x):
        return jnp.tanh(x.reshape(x.shape[0], -1) @ params[0]) @ params[1]

    def gradient(rows):
        def loss(params):
            log_p = jax.nn.log_softmax(apply_fn(params, images[rows]))
            return -(log_p * jax.nn.one_hot(labels[rows], 3)).sum() / 3

        return jnp.concatenate([g.ravel() for g in jax.grad(loss)(params)])

    @jax.jit
    def both():
        u, v = gradient(own_half.indices), gradient(other_half.indices)
        expected = {"own_own": u @ u, "own_other": u @ v, "other_other": v @ v}
        return populations.gradient_products(
            apply_fn, params, images, own_half, other_half
        ), expected

    result, expected = both()
    for name, value in expected.items():
        np.testing.assert_allclose(result[name], value, rtol=1e-5, err_msg=name)


# Batches of a size that is data, and training that stops


@pytest.mark.parametrize("batch_size", [3, 5, 8])
def test_a_masked_stream_holds_the_batches_of_the_plain_one(batch_size):
    arguments = {"capacity": 12, "num_steps": 7}
    plain = populations.index_stream(KEY, 10, batch_size=batch_size, **arguments)
    masked = jax.jit(functools.partial(populations.index_stream, batch_capacity=8, **arguments))(
        KEY, 10, batch_size=jnp.int32(batch_size)
    )
    assert masked.shape == (7, 8)
    np.testing.assert_array_equal(masked[:, :batch_size], plain)
    assert (masked < 12).all()


def test_a_masked_step_is_the_step_on_what_counts():
    params, x, labels = draw_problem()
    optimizer = populations.make_optimizer("sgd", 0.5)
    state = populations.init_state(params, optimizer)
    mask = jnp.arange(12) < 5
    spoiled = jnp.where(mask[:, None], x, 1e3)
    step = jax.jit(functools.partial(populations.train_step, apply_linear, optimizer))
    masked = step(state, spoiled, labels, mask)
    plain = step(state, x[:5], labels[:5])
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-7),
        masked.params,
        plain.params,
    )
    full = step(state, x, labels, jnp.ones(12, bool))
    whole = step(state, x, labels)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), full.params, whole.params
    )


@pytest.mark.parametrize("masked", [False, True])
def test_a_step_in_turns_is_the_step_on_all_at_once(masked, monkeypatch):
    """Turns that are asked for, and those of a cache that holds five of twelve examples."""
    params, x, labels = draw_problem()
    optimizer = populations.make_optimizer("sgd", 0.5)
    state = populations.init_state(params, optimizer)
    mask = jnp.arange(12) < 7 if masked else None

    def step(**options):
        program = functools.partial(populations.train_step, apply_linear, optimizer, **options)
        loops = str(jax.make_jaxpr(program)(state, x, labels, mask)).count("scan[")
        return jax.jit(program)(state, x, labels, mask).params, loops

    expected, loops = step()
    assert loops == 0
    for options, chunk_size in (({"chunk_size": 5}, None), ({}, 5)):
        monkeypatch.setattr(losses, "fitting_chunk", lambda *_, size=chunk_size: size)
        result, loops = step(**options)
        assert loops == 1
        for name in expected:
            np.testing.assert_allclose(result[name], expected[name], rtol=1e-5, atol=1e-7)


def test_landscapes_in_the_turns_of_a_cache_are_those_of_all(samples, monkeypatch):
    params, images, own_half, _ = samples
    whole = populations.losses_and_gradient(apply_linear, params, images, own_half)
    alone = populations.landscape_losses(apply_linear, params, images, own_half)
    monkeypatch.setattr(losses, "fitting_chunk", lambda *_: 2)
    for fn, expected in (
        (populations.losses_and_gradient, whole),
        (populations.landscape_losses, alone),
    ):
        program = functools.partial(fn, apply_linear)
        assert "scan[" in str(jax.make_jaxpr(program)(params, images, own_half))
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6),
            program(params, images, own_half),
            expected,
        )


def _halve(state, i):
    del i
    return populations.TrainState(state.params * 0.5, (), state.step + 1)


def _stopping(start, below, probe_steps=(0, 10, 40)):
    state = populations.TrainState(start, (), jnp.zeros((), jnp.int32))
    return populations.fit(
        _halve,
        lambda params: params,
        state,
        probe_steps=probe_steps,
        stop_fn=lambda params: params <= below,
    )


@pytest.mark.parametrize(
    ("below", "steps"), [(2.0**-3, 10), (2.0**-10, 10), (2.0**-11, 20), (2.0**-35, 40), (0.0, 40)]
)
def test_training_stops_at_the_first_look_after_the_loss_is_reached(below, steps):
    state, probes = _stopping(jnp.array(1.0), below)
    assert state.step == steps
    assert state.params == 0.5**steps
    # Later probes see where it stopped.
    np.testing.assert_array_equal(probes, [1.0, 0.5**10, 0.5**steps])


def test_each_member_stops_by_itself_under_vmap():
    starts = jnp.array([1.0, 2.0**12, 2.0**-20, jnp.nan])
    state, probes = jax.jit(jax.vmap(lambda start: _stopping(start, 2.0**-9)))(starts)
    # What starts below the loss is looked at for the first time after ten steps.
    np.testing.assert_array_equal(state.step, [10, 30, 10, 40])
    np.testing.assert_array_equal(probes[:3, -1], starts[:3] * 0.5 ** np.array([10, 30, 10]))
    for index, start in enumerate(starts[:3]):
        alone, _ = _stopping(start, 2.0**-9)
        assert (alone.step, alone.params) == (state.step[index], state.params[index])


def test_probes_of_training_that_stops_are_where_it_looks():
    with pytest.raises(ValueError, match=r"multiples of 10, got \(0, 15\)"):
        _stopping(jnp.array(1.0), 0.5, (0, 15))
