"""The hash behind every decision that looks random but must be the same on all ranks and in a resumed run."""

import hashlib


def keyed_hash(message: str | bytes, num_bytes: int = 8, key: bytes = b"") -> int:
    """
    Returns a number in [0, 256 ** num_bytes) that depends on a message and a key alone: their BLAKE2b hash.

    For different messages the numbers are as good as uniform and independent.

    Args:
        message (`str` or `bytes`):
            Names the decision, such as `"<seed>/skip/<position>"`.
        num_bytes (`int`, *optional*, defaults to 8):
            Bytes of the hash, at most 64. They are read as a number with the lowest byte first. Fewer bytes give another
            number, not a part of the longer one.
        key (`bytes`, *optional*):
            Key of the hash, at most 64 bytes. Empty: no key.

    Example:

    >>> round(keyed_hash("7/skip/0") / 2**64, 3)
    0.559
    """
    message = message.encode() if isinstance(message, str) else message
    return int.from_bytes(hashlib.blake2b(message, key=key, digest_size=num_bytes).digest(), "little")
