import dataclasses
import functools
import json
import logging

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import log_softmax, softmax
from support import training_loop

from halfway import data, losses, populations, sharding
from halfway.populations import walks

CAPACITY, HOLDOUT = 40, 60
PAIRS = 3  # odd, so that two devices need padding
MODELS = {
    "mlp": {"kind": "mlp", "widths": (12,)},
    "cnn": {"kind": "cnn", "features": (3,), "stride": 2, "widths": ()},
}
MLP = populations.Condition(
    dataset="digits",
    architecture="mlp",
    model=MODELS["mlp"],
    num_classes=10,
    num_examples=CAPACITY,
    num_holdout=HOLDOUT,
    probe_steps=(0, 4, 10),
    num_pairs=PAIRS,
    seed=3,
    learning_rate=5e-3,
    batch_size=16,
)


def change(condition, **fields):
    return dataclasses.replace(condition, **fields)


def of_model(name, **fields):
    model = tuple(sorted(MODELS[name].items()))
    return change(MLP, architecture=name, model=model, **fields)


def leaf_at(tree, *index):
    return jax.tree.map(lambda leaf: leaf[index], tree)


def assert_equal(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    jax.tree.map(np.testing.assert_array_equal, a, b)


def assert_close(a, b, atol=1e-5):
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-5, atol=atol), a, b)


@pytest.fixture(scope="module")
def pool(digits):
    return data.Split(digits.train.images[:300], digits.train.labels[:300])


@pytest.fixture(scope="module")
def train(pool):
    """`train` on the pool; populations of equal conditions are trained once."""
    return functools.cache(lambda condition: populations.train(condition, pool))


# Conditions


OTHER_FIELDS = {
    "dataset": "mnist",
    "architecture": "perceptron",
    "model": (("kind", "mlp"), ("widths", (13,))),
    "num_classes": 11,
    "subset": "all",
    "num_examples": 39,
    "capacity": 41,
    "num_holdout": 61,
    "overlap": 0.5,
    "noise_rate": 0.1,
    "permuted": True,
    "stratified": True,
    "optimizer": "sgd",
    "learning_rate": 6e-3,
    "weight_decay": 0.1,
    "batch_size": 17,
    "probe_steps": (0, 4, 11),
    "num_pairs": 5,
    "seed": 4,
}


def test_every_field_changes_the_id():
    later = {"shared_start": True, "shared_order": True, "on_holdout": True}
    later |= {"batch_capacity": 32, "width": 7, "stop_loss": 0.1, "common_holdout": True}
    later |= {"compute_dtype": "bfloat16", "loss": "squared"}
    others = OTHER_FIELDS | later
    known = {field.name for field in dataclasses.fields(MLP)}
    assert others.keys() | {"trunk_steps"} == known
    ids = {change(MLP, **{name: value}).id for name, value in others.items()}
    ids.add(change(MLP, shared_start=True, trunk_steps=4).id)
    assert len(ids | {MLP.id}) == len(others) + 2


@pytest.mark.quick
def test_the_id_is_stable():
    # Populations on disk are found by it: whatever changes this value orphans them all.
    assert MLP.id == "3acace4724e9"
    reordered = dict(reversed(MODELS["mlp"].items())) | {"widths": [12]}
    again = populations.Condition(
        **{f.name: getattr(MLP, f.name) for f in dataclasses.fields(MLP)} | {"model": reordered}
    )
    assert again == MLP and again.id == MLP.id


@pytest.mark.parametrize("name", MODELS)
def test_conditions_survive_json(name):
    condition = of_model(name, permuted=True)
    again = populations.Condition(**json.loads(json.dumps(condition.to_json())))
    assert again == condition
    assert again.id == condition.id
    hash(again)


@pytest.mark.quick
def test_keys_of_a_pair_do_not_depend_on_the_number_of_pairs():
    few = jax.random.key_data(populations.pair_keys(change(MLP, num_pairs=3)))
    many = jax.random.key_data(populations.pair_keys(change(MLP, num_pairs=7)))
    np.testing.assert_array_equal(few, many[:3])
    assert len({tuple(key) for key in many.tolist()}) == 7
    other_seed = jax.random.key_data(populations.pair_keys(change(MLP, seed=4)))
    assert not {tuple(k) for k in other_seed.tolist()} & {tuple(k) for k in many.tolist()}


def test_no_key_of_a_pair_serves_twice():
    # Nothing that comes out of training shows a key used twice, so the keys themselves are read.
    keys = jax.tree.leaves(populations.split_key(jax.random.key(0)))
    rows = np.concatenate([np.asarray(jax.random.key_data(key)).reshape(-1, 2) for key in keys])
    assert len(rows) == 6  # halves, permutation, two initializations, two orders of batches
    assert len({tuple(row) for row in rows.tolist()}) == 6


# A population is its pairs


