"""FLOPs against closed forms, memory against what XLA says of the compiled programs."""

import dataclasses
import functools
import logging
import math

import jax
import jax.numpy as jnp
import pytest
from support import training_loop

from halfway import losses, populations
from halfway.lab.runtime import costs

IMAGE = (8, 8, 1)
WEIGHTS = (64 * 128, 128 * 128, 128 * 10)
MLP = populations.Condition(
    dataset="digits",
    architecture="mlp",
    model={"kind": "mlp", "widths": (128, 128)},
    num_classes=10,
    num_examples=100,
    num_holdout=60,
    probe_steps=(0, 4, 10),
    num_pairs=3,
    seed=3,
    batch_size=64,
)
CNN = dataclasses.replace(MLP, model={"kind": "cnn", "features": (4, 8), "stride": 2, "widths": ()})
# Convolutions write 4 x 4 x 4 and 2 x 2 x 8 outputs of 3 x 3 x D inputs each; on a CPU of
# 3 x 5, where two outputs side by side are one product.
CNN_PRODUCTS = (16 * 4 * 15, 4 * 8 * 15 * 4, 32 * 10)


def change(condition, **fields):
    return dataclasses.replace(condition, **fields)


@pytest.mark.parametrize(("condition", "products"), [(MLP, WEIGHTS), (CNN, CNN_PRODUCTS)])
def test_flops_of_an_example_are_those_of_its_matrix_products(condition, products):
    work = costs.work_of(condition, IMAGE)
    # Two for each product forward, twice that backward, of which the inputs' part of the first
    # layer is not needed. What is beside the products: biases, activations, softmax, in a small
    # convolutional network patches too.
    slack = 1.05 if condition is MLP else 1.35
    assert 1 <= work.forward / (2 * sum(products)) < slack
    assert 1 <= work.gradient / (6 * sum(products) - 2 * products[0]) < slack


@pytest.mark.parametrize(("batch_size", "slack"), [(64, 1.06), (2048, 1.02)])
def test_flops_of_a_step_are_those_of_its_batch(batch_size, slack):
    # Adam takes some 13 operations for each weight, whatever the batch.
    work = costs.work_of(change(MLP, batch_size=batch_size), IMAGE)
    products = (6 * sum(WEIGHTS) - 2 * WEIGHTS[0]) * batch_size
    assert 1 <= work.step / products < slack
    assert 1 - 1 / slack < work.step / (6 * sum(WEIGHTS) * batch_size) < slack


def test_flops_of_a_model_are_its_steps_and_its_looks():
    work = costs.work_of(MLP, IMAGE)
    look = work.forward * (2 * 100 + 60) + work.gradient * 2 * 100
    assert costs.model_flops(MLP, IMAGE) == pytest.approx(10 * work.step + 3 * look)
    stopping = change(MLP, stop_loss=0.1, probe_steps=(0, 10, 20))
    assert costs.model_flops(stopping, IMAGE) == pytest.approx(
        20 * work.step + 3 * look + 2 * 100 * work.forward
    )
    # 3000 examples go in two chunks of 2048.
    large = change(MLP, num_examples=3000, capacity=3000)
    look = work.forward * (2 * 4096 + 60) + work.gradient * 2 * 4096
    assert costs.model_flops(large, IMAGE) == pytest.approx(10 * work.step + 3 * look)


def test_a_masked_batch_costs_what_its_capacity_does():
    masked = change(MLP, batch_size=16, batch_capacity=64)
    step = costs.work_of(masked, IMAGE).step
    assert step == pytest.approx(costs.work_of(MLP, IMAGE).step, rel=0.01)


def test_nothing_is_compiled_and_other_settings_count_nothing_anew(caplog):
    fresh = change(MLP, model={"kind": "mlp", "widths": (17,)})
    with jax.log_compiles(), caplog.at_level(logging.WARNING):
        costs.model_flops(fresh, IMAGE)
        costs.memory_of(fresh, IMAGE)
    assert not [message for message in caplog.messages if "XLA compilation" in message]
    before = costs._work.cache_info().misses, costs._sizes.cache_info().misses
    other = change(
        fresh, noise_rate=0.4, seed=5, overlap=0.5, num_pairs=7, num_examples=50, capacity=50
    )
    assert costs.model_flops(other, IMAGE) != costs.model_flops(fresh, IMAGE)
    costs.memory_of(other, IMAGE)
    assert (costs._work.cache_info().misses, costs._sizes.cache_info().misses) == before


