"""Landscapes of a population and of a user's own model, from arrays to the page."""

import dataclasses
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support import commands
from support.launcher import FOLDERS

from halfway import landscapes, losses, models, populations, storage
from halfway.lab.commands import landscape
from halfway.lab.config import user
from halfway.lab.config.settings import LandscapeSizes
from halfway.lab.config.user import UserError
from halfway.lab.measurements import weight_space
from halfway.lab.report import landscape_page, model_landscape_page
from halfway.lab.runtime import devices
from halfway.lab.runtime.runs import Run
from halfway.lab.study import conditions
from halfway.lab.user_models import landscapes as user_landscapes

SIZES = LandscapeSizes(
    num_pairs=2,
    num_points=5,
    grid=5,
    num_examples=30,
    chunk_size=16,
    num_eigenvalues=2,
    num_steps=8,
    num_samples=3,
    num_class_examples=100,
)
CONFIG = f"""
from halfway.lab.config import shipped

def get_config(variant=""):
    config = shipped("digits:tiny")
    config.num_pairs, config.num_examples, config.num_holdout = 3, 60, 120
    config.models.mlp.widths = (8,)
    config.training.learning_rate, config.training.batch_size = 1e-2, 16
    config.training.probe_steps = (0, 60)
    config.hypotheses = ()
    config.landscape = {dataclasses.asdict(SIZES)}
    return config
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The working directory of one run of the command, and what it printed."""
    folder = tmp_path_factory.mktemp("landscape")
    (folder / "small.py").write_text(CONFIG)
    command = (*FOLDERS, "--config=small.py", "--workdir=run")
    done = commands.call(folder, "landscape", *command)
    assert done.code == 0, done
    return folder / "run", done.out


@pytest.fixture(scope="module")
def pool(digits):
    return digits.pool("all")


@pytest.fixture(scope="module")
def population(folder):
    run = Run.open(folder[0])
    return run.load_population(conditions.condition(run.config, "mlp"))


@pytest.fixture(scope="module")
def arrays(folder):
    return storage.read_arrays(folder[0] / "landscape" / "arrays.npz")


def apply_fn(params, x):
    return models.build({"kind": "mlp", "widths": (8,)}, num_classes=10).apply(
        {"params": params}, x
    )


def member(tree, *index):
    return jax.tree.map(lambda leaf: leaf[index], tree)


def loss_at(params, pool, rows, labels, loss_fn=losses.cross_entropy):
    logits = apply_fn(params, jnp.asarray(pool.images, jnp.float32)[rows])
    return float(loss_fn(logits, labels).mean())


def test_the_plane_holds_start_and_ends_of_the_walks(arrays, population, pool):
    walk_a, walk_b = arrays["plane_walks"]
    np.testing.assert_allclose(walk_a[0], walk_b[0])  # one θ_0
    np.testing.assert_allclose(walk_a[0], [0, 0], atol=1e-4)
    np.testing.assert_allclose(walk_a[-1, 1], 0, atol=1e-4)  # θ_A on the x-axis
    assert walk_a[-1, 0] > 0 and walk_b[-1, 1] > 0
    away = arrays["plane_distances"]
    np.testing.assert_allclose(away[:, [0, -1]], 0, atol=1e-3)
    assert away.max() > 0.01  # a walk leaves the plane of its ends
    x, y = arrays["plane_x"], arrays["plane_y"]
    for walk in (walk_a, walk_b):
        assert (walk[:, 0] > x[0]).all() and (walk[:, 0] < x[-1]).all()
        assert (walk[:, 1] > y[0]).all() and (walk[:, 1] < y[-1]).all()


