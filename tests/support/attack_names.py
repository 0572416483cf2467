"""The public attacks by what they take: tables that list every attack are held to it."""

import inspect

from halfway import attacks


def taking(*parameters):
    """The names of public functions that have these parameters and take no attack."""
    return {
        name
        for name in attacks.__all__
        if inspect.isfunction(fn := getattr(attacks, name))
        and {*parameters} <= set(inspect.signature(fn).parameters)
        and "attack" not in inspect.signature(fn).parameters
    }
