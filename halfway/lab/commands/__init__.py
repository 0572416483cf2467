"""What each command does, once its flags are read: a module a command, with its `main`."""

from halfway.lab.runtime.start import call

__all__ = ["call"]