@pytest.mark.parametrize(
    "name, num_pairs", [("mlp", PAIRS), pytest.param("cnn", 2, marks=pytest.mark.slow)]
)
def test_a_population_equals_a_loop_over_its_pairs(train, pool, name, num_pairs):
    # The loop takes its keys from a larger population: padding to the devices changes nothing.
    assert sharding.make_mesh().size == 2
    condition = of_model(name, noise_rate=0.4, num_pairs=num_pairs)
    population = train(condition)
    assert {leaf.shape[0] for leaf in jax.tree.leaves(population)} == {num_pairs}
    train_pair = jax.jit(
        functools.partial(
            training_loop.train_pair,
            images=jnp.asarray(pool.images),
            labels=jnp.asarray(pool.labels),
            settings=populations.hyperparameters(condition),
            program=populations.program_of(condition),
            probe_steps=condition.probe_steps,
        ),
        # The reference runs three times: compiled in a third of the time.
        compiler_options={"xla_backend_optimization_level": 0},
    )
    keys = populations.pair_keys(change(condition, num_pairs=5))
    for p in range(num_pairs):
        pair = train_pair(keys[p])
        assert_equal(pair["halves"], leaf_at(population.halves, p))
        np.testing.assert_array_equal(pair["trained_labels"], population.trained_labels[p])
        assert_close(pair["params"], leaf_at(population.params, p))
        for field in ("landscapes", "constant", "products"):
            a, b = pair[field], leaf_at(getattr(population, field), p)
            # An error rate jumps by 1/n where rounding moves a tie.
            a, b = (jax.tree.leaves_with_path(tree) for tree in (a, b))
            a, b = ([leaf for path, leaf in x if "error" not in str(path)] for x in (a, b))
            assert_close(a, b, atol=1e-4)


def test_the_same_call_gives_the_same_bits(train, pool):
    assert_equal(train(MLP), populations.train(MLP, pool))


def test_other_settings_compile_nothing(train, pool, caplog):
    train(MLP)
    caplog.clear()
    with jax.log_compiles(), caplog.at_level(logging.WARNING):
        for fields in (
            {"noise_rate": 0.4},
            {"num_examples": 25, "overlap": 0.5},
            {"learning_rate": 0.1, "weight_decay": 0.3},
            {"permuted": True, "seed": 11},
        ):
            other = populations.train(change(MLP, **fields), pool)
            assert not np.array_equal(other.landscapes["own"]["brier"], 0)
    compiled = [m for m in caplog.messages if "ompil" in m]
    assert compiled == []


def test_other_training_compiles_training_alone(train, pool, caplog):
    """Optimizer, batches and steps shape neither halves nor initial models nor what is read."""
    train(MLP)
    caplog.clear()
    fields = {"optimizer": "sgd", "batch_size": 7, "probe_steps": (0, *MLP.probe_steps[-1:])}
    with jax.log_compiles(), caplog.at_level(logging.WARNING):
        populations.train(change(MLP, **fields), pool)
    compiled = {
        name
        for name in ("_draw", "_init", "_start", "_advance", "_look")
        if any("XLA compilation" in m and f"{name}_program" in m for m in caplog.messages)
    }
    assert compiled == {"_start", "_advance"}


def test_compilations_would_be_noticed(pool, caplog):
    with jax.log_compiles(), caplog.at_level(logging.WARNING):
        jax.jit(lambda x: x + 12345)(jnp.float32(1))
    assert any("ompil" in m for m in caplog.messages)


# What pairs share


def valid_rows(sample):
    return np.asarray(sample.indices)[np.asarray(sample.mask)]


def test_halves_have_their_sizes_and_do_not_meet(train):
    population = train(change(MLP, num_examples=25, overlap=0.2))
    for p in range(PAIRS):
        a, b, s = (set(valid_rows(leaf_at(x, p))) for x in population.halves)
        assert (len(a), len(b), len(s), len(a & b)) == (25, 25, HOLDOUT, 5)
        assert not s & (a | b)
    assert len({tuple(row) for row in np.asarray(population.halves.a.indices)}) == PAIRS


def test_pairs_and_conditions_can_have_one_holdout(train, pool, caplog):
    train(MLP)  # whatever its S, training is one program
    with jax.log_compiles(), caplog.at_level(logging.WARNING):
        population = train(change(MLP, common_holdout=True))
        noisy = train(change(MLP, common_holdout=True, noise_rate=0.4, num_examples=25))
    assert not [m for m in caplog.messages if "ompil" in m and "_advance_program" in m]
    for pairs in (population, noisy):
        held = np.asarray(pairs.halves.s.indices)
        np.testing.assert_array_equal(held, np.asarray(population.halves.s.indices[:1]) + 0 * held)
    for p in range(PAIRS):
        a, b, s = (set(valid_rows(leaf_at(x, p))) for x in population.halves)
        assert not s & (a | b) and not a & b
        assert set(valid_rows(leaf_at(noisy.halves.a, p))) < a
    assert len({tuple(row) for row in np.asarray(population.halves.a.indices)}) == PAIRS
    other = populations.train(change(MLP, common_holdout=True, seed=8), pool)
    assert set(valid_rows(leaf_at(other.halves.s, 0))) != s


