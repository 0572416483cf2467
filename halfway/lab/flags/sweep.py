"""Run many settings of a config, each in a folder of its own, and put them into one table.

A setting that fails does not stop the others. The same command again runs what is missing; shards
on several machines may share the folder.

Example: halfway sweep --sweep=configs/sweeps/example.toml --shard=1/4
"""

from absl import flags

from halfway.lab.config.user import UserError
from halfway.lab.entry import launch, shared

FLAGS = flags.FlagValues()
SWEEP = flags.DEFINE_string(
    "sweep",
    "",
    "FILE.toml: a config and what varies, see configs/sweeps/example.toml",
    flag_values=FLAGS,
)
SHARD = flags.DEFINE_string(
    "shard",
    "1/1",
    "i/n: each n-th setting from the i-th on, the others elsewhere",
    flag_values=FLAGS,
)
WORKDIR = shared.folder(FLAGS, "workdir", None, "runs/FILE by default")
DRY_RUN = flags.DEFINE_bool("dry_run", False, "say what would be run", flag_values=FLAGS)
PASSED_ON = (
    shared.data_dir(FLAGS),
    shared.max_gb(FLAGS),
    flags.DEFINE_string(
        "compilation_cache", None, "folder of compiled programs, or 'off'", flag_values=FLAGS
    ),
)
"""The flags that each run of the sweep gets as they are."""


def check() -> None:
    """Checks what the flags say together.

    Raises:
      UserError: if no sweep is named.
    """
    if not SWEEP.value:
        raise UserError("--sweep is needed: a file such as configs/sweeps/example.toml")


def run() -> None:
    """Runs the command with the arguments of the process."""
    launch.run("sweep", FLAGS, check=check)