def test_the_planes_are_the_two_halves_landscapes(arrays, population, pool):
    walks = weight_space.retrace(population.condition, pool, SIZES.num_pairs)  # compiled before
    through = landscapes.plane(*(member(walks, 0, i, t) for i, t in ((0, 0), (0, -1), (1, -1))))
    place = jnp.array([arrays["plane_x"][3], arrays["plane_y"][1]])
    params = landscapes.plane_point(through, place)
    for side, half in enumerate((population.halves.a, population.halves.b)):
        rows, labels = half.indices[0, :30], half.labels[0, :30]
        expected = loss_at(params, pool, rows, labels)
        assert arrays["plane_cross_entropy"][side, 1, 3] == pytest.approx(expected, rel=1e-4)


def test_kernels_of_the_halves_are_aligned_beyond_chance(arrays, population, pool):
    rows = population.halves.s.indices[1, : SIZES.num_class_examples]
    x = jnp.asarray(pool.images, jnp.float32)[rows]
    centred = []
    for i in (0, 1):
        jacobian = jax.jacrev(apply_fn)(member(population.params, 1, i), x)
        flat = jnp.concatenate(
            [leaf.reshape(len(rows), 10, -1) for leaf in jax.tree.leaves(jacobian)], -1
        )
        kernel = np.asarray(jnp.einsum("icd,jcd->ij", flat, flat), np.float64)
        centre = np.eye(len(rows)) - 1 / len(rows)
        centred.append(centre @ kernel @ centre)
    expected = np.corrcoef(centred[0].ravel(), centred[1].ravel())[0, 1]
    assert arrays["alignment_halves"][1] == pytest.approx(expected, abs=1e-4)
    assert (np.abs(arrays["alignment_shuffled"]) < 0.3 * arrays["alignment_halves"]).all()


def test_segments_begin_and_end_at_the_models(arrays, population, pool):
    labels = jnp.asarray(pool.labels)
    for p in range(2):
        rows = population.halves.s.indices[p]
        ends = [
            loss_at(member(population.params, p, i), pool, rows, labels[rows], losses.error)
            for i in (0, 1)
        ]
        for name in ("raw", "matched"):  # a permutation changes no prediction
            values = arrays[f"segment_{name}_error"][p]
            assert values.shape == (5,)
            np.testing.assert_allclose(values[[0, -1]], ends, atol=1e-6)
    raw, matched = (arrays[f"segment_{name}_cross_entropy"] for name in ("raw", "matched"))
    assert (matched[:, 2] < raw[:, 2]).all()
    shared = arrays["segment_shared_cross_entropy"]
    assert shared[:, 2].mean() < raw[:, 2].mean()


def test_slices_pass_through_the_model(arrays, population, pool):
    for name, half in (("own", population.halves.a), ("other", population.halves.b)):
        for p in range(2):
            expected = loss_at(
                member(population.params, p, 0), pool, half.indices[p, :30], half.labels[p, :30]
            )
            assert arrays[f"slice_{name}"][p, 2] == pytest.approx(expected, rel=1e-4)
    np.testing.assert_allclose(arrays["slice_plane"][0, 2], arrays["slice_own"][0], rtol=1e-4)
    np.testing.assert_allclose(arrays["slice_plane"][1, 2], arrays["slice_other"][0], rtol=1e-4)


def test_spectra_are_of_the_own_half(arrays, population, pool):
    half = population.halves.a
    flat, unravel = jax.flatten_util.ravel_pytree(member(population.params, 1, 0))
    images = jnp.asarray(pool.images, jnp.float32)[half.indices[1, :30]]

    def loss_fn(vector):
        logits = apply_fn(unravel(vector), images)
        return losses.cross_entropy(logits, half.labels[1, :30]).mean()

    dense = np.linalg.eigvalsh(jax.jit(jax.hessian(loss_fn))(flat))[::-1]
    np.testing.assert_allclose(arrays["spectrum_end_tops"][1], dense[:2], rtol=1e-3)
    z = (arrays["spectrum_end_trace"][1] - dense.sum()) / arrays["spectrum_end_trace_error"][1]
    assert abs(z) < 5
    assert arrays["spectrum_start_tops"].shape == (2, 2)


