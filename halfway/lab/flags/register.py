"""Write down what decides: digests of rules and configs, and numbers that are fitted once.

Example: halfway register --workdir=runs/digits

Without a run only digests are renewed: a rule or a config that has changed gets a higher version
and the date. With one, the lines of T3 and T12 are fitted, once: a lock that has them is closed. To
be run before a data set is opened.
"""

from absl import flags

from halfway.lab.entry import launch, shared

FLAGS = flags.FlagValues()
WORKDIR = shared.folder(
    FLAGS, "workdir", None, "a run of digits that measured T3 and T12", writes=False
)


def run() -> None:
    """Runs the command with the arguments of the process."""
    launch.run("register", FLAGS)
