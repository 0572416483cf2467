import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from halfway import data, populations
from halfway.types import Sample

# Classes of unequal size in an order that has nothing to do with them.
LABELS = np.random.default_rng(0).permutation(np.repeat([0, 1, 2], [30, 18, 12])).astype(np.int32)
POOL, NUM_CLASSES = len(LABELS), 3
KEY = jax.random.key(0)
OPTIONS = {"num_classes": NUM_CLASSES, "capacity": 20, "num_holdout": 16}
P_VALUE = 1e-4
"""The seeds are fixed: a test that passes goes on passing; a defect gives far smaller values."""


def valid(sample):
    return np.asarray(sample.indices)[np.asarray(sample.mask)]


def at(tree, *index):
    return jax.tree.map(lambda leaf: leaf[index], tree)


TRACES = []


@jax.jit
def split(key, num_examples, overlap, noise_rate):
    """`populations.split` of the small pool, with every size and rate as data."""
    TRACES.append(1)
    return populations.split(
        key,
        jnp.asarray(LABELS),
        num_examples=num_examples,
        overlap=overlap,
        noise_rate=noise_rate,
        **OPTIONS,
    )


split_many = jax.jit(jax.vmap(split))
KEYS = jax.random.split(KEY, 4000)


def constant(*values):
    return [jnp.full(len(KEYS), value) for value in values]


@pytest.fixture(scope="module")
def iid():
    """The halves of 4,000 keys: n = 12, half of A shared."""
    return split_many(KEYS, *constant(12, 0.5, 0.0))


@pytest.fixture(scope="module")
def stratified():
    """The same with class shares kept."""

    def fn(key):
        options = OPTIONS | {"num_examples": 12, "overlap": 0.5, "stratified": True}
        return populations.split(key, jnp.asarray(LABELS), **options)

    return jax.jit(jax.vmap(fn))(KEYS)


# Who is where


@pytest.mark.parametrize("overlap, shared", [(0.0, 0), (0.25, 5), (0.5, 10), (1.0, 20)])
def test_overlap_is_exact_and_s_is_disjoint_from_both(overlap, shared):
    parts = split(KEY, 20, overlap, 0.0)
    a, b, s = (set(valid(sample)) for sample in parts)
    assert (len(a), len(b), len(s)) == (20, 20, 16)  # none of them repeats an example
    assert len(a & b) == shared
    assert not s & (a | b)


def test_sizes_below_the_capacity():
    full = split(KEY, 20, 0.0, 0.0)
    for n, overlap, shared in [(1, 0.0, 0), (7, 0.5, 4), (12, 0.25, 3), (13, 1.0, 13)]:
        parts = split(KEY, n, overlap, 0.0)
        a, b, s = (valid(sample) for sample in parts)
        assert len(set(a)) == len(set(b)) == n
        assert len(set(a) & set(b)) == shared
        assert not set(s) & (set(a) | set(b))
        np.testing.assert_array_equal(a, valid(full.a)[:n])  # a subset of the larger A
        np.testing.assert_array_equal(s, valid(full.s))
        for sample in parts:  # valid examples first
            np.testing.assert_array_equal(np.sort(sample.mask)[::-1], sample.mask)


@pytest.mark.quick
def test_labels_are_the_pools_without_noise():
    for sample in split(KEY, 13, 0.25, 0.0):
        np.testing.assert_array_equal(sample.labels, LABELS[np.asarray(sample.indices)])
        assert sample.labels.dtype == sample.indices.dtype == jnp.int32


def test_defaults_use_the_whole_pool():
    options = {"num_examples": 20, "num_classes": NUM_CLASSES}
    parts = jax.jit(lambda: populations.split(KEY, jnp.asarray(LABELS), **options))()
    everyone = np.concatenate([valid(sample) for sample in parts])
    assert [len(valid(sample)) for sample in parts] == [20, 20, 20]
    np.testing.assert_array_equal(np.sort(everyone), np.arange(POOL))


