"""Compile every program of every study, attack and landscape for TPUs that need not be there.

Tiny sizes, slices v5e 2x2 and v6e 2x4, training steps in float32 and in bfloat16. For CUDA,
programs are lowered. It needs the extra `tpu`, and ends with 2 where a program fails without a
known reason.

Example: halfway compile_ahead --markdown=FILE.md
"""

from absl import flags

from halfway.lab.ahead import PROGRAM_KINDS, SLICES
from halfway.lab.config.user import UserError
from halfway.lab.entry import launch, shared

FLAGS = flags.FlagValues()
TOPOLOGIES = flags.DEFINE_list("topologies", list(SLICES), "slices of TPUs", flag_values=FLAGS)
WANTED = flags.DEFINE_list(
    "parts", list(PROGRAM_KINDS), "what is compiled; all by default", flag_values=FLAGS
)
STUDIES = flags.DEFINE_list("only", ["all"], "studies, e.g. G1,T1", flag_values=FLAGS)
TABLE = shared.file(FLAGS, "markdown", "FILE.md for the table")
JSON = shared.file(FLAGS, "out", "FILE.json for a row of each program")
PROGRAM_CACHE = shared.compilation_cache(FLAGS)
DATA_DIR = shared.data_dir(FLAGS)


def check() -> None:
    """Checks what the flags say together.

    Raises:
      UserError: if something is to be compiled that is not there.
    """
    unknown = set(WANTED.value) - set(PROGRAM_KINDS)
    if unknown:
        among = ", ".join(PROGRAM_KINDS)
        raise UserError(f"--parts must be among {among}, got {', '.join(sorted(unknown))}")


def resumes() -> bool:
    """Returns whether the same command goes on where it ended: it keeps nothing."""
    return False


def run() -> None:
    """Runs the command with the arguments of the process."""
    launch.run("compile_ahead", FLAGS, check=check, resumes=resumes)
