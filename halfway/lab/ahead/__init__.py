"""Programs compiled ahead of time, for accelerators that need not be there."""

SLICES = ("v5e:2x2", "v6e:2x4")
"""What everything is compiled for."""
PROGRAM_KINDS = ("studies", "attacks", "landscapes", "models")
"""What there is to compile."""
