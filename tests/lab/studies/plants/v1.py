"""Planted records of V1."""

import numpy as np
from support import plants

from halfway.lab.measurements import laws
from halfway.lab.studies.v1 import study
from halfway.lab.studies.v1.linear_gaussian import HALF_SIZES, LINEAR_GAUSSIAN, TARGETS, TIME
from halfway.lab.studies.v1.measure import (
    BLOCK_SIZES,
    IDENTITIES,
    IDENTITY_NAMES,
    KERNEL_SETTINGS,
    SPACES,
)

NOISE = 0.3
"""Standard deviation over pairs of every residual, as a share of its margin."""
REMAINS = 0.1
"""Share of the margin that each residual has at effect 1."""
N_HALF = 60.0
"""Of the first law: its predictions are on both sides of `laws.SMALL`."""
EXACT = np.linspace(0.15, 0.95, len(HALF_SIZES))
"""M_x by P7."""
SPECTRAL = np.linspace(0.15, 0.95, len(KERNEL_SETTINGS) * len(SPACES))
"""μ_f and μ_J by P10."""
MARGINS = (
    {identity.part: identity.margin for identity in study.IDENTITY_PARTS.values()}
    | {study.FIRST_ORDER.part: study.FIRST_ORDER.margin}
    | {study.first_law_part(n): laws.margin_of(n / (n + N_HALF)) for n in BLOCK_SIZES}
    | {
        study.transfer_part(n): laws.margin_of(exact)
        for n, exact in zip(HALF_SIZES, EXACT, strict=True)
    }
    | {
        study.kernel_part(space, setting.name): laws.margin_of(SPECTRAL[2 * row + column])
        for row, setting in enumerate(KERNEL_SETTINGS)
        for column, space in enumerate(SPACES)
    }
)
"""Of every part by name."""
BOUNDARIES = [f"{part}, {side}" for part in MARGINS for side in ("below", "above")]
SIZED = [
    f"{part}, above"
    for part in (
        "P1 path",
        study.FIRST_ORDER.part,
        study.first_law_part(BLOCK_SIZES[0]),
        study.transfer_part(HALF_SIZES[-1]),
        study.kernel_part(SPACES[1], KERNEL_SETTINGS[0].name),
    )
]
"""One test of each form."""


def plant(rng, effect, boundary=None):
    """Records with every residual at its margin at effect 0 and at a tenth of it at effect 1."""
    shares = dict.fromkeys(MARGINS, 1 - (1 - REMAINS) * effect)
    if boundary is not None:
        part, side = boundary.rsplit(", ", 1)
        shares[part] = 1.0 if side == "above" else -1.0
    num_pairs = plants.CONFIG.num_pairs
    off = {
        part: margin * (shares[part] + NOISE * rng.normal(0, 1, num_pairs))
        for part, margin in MARGINS.items()
    }
    trained = study.measured_on(plants.CONFIG)

    def columns(names):
        return np.stack([off[name] for name in names], 1)

    scale = rng.uniform(1, 2, (num_pairs, len(IDENTITY_NAMES)))
    residual = columns(study.IDENTITY_PARTS[name].part for name in IDENTITY_NAMES)
    sizes = np.array(BLOCK_SIZES, float)
    blocks = columns(map(study.first_law_part, BLOCK_SIZES)) + sizes / (sizes + N_HALF)
    kernels = columns(
        study.kernel_part(space, setting.name) for setting in KERNEL_SETTINGS for space in SPACES
    )
    cells = num_pairs, len(KERNEL_SETTINGS), len(SPACES)
    identities = plants.dataset(
        trained,
        {
            "residual": (("pair", "identity"), residual * scale),
            "scale": (("pair", "identity"), scale),
            "signal": (("pair",), np.ones(num_pairs)),
            "noise": (("pair",), np.full(num_pairs, N_HALF)),
            "block_product": (("pair", "block_size"), blocks),
            "block_square": (("pair", "block_size"), np.ones(blocks.shape)),
            "first_law": (("block_size",), sizes / (sizes + N_HALF)),
            "kernel_product": (("pair", "setting", "space"), (kernels + SPECTRAL).reshape(cells)),
            "kernel_square": (("pair", "setting", "space"), np.ones(cells)),
            "spectral_law": (("setting", "space"), SPECTRAL.reshape(cells[1:])),
        },
        identity=IDENTITY_NAMES,
        block_size=BLOCK_SIZES,
        setting=[setting.name for setting in KERNEL_SETTINGS],
        space=SPACES,
    )
    # Of n examples the own increase is 1, that of the other M_x; P5 is off for all n alike.
    transfer = EXACT + columns(map(study.transfer_part, HALF_SIZES))
    increase = np.stack([transfer, np.ones(transfer.shape)], -1)
    product = increase / TIME / (1 + off[study.FIRST_ORDER.part][:, None, None])
    linear = plants.dataset(
        trained,
        {
            "increase": (("pair", "num_examples", "target"), increase),
            "product": (("pair", "num_examples", "target"), product),
            "exact": (("num_examples",), EXACT),
        },
        num_examples=HALF_SIZES,
        target=TARGETS,
    )
    return plants.records((IDENTITIES, trained, identities), (LINEAR_GAUSSIAN, trained, linear))
