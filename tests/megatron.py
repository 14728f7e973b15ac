"""Reads and writes Megatron's .bin/.idx, from the description of the format alone: the oracle of the tests of token
files. Shares nothing with bloomery."""

import struct
from itertools import pairwise
from pathlib import Path

import numpy as np

CODES = {1: "u1", 2: "i1", 3: "i2", 4: "i4", 5: "i8", 8: "u2"}


def read_documents(prefix: Path) -> list[list[int]]:
    """The tokens of each document, found through pointers and sizes as Megatron finds them."""
    index, data = Path(f"{prefix}.idx").read_bytes(), Path(f"{prefix}.bin").read_bytes()
    assert index[:9] == b"MMIDIDX\x00\x00"
    assert struct.unpack_from("<Q", index, 9) == (1,)
    kind = CODES[index[17]]
    sequences, bounds = struct.unpack_from("<QQ", index, 18)
    sizes = np.frombuffer(index, "<i4", sequences, 34)
    pointers = np.frombuffer(index, "<i8", sequences, 34 + 4 * sequences)
    documents = np.frombuffer(index, "<i8", bounds, 34 + 12 * sequences)
    assert len(index) == 34 + 12 * sequences + 8 * bounds
    found = [np.frombuffer(data, f"<{kind}", size, at) for at, size in zip(pointers, sizes, strict=True)]
    return [[int(token) for sequence in found[first:last] for token in sequence] for first, last in pairwise(documents)]


def write_documents(prefix: Path, code: int, documents: list[list[list[int]]]) -> None:
    """Documents of sequences of tokens."""
    sequences = [np.array(sequence, f"<{CODES[code]}") for document in documents for sequence in document]
    sizes = [len(sequence) for sequence in sequences]
    pointers = [sum(sequence.nbytes for sequence in sequences[:number]) for number in range(len(sequences))]
    bounds = [sum(map(len, documents[:number])) for number in range(len(documents) + 1)]
    Path(f"{prefix}.bin").write_bytes(b"".join(sequence.tobytes() for sequence in sequences))
    Path(f"{prefix}.idx").write_bytes(
        b"MMIDIDX\x00\x00"
        + struct.pack("<QBQQ", 1, code, len(sizes), len(bounds))
        + struct.pack(f"<{len(sizes)}i", *sizes)
        + struct.pack(f"<{len(pointers)}q", *pointers)
        + struct.pack(f"<{len(bounds)}q", *bounds)
    )
