"""Calls as one program each, where every operation on its own would be compiled."""

import functools
import itertools

import jax


def compiled(fn, *args, **options):
    """Returns the result of a function that runs as one program.

    Args:
      fn: the function.
      *args: functions, which are part of the program, and then its arrays.
      **options: constants of the program.
    """
    number = len(list(itertools.takewhile(callable, args)))
    return jax.jit(functools.partial(fn, *args[:number], **options))(*args[number:])
