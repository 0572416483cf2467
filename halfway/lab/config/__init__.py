"""Settings: a config file and flags as typed data, and the errors of a user."""

from halfway.lab.config.config_file import shipped

__all__ = ["shipped"]
