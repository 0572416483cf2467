"""Models of other libraries: values and gradients against their own, vmapped, attacked."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.ensemble import RandomForestClassifier
from sklearn.linear_model import LogisticRegression
from support import commands

from halfway import attacks, interop, losses, robustness, storage

RNG = np.random.default_rng(0)
IMAGES = RNG.uniform(0, 1, (6, 8, 8, 1)).astype(np.float32)
LABELS = np.array([0, 1, 2, 0, 1, 2])


@pytest.fixture(scope="module")
def torch():
    return pytest.importorskip("torch", reason="PyTorch is not installed: pip install torch")


@pytest.fixture(scope="module")
def module(torch):
    torch.manual_seed(0)
    return torch.nn.Sequential(
        torch.nn.Conv2d(1, 4, 3, stride=2),
        torch.nn.Tanh(),
        torch.nn.Flatten(),
        torch.nn.Linear(36, 3),
    ).eval()


def test_values_and_gradients_are_those_of_pytorch(torch, module):
    logits_fn = interop.torch_logits(module)
    x = torch.from_numpy(IMAGES).permute(0, 3, 1, 2).requires_grad_()
    truth = module(x)
    for fn in (logits_fn, jax.jit(logits_fn)):
        np.testing.assert_allclose(fn(jnp.asarray(IMAGES)), truth.detach().numpy(), rtol=1e-5)
    torch.nn.functional.cross_entropy(truth, torch.from_numpy(LABELS), reduction="sum").backward()

    def total(images):
        return losses.cross_entropy(logits_fn(images), jnp.asarray(LABELS)).sum()

    gradient = jax.jit(jax.grad(total))(jnp.asarray(IMAGES))
    expected = x.grad.permute(0, 2, 3, 1).numpy()
    np.testing.assert_allclose(gradient, expected, rtol=1e-4, atol=1e-7)


def test_the_loss_has_the_derivatives_of_the_same_network_in_jax(module):
    """Value, gradient and products of the Hessian, alone and mapped."""
    loss_fn, params = interop.torch_loss(module, IMAGES, LABELS)
    assert params["0.weight"].shape == (1, 3, 3, 4) and params["3.weight"].shape == (36, 3)

    def reference(params):
        kernel = jnp.transpose(params["0.weight"], (1, 2, 0, 3))  # of PyTorch channels come first
        hidden = jax.lax.conv_general_dilated(
            jnp.asarray(IMAGES), kernel, (2, 2), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )
        hidden = jnp.tanh(hidden + params["0.bias"][None, None, None])
        flat = jnp.transpose(hidden, (0, 3, 1, 2)).reshape(len(IMAGES), -1)
        logits = flat @ params["3.weight"] + params["3.bias"][None]
        return losses.cross_entropy(logits, jnp.asarray(LABELS)).mean()

    params = jax.tree.map(jnp.asarray, params)
    along = {name: jnp.cos(jnp.arange(x.size)).reshape(x.shape) for name, x in params.items()}

    def moved(fn, t):
        return fn({name: x + t * along[name] for name, x in params.items()})

    def looked_at(fn):
        return {
            "value": fn(params),
            "gradient": jax.grad(fn)(params),
            "product": jax.jvp(jax.grad(fn), (params,), (along,))[1],
            "mapped": jax.vmap(functools.partial(moved, fn))(jnp.array([0.0, 0.1])),
        }

    expected, values = (jax.jit(functools.partial(looked_at, fn))() for fn in (reference, loss_fn))
    jax.tree.map(
        functools.partial(np.testing.assert_allclose, rtol=1e-3, atol=1e-5), values, expected
    )
    with pytest.raises(ValueError, match=r"call module\.eval\(\) first"):
        interop.torch_loss(module.train(), IMAGES, LABELS)
    module.eval()


def test_vmapped_it_is_a_loop(module):
    logits_fn = interop.torch_logits(module)
    images = jnp.asarray(IMAGES).reshape(3, 2, 8, 8, 1)
    together = jax.vmap(logits_fn)(images)
    np.testing.assert_allclose(together, jnp.stack(list(map(logits_fn, images))), rtol=1e-5)
    weights = jnp.arange(3.0)

    def weighted(x, weight):  # the cotangent is mapped, the image is not
        return (weight * logits_fn(x)).sum()

    mapped = jax.vmap(jax.grad(weighted), (None, 0))(images[0], weights)
    alone = jax.grad(weighted)(images[0], jnp.float32(1.0))
    np.testing.assert_allclose(
        mapped, np.asarray(weights)[:, None, None, None, None] * np.asarray(alone), rtol=1e-4
    )


def test_a_module_of_pytorch_is_evaluated(module):
    logits_fn = interop.torch_logits(module)
    labels = np.asarray(logits_fn(IMAGES).argmax(-1))
    found = robustness.evaluate(
        logits_fn,
        IMAGES,
        labels,
        threats=[attacks.linf(0.3)],
        attacks={
            "pgd": attacks.pgd,
            "few": lambda *a, **k: attacks.apgd(*a, num_steps=3, **k),
        },
        curves=False,
    )
    assert found.clean_accuracy.estimate == 1 and found.fooled.any(-1).all()


def test_what_is_no_model_of_pytorch_is_refused(torch, module):
    with pytest.raises(ValueError, match=r"must be a torch\.nn\.Module, got function"):
        interop.torch_logits(lambda x: x)
    training = torch.nn.Linear(2, 2)
    with pytest.raises(ValueError, match=r"in training: call module\.eval\(\) first"):
        interop.torch_logits(training)


@pytest.mark.parametrize(
    "classifier", [LogisticRegression(), RandomForestClassifier(5, random_state=0)]
)
@pytest.mark.parametrize("number", [2, 3])
def test_classifiers_of_scikit_learn_are_attacked_without_gradients(classifier, number):
    rows = RNG.uniform(0, 1, (60, 4)).astype(np.float32)
    classes = (rows.sum(1) * number / 4).astype(int).clip(0, number - 1)
    classifier.fit(rows, classes)
    logits_fn = interop.sklearn_logits(classifier)
    logits = jax.jit(logits_fn)(jnp.asarray(rows[:9]))
    assert logits.shape == (9, number)
    np.testing.assert_array_equal(logits.argmax(-1), classifier.predict(rows[:9]))
    labels = jnp.asarray(classifier.predict(rows[:9]))
    x = jnp.asarray(rows[:9]).reshape(9, 2, 2, 1)
    found = attacks.square(
        logits_fn, jax.random.key(0), x, labels, threat=attacks.linf(0.9), num_queries=60
    )
    assert found.success.any()
    moved = np.asarray(found.adversarial).reshape(9, 4)
    np.testing.assert_array_equal(classifier.predict(moved) != np.asarray(labels), found.success)


def test_classes_that_are_no_numbers_are_refused():
    classifier = LogisticRegression().fit(np.eye(2), ["cat", "dog"])
    with pytest.raises(ValueError, match=r"classes must be 0 to C − 1, got \['cat', 'dog'\]"):
        interop.sklearn_logits(classifier)


TORCH_MODELS = """
import torch

from halfway import interop

def load_models():
    models = {}
    for seed in (0, 1):
        torch.manual_seed(seed)
        module = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 3)).eval()
        models[f"net{seed}"] = interop.torch_logits(module)
    return models

def load():
    return load_models()["net0"]
"""


def test_commands_take_modules_of_pytorch(torch, tmp_path):
    """On all devices that there are: a program that calls the host keeps to one of them."""
    (tmp_path / "torch_models.py").write_text(TORCH_MODELS)
    storage.write_arrays(tmp_path / "x.npz", {"images": IMAGES, "labels": LABELS})
    shared = ("--data=x.npz", "--compilation_cache=off")
    result = commands.call(
        tmp_path,
        "transfer",
        "--surrogates=torch_models:load_models",
        "--epsilon=0.3",
        "--num_steps=2",
        *shared,
    )
    assert (
        result.code == 0
        and "on 1 devices" in (tmp_path / "runs/transfer/transfer.html").read_text()
    )
    result = commands.call(
        tmp_path,
        "evaluate",
        "--model=torch_models:load",
        "--attacks=pgd",
        "--threat=linf:0.3",
        "--nocurves",
        *shared,
    )
    assert result.code == 0 and result.out.startswith("The model classifies")