def uniformity(counts, num_keys, share):
    """The p-value of "each of these examples is drawn with this probability"."""
    # Counts of a simple random sample are negatively correlated: N - 1 degrees of freedom.
    variance = num_keys * share * (1 - share) * len(counts) / (len(counts) - 1)
    statistic = ((counts - num_keys * share) ** 2).sum() / variance
    return scipy.stats.chi2.sf(statistic, len(counts) - 1)


def times_drawn(sample):
    return np.bincount(valid(sample), minlength=POOL)


def test_every_example_is_equally_likely_in_every_sample(iid):
    for sample, size in zip(iid, (12, 12, 16), strict=True):
        assert uniformity(times_drawn(sample), len(KEYS), size / POOL) > P_VALUE


def test_examples_enter_a_half_independently_of_their_neighbours(iid):
    inside = np.zeros((len(KEYS), POOL), bool)
    np.put_along_axis(inside, np.asarray(iid.a.indices)[:, :12], True, axis=1)
    # A cyclic shift of the pool, say, is uniform too.
    neighbours = (inside[:, 1:] & inside[:, :-1]).sum(1)
    expected = (POOL - 1) * 12 * 11 / (POOL * (POOL - 1))
    z = (neighbours.mean() - expected) / (neighbours.std(ddof=1) / np.sqrt(len(neighbours)))
    assert abs(z) < 4


def test_stratified_samples_draw_uniformly_within_each_class(stratified):
    for sample in stratified:
        counts = times_drawn(sample)
        for c in range(NUM_CLASSES):
            members = counts[c == LABELS]
            assert uniformity(members, len(KEYS), members.mean() / len(KEYS)) > P_VALUE


def deviations_from_shares(parts):
    """Class counts minus their expectations `[keys, C]`, of each sample."""
    share = np.bincount(LABELS) / POOL
    for sample, size in zip(parts, (12, 12, 16), strict=True):
        labels = LABELS[np.asarray(sample.indices)[:, :size]]
        yield (labels[..., None] == np.arange(NUM_CLASSES)).sum(1) - size * share[None]


def test_stratified_samples_keep_the_class_shares(stratified, iid):
    for kept, free in zip(*map(deviations_from_shares, (stratified, iid)), strict=True):
        assert np.abs(kept).max() <= 2
        assert np.abs(free).max() > 4  # so that the bound says something
        # Which class has one more is (nearly) a matter of chance.
        assert np.abs(kept.mean(0)).max() < 0.25


# Label noise


@pytest.fixture(scope="module")
def noisy():
    """Labels `[2, R, N]` from two keys at rates 0, .2, .4 and 1, of N clean ones."""
    clean = jnp.asarray(np.random.default_rng(1).choice(4, size=20000, p=[0.4, 0.3, 0.2, 0.1]))
    rates = jnp.array([0.0, 0.2, 0.4, 1.0])
    fn = functools.partial(data.add_label_noise, num_classes=4)
    grid = jax.vmap(jax.vmap(fn, (None, None, 0)), (0, None, None))
    return np.asarray(clean), np.asarray(jax.jit(grid)(jax.random.split(KEY), clean, rates))


@pytest.mark.quick
def test_noise_changes_labels_at_its_rate(noisy):
    clean, labels = noisy
    for labels_at, rate in zip(labels[0], (0.0, 0.2, 0.4, 1.0), strict=True):
        changed = (labels_at != clean).mean()
        expected = rate * (1 - 1 / 4)
        standard_error = np.sqrt(expected * (1 - expected) / len(clean))
        assert abs(changed - expected) <= 4 * standard_error  # 0 is exact


def test_noise_is_uniform_over_all_classes_whatever_the_label(noisy):
    clean, labels = noisy
    table = scipy.stats.contingency.crosstab(clean, labels[0, 3]).count
    assert scipy.stats.chisquare(table.sum(0)).pvalue > P_VALUE
    assert scipy.stats.chi2_contingency(table).pvalue > P_VALUE  # at ρ = 1 nothing is left