def test_classes_meet_themselves_more_than_others(arrays):
    matrix = np.nanmean(arrays["matrix"], 0)
    assert matrix.shape == (10, 10)
    assert np.diag(matrix).mean() > matrix[~np.eye(10, dtype=bool)].mean()


def test_sections_decide_at_the_examples_as_the_models_do(arrays, population, pool):
    rows = np.asarray(population.halves.s.indices[0])
    labels = np.asarray(pool.labels)[rows]
    chosen = np.array([rows[np.flatnonzero(labels == c)[0]] for c in np.unique(labels)[:3]])
    np.testing.assert_array_equal(arrays["section_labels"], np.asarray(pool.labels)[chosen])
    for side in (0, 1):
        logits = apply_fn(
            member(population.params, 0, side), jnp.asarray(pool.images, jnp.float32)[chosen]
        )
        for place, decision in zip(arrays["section_points"], logits.argmax(1), strict=True):
            row, column = (
                int(np.argmin(np.abs(arrays[name] - v)))
                for name, v in (("section_y", place[1]), ("section_x", place[0]))
            )
            around = arrays["section_decisions"][side, row - 1 : row + 2, column - 1 : column + 2]
            assert int(decision) in around


def test_every_figure_is_drawn_and_every_barrier_tabled(arrays):
    drawn = landscape_page.figures(arrays)
    names = [figure.name for many in drawn.values() for figure in many]
    assert sorted(names) == sorted(
        [
            "plane",
            "segment_error",
            "segment_cross_entropy",
            "slice",
            "slice_plane",
            "surface",
            "spectrum",
            "matrix",
            "section",
        ]
    )
    barriers = weight_space.summary(arrays)
    assert len(barriers) == 3 * 2 * 2
    table = landscape_page.tables(arrays, barriers)["segments"]
    row = next(r for r in table.rows if r[0].startswith("as trained, error") and "line" in r[1])
    heights = np.asarray(landscapes.barrier(jnp.asarray(arrays["segment_raw_error"])))
    assert float(row[3]) == pytest.approx(heights.max(), rel=1e-2)
    assert row[4] == "2 of 2"
    for many in drawn.values():
        for figure in many:
            figure.figure.canvas.draw()


# Somebody's own model


OWN = """
def loss(params):
    return ((params["layer"]["kernel"] - 1) ** 2).sum() + params["bias"].sum() ** 2
"""


def write_params(path, seed):
    rng = np.random.default_rng(seed)
    arrays = {"layer/kernel": rng.standard_normal((4, 3)), "bias": rng.standard_normal(3)}
    storage.write_arrays(path, arrays)
    return path


@pytest.mark.quick
def test_parameters_are_a_tree_by_the_parts_of_their_names(tmp_path):
    tree = landscape.load_params(write_params(tmp_path / "a.npz", 0))
    assert tree["layer"]["kernel"].shape == (4, 3) and tree["bias"].dtype == jnp.float32


@pytest.mark.quick
@pytest.mark.parametrize(
    "content, message",
    [(None, "cannot be read"), ({"a": np.arange(3)}, "floats are needed"), ({}, "no arrays")],
)
def test_parameters_that_are_none(tmp_path, content, message):
    if content is not None:
        storage.write_arrays(tmp_path / "a.npz", content)
    with pytest.raises(UserError, match=message):
        landscape.load_params(tmp_path / "a.npz")


@pytest.mark.quick
@pytest.mark.parametrize(
    "name, message",
    [
        ("numpy", "names no function"),
        ("nowhere_at_all:f", "cannot be imported"),
        ("numpy:no_such", "cannot be imported"),
    ],
)
def test_losses_that_are_none(name, message):
    with pytest.raises(UserError, match=message):
        user.load_function("loss", name)


def test_the_page_is_whole_and_needs_nothing_else(folder):
    path, out = folder
    page = (path / "landscape" / "landscape.html").read_text()
    assert "walk of A" in page and "What to distrust" in page
    assert "In short" in page and "once units are matched, by" in page
    assert not re.search(r'(?:src|href)="(?!#|data:)', page)
    assert out.strip().endswith("landscape.html")
    assert "as trained, error on S" in out


