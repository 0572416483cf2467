"""Programs that are compiled in the place of being run, here for devices of the CPU."""

import collections

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from halfway import sharding
from halfway.lab.ahead import recording
from halfway.lab.ahead.recording import Recorder

MEMBERS = jnp.arange(12.0).reshape(4, 3)
SLICE = sharding.Layout(sharding.make_mesh(2))
"""Two devices of the CPU, as a slice."""


@sharding.jit
def shifted(members, offset):
    def shift(member, offset):
        return member + offset, member.sum() > 0

    return sharding.spread(shift, at_once=len(members))(members, offset)


@sharding.jit
def totals(members):
    def over_devices(part):
        return jax.lax.psum(part, sharding.MEMBER), jax.lax.all_gather(part, sharding.MEMBER)

    return jax.shard_map(
        over_devices,
        mesh=sharding.current().mesh,
        in_specs=PartitionSpec(sharding.MEMBER),
        out_specs=PartitionSpec(),
        check_vma=False,
    )(members)


doubled = sharding.alone(lambda x: 2 * x)


def recorded(*calls, **options):
    """The rows of some calls on two devices, and what stood for their results."""
    record = Recorder("two", **options)
    with sharding.use(SLICE), sharding.taken_by(record):
        results = [call() for call in calls]
    return list(record.rows.values()), results


@pytest.mark.quick
def test_a_program_is_compiled_once_and_its_result_has_the_shapes():
    rows, results = recorded(*[lambda: shifted(MEMBERS, 1.0)] * 3)
    (row,) = rows
    assert row.fits and row.program == "shifted" and row.hardware == "two"
    assert (row.num_devices, row.at_once) == (2, 2)
    assert row.flops is not None and row.needs is not None and row.needs > MEMBERS.nbytes / 2
    moved, positive = results[0]
    assert moved.shape == (4, 3) and moved.dtype == jnp.float32
    assert positive.shape == (4,) and positive.dtype == bool
    # Outside of the block the program runs.
    np.testing.assert_array_equal(shifted(MEMBERS, 1.0)[0], MEMBERS + 1)


@pytest.mark.quick
def test_other_shapes_and_other_layouts_are_other_programs():
    rows, _ = recorded(lambda: shifted(MEMBERS, 1.0), lambda: shifted(MEMBERS[:2], 1.0))
    assert [row.at_once for row in rows] == [2, 1]
    with sharding.use(sharding.Layout(sharding.make_mesh(1))):
        record = Recorder("one")
        with sharding.taken_by(record):
            shifted(MEMBERS, 1.0)
    assert [row.num_devices for row in record.rows.values()] == [1]


@pytest.mark.quick
def test_a_program_of_one_device_has_one_device():
    rows, results = recorded(lambda: doubled(MEMBERS))
    assert [(row.num_devices, row.at_once) for row in rows] == [(1, None)]
    assert results[0].shape == MEMBERS.shape
    np.testing.assert_array_equal(doubled(MEMBERS), 2 * MEMBERS)


@pytest.mark.quick
def test_a_program_within_a_program_is_not_taken():
    rows, _ = recorded(lambda: sharding.alone(lambda x: doubled(x) + 1)(MEMBERS))
    assert len(rows) == 1


def test_collectives_of_a_compiled_program_are_counted():
    rows, _ = recorded(lambda: totals(MEMBERS))
    assert rows[0].collectives == {"all-gather": 1, "all-reduce": 1}


@pytest.mark.quick
def test_collectives_are_counted_by_hand():
    text = """
      %a = f32[4]{0} all-reduce(%x), channel_id=1
      %b = (f32[4]{0}, f32[8]{0:T(128)}) all-gather-start(f32[4]{0} %a), channel_id=2
      %c = f32[8]{0} all-gather-done(%b)
      %d = f32[4]{0} all-reduce.1(%c)
      %e = f32[4]{0:T(128)} all-reduce(%d), metadata={op_name="psum all-to-all("}
      %f = f32[4]{0} fusion(%e), calls=%all-reduce
      ROOT %g = u32[2]{0} collective-permute(%f)
    """
    expected = {"all-gather": 1, "all-reduce": 2, "collective-permute": 1}
    assert recording.collectives_of(text) == expected


GIB = 2**30


