"""Which captions are about the same thing."""

import hashlib


def match_number(subject: str) -> int:
    """Equal subjects, equal int64 numbers; case and surrounding blanks do not count."""
    digest = hashlib.blake2b(subject.strip().casefold().encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little", signed=True)