def test_noise_and_control_share_halves_and_initializations(train):
    # At a learning rate of 0 the parameters returned are the initial ones.
    still = [
        train(change(MLP, learning_rate=0.0, **fields))
        for fields in ({}, {"noise_rate": 0.4}, {"permuted": True})
    ]
    for population in still[1:]:
        assert_equal(population.params, still[0].params)
        for ours, theirs in zip(population.halves, still[0].halves, strict=True):
            np.testing.assert_array_equal(ours.indices, theirs.indices)
            np.testing.assert_array_equal(ours.mask, theirs.mask)
    kernels = np.asarray(still[0].params["Dense_0"]["kernel"]).reshape(2 * PAIRS, -1)
    assert (
        len({tuple(row) for row in kernels}) == 2 * PAIRS
    )  # every model of every pair has its own
    # Nothing moved, and the first probe of a run that does move reads the same landscape.
    brier, moved = (x.landscapes["other"]["brier"] for x in (still[0], train(MLP)))
    np.testing.assert_array_equal(brier[..., 0], brier[..., 2])
    np.testing.assert_allclose(moved[..., 0], brier[..., 0], rtol=1e-6)
    assert (moved[..., 0] != moved[..., 2]).all()


def test_noise_and_control_share_the_order_of_batches(train):
    """Models whose labels happen to agree train bit for bit alike; others do not."""
    for plain, other in (
        # One label in fifty replaced: many halves have none.
        (MLP, change(MLP, noise_rate=0.02)),
        # Three labels: one permutation in six is the identity. Batches of 16 cut the epochs.
        (change(MLP, num_examples=3), change(MLP, num_examples=3, permuted=True)),
    ):
        n = plain.num_examples
        a, b = train(plain), train(other)
        same = (a.trained_labels == b.trained_labels)[..., :n].all(-1)
        assert same.any() and not same.all()
        for p, model in np.ndindex(PAIRS, 2):
            kernels = [leaf_at(x.params, p, model)["Dense_0"]["kernel"] for x in (a, b)]
            assert np.array_equal(*kernels) == same[p, model]


def test_control_permutes_labels_within_the_half(train):
    n = 25
    plain, control = (
        train(change(MLP, num_examples=n, noise_rate=0.2, permuted=permuted))
        for permuted in (False, True)
    )
    half_labels = np.stack([plain.halves.a.labels, plain.halves.b.labels], axis=1)
    np.testing.assert_array_equal(plain.trained_labels, half_labels)
    for x, y in zip(plain.halves, control.halves, strict=True):  # halves keep their labels
        np.testing.assert_array_equal(x.labels, y.labels)
    trained = np.asarray(control.trained_labels)
    np.testing.assert_array_equal(np.sort(trained[..., :n]), np.sort(half_labels[..., :n]))
    assert (trained != half_labels)[..., :n].any(-1).all()


# Landscapes


def logits_of(params, images):
    x = 2 * np.asarray(images, np.float64).reshape(len(images), -1) - 1
    hidden = np.maximum(x @ params["Dense_0"]["kernel"] + params["Dense_0"]["bias"], 0)
    return hidden @ params["Dense_1"]["kernel"] + params["Dense_1"]["bias"]


def means(logits, labels):
    onehot = np.eye(10)[labels]
    return {
        "cross_entropy": -(log_softmax(logits, axis=1) * onehot).sum(1).mean(),
        "brier": ((softmax(logits, axis=1) - onehot) ** 2).sum(1).mean(),
        "error": (logits.argmax(1) != labels).mean(),
    }


def samples_of(population, p, model):
    """Rows and labels that model 0 or 1 of pair p is measured on: own as trained, others as are."""
    half, other = leaf_at(population.halves, p)[:2][:: 1 - 2 * model]
    n = int(half.mask.sum())
    yield "own", valid_rows(half), np.asarray(population.trained_labels)[p, model, :n]
    yield "other", valid_rows(other), np.asarray(other.labels)[:n]
    holdout = leaf_at(population.halves.s, p)
    yield "holdout", valid_rows(holdout), np.asarray(holdout.labels)


