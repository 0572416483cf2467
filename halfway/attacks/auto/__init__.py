"""AutoAttack: its walk, its stages, and its stages one after the other on whole data sets."""
