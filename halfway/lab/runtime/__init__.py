"""A run: the pipeline, its folder, checkpoints, processes, progress, costs."""
