"""Compile every program of every study, attack and landscape for TPUs that need not be there.

Tiny sizes, slices v5e 2x2 and v6e 2x4, training steps in float32 and in bfloat16. For CUDA,
programs are lowered. It needs the extra `tpu`, and ends with 2 where a program fails without a
known reason.

Example: halfway compile_ahead --markdown=FILE.md
"""

from pathlib import Path

from absl import flags

from halfway import storage
from halfway.lab.ahead import everything, programs, slices, table
from halfway.lab.config import config_file
from halfway.lab.config.user import UserError, writing
from halfway.lab.entry import launch, shared
from halfway.lab.runtime import datasets, devices

FLAGS = flags.FlagValues()
TOPOLOGIES = flags.DEFINE_list(
    "topologies", list(everything.SLICES), "slices of TPUs", flag_values=FLAGS
)
WANTED = flags.DEFINE_list(
    "parts", list(everything.PARTS), "what is compiled; all by default", flag_values=FLAGS
)
STUDIES = flags.DEFINE_list("only", ["all"], "studies, e.g. G1,T1", flag_values=FLAGS)
TABLE = shared.file(FLAGS, "markdown", "FILE.md for the table")
JSON = shared.file(FLAGS, "out", "FILE.json for a row of each program")
PROGRAM_CACHE = shared.compilation_cache(FLAGS)
DATA_DIR = shared.data_dir(FLAGS)
SIZE = "digits:tiny"
"""The config whose programs are compiled, with a CNN beside its MLP."""


def main() -> None:
    """Compiles everything, prints the table, and writes it to the files that flags name."""
    unknown = set(WANTED.value) - set(everything.PARTS)
    if unknown:
        among = ", ".join(everything.PARTS)
        raise UserError(f"--parts must be among {among}, got {', '.join(sorted(unknown))}")
    devices.start(devices.Place(compilation_cache=PROGRAM_CACHE.value))
    config = config_file.load(SIZE, {"architectures": "mlp,cnn"}).config
    pool = datasets.pool_for(config, datasets.load_for(config, DATA_DIR.value, max_gb=1.0))
    rows, texts, unexplained = [], [], []
    for number, name in enumerate(TOPOLOGIES.value):
        hardware = slices.choose(name)
        assert hardware is not None
        record = programs.recorder(hardware, with_cuda=number == 0)
        everything.compile_all(
            record, hardware, config, pool, parts=tuple(WANTED.value), only=tuple(STUDIES.value)
        )
        rows += record.rows.values()
        unexplained += [
            f"{name}: {stage}: {why}"
            for stage, why in record.unfinished.items()
            if stage not in everything.REASONS
        ]
        texts.append(table.as_text(list(record.rows.values()), record.unfinished, name))
    print("\n\n".join(texts))
    page = f"{table.as_markdown(rows, everything.REASONS)}\n"
    if TABLE.value:
        with writing(f"--markdown={TABLE.value}"):
            storage.write_whole(Path(TABLE.value), page.encode())
    if JSON.value:
        content = [row._asdict() for row in rows]
        with writing(f"--out={JSON.value}"):
            storage.write_json(Path(JSON.value), content)
    unexplained += [
        table.problem(row) for row in rows if not row.fits and row.program not in everything.REASONS
    ]
    if unexplained:
        raise UserError(f"{len(unexplained)} programs or stages fail, first {unexplained[0]}")


def run() -> None:
    """Runs the command with the arguments of the process."""
    launch.run(main, FLAGS)
