"""The suite: all attacks on all networks at one budget of passes, and its tables."""

import dataclasses
import functools
import hashlib
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from halfway import attacks, storage
from halfway.attacks.door import TOLERANCE
from halfway.lab.benchmarks import mnist
from halfway.lab.benchmarks.optimality import measure, networks, ours, passes, theirs
from halfway.lab.benchmarks.optimality.passes import NORM_ORDERS, Attack, Found
from halfway.lab.config.user import LOG, UserError
from halfway.lab.study import wording
from halfway.types import LogitsFn

BUDGET = 2000
"""Forward plus backward passes that an attack may spend on an input, as in AttackBench."""
ALL_NETWORKS = "all networks"


@dataclasses.dataclass(frozen=True)
class Standing:
    """How an attack stands on a network, or on all. None where a field has no meaning.

    Attributes:
      network: its name; "all networks" where `optimality` is global.
      norm: "l0", "l1", "l2" or "linf".
      attack: the name of the attack in its package.
      package: its name and version.
      optimality: local or global optimality, 1 at best.
      fooled: the share of inputs for which it returns an adversarial point.
      median: the median distance of its points, where it finds one for more than half of the
        inputs.
      passes: forward and backward passes spent on an input, a mean over inputs.
      seconds: on all inputs, compiled before.
      distances: of each input, None where nothing is found: the curve of robust accuracy.
      note: further facts for a reader.
      skipped: why there is no result.
      problem: digests of weights, images and budget, and of the code that attacks.
    """

    network: str
    norm: str | None = None
    attack: str | None = None
    package: str | None = None
    optimality: float | None = None
    fooled: float | None = None
    median: float | None = None
    passes: float | None = None
    seconds: float | None = None
    distances: tuple[float | None, ...] | None = None
    note: str = ""
    skipped: str | None = None
    problem: str | None = None


class Kept:
    """Rows that are written as each attack ends, and taken up by a run that is started again.

    Args:
      path: the file of rows; None keeps nothing.

    Raises:
      UserError: if the file is there and holds something else.
    """

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._rows: list[Standing] = []
        if path is not None and path.exists():
            try:
                stored = [Standing(**each) for each in storage.read_json(path)]
            except (OSError, ValueError, TypeError) as error:
                raise UserError(f"{path} holds no rows of this suite: choose another") from error
            for row in stored:
                if row.problem is not None and row.skipped is None:
                    row = dataclasses.replace(row, distances=tuple(row.distances or ()))
                    self._rows.append(row)

    def find(self, begun: Standing) -> Standing | None:
        """Returns the row of the same attack on the same problem, if there is one.

        Args:
          begun: a row without results.
        """
        identity = lambda row: (row.network, row.norm, row.attack, row.package, row.problem)  # noqa: E731
        return next((row for row in self._rows if identity(row) == identity(begun)), None)

    def add(self, row: Standing) -> None:
        """Writes a row to the file, beside the others.

        Args:
          row: what an attack reached.
        """
        self._rows.append(row)
        if self._path is not None:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            storage.write_json(self._path, [dataclasses.asdict(each) for each in self._rows])


KEEPS_ROWS = True
"""The suite takes hours: `rows` has a second argument, the file in which rows are kept."""


def rows(data_dir: str | None = None, path: Path | None = None) -> list[Standing]:
    """Returns the rows of the suite: each attack on each network, best first, then on all.

    Args:
      data_dir: the data folder in which MNIST and `cifar10_jpeg` are prepared.
      path: a file to which rows are written as they come, and from which those of an earlier run on
        the same weights, images and budget are taken.
    """
    local: list[Standing] = []
    kept = Kept(path)
    for network in networks.NETWORKS:
        problem = networks.problem(network, data_dir)
        if isinstance(problem, str):
            local.append(Standing(network, skipped=problem))
        else:
            local += standings(network, problem, kept)
    return [*local, *on_all(local)]


