"""Halfway: where two walks downhill meet, in weight space and in input space."""

__version__ = "0.1.0"
