"""Counter-based randomness: a number is a pure function of (seed, step, draw). Keeps no state.

So a request's tokens depend neither on its batch nor on being interrupted, and integer arithmetic gives every device
the same bits.
"""

import secrets

MASK = 2**64 - 1


def fresh_seed() -> int:
    """A seed nobody chose, to be reported so that the text can be had again."""
    return secrets.randbits(63)


def uniform(seed: int, step: int, draw: int) -> float:
    """A number in [0, 1) with 53 random bits: three rounds of the SplitMix64 finaliser (Steele, Lea, Flood 2014)."""
    return (_mix(_mix(_mix(seed) ^ step) ^ draw) >> 11) * 2.0**-53


def _mix(x: int) -> int:
    x = (x + 0x9E3779B97F4A7C15) & MASK
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & MASK
    return x ^ (x >> 31)