def standings(network: str, problem: mnist.Problem, kept: Kept | None = None) -> list[Standing]:
    """Returns the rows of one network, ordered by norm and then by local optimality.

    Args:
      network: its name.
      problem: the network and its images.
      kept: rows of an earlier run.
    """
    kept = kept or Kept(None)
    identity = storage.tree_digest([problem.params, problem.images, problem.labels, BUDGET])
    peers, absent = theirs.attacks_on(problem)
    look = jax.jit(problem.logits_fn)  # compiled once for all attacks
    done: list[Standing] = []
    for each in [*ours.attacks_on(problem), *peers]:
        code = _code(is_ours=each.package.startswith("halfway"))
        begun = Standing(network, each.norm, each.name, each.package, problem=f"{identity} {code}")
        row = kept.find(begun)
        if row is None:
            row = _standing(begun, problem, look, each)
            kept.add(row)
        done.append(row)
    compared = [
        row for norm in NORM_ORDERS for row in _compared([r for r in done if r.norm == norm])
    ]
    return [*compared, *(Standing(network, skipped=reason) for reason in absent)]


@functools.cache
def _code(*, is_ours: bool) -> str:
    """Returns a digest of our attacks and their settings, or of those that peers' attacks get.

    Rows of other code are no rows of this one; a peer's package has a version.
    """
    paths = [Path(passes.__file__), Path((ours if is_ours else theirs).__file__)]
    if is_ours:
        paths += sorted(Path(attacks.__file__).parent.rglob("*.py"))
    return hashlib.sha256(b"".join(path.read_bytes() for path in paths)).hexdigest()


def _standing(row: Standing, problem: mnist.Problem, look: LogitsFn, attack: Attack) -> Standing:
    """Returns the row of an attack, without its optimality; a log line shows progress."""
    row = _ran(row, problem, look, attack)
    LOG.info("%s", "  ".join(cell for cell in _cells(row) if cell not in ("", "–")))
    return row


def _ran(row: Standing, problem: mnist.Problem, look: LogitsFn, attack: Attack) -> Standing:
    try:
        num_steps = attack.cost.num_steps(BUDGET)
        result = attack.run(num_steps)
        distances, note = checked(problem, look, attack.norm, result)
    except Exception as error:
        if attack.package.startswith("halfway"):
            raise
        # What one of many peers raises does not end a run of hours.
        reason = next(iter(str(error).splitlines()), "")
        return dataclasses.replace(row, skipped=f"{type(error).__name__}: {reason}"[:120])
    is_found = np.isfinite(distances)
    median = float(np.median(distances))
    return dataclasses.replace(
        row,
        fooled=float(is_found.mean()),
        median=median if np.isfinite(median) else None,
        passes=float(result.passes),
        seconds=result.seconds,
        distances=tuple(float(d) if np.isfinite(d) else None for d in distances),
        note="; ".join([f"{num_steps} steps", *note]),
    )


def checked(
    problem: mnist.Problem, look: LogitsFn, norm: str, result: Found
) -> tuple[np.ndarray, list[str]]:
    """Returns distances `[N]` of what is a success when our network looks again, and remarks.

    A point is a success if it lies in the box and our network misclassifies it, all images at once;
    else its distance is infinite.

    Args:
      problem: the network and its images.
      look: the network, compiled.
      norm: "l0", "l1", "l2" or "linf".
      result: what the attack returns.
    """
    points = jnp.asarray(result.points)
    inside = np.asarray((points >= -TOLERANCE) & (points <= 1 + TOLERANCE))
    inside = inside.reshape(len(inside), -1).all(1)  # False for NaN
    logits = look(points)
    wrong = np.asarray(jnp.isfinite(logits).all(1) & (logits.argmax(1) != problem.labels))
    remarks = []
    fools = wrong if result.fools_peer is None else result.fools_peer
    if (~inside & fools).any():
        remarks.append(f"{(~inside & fools).sum()} outside of the box")
    if (inside & fools & ~wrong).any():
        # Points at the boundary, where the rounding of two programs decides.
        remarks.append(f"{(inside & fools & ~wrong).sum()} fool the peer's program alone")
    away = np.asarray(attacks.distance(points, problem.images, norm), float)
    return np.where(inside & wrong, away, np.inf), remarks


def _compared(done: list[Standing]) -> list[Standing]:
    """Returns the rows of one network and norm with their optimality, best first."""
    ran = [row for row in done if row.distances is not None]
    if not ran:
        return done
    distances = np.array([[np.inf if d is None else d for d in row.distances or ()] for row in ran])
    best = measure.best_of(distances)
    values = [measure.local_optimality(each, best) for each in distances]
    rated = [
        dataclasses.replace(row, optimality=_known(value))
        for row, value in zip(ran, values, strict=True)
    ]
    return [*_best_first(rated), *(row for row in done if row.distances is None)]