@pytest.mark.parametrize("permuted", [False, True])
def test_landscapes_against_numpy(train, pool, permuted):
    population = train(
        change(MLP, num_examples=25, noise_rate=0.2, permuted=permuted, weight_decay=0.1)
    )
    for p, model in np.ndindex(PAIRS, 2):
        params = jax.tree.map(np.asarray, leaf_at(population.params, p, model))
        samples = {name: rest for name, *rest in samples_of(population, p, model)}
        frequencies = np.bincount(samples["own"][1], minlength=10) / 25
        for name, (rows, labels) in samples.items():
            expected = means(logits_of(params, pool.images[rows]), labels)
            with np.errstate(divide="ignore"):
                constant = np.log(frequencies)
            onehot = np.eye(10)[labels]
            expected_constant = {
                "cross_entropy": -constant[labels].mean(),  # infinite for an unseen class
                "brier": ((frequencies - onehot) ** 2).sum(1).mean(),
                "error": (labels != frequencies.argmax()).mean(),
            }
            for loss, value in expected.items():
                where = f"pair {p}, model {model}, {name}, {loss}"
                result = population.landscapes[name][loss][p, model, -1]
                np.testing.assert_allclose(result, value, rtol=1e-4, atol=1e-6, err_msg=where)
                result = population.constant[name][loss][p, model]
                value = expected_constant[loss]
                np.testing.assert_allclose(result, value, rtol=1e-5, err_msg=where)


def test_gradient_products_at_the_end(train, pool):
    population = train(change(MLP, num_examples=25, permuted=True))

    @jax.jit
    def gradient(params, rows, labels):
        def loss(params):
            log_p = jax.nn.log_softmax(population.apply_fn(params, jnp.asarray(pool.images)[rows]))
            return -(log_p * jax.nn.one_hot(labels, 10)).sum(1).mean()

        return jnp.concatenate([g.ravel() for g in jax.tree.leaves(jax.grad(loss)(params))])

    for model in range(2):
        params = leaf_at(population.params, 2, model)
        (_, *own_half), (_, *other_half), _ = samples_of(population, 2, model)
        u, v = gradient(params, *own_half), gradient(params, *other_half)
        expected = {"own_own": u @ u, "own_other": u @ v, "other_other": v @ v}
        assert population.products.keys() == expected.keys()
        for name, value in expected.items():
            result = population.products[name][2, model, -1]
            np.testing.assert_allclose(result, value, rtol=1e-3, err_msg=name)


def test_training_descends_its_own_landscape(train):
    population = train(change(MLP, learning_rate=0.05))
    cross_entropy = np.asarray(population.landscapes["own"]["cross_entropy"])
    assert cross_entropy.shape == (PAIRS, 2, 3)
    assert (cross_entropy[..., 2] < cross_entropy[..., 0]).all()


@pytest.mark.quick
def test_walks_start_at_the_constant_predictor_and_sum_both_directions(train):
    population = train(MLP)
    for loss in ("error", "brier"):
        for name, walk in zip(("own", "other"), population.walks(loss), strict=True):
            constant, along = population.constant[name][loss], population.landscapes[name][loss]
            assert walk.shape == (PAIRS, 4)
            np.testing.assert_allclose(walk[:, 0], constant[:, 0] + constant[:, 1], rtol=1e-6)
            np.testing.assert_allclose(walk[:, 1:], along[:, 0] + along[:, 1], rtol=1e-6)


@pytest.mark.parametrize("fields", [{}, {"permuted": True, "noise_rate": 0.4}])
def test_a_walk_retraced_ends_where_training_did(train, pool, fields):
    condition = change(MLP, **fields)
    population = train(condition)
    walk = populations.retrace(condition, pool, steps=(0, 3, 4, 10), num_pairs=2)
    ends = jax.tree.map(lambda leaf: leaf[:, :, -1], walk)
    assert_close(ends, jax.tree.map(lambda leaf: leaf[:2], population.params))
    starts = jax.tree.map(lambda leaf: leaf[:, :, 0], walk)
    key = populations.pair_keys(condition)[1]
    program = populations.program_of(condition)
    settings = populations.hyperparameters(condition)
    init = jax.jit(functools.partial(populations.init_pair, program=program))
    assert_close(leaf_at(starts, 1), init(key, jnp.asarray(pool.images[:1]), settings))
    middle = jax.tree.map(lambda leaf: np.asarray(leaf)[:, :, 2], walk)  # after 4 steps, a probe
    for p in range(2):
        sample = jax.tree.map(lambda leaf, p=p: np.asarray(leaf)[p], population.halves.s)
        logits = logits_of(leaf_at(middle, p, 0), pool.images[sample.indices])
        wrong = (logits.argmax(1) != sample.labels)[sample.mask]
        probed = population.landscapes["holdout"]["error"][p, 0, 1]
        assert wrong.mean() == pytest.approx(float(probed), abs=1e-6)


def test_walks_from_a_shared_start_differ_in_b_alone(train, pool):
    separate, shared = (
        populations.retrace(change(MLP, shared_start=shared), pool, steps=(0, 10), num_pairs=2)
        for shared in (False, True)
    )
    assert_close(leaf_at(shared, slice(None), 0), leaf_at(separate, slice(None), 0))
    assert_equal(leaf_at(shared, slice(None), 1, 0), leaf_at(shared, slice(None), 0, 0))
    for leaf in jax.tree.leaves(shared):
        assert np.abs(leaf[:, 0, 1] - leaf[:, 1, 1]).max() > 1e-3  # on halves of their own


