"""Damage to files: bytes in, other bytes out."""


def flip(content, rng):
    """Returns bytes in which one bit, drawn anywhere, is another.

    Args:
      content: at least one byte.
      rng: of NumPy.
    """
    damaged = bytearray(content)
    damaged[rng.integers(len(damaged))] ^= 1 << int(rng.integers(8))
    return bytes(damaged)


def _change_number(content):
    """Returns bytes in which a digit in the middle of the file is another, else one bit."""
    places = [place for place, byte in enumerate(content) if byte in b"12345678"]
    middle = places[len(places) // 2]
    return content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]


FAULTS = {
    "a digit": _change_number,
    "half": lambda content: content[: len(content) // 2],
    "empty": lambda content: b"",
}
"""Names to what becomes of a file's content."""
