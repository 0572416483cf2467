import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from halfway import sharding


def member_fn(member, weights):
    key, x = member
    noise = jax.random.uniform(key, x.shape)
    return {"product": x @ weights + noise, "sum": x.sum()}


WEIGHTS = jnp.asarray(np.random.default_rng(0).standard_normal((3, 3)), jnp.float32)


def draw(size):
    x = np.random.default_rng(1).standard_normal((size, 3))
    return jax.random.split(jax.random.key(2), size), jnp.asarray(x, jnp.float32)


@functools.cache
def mapped(size):
    """What `vmap` gives for so many members, computed once."""
    return jax.jit(jax.vmap(member_fn, in_axes=(0, None)))(draw(size), WEIGHTS)


def assert_mapped(result, size):
    expected = mapped(size)
    assert result["product"].shape == (size, 3)
    assert result["sum"].shape == (size,)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), result, expected
    )


# Where the mesh has no axis of data, to spread by data is to spread: one of them with each change.
@pytest.mark.parametrize(
    ("mesh", "by_data"),
    [
        ((1, 1), False),
        ((2, 1), False),
        ((1, 2), False),
        ((1, 2), True),
        pytest.param((1, 1), True, marks=pytest.mark.slow),
        pytest.param((2, 1), True, marks=pytest.mark.slow),
    ],
)
@pytest.mark.parametrize(
    "size, at_once, most",
    [
        (1, None, None),
        (2, None, None),
        (3, None, None),
        (5, None, None),
        (3, 1, None),
        (5, 2, None),
        (7, 2, None),
        (5, None, 2),
        (5, 2, 1),
        (4, 9, None),
    ],
)
def test_spread_is_vmap(size, at_once, most, mesh, by_data):
    with sharding.use(sharding.Layout(sharding.make_mesh(*mesh), most)):
        run = sharding.jit(sharding.spread(member_fn, at_once=at_once, by_data=by_data))
        assert_mapped(run(draw(size), WEIGHTS), size)


@pytest.mark.parametrize(
    "number, said, most, expected",
    [(None, None, None, 4), (1, None, None, 1), (1, 2, None, 2), (3, None, 2, 2), (1, 9, None, 4)],
)
def test_as_many_run_at_once_as_program_layout_or_backend_say(
    monkeypatch, number, said, most, expected
):
    monkeypatch.setattr(sharding, "AT_ONCE", {} if number is None else {"cpu": number})
    chunks = []

    def watched(call):
        call.program.lower(*call.args)
        chunks.extend(call.chunks)

    with sharding.use(sharding.Layout(sharding.make_mesh(1), most)), sharding.taken_by(watched):
        sharding.jit(sharding.spread(member_fn, at_once=said))(draw(4), WEIGHTS)
    assert chunks == [expected]


@pytest.mark.parametrize(("number", "in_turns"), [(None, False), (1, True), (2, False)])
@pytest.mark.quick
def test_models_of_a_member_take_turns_where_members_do(monkeypatch, number, in_turns):
    monkeypatch.setattr(sharding, "AT_ONCE", {} if number is None else {"cpu": number})
    lifted = sharding.lift(lambda x, shift: {"sum": x.sum() + shift})
    x, shift = jnp.arange(6.0).reshape(3, 2), jnp.array([1.0, 2.0, 3.0])
    np.testing.assert_array_equal(jax.jit(lifted)(x, shift)["sum"], [2.0, 7.0, 12.0])
    assert ("scan[" in str(jax.make_jaxpr(lifted)(x, shift))) == in_turns


def test_all_devices_by_default():
    assert sharding.make_mesh().size == jax.device_count() == 2
    assert sharding.make_mesh(1).size == 1
    result = jax.jit(sharding.spread(member_fn))(draw(4), WEIGHTS)
    shards = result["product"].addressable_shards
    assert {shard.device for shard in shards} == set(jax.devices())
    assert [shard.data.shape for shard in shards] == [(2, 3), (2, 3)]


@pytest.mark.parametrize("sizes", [(0, 1), (-1, 1), (3, 1), (2, 2), (1, 0), (None, 3)])
@pytest.mark.quick
def test_impossible_meshes_are_refused(sizes):
    with pytest.raises(ValueError, match="from 1 to 2 devices, all that there are, got member:"):
        sharding.make_mesh(*sizes)


@pytest.mark.parametrize(
    "text, shape",
    [("member:2", (2, 1)), ("data:2", (1, 2)), ("member:1,data:2", (1, 2)), ("member:1", (1, 1))],
)
@pytest.mark.quick
def test_a_mesh_is_read_from_text(text, shape):
    assert tuple(sharding.parse_mesh(text).values()) == shape