@pytest.mark.parametrize(
    "fields, alike",
    [
        ({"shared_start": True, "shared_order": True}, True),
        ({"shared_start": True}, False),
        ({"shared_order": True}, False),
    ],
)
def test_models_of_one_start_order_and_data_are_one(pool, fields, alike):
    same_data = change(MLP, overlap=1.0, num_examples=20, **fields)
    walk = populations.retrace(same_data, pool, steps=(0, 10), num_pairs=2)
    apart = max(np.abs(leaf[:, 0, -1] - leaf[:, 1, -1]).max() for leaf in jax.tree.leaves(walk))
    assert (apart == 0) == alike
    assert alike or apart > 1e-3


def test_a_trunk_is_one_model_on_both_halves_and_then_two(pool):
    fields = {"shared_start": True, "noise_rate": 0.4}
    trunk = populations.retrace(
        change(MLP, trunk_steps=4, **fields), pool, steps=(0, 3, 4, 5, 10), num_pairs=2
    )
    for leaf in jax.tree.leaves(trunk):
        np.testing.assert_array_equal(leaf[:, 0, :3], leaf[:, 1, :3])
        assert np.abs(leaf[:, 0, 3:] - leaf[:, 1, 3:]).max(initial=0) > 1e-4
    alone = populations.retrace(change(MLP, **fields), pool, steps=(0, 3), num_pairs=2)
    assert_equal(leaf_at(alone, 0, 0, 0), leaf_at(trunk, 0, 0, 0))
    # Its batches hold examples of either half, labelled as in training, none twice in an epoch.
    condition = change(MLP, trunk_steps=10, capacity=24, num_examples=20, batch_size=4, **fields)
    key = populations.pair_keys(condition)[0]
    labels = jnp.asarray(pool.labels, jnp.int32)
    settings, program = populations.hyperparameters(condition), populations.program_of(condition)

    @jax.jit
    def draw(key, labels, settings):
        drawn = populations.sample_pair(key, labels, settings, program=program)
        return drawn, walks._trunk(key, drawn, settings["num_examples"], program)

    drawn, (rows, given) = jax.device_get(draw(key, labels, settings))
    noisy = {
        int(row): int(label)
        for sample in (drawn.halves.a, drawn.halves.b)
        for row, label in zip(sample.indices[:20], sample.labels[:20], strict=True)
    }
    assert len(noisy) == 40
    assert sorted(noisy) == sorted(rows.ravel().tolist())  # 10 batches of 4 are one epoch
    assert [noisy[row] for row in rows.ravel().tolist()] == given.ravel().tolist()


@pytest.mark.parametrize(
    "fields, message",
    [
        ({"trunk_steps": 4}, "trunk_steps needs shared_start"),
        ({"trunk_steps": 4, "shared_start": True, "on_holdout": True}, "on_holdout has no trunk"),
        ({"trunk_steps": 11, "shared_start": True}, r"trunk_steps must lie in \[0, 10\]"),
    ],
)
def test_a_trunk_has_one_beginning_and_ends_in_time(fields, message):
    with pytest.raises(ValueError, match=message):
        change(MLP, **fields)


def test_training_on_the_holdout_looks_at_neither_half(train, pool):
    condition = change(MLP, on_holdout=True, probe_steps=(0, 300))
    population = train(condition)
    walk = populations.retrace(condition, pool, steps=(0, 300), num_pairs=PAIRS)
    ours = populations.retrace(MLP, pool, steps=(0,), num_pairs=2)
    assert_equal(
        leaf_at(walk, slice(2), slice(None), 0), leaf_at(ours, slice(None), slice(None), 0)
    )
    assert_close(leaf_at(walk, slice(None), slice(None), 1), population.params)
    holdout = population.landscapes["holdout"]["error"][:, :, -1]
    halves = np.stack([population.landscapes[name]["error"][:, :, -1] for name in ("own", "other")])
    assert holdout.max() < 0.02 < halves.mean()
    # The labels of the halves do not matter.
    permuted = train(change(condition, permuted=True))
    assert (permuted.trained_labels != population.trained_labels).any()
    assert_equal(permuted.params, population.params)


def _read_first(program, key, params, samples, images):
    logits = program.apply_fn(params, images[:1])
    first = {name: sample.indices[0] for name, sample in samples.items()}
    return {
        "bias": params["Dense_0"]["bias"],
        "first": first,
        "logits": logits,
        "draw": jax.random.uniform(key),
    }


def test_a_probe_sees_parameters_and_samples_of_its_model(train, pool):
    observations = populations.observe(MLP, pool, _read_first, steps=(0, 10), num_pairs=2)
    population = train(MLP)
    expected = population.params["Dense_0"]["bias"][:2]
    np.testing.assert_allclose(observations["bias"][:, :, 1], expected, rtol=1e-4, atol=1e-6)
    assert len(np.unique(observations["draw"])) == 4  # of each model, the same along its walk
    assert (observations["draw"][..., 0] == observations["draw"][..., 1]).all()
    first = observations["first"]
    for side, (own_half, other_half) in enumerate((("a", "b"), ("b", "a"))):
        for name, half in (("own", own_half), ("other", other_half), ("holdout", "s")):
            rows = getattr(population.halves, half).indices[:2, 0]
            np.testing.assert_array_equal(first[name][:, side], np.stack([rows, rows], 1))


