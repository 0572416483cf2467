"""The laboratory: from a config to a report; all that has files, flags and words."""
