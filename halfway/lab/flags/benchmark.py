"""Time what is done side by side with what people use today, in the same run on the same threads.

Example: halfway benchmark --suite=attacks --data_dir=DIR --out=FILE.json
"""

from absl import flags

from halfway.lab.entry import launch, shared

FLAGS = flags.FlagValues()
SUITE = flags.DEFINE_string(
    "suite",
    None,
    "attacks, landscapes, optimality, scale, strength or transfer",
    flag_values=FLAGS,
)
OUT = shared.file(FLAGS, "out", "FILE.json for the rows")
MARKDOWN = shared.file(FLAGS, "markdown", "FILE.md for the tables, of a suite that writes them")
DATA_DIR = shared.data_dir(FLAGS)
CACHE = flags.DEFINE_string(
    "compilation_cache", None, "folder of compiled programs, or 'off'", flag_values=FLAGS
)


def run() -> None:
    """Runs the command with the arguments of the process."""
    launch.run("benchmark", FLAGS)
