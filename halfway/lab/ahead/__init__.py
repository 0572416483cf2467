"""Programs compiled ahead of time, for accelerators that need not be there."""