@pytest.mark.quick
@pytest.mark.parametrize(
    ("needs", "has", "fits"),
    [
        (GIB, 2 * GIB, True),
        (GIB, GIB, True),
        (GIB + 1, GIB, False),
        (None, 1, True),
        (1, None, True),
    ],
)
def test_the_verdict_on_memory(needs, has, fits):
    assert (recording.verdict(needs, has) == "") == fits


@pytest.mark.quick
def test_a_program_that_does_not_fit_says_what_to_lower():
    rows, _ = recorded(
        lambda: shifted(MEMBERS, 1.0), device_bytes=40, lower_fn=lambda name: f"--of_{name}"
    )
    (row,) = rows
    assert not row.fits and row.needs > row.has == 40 and row.lower == "--of_shifted"


def _refusing(most):
    """What refuses to compile a program of more than so many members at once."""

    class Lowered:
        def __init__(self, call):
            self.call = call

        def compile(self):
            if self.call.chunks[-1] > most:
                raise jax.errors.JaxRuntimeError(
                    "RESOURCE_EXHAUSTED: the total memory required (3.00G) exceeds available HBM "
                    "(2.00G)."
                )
            return self.call.program.trace(*self.call.args, **self.call.kwargs).lower().compile()

    def traced(call, make=recording._traced):
        original, text, shapes = make(call)
        stub = collections.namedtuple("Traced", ["out_info", "lower"])
        return stub(original.out_info, lambda: Lowered(call)), text, shapes

    return traced


@pytest.mark.parametrize("most", [1, 0])
def test_members_go_by_halves_as_on_a_device(monkeypatch, most):
    monkeypatch.setattr(recording, "_traced", _refusing(most))

    @sharding.jit
    def halved(members):
        return sharding.spread(lambda member: 2 * member)(members)

    rows, results = recorded(lambda: halved(MEMBERS), lower_fn=lambda name: "the field")
    (row,) = rows
    assert row.at_once == 1 and row.fits == bool(most) and results[0].shape == (4, 3)
    if not most:
        assert (row.needs, row.has, row.lower) == (3 * GIB, 2 * GIB, "the field")


@pytest.mark.quick
@pytest.mark.parametrize(
    ("shape", "dtype"),
    [((2, 3), "float32"), ((4,), "bfloat16"), ((5,), "int32"), ((3,), "bool"), ((), "int16")],
)
def test_a_stand_in_has_shape_and_type(shape, dtype):
    array = recording.stand_in(shape, jnp.dtype(dtype), modulus=2)
    assert array.shape == shape and array.dtype == dtype
    values = np.asarray(array, np.float64)
    if dtype in ("float32", "bfloat16"):
        assert values.min() > 0 and values.max() < 0.011 and len(np.unique(values)) == values.size
    else:
        assert set(values.ravel()) <= {0, 1}


def test_later_results_differ_from_the_first():
    _, results = recorded(*[lambda: doubled(MEMBERS)] * 9)
    later = [not np.array_equal(result, results[0]) for result in results]
    assert later == [False, *[True] * 8]


@pytest.mark.quick
@pytest.mark.parametrize("shape", [(), (3,), (2, 2)])
def test_a_stand_in_for_keys_is_keys(shape):
    keys = recording.stand_in(shape, jax.random.key(0).dtype)
    assert keys.shape == shape and jax.random.uniform(keys.ravel()[0]).shape == ()


@pytest.mark.quick
def test_addresses_are_no_part_of_a_digest():
    texts = [
        f"{{ lambda ; custom_jvp[fn=<function f at {place}>] }}" for place in ("0x7f1a", "0x2")
    ]
    with sharding.use(SLICE):
        first, second, other = (recording.digest_of("f", text) for text in (*texts, "{ lambda }"))
    assert first == second != other


def test_programs_are_lowered_for_cuda():
    rows, _ = recorded(lambda: shifted(MEMBERS, 1.0), lambda: doubled(MEMBERS), with_cuda=True)
    assert [row.cuda for row in rows] == ["lowers", "lowers"]


def test_a_callback_to_the_host_is_counted():
    @sharding.alone
    def called(x):
        return jax.pure_callback(lambda x: x, jax.ShapeDtypeStruct(x.shape, x.dtype), x)

    rows, _ = recorded(lambda: called(MEMBERS), lambda: doubled(MEMBERS))
    assert [row.callbacks for row in rows] == [1, 0]