@pytest.mark.slow
def test_any_population_of_a_run_is_drawn_on_the_labels_it_trained_on(folder, pool):
    run = Run.open(folder[0])
    control = populations.train(conditions.control(run.config, "mlp"), pool)
    run.save_population(control)
    condition_id = control.condition.id
    command = (*FOLDERS, "--workdir=run", f"--condition={condition_id}")
    done = commands.call(folder[0].parent, "landscape", *command)
    assert done.code == 0, done
    arrays = storage.read_arrays(folder[0] / f"landscape_{condition_id}" / "arrays.npz")
    rows = control.halves.a.indices[0, : SIZES.num_examples]
    permuted = control.trained_labels[0, 0, : SIZES.num_examples]
    trained_loss = loss_at(member(control.params, 0, 0), pool, rows, permuted)
    assert arrays["slice_own"][0, 2] == pytest.approx(trained_loss, rel=1e-3)
    half_labels = control.halves.a.labels[0, : SIZES.num_examples]
    assert loss_at(member(control.params, 0, 0), pool, rows, half_labels) > trained_loss + 0.1


@pytest.mark.parametrize(
    "flags, message",
    [
        (("--workdir=run", "--condition=0"), r"is not stored in run: there are .*\w+ \(mlp ρ=0\)"),
        (("--condition=0",), "give its --workdir"),
        (("--workdir=run", "--condition=0", "--architecture=mlp"), "give its --workdir"),
    ],
)
def test_populations_that_cannot_be_drawn(folder, monkeypatch, flags, message):
    monkeypatch.chdir(folder[0].parent)
    monkeypatch.setattr(devices, "start", lambda place: None)
    with pytest.raises(UserError, match=message):
        commands.main("landscape", *flags)


def test_a_folder_that_holds_no_run_is_not_trained_into(folder, monkeypatch):
    """A mistyped name had trained a run of the default config."""
    monkeypatch.chdir(folder[0].parent)
    monkeypatch.setattr(devices, "start", lambda place: None)
    with pytest.raises(UserError, match=r"--workdir=rum holds no run .*did you mean run\?"):
        commands.main("landscape", "--workdir=rum")
    assert not (folder[0].parent / "rum").exists()


@pytest.mark.parametrize("number", [1, 2])
def test_of_one_and_of_two_models_what_there_is_is_drawn(number):
    """Two models have slices and spectra of both, and the line between them; one has no pair."""

    def loss_fn(params):  # two wells, at −1 and 1: the barrier between them is 1
        return ((params["w"] ** 2 - 1) ** 2).mean()

    members = [{"w": jnp.full((3, 4), value)} for value in (-1.0, 1.0)][:number]
    arrays = user_landscapes.measure(loss_fn, members, jax.random.key(0), SIZES)
    heights, names = user_landscapes.barriers(arrays), ["left", "right"][:number]
    drawn = model_landscape_page.figures(arrays, names)
    assert set(drawn) == (
        {"slices", "spectra"} if number == 1 else {"slices", "spectra", "segments"}
    )
    assert len(drawn["slices"][1].figure.axes) == number
    assert len(model_landscape_page.tables(arrays, heights, names)["spectra"].rows) == number
    told = model_landscape_page.sentences(arrays, heights, names)
    assert len(told) == (1 if number == 1 else 3)
    if number == 2:
        assert heights["linear"] == pytest.approx(1, rel=1e-5)
        assert "rises 1 above the line between the ends, at t = 0.5" in told[-1]