@pytest.mark.parametrize("text", ["", "2", "member", "member:x", "batch:2", "member:2,", "data:-1"])
@pytest.mark.quick
def test_what_is_no_mesh_is_refused(text):
    with pytest.raises(ValueError, match="a mesh is like 'member:8'"):
        sharding.parse_mesh(text)


@pytest.mark.parametrize(
    "fields, shape",
    [
        ({"num_members": 16}, (2, 1)),
        ({"num_members": 2}, (2, 1)),
        ({"num_members": 1}, (1, 2)),
        ({"num_members": 16, "member_bytes": 10, "device_bytes": 10}, (2, 1)),
        ({"num_members": 16, "member_bytes": 11, "device_bytes": 10}, (1, 2)),
        ({"num_members": 16, "member_bytes": 999, "device_bytes": 10}, (1, 2)),
    ],
)
def test_members_come_first_and_share_a_device_where_they_fit(fields, shape):
    assert tuple(sharding.choose(**fields).mesh.shape.values()) == shape


def test_the_layout_in_force_is_part_of_a_program():
    mesh_sizes = []

    @sharding.jit
    def run(members, weights):
        mesh_sizes.append(sharding.current().mesh.size)
        return sharding.spread(member_fn)(members, weights)

    for size in (1, 2, 1):
        with sharding.use(sharding.Layout(sharding.make_mesh(size))):
            sums = run(draw(4), WEIGHTS)["sum"]
            assert len(sums.sharding.device_set) == size
    assert mesh_sizes == [1, 2]  # each is made once


def test_examples_are_shared_out_over_the_data_axis():
    values = jnp.arange(5.0)

    def total(member, values):
        axis = sharding.data_axis()
        if axis is None:
            return member * values.sum()
        mask = sharding.share_mask(jnp.ones(5, bool), axis)
        part = sharding.share(values, axis)
        assert part.shape == (3,)
        return member * jax.lax.psum(jnp.where(mask, part, 0).sum(), axis[0])

    for shape, by_data in (((2, 1), True), ((1, 2), True), ((1, 2), False)):
        with sharding.use(sharding.Layout(sharding.make_mesh(*shape))):
            run = sharding.jit(sharding.spread(total, by_data=by_data))
            np.testing.assert_array_equal(run(jnp.arange(3.0), values), [0, 10, 20])
    assert sharding.data_axis() is None


def _failing(monkeypatch, most):
    """Devices that have memory for so many members."""
    spread = sharding.spread

    def fragile(fn, **options):
        def run(members, *shared):
            def inner(member, *shared):
                chunk = sharding._CHUNKS.get()[-1]
                if chunk > most:
                    raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: out of memory")
                return fn(member, *shared)

            return spread(inner, **options)(members, *shared)

        return run

    monkeypatch.setattr(sharding, "spread", fragile)


def test_without_memory_members_go_in_smaller_chunks(monkeypatch, caplog):
    _failing(monkeypatch, 2)

    @sharding.jit
    def run(members, weights):
        return sharding.spread(member_fn, at_once=5)(members, weights)

    for _ in range(2):
        assert_mapped(run(draw(10), WEIGHTS), 10)
    messages = [record.getMessage() for record in caplog.records]
    assert messages == ["out of memory: run goes on with 2 members at once"]  # and remembers


def test_a_member_that_does_not_fit_alone_is_an_error(monkeypatch):
    _failing(monkeypatch, 0)

    @sharding.jit
    def run(members, weights):
        return sharding.spread(member_fn)(members, weights)

    with pytest.raises(jax.errors.JaxRuntimeError, match="RESOURCE_EXHAUSTED"):
        run(draw(10), WEIGHTS)


def test_another_error_is_not_tried_again():
    calls = []

    @sharding.jit
    def run(members):
        calls.append(1)
        raise jax.errors.JaxRuntimeError("INTERNAL: broken")

    with pytest.raises(jax.errors.JaxRuntimeError, match="INTERNAL"):
        run(jnp.arange(3.0))
    assert len(calls) == 1


@pytest.mark.parametrize("make", [sharding.jit, sharding.alone])
def test_a_tpus_compiler_looks_for_long_where_a_program_is_hot_alone(make, monkeypatch):
    told, compile_fn = [], jax.jit

    def listening(fn, **options):
        told.append(options["compiler_options"])
        return compile_fn(fn, **options)

    monkeypatch.setattr(jax, "jit", listening)
    for platform in ("tpu", "gpu"):
        monkeypatch.setattr(sharding, "backend", lambda platform=platform: platform)
        for hot in (False, True):
            assert make(lambda x: 2 * x, hot=hot)(3) == 6
    effort = {"exec_time_optimization_effort": sharding.TPU_EFFORT}
    assert told == [effort, None, None, None]