def test_changed_labels_are_uniform_over_the_other_classes(noisy):
    clean, labels = noisy
    table = scipy.stats.contingency.crosstab(clean, labels[0, 2]).count
    for c in range(4):
        assert scipy.stats.chisquare(np.delete(table[c], c)).pvalue > P_VALUE


def test_noise_is_nested_across_rates(noisy):
    clean, labels = noisy
    for smaller, larger in [(0, 1), (1, 2), (2, 3)]:
        replaced = labels[0, smaller] != clean
        np.testing.assert_array_equal(labels[0, larger, replaced], labels[0, smaller, replaced])


def test_noise_of_other_keys_is_independent(noisy):
    clean, labels = noisy
    table = scipy.stats.contingency.crosstab(labels[0, 2] != clean, labels[1, 2] != clean).count
    assert scipy.stats.chi2_contingency(table).pvalue > P_VALUE
    both = (labels[:, 2] != clean[None]).all(0)
    table = scipy.stats.contingency.crosstab(*((labels[:, 2, both] - clean[both]) % 4)).count
    assert scipy.stats.chi2_contingency(table).pvalue > P_VALUE


def test_halves_that_share_examples_do_not_share_noise():
    parts = split_many(KEYS, *constant(20, 1.0, 0.6))
    np.testing.assert_array_equal(parts.a.indices, parts.b.indices)
    changed = [np.asarray(x.labels) != LABELS[np.asarray(x.indices)] for x in parts]
    for sample in changed:
        z = (sample.mean() - 0.4) / np.sqrt(0.4 * 0.6 / sample.size)
        assert abs(z) < 4
    table = scipy.stats.contingency.crosstab(changed[0].ravel(), changed[1].ravel()).count
    assert scipy.stats.chi2_contingency(table).pvalue > P_VALUE


# Rates and sizes are data


