"""One module a command."""

from halfway.lab.runtime.start import call

__all__ = ["call"]
