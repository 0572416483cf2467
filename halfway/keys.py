"""PRNG keys by name: no integers are kept by hand, and two names never share their draws."""

import zlib

import jax

from halfway.types import Key


def named_key(key: Key, *names: str) -> Key:
    """Returns the key of a name, or of a name within another.

    Each name is folded in as the CRC-32 of its text, which is the same in every process.

    Args:
      key: the PRNG key of what the names belong to, such as a run.
      *names: one name or several, from the outermost to the innermost.

    Examples:
      >>> root = jax.random.key(0)
      >>> names = ("pairs",), ("measurement", "transfer")
      >>> first, second = (jax.random.key_data(keys.named_key(root, *path)) for path in names)
      >>> bool((first == second).all())
      False
    """
    for name in names:
        key = jax.random.fold_in(key, zlib.crc32(name.encode()))
    return key