def test_vmapped_settings_equal_separate_calls():
    choices = [(20, 0.0, 0.3), (7, 0.5, 0.0), (13, 1.0, 1.0), (20, 0.25, 0.6)]
    settings = [
        jnp.tile(jnp.array(values), len(KEYS) // 4) for values in zip(*choices, strict=True)
    ]
    together = split_many(KEYS, *settings)
    for i, choice in enumerate(choices):
        jax.tree.map(np.testing.assert_array_equal, at(together, i), split(KEYS[i], *choice))


def test_traced_settings_equal_concrete_ones():
    options = OPTIONS | {"num_examples": 13, "overlap": 0.5, "noise_rate": 0.6}
    concrete = jax.jit(lambda: populations.split(KEY, jnp.asarray(LABELS), **options))()
    jax.tree.map(np.testing.assert_array_equal, split(KEY, 13, 0.5, 0.6), concrete)


def test_other_settings_do_not_recompile():
    split(KEY, 20, 0.0, 0.0)
    before = len(TRACES)
    split(KEY, 7, 0.5, 0.4)
    assert len(TRACES) == before


# Bad input


@pytest.mark.parametrize("capacity", [None, POOL])
@pytest.mark.parametrize("overlap", [0.0, 0.3, 0.5, 1.0])
def test_too_many_examples_name_the_largest_number_that_fits(overlap, capacity):
    def needed(n):
        return 2 * n - round(overlap * n)

    room = POOL - 20
    largest = max(n for n in range(1, POOL) if needed(n) <= room)
    options = {"num_classes": NUM_CLASSES, "num_holdout": 20, "overlap": overlap}
    for n in (largest + 1, 55, 100):
        with pytest.raises(ValueError, match=f"num_examples={n} .*n may be at most {largest}$"):
            populations.split(
                KEY, jnp.asarray(LABELS), num_examples=n, capacity=capacity, **options
            )
    jax.eval_shape(
        lambda: populations.split(
            KEY, jnp.asarray(LABELS), num_examples=largest, capacity=capacity, **options
        )
    )


def test_more_than_half_the_pool_is_refused():
    with pytest.raises(ValueError, match="n may be at most 30"):
        populations.split(KEY, jnp.asarray(LABELS), num_examples=31, num_classes=NUM_CLASSES)


@pytest.mark.parametrize("name, value", [("capacity", 61), ("num_holdout", 61)])
def test_static_sizes_above_the_pool_are_refused(name, value):
    options = OPTIONS | {name: value}
    with pytest.raises(ValueError, match=f"{name}.*60.*got {value}"):
        jax.eval_shape(
            lambda n: populations.split(KEY, jnp.asarray(LABELS), num_examples=n, **options), 5
        )


@pytest.mark.parametrize("n", [0, -1, 21])
def test_sizes_outside_the_capacity_are_refused(n):
    with pytest.raises(ValueError, match=rf"\[1, 20\].*got {n}"):
        populations.split(KEY, jnp.asarray(LABELS), num_examples=n, **OPTIONS)


@pytest.mark.parametrize("name", ["overlap", "noise_rate"])
@pytest.mark.parametrize("value", [-0.1, 1.1, float("nan")])
def test_rates_outside_their_range_are_refused(name, value):
    with pytest.raises(ValueError, match=rf"{name} must lie in \[0, 1\], got {value}"):
        populations.split(KEY, jnp.asarray(LABELS), num_examples=20, **OPTIONS, **{name: value})


@pytest.mark.parametrize("stratified", [False, True])
def test_one_holdout_for_many_halves(stratified):
    options = OPTIONS | {"stratified": stratified, "num_examples": 20}

    @jax.jit
    def draw(holdout_key, key):
        return populations.split(key, jnp.asarray(LABELS), holdout_key=holdout_key, **options)

    drawn = jax.jit(jax.vmap(draw, (None, 0)))(jax.random.key(1), KEYS[:400])
    held = np.asarray(drawn.s.indices)
    np.testing.assert_array_equal(held, np.broadcast_to(held[0], held.shape))
    other = draw(jax.random.key(2), KEYS[0]).s.indices
    assert set(held[0].tolist()) != set(np.asarray(other).tolist())
    rest = np.setdiff1d(np.arange(POOL), held[0])
    for part in (drawn.a, drawn.b):
        rows = np.asarray(part.indices)
        # Of what is left, every example as often as any other.
        counts = np.bincount(rows.ravel(), minlength=POOL)
        assert counts[held[0]].sum() == 0
        share = rows.shape[0] * rows.shape[1] / len(rest)
        assert np.abs(counts[rest] - share).max() < 5 * np.sqrt(share)
    a, b = (np.sort(part.indices, 1) for part in (drawn.a, drawn.b))
    assert not (a[:, :, None] == b[:, None, :]).any()
    assert len({tuple(row) for row in a}) == len(a)
    if stratified:
        classes = np.bincount(LABELS[held[0]], minlength=NUM_CLASSES)
        assert np.abs(classes - 16 * np.bincount(LABELS) / POOL).max() <= 2


# The control


@pytest.fixture(scope="module")
def permuted():
    """A sample of 9 valid examples and 4 of padding, and 3,000 permutations of its labels."""
    labels = jnp.array([0, 1, 2, 3, 0, 1, 0, 0, 1, 3, 3, 3, 2], jnp.int32)
    sample = Sample(jnp.arange(13, dtype=jnp.int32), labels, jnp.arange(13) < 9)
    fn = jax.jit(jax.vmap(populations.permute_labels, (0, None)))
    return np.asarray(labels), np.asarray(fn(jax.random.split(KEY, 3000), sample))


def test_permuting_keeps_class_counts_and_padding(permuted):
    labels, drawn = permuted
    np.testing.assert_array_equal(np.sort(drawn[:, :9]), np.tile(np.sort(labels[:9]), (3000, 1)))
    np.testing.assert_array_equal(drawn[:, 9:], np.tile(labels[9:], (3000, 1)))


def test_permuting_leaves_no_relation_to_the_example(permuted):
    labels, drawn = permuted
    share = np.bincount(labels[:9], minlength=4) / 9
    for position in range(9):
        counts = np.bincount(drawn[:, position], minlength=4)
        assert scipy.stats.chisquare(counts, 3000 * share).pvalue > P_VALUE
