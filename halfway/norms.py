"""The norms of threat models by name, for what takes a name before JAX is imported."""

NORMS = ("linf", "l2", "l1")
