"""Tables of what a compiler says: every number it gives, a line for all that does not fit."""

import pytest

from halfway.lab.ahead import table
from halfway.lab.ahead.recording import Row

FITS = Row(
    stage="train mlp",
    program="advance",
    model="mlp",
    hardware="v5e:2x2",
    dtype="float32",
    num_devices=4,
    at_once=2,
    needs=2_500_000,
    has=16_000_000_000,
    flops=5.4e6,
    accessed=1.76e7,
    seconds=2.38e-5,
    collectives={"all-reduce": 2},
    cuda="lowers",
)
LARGE = FITS._replace(
    program="look probe",
    needs=20_000_000_000,
    problem="it needs more memory than a device has",
    lower="config.num_examples",
    seconds=None,
    collectives={},
)
BROKEN = FITS._replace(
    stage="transfer", hardware="v6e:2x4", problem="an operation is unknown", cuda="no rule for it"
)


@pytest.mark.quick
def test_a_terminal_sees_every_number_and_every_problem():
    text = table.as_text([FITS, LARGE, BROKEN], {"barriers": "LookupError: nothing"}, "v5e:2x2")
    lines = text.splitlines()
    assert lines[0] == "3 programs for v5e:2x2: 1 compile and fit, 2 do not"
    assert lines[3].split("  ") == [
        *("train mlp", "advance mlp", "", " 2.5 MB", "5.4 MFLOP", "17.6 MB", "23.8 µs", ""),
        *(" all-reduce 2",),
    ]
    assert lines[4].split()[-2:] == ["–", "none"]
    assert lines[-3] == (
        "train mlp: look probe mlp: it needs more memory than a device has (20 GB of 16 GB): "
        "lower config.num_examples"
    )
    assert lines[-2] == "transfer: advance mlp: an operation is unknown"
    assert lines[-1].startswith("barriers: ") and "LookupError" in lines[-1]
    assert max(map(len, lines)) <= 180


@pytest.mark.quick
def test_a_page_has_a_row_for_each_stage_and_a_column_for_each_hardware():
    other = FITS._replace(
        dtype="bfloat16",
        needs=9_000_000,
        collectives={"all-gather": 1},
        compile_seconds=71.4,
        callbacks=2,
    )
    text = table.as_markdown([FITS, LARGE, other, BROKEN], {"advance": "It is known."})
    head, rule, train, transfer, *rest = text.splitlines()
    assert head.startswith("| what is computed | v5e:2x2 float32 | v5e:2x2 bfloat16 | v6e:2x4 ")
    assert rule.count("---") == head.count("|") - 1
    cells = [cell.strip() for cell in train.strip("|").split("|")]
    assert cells[:5] == ["train mlp", "1 of 2", "1 of 1", "–", "20 GB"]
    assert cells[5:] == ["all-gather 1, all-reduce 2", "3 of 3"]
    assert transfer.startswith("| transfer | – | – | 0 of 1 |") and "0 of 1 |" in transfer[-10:]
    slowest, largest, calling, *reasons = [line for line in rest if line]
    assert slowest == "Slowest to compile: train mlp: advance mlp for v5e:2x2, 71 s of CPU time."
    assert largest == "Largest: train mlp: look probe mlp for v5e:2x2, 20 GB of a device."
    assert calling == "Programs that call the host: 1 of 4."
    assert len(reasons) == 3 and reasons[1].endswith("an operation is unknown. It is known.")
    assert reasons[2] == "transfer: advance mlp is not lowered for CUDA: no rule for it"
