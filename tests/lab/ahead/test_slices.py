"""Names of slices of TPUs, what is said where a name or the compiler is missing, their memory."""

import importlib.util

import jax
import pytest

from halfway.lab.ahead import slices
from halfway.lab.config.user import UserError

GIB = 2**30


@pytest.mark.quick
@pytest.mark.parametrize(
    ("name", "kind", "shape"),
    [
        ("v5e:4x4", "v5e", (4, 4)),
        ("v4:2x2x1", "v4", (2, 2, 1)),
        ("tpu7x:2x2x4", "tpu7x", (2, 2, 4)),
        ("v6e:16x16", "v6e", (16, 16)),
    ],
)
def test_a_name_has_a_generation_and_a_shape(name, kind, shape):
    assert slices.parse(name) == (kind, shape)


@pytest.mark.quick
@pytest.mark.parametrize(
    "name", ["", "v5e", "v5e:", "v5e:4", "v5e:4x", ":4x4", "v5e-16", "v5e:axb"]
)
def test_another_form_is_refused(name):
    with pytest.raises(UserError) as caught:
        slices.parse(name)
    assert repr(name) in str(caught.value) and "e.g. v5e:4x4" in str(caught.value)


@pytest.mark.parametrize("kind", slices.EXAMPLES)
def test_examples_have_the_form(kind):
    assert slices.parse(f"{kind}:{slices.EXAMPLES[kind]}")[0] == kind


@pytest.mark.quick
def test_without_a_topology_nothing_is_looked_for(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: pytest.fail("looked for"))
    assert slices.choose(None) is None


@pytest.mark.quick
def test_without_the_compiler_one_line_says_how_to_install_it(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError) as caught:
        slices.choose("v5e:4x4")
    assert "libtpu" in str(caught.value) and "pip install 'halfway[tpu]'" in str(caught.value)


def test_an_unknown_slice_names_those_that_there_are(monkeypatch):
    def devices(name):
        if name.startswith(("v5e:4x4", "v6e")):
            return ("device",)
        raise jax.errors.JaxRuntimeError("INVALID_ARGUMENT: Invalid TPU external name: TPU v9")

    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    monkeypatch.setattr(slices, "_prepare", lambda: None)
    monkeypatch.setattr(slices, "_devices", devices)
    with pytest.raises(UserError) as caught:
        slices.choose("v9:2x2")
    words = str(caught.value)
    assert words.startswith("--topology=v9:2x2 is not known") and "\n" not in words
    assert "(Invalid TPU external name: TPU v9): it knows v5e:4x4, v6e:2x4," in words


def test_where_libtpu_fails_its_reason_is_said(monkeypatch):
    def devices(name):
        raise jax.errors.JaxRuntimeError("ABORTED: Internal error when\naccessing a lockfile")

    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    monkeypatch.setattr(slices, "_prepare", lambda: None)
    monkeypatch.setattr(slices, "_devices", devices)
    with pytest.raises(
        UserError, match=r"cannot be used \(ABORTED: .* when accessing a lockfile\)"
    ):
        slices.choose("v5e:4x4")


@pytest.mark.quick
@pytest.mark.parametrize(
    ("message", "number"),
    [
        ("for HLO temporaries (64.00G) exceeds available HBM (15.75G).", 15.75 * GIB),
        ("Used 20.5G of 512.00M hbm. Exceeded by 20G.", 0.5 * GIB),
        ("Ran out of memory", None),
    ],
)
def test_the_memory_of_a_device_is_read_from_a_refusal(message, number):
    assert slices.memory_in(message) == number


def test_a_device_whose_compiler_refuses_nothing_has_no_known_memory():
    assert slices.memory_of(jax.devices()[0]) is None
