"""What a user hears: a mistake as one line on stderr and exit code 2, and log lines."""

import logging

LOG = logging.getLogger("halfway.experiments")
"""For lines that a user should read; other libraries' loggers stay as quiet as they are."""


class UserError(Exception):
    """What was wrong and what to do, in one line."""
