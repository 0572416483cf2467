"""Settings: a config file and flags as typed data, and the errors of a user."""
