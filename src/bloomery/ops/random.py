"""Counter-based randomness: a number is a pure function of integers. Keeps no state and draws from no generator.

So a request's tokens depend neither on its batch nor on being interrupted, and a sample of a training run only on its
index; integer arithmetic gives every device the same bits.
"""

import secrets

MASK = 2**64 - 1


def keyed(*words: int) -> int:
    """64 bits that depend on every word and on their order."""
    state = 0
    for word in words:
        state = _mix(state ^ _mix(word))
    return state


def uniform(*words: int) -> float:
    """A number in [0, 1) with 53 random bits."""
    return (keyed(*words) >> 11) * 2.0**-53


def fresh_seed() -> int:
    """A seed nobody chose, to be reported so that the same can be had again."""
    return secrets.randbits(63)


def _mix(value: int) -> int:
    """A 64-bit hash of an integer (SplitMix64's finaliser, Steele, Lea and Flood 2014)."""
    value = (value + 0x9E3779B97F4A7C15) & MASK
    value = (value ^ (value >> 30)) * 0xBF58476D1CE4E5B9 & MASK
    value = (value ^ (value >> 27)) * 0x94D049BB133111EB & MASK
    return value ^ (value >> 31)
