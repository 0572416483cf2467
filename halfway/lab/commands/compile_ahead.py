"""Compile every program of every study, attack and landscape for TPUs that need not be there.

What it takes is in `halfway.lab.flags.compile_ahead`.
"""

from pathlib import Path

from halfway import storage
from halfway.lab.ahead import everything, programs, slices, table
from halfway.lab.config import config_file
from halfway.lab.config.place import Place
from halfway.lab.config.user import UserError, writing
from halfway.lab.flags.compile_ahead import (
    DATA_DIR,
    JSON,
    PROGRAM_CACHE,
    STUDIES,
    TABLE,
    TOPOLOGIES,
    WANTED,
)
from halfway.lab.runtime import datasets, devices

SIZE = "digits:tiny"
"""The config whose programs are compiled, with a CNN beside its MLP."""


def main() -> None:
    """Compiles everything, prints the table, and writes it to the files that flags name."""
    devices.start(Place(compilation_cache=PROGRAM_CACHE.value))
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
