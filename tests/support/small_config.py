"""A config for tests of commands: all hypotheses of the main job on digits, as little as can be.

Two architectures are one program, so that little is compiled; whoever needs fewer conditions takes
the variant "g1". All tests of whole runs use it, so that they share compiled programs.
"""

from halfway.lab.config import shipped


def get_config(variant=""):
    config = shipped("digits")
    config.num_pairs, config.num_examples, config.num_holdout = 4, 100, 100
    config.noise_rates = (0.0, 0.5, 1.0)
    config.architectures = ("linear", "again")
    config.models = {name: {"kind": "linear"} for name in config.architectures}
    config.training.probe_steps, config.training.learning_rate = (0, 20), 0.02
    config.attack.num_steps = 2
    if variant == "g1":
        config.architectures, config.hypotheses = ("linear",), ("G1",)
    return config