def test_compilations_would_be_noticed(caplog):
    with jax.log_compiles(), caplog.at_level(logging.WARNING):
        jax.jit(lambda x: x * 3 + 1)(jnp.ones(5))
    assert [message for message in caplog.messages if "XLA compilation" in message]


@pytest.mark.parametrize(("optimizer", "copies"), [("adam", 3), ("sgd", 1)])
def test_a_state_is_parameters_and_moments(optimizer, copies):
    sizes = costs.sizes_of(change(MLP, optimizer=optimizer), IMAGE)
    assert sizes.params == 4 * (sum(WEIGHTS) + 128 + 128 + 10)
    assert sizes.state - copies * sizes.params in range(4, 17)  # and one or two counters


def test_activations_grow_with_width_and_not_with_examples_of_a_half():
    narrow = change(MLP, model={"kind": "mlp", "widths": (16,)})
    assert costs.sizes_of(narrow, IMAGE).example < costs.sizes_of(MLP, IMAGE).example
    assert costs.sizes_of(change(MLP, num_examples=7, capacity=7), IMAGE) == costs.sizes_of(
        MLP, IMAGE
    )


@pytest.mark.parametrize(
    "condition",
    [
        CNN,
        change(MLP, num_examples=3000, capacity=3000),
        # In between of the last one and activations that are even less than its chunks.
        pytest.param(MLP, marks=pytest.mark.slow),
        pytest.param(change(MLP, batch_size=1024), marks=pytest.mark.slow),
    ],
)
def test_memory_of_a_member_is_what_xla_takes(condition):
    program, settings = populations.program_of(condition), populations.hyperparameters(condition)
    key = jax.random.key(0)
    images = jax.ShapeDtypeStruct((7000, *IMAGE), jnp.float32)
    labels = jax.ShapeDtypeStruct((7000,), jnp.int32)

    def shapes(fn, *arguments):
        return jax.eval_shape(functools.partial(fn, program=program), *arguments)

    drawn = shapes(populations.sample_pair, key, labels, settings)
    params = shapes(populations.init_pair, key, images, settings)
    walk, batches = shapes(populations.begin_pair, key, params, drawn, settings)

    def memory(fn, *arguments, **static):
        static = static | {"program": program}
        compiled = jax.jit(functools.partial(fn, **static)).lower(*arguments).compile()
        analysis = compiled.memory_analysis()
        return analysis.argument_size_in_bytes, (
            analysis.output_size_in_bytes + analysis.temp_size_in_bytes
        )

    held, step = memory(populations.advance_pair, walk, batches, drawn, images, settings, 0, 10)
    held -= math.prod(images.shape) * 4  # the pool is no member's own
    _, look = memory(
        populations.look_at_pair, key, params, drawn, images, probe_fn=populations.probe_landscapes
    )
    ratio = costs.memory_of(condition, IMAGE).most / (held + max(step, look))
    assert 0.8 < ratio < 1.5, (ratio, held, step, look)


def test_memory_is_bounded_by_chunks():
    sizes = [change(MLP, num_examples=n, capacity=n, num_holdout=10) for n in (2048, 8192)]
    looks = [costs.memory_of(condition, IMAGE).look for condition in sizes]
    assert looks[1] <= looks[0]
    assert losses.CHUNK_SIZE == 2048


def test_a_stored_population_is_as_large_as_its_arrays():
    program, settings = populations.program_of(MLP), populations.hyperparameters(MLP)
    train = functools.partial(
        training_loop.train_pair, program=program, probe_steps=MLP.probe_steps
    )
    images = jax.ShapeDtypeStruct((300, *IMAGE), jnp.float32)
    population = jax.eval_shape(
        train, jax.random.key(0), images, jax.ShapeDtypeStruct((300,), jnp.int32), settings
    )
    size = sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in jax.tree.leaves(population))
    assert costs.kept_bytes(MLP, IMAGE) == pytest.approx(3 * size, rel=0.01)