def _best_first(unordered: Iterable[Standing]) -> list[Standing]:
    return sorted(unordered, key=lambda row: -1.0 if row.optimality is None else -row.optimality)


def _known(value: float) -> float | None:
    return value if np.isfinite(value) else None


def on_all(local: Sequence[Standing]) -> list[Standing]:
    """Returns the rows of global optimality, ordered by norm and then by optimality.

    Args:
      local: the rows of all networks.
    """
    by_attack: dict[tuple[str, str, str], list[Standing]] = {}
    for row in local:
        if row.optimality is not None and row.norm and row.attack and row.package:
            by_attack.setdefault((row.norm, row.package, row.attack), []).append(row)
    number = len({row.network for row in local if row.optimality is not None})
    means = [
        Standing(
            ALL_NETWORKS,
            norm,
            attack,
            package,
            _known(measure.global_optimality(row.optimality or 0.0 for row in ran)),
            fooled=float(np.mean([row.fooled or 0.0 for row in ran])),
            passes=float(np.mean([row.passes or 0.0 for row in ran])),
            seconds=float(np.sum([row.seconds or 0.0 for row in ran])),
            note="" if len(ran) == number else f"{len(ran)} of {number} networks",
        )
        for (norm, package, attack), ran in by_attack.items()
    ]
    return [row for norm in NORM_ORDERS for row in _best_first(r for r in means if r.norm == norm)]


HEADINGS = (
    *("network", "norm", "attack", "package"),
    *("optimality", "fooled", "median", "passes", "seconds", "note"),
)


def as_text(rows: Sequence[Standing]) -> str:
    """Returns the rows as a table for a terminal.

    Args:
      rows: the rows of the suite.
    """
    return "\n".join(wording.align([HEADINGS, *map(_cells, rows)]))


def _cells(row: Standing) -> list[str]:
    return [
        row.network,
        *(value or "–" for value in (row.norm, row.attack, row.package)),
        _said(row.optimality, lambda value: f"{value:.3f}"),
        _said(row.fooled, lambda value: f"{value:.1%}"),
        _said(row.median, lambda value: f"{value:.4g}"),
        _said(row.passes, lambda value: f"{value:.0f}"),
        _said(row.seconds, lambda value: f"{value:.1f}"),
        row.note if row.skipped is None else f"skipped: {row.skipped}",
    ]


def _said(value: float | None, say: Callable[[float], str]) -> str:
    return "–" if value is None else say(value)


def as_markdown(rows: Sequence[Standing]) -> str:
    """Returns a table for each norm in Markdown: global optimality, then local ones with medians.

    Args:
      rows: the rows of the suite.
    """
    return "\n\n".join(
        "\n".join(_table(norm, rows)) for norm in NORM_ORDERS if any(r.norm == norm for r in rows)
    )


def _table(norm: str, rows: Sequence[Standing]) -> list[str]:
    names = list(
        dict.fromkeys(r.network for r in rows if r.norm == norm and r.network != ALL_NETWORKS)
    )
    cells = {(r.network, r.package, r.attack): r for r in rows if r.norm == norm}
    lines = [
        f"| {norm} | from | all | {' | '.join(names)} | passes |",
        "|" + "---|" * (len(names) + 4),
    ]
    order = [(r.package, r.attack) for r in rows if r.norm == norm and r.network == ALL_NETWORKS]
    failed = [(r.package, r.attack) for r in rows if r.norm == norm]
    for package, attack in dict.fromkeys([*order, *failed]):
        whole = cells.get((ALL_NETWORKS, package, attack))
        local = " | ".join(_local(cells.get((name, package, attack))) for name in names)
        optimality = _said(whole and whole.optimality, lambda value: f"{value:.3f}")
        passes = _said(whole and whole.passes, lambda value: f"{value:.0f}")
        lines.append(f"| {attack} | {package} | {optimality} | {local} | {passes} |")
    return lines


def _local(row: Standing | None) -> str:
    if row is None or row.optimality is None:
        return "–" if row is None or row.skipped is None else "failed"
    return f"{row.optimality:.3f} ({_said(row.median, lambda value: f'{value:.3g}')})"
