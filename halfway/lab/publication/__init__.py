"""Results as data: what is committed of a run, and the documents that are made from it."""