@pytest.mark.parametrize(
    "fields, message",
    [
        ({"steps": (0, 11), "num_pairs": 1}, r"steps of a walk lie in \[0, 10\]"),
        ({"steps": (), "num_pairs": 1}, "end of training, got"),
        ({"steps": (0, 10), "num_pairs": 4}, r"num_pairs must lie in \[1, 3\], got 4"),
    ],
)
def test_a_walk_beyond_the_population_is_refused(pool, fields, message):
    with pytest.raises(ValueError, match=message):
        populations.retrace(MLP, pool, **fields)


# What is masked, and training that stops


def test_a_batch_in_a_longer_row_trains_as_by_itself(train):
    plain, masked = train(MLP), train(change(MLP, batch_capacity=21))
    assert_close(masked.params, plain.params)
    assert_close(masked.landscapes, plain.landscapes)


def test_a_narrow_network_in_a_wide_program_trains_as_by_itself(train):
    population = train(change(MLP, width=4, weight_decay=0.01))
    hidden = population.params["Dense_0"]
    assert (np.asarray(hidden["kernel"])[..., 4:] == 0).all()
    assert (np.asarray(population.params["Dense_1"]["kernel"])[:, :, 4:] == 0).all()
    assert (np.asarray(hidden["kernel"])[..., :4] != 0).all()
    assert (np.asarray(hidden["bias"])[..., :4] != 0).any()


# One program for all tests of what is masked and of what stops.
STOPPING = change(
    MLP,
    width=12,
    batch_capacity=16,
    stop_loss=1.5,
    probe_steps=(0, 10, 200),
    learning_rate=1e-2,
)


def test_widths_and_batch_sizes_compile_nothing(train, pool, caplog):
    train(STOPPING)
    caplog.clear()
    with jax.log_compiles(), caplog.at_level(logging.WARNING):
        for fields in ({"width": 7}, {"batch_size": 5}, {"stop_loss": 0.5}):
            populations.train(change(STOPPING, **fields), pool)
    assert [m for m in caplog.messages if "ompil" in m] == []


def test_training_stops_at_its_loss_and_says_when(train, pool):
    condition = change(STOPPING, noise_rate=0.2)
    population = train(condition)
    steps = np.asarray(population.num_steps)
    final = np.asarray(population.landscapes["own"]["cross_entropy"])[..., -1]
    assert (final <= 1.5).all()
    assert steps.shape == (PAIRS, 2) and (steps % 10 == 0).all()
    assert 10 <= steps.min() < steps.max() < 200
    # As if training had been that long, and ten steps earlier the loss was not there yet.
    endless = change(condition, stop_loss=1e-9)
    number = int(steps[0, 0])
    options = {"steps": (0, number - 10, number), "num_pairs": PAIRS}
    walk = populations.retrace(endless, pool, **options)
    assert_close(leaf_at(walk, 0, 0, 2), leaf_at(population.params, 0, 0))
    seen = populations.observe(endless, pool, populations.probe_landscapes, **options)
    before = np.asarray(seen["landscapes"]["own"]["cross_entropy"])[0, 0, 1]
    assert before > 1.5
    # Where the loss is out of reach, training is what it is without one.
    plain = train(change(MLP, learning_rate=1e-2, noise_rate=0.2))
    assert_close(
        jax.tree.map(lambda leaf: leaf[..., 1], train(endless).landscapes),
        jax.tree.map(lambda leaf: leaf[..., 2], plain.landscapes),
    )
    assert (np.asarray(train(MLP).num_steps) == 10).all()
    ends = populations.retrace(condition, pool, steps=(0, 200), num_pairs=PAIRS)
    assert_close(leaf_at(ends, slice(None), slice(None), 1), population.params)


@pytest.mark.parametrize(
    "fields, message",
    [
        ({"width": 13}, r"width must lie in \[1, 12\], the narrowest layer, got 13"),
        ({"width": 4, "model": MODELS["cnn"]}, "width is of an 'mlp'"),
        ({"width": 4, "model": MODELS["mlp"] | {"activation": "sigmoid"}}, "width is of an 'mlp'"),
        ({"batch_capacity": 8}, r"batch_size must lie in \[1, 8\], batch_capacity, got 16"),
        ({"batch_capacity": 16, "trunk_steps": 4, "shared_start": True}, "batches of one size"),
    ],
)
def test_masks_that_make_no_sense_are_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        change(MLP, **fields)