def test_what_has_not_converged_is_said_on_the_page():
    arrays = user_landscapes.measure(
        lambda params: (params["w"] ** 4).sum(),
        [{"w": jnp.arange(1.0, 7)}],
        jax.random.key(0),
        SIZES,
    )
    flags = arrays["spectrum_converged"]
    assert flags.shape == arrays["spectrum_tops"].shape and flags.all()
    unsure = arrays | {"spectrum_converged": np.array([[True, False]])}
    told = model_landscape_page.sentences(unsure, {}, ["mine"])
    assert "mine: 1 of the 2 largest eigenvalues have not converged" in told[-1]
    assert "1 of 2" in model_landscape_page.tables(unsure, {}, ["mine"])["spectra"].rows[0]
    spectra = {
        f"spectrum_{name}_{what}": np.array(values)
        for name in ("start", "end")
        for what, values in {"nodes": [[[0.0, 5.0]], [[1.0, 2.0]]], "tops": [[4.0], [2.0]]}.items()
    }
    said = landscape_page._exceeded(spectra)
    assert "In 2 of 4 spectra it has not converged" in said
    spectra |= {f"spectrum_{name}_tops": np.array([[5.0], [2.0]]) for name in ("start", "end")}
    assert landscape_page._exceeded(spectra) == ""


@pytest.mark.quick
def test_a_loss_of_integers_is_one_line(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(devices, "start", lambda place: None)
    write_params(tmp_path / "0.npz", 0)
    (tmp_path / "counts.py").write_text(
        "def loss(params):\n    return (params['bias'] > 0).sum()\n"
    )
    flags = ("--params=0.npz", "--loss=counts:loss", "--workdir=own")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(UserError, match="must return a floating-point number, got int"):
        commands.main("landscape", *flags)


def test_a_model_of_ones_own_gives_the_closed_form(tmp_path, monkeypatch):
    monkeypatch.setattr(landscape, "LandscapeSizes", lambda: SIZES)
    paths = [write_params(tmp_path / f"{i}.npz", i) for i in range(3)]
    (tmp_path / "mine.py").write_text(OWN)
    flags = ("--params=0.npz,1.npz,2.npz", "--loss=mine:loss", "--workdir=own")
    done = commands.call(tmp_path, "landscape", FOLDERS[0], *flags)
    assert done.code == 0, done
    arrays = storage.read_arrays(tmp_path / "own" / "landscape" / "arrays.npz")
    # H is 2 on the kernel, and 2 · ones on the bias: eigenvalues 6 once and 2 twelve times.
    np.testing.assert_allclose(arrays["spectrum_tops"], 3 * [[6, 2]], rtol=1e-4)
    np.testing.assert_allclose(arrays["spectrum_trace"], 6 + 12 * 2, rtol=0.5)
    stored = [storage.read_arrays(path) for path in paths]
    values = [((a["layer/kernel"] - 1) ** 2).sum() + a["bias"].sum() ** 2 for a in stored]
    np.testing.assert_allclose(arrays["slice_loss"][:, SIZES.grid // 2], values, rtol=1e-5)
    middle = (slice(None), SIZES.grid // 2, SIZES.grid // 2)
    np.testing.assert_allclose(arrays["slice_plane"][middle], values, rtol=1e-5)
    ends = [[values[i], values[j]] for i, j in ((0, 1), (0, 2), (1, 2))]
    np.testing.assert_allclose(arrays["segment_loss"][:, [0, -1]], ends, rtol=1e-5)
    assert arrays["plane_loss"].shape == (5, 5)
    figures = {path.stem for path in (tmp_path / "own" / "landscape" / "figures").glob("*.png")}
    assert {"plane", "spectrum", "slice"} <= figures
    page = (tmp_path / "own" / "landscape" / "landscape.html").read_text()
    assert "mine:loss" in page and "In short" in page
    # A bowl has no barrier, and what is known of populations alone is not said.
    assert page.count("no barrier") == 3
    for words in ("95 % interval", "nats", "θ", "L_A", "pair", "seen in training", "S.", "nan"):
        assert words not in re.sub(r"<(style|svg).*?</\1>", "", page, flags=re.DOTALL), words
    half = commands.call(tmp_path, "landscape", FOLDERS[0], *flags[:1])
    assert "--params and --loss belong together" in half.complaint
