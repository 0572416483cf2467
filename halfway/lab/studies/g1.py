"""G1: training on one half descends the other."""

from halfway.lab.study.conditions import condition, control
from halfway.lab.study.paired import Paired

STUDY = Paired(
    id="G1",
    claim="Training on one half of the data descends the other half's landscape.",
    controls=("A's labels permuted, same halves and seeds",),
    smallest_effect="M_θ minus its control of .05 in error",
    conditions=lambda config, name: (condition(config, name), control(config, name)),
    treatment="true labels",
    control="permuted labels",
    opening="Two models walk downhill, each on its own half of the data. We ask how far the walk "
    "on one half also lowers the error on the other, which it never saw.",
    supported="What training gains on its own half it gains on the other half too, as far as M_θ "
    "says, and this is lost when the labels are shuffled: it is the labels' relation to the "
    "images that the halves share.",
    refuted="Permuted labels carry at least as far as true ones, so what is gained on one half is "
    "not a relation that both halves share. To change this, the model would have to gain on the "
    "other half more than it does with shuffled labels.",
)