def test_divergence_is_reported_and_raises_nothing(train):
    assert train(MLP).finite.tolist() == [True] * PAIRS
    assert train(change(MLP, learning_rate=1e30)).finite.tolist() == [False] * PAIRS


def test_one_bad_number_spoils_its_pair_alone(train):
    population = train(MLP)
    brier = population.landscapes["holdout"]["brier"].at[2, 0, 1].set(jnp.nan)
    landscapes = population.landscapes | {"holdout": {"brier": brier}}
    spoiled = change(population, landscapes=landscapes)
    assert spoiled.finite.tolist() == [True, True, False]
    params = population.params | {"more": jnp.zeros((PAIRS, 2)).at[0, 1].set(jnp.inf)}
    assert change(population, params=params).finite.tolist() == [False, True, True]


# Bad input


@pytest.mark.parametrize(
    "fields, culprit",
    [
        ({"num_examples": 121, "capacity": 121}, "num_examples=121 .*at most 120"),
        ({"num_examples": 41}, "got 41"),
        ({"num_holdout": 221}, "num_examples=40 .*at most 39"),
        ({"noise_rate": 1.5}, "noise_rate.*got 1.5"),
        ({"overlap": -0.5}, "overlap.*got -0.5"),
        ({"optimizer": "adma"}, "'adma'"),
        ({"model": (("kind", "mpl"),)}, "'mpl'"),
        ({"model": (("kind", "mlp"), ("depth", 3))}, "'depth'"),
        ({"model": (("activation", "rleu"), ("kind", "mlp"))}, "'rleu'"),
    ],
)
def test_impossible_conditions_are_refused_before_training(pool, fields, culprit):
    for check in (populations.validate, populations.train):
        with pytest.raises(ValueError, match=culprit):
            check(change(MLP, **fields), pool)


def test_possible_conditions_are_not_refused(pool):
    for name in MODELS:
        populations.validate(of_model(name), pool)
    populations.validate(change(MLP, num_examples=120, capacity=120), pool)


# On disk


def test_a_saved_population_comes_back_bit_for_bit(train, pool, tmp_path):
    population = train(change(MLP, noise_rate=0.4))
    populations.save(tmp_path / "new" / "one", population)
    again = populations.load(tmp_path / "new" / "one")
    assert again.condition == population.condition
    assert_equal(again, population)
    dtypes = [jax.tree.map(lambda leaf: leaf.dtype, x) for x in (again, population)]
    assert dtypes[0] == dtypes[1]
    x = jnp.asarray(pool.images[:5])
    logits = [copy.apply_fn(leaf_at(copy.params, 1, 0), x) for copy in (again, population)]
    np.testing.assert_array_equal(*logits)


def test_numbers_that_are_not_finite_survive(train, tmp_path):
    population = train(change(MLP, learning_rate=1e30))
    populations.save(tmp_path / "one", population)
    assert_equal(populations.load(tmp_path / "one"), population)


def test_saving_overwrites_the_whole_folder(train, tmp_path):
    path = tmp_path / "one"
    fewer = change(MLP, num_pairs=2)
    other = leaf_at(train(MLP), slice(2)).replace(condition=fewer)
    populations.save(path, train(MLP))
    (path / "stray").write_text("of an older version")
    populations.save(path, other)
    assert populations.load(path).condition == fewer
    assert_equal(populations.load(path), other)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["one"]
    assert not (path / "stray").exists()


def test_an_interrupted_save_does_no_harm(train, tmp_path):
    partial = tmp_path / "one.partial"
    (partial / "arrays").mkdir(parents=True)
    (partial / "condition.json").write_text("{")
    with pytest.raises(FileNotFoundError, match="one"):
        populations.load(tmp_path / "one")
    populations.save(tmp_path / "one", train(MLP))
    assert_equal(populations.load(tmp_path / "one"), train(MLP))
    assert not partial.exists()


# Training in pieces


LONG = change(MLP, probe_steps=(0, 4, 130, 250))


@pytest.fixture(scope="module")
def kept(pool):
    """A training, and all that was kept of it on the way."""
    pieces = []
    population = populations.train(LONG, pool, on_piece=lambda p: pieces.append(p.to_tree()))
    return population, pieces


def test_training_goes_on_from_every_piece_to_the_same_bits(kept, pool):
    population, pieces = kept
    assert [int(piece["num_steps"]) for piece in pieces] == [4, 104, 130, 230, 250]
    assert [len(piece["seen"]) for piece in pieces] == [1, 2, 2, 3, 3]
    for piece in pieces:
        assert_equal(populations.train(LONG, pool, resume=piece), population)


def test_what_was_kept_is_what_decides_how_it_goes_on(kept, pool):
    population, pieces = kept
    first, *others = sorted(pieces[1]["walk"])  # the parameters come first
    walk = {first: pieces[1]["walk"][first] + 1} | {k: pieces[1]["walk"][k] for k in others}
    changed = pieces[1] | {"walk": walk}
    other = populations.train(LONG, pool, resume=changed)
    assert not np.array_equal(
        other.landscapes["own"]["brier"][..., -1], population.landscapes["own"]["brier"][..., -1]
    )
    assert_equal(
        other.landscapes["own"]["brier"][..., :2], population.landscapes["own"]["brier"][..., :2]
    )


@pytest.mark.parametrize("fields", [{"num_pairs": 2}, {"model": {"kind": "mlp", "widths": (13,)}}])
def test_what_was_kept_of_another_training_is_refused(kept, pool, fields):
    with pytest.raises(ValueError, match="kept of a training is of another condition"):
        populations.train(change(LONG, **fields), pool, resume=kept[1][2])


def test_members_that_stopped_stay_where_they_are_over_pieces(pool):
    pieces = []
    whole = populations.train(STOPPING, pool, on_piece=lambda p: pieces.append(p.to_tree()))
    assert [int(piece["num_steps"]) for piece in pieces] == [10, 110, 200]
    assert int(np.max(whole.num_steps)) < 200
    assert_equal(populations.train(STOPPING, pool, resume=pieces[1]), whole)


ROWS = {"batch_capacity": 21, "stop_loss": 1.9, "probe_steps": (0, 20)}


@pytest.mark.parametrize(
    "mesh, at_once, fields",
    [
        ((1, 2), None, {}),
        ((1, 2), None, ROWS),
        ((1, 1), 2, ROWS),
        pytest.param((1, 1), None, {}, marks=pytest.mark.slow),
        pytest.param((2, 1), 1, {}, marks=pytest.mark.slow),
        pytest.param((2, 1), 1, ROWS, marks=pytest.mark.slow),
    ],
)
def test_layouts_agree(train, pool, mesh, at_once, fields):
    condition = change(MLP, noise_rate=0.4, **fields)
    with sharding.use(sharding.Layout(sharding.make_mesh(*mesh), at_once)):
        population = populations.train(condition, pool)
    expected = train(condition)
    assert_equal(population.halves, expected.halves)
    assert_equal(population.num_steps, expected.num_steps)
    assert_close(population.params, expected.params)
    for name in ("landscapes", "constant", "products"):
        ours, theirs = (
            jax.tree.leaves_with_path(getattr(result, name)) for result in (population, expected)
        )
        for (path, a), (_, b) in zip(ours, theirs, strict=True):
            # An error rate jumps by 1/n where rounding moves a tie.
            atol = 2 / HOLDOUT if "error" in str(path) else 1e-4
            np.testing.assert_allclose(a, b, rtol=1e-4, atol=atol)


def test_a_step_in_bfloat16_rounds_what_it_computes_and_nothing_else(train):
    exact, rounded = train(MLP), train(change(MLP, compute_dtype="bfloat16"))
    for leaf in jax.tree.leaves((rounded.params, rounded.landscapes)):
        assert leaf.dtype == jnp.float32
    # The first probe is before any step: measured in float32, whatever steps are computed in.
    for loss in ("brier", "cross_entropy"):
        a, b = (result.landscapes["other"][loss] for result in (exact, rounded))
        np.testing.assert_array_equal(a[..., 0], b[..., 0])
        difference = np.abs(a[..., -1] - b[..., -1]).max()
        assert 1e-6 < difference < 0.02
    kernel = np.asarray(rounded.params["Dense_0"]["kernel"])
    assert (kernel != np.asarray(jnp.asarray(kernel, jnp.bfloat16), np.float32)).mean() > 0.9


def test_another_type_is_refused():
    with pytest.raises(
        ValueError, match="compute_dtype must be float32 or bfloat16, got 'float16'"
    ):
        change(MLP, compute_dtype="float16")


# What training descends


def test_training_descends_the_loss_of_its_condition(train, pool):
    """Known elsewhere: a field that is stored and not used."""
    entropic, squared = train(MLP), train(change(MLP, loss="squared"))

    def distances(population):
        """Mean squared distance of the logits on the own half, `[P, 2]`."""
        own_half, _ = population.samples()
        images = jnp.asarray(pool.images, jnp.float32)

        def of_model(params, sample):
            logits = population.apply_fn(params, images[sample.indices])
            values = losses.squared(logits, sample.labels)
            return losses.masked_mean(values, sample.mask)

        return np.asarray(jax.jit(jax.vmap(jax.vmap(of_model)))(population.params, own_half))

    assert (distances(squared) < 0.5 * distances(entropic)).all()
    assert squared.condition.id != entropic.condition.id
    # The same draws: halves, starts and what is read before the first step.
    assert_equal(squared.halves, entropic.halves)
    first = (leaf.landscapes["own"]["cross_entropy"][..., 0] for leaf in (squared, entropic))
    np.testing.assert_array_equal(*first)


def test_an_unknown_loss_is_named():
    with pytest.raises(ValueError, match="unknown loss 'hinge': choose one of cross_entropy"):
        change(MLP, loss="hinge")
