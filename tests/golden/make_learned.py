"""Generator of the transform codecs' golden vectors: a second implementation, without numpy.

The script follows docs/wire-format.md only and shares no code with `esrt.wire`, so the vectors test
the package and its entropy coder. `python tests/golden/make_learned.py` writes
tests/golden/learned/ again; the output is always the same.
"""

import hashlib
import json
import math
import struct
import sys
import zlib
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent / "learned"
FINGERPRINT = "0123456789abcdef"
CODECS = {"klt": 3, "klt-low": 4}
WIDTH, BLOCK = 4, 4
PRECISION, WORD = 24, 32

Rows = list[list[float]]


# --- The codec tables ---------------------------------------------------------------------------
# Codec klt has three coefficients, klt-low two. The first coefficient is written at every
# frequency, the last only at the lowest.

MEAN = [0.5, -1.0, 0.0, 2.0]
ANALYSIS = {
    "klt": [[2.0, 0.0, 0.0, 1.0], [0.0, 1.5, -0.5, 0.0], [0.0, 0.5, 1.5, 0.0]],
    "klt-low": [[1.0, 0.0, 0.0, 0.5], [0.0, 0.75, -0.25, 0.0]],
}
SYNTHESIS = {
    "klt": [[0.4, 0.0, 0.0, 0.2], [0.0, 0.6, -0.2, 0.0], [0.0, 0.2, 0.6, 0.0]],
    "klt-low": [[0.8, 0.0, 0.0, 0.4], [0.0, 1.2, -0.4, 0.0]],
}
CLASSES = {
    "klt": [[2, 2, 1], [2, 1, 0], [1, 1, 0], [1, 0, 0]],
    "klt-low": [[2, 1], [1, 0], [1, 0], [1, 0]],
}
# Class 1 covers -1 to 1, class 2 covers -3 to 3.
FREQUENCIES = [
    [0, 0, 5000, 55536, 5000, 0, 0],
    [1000, 4000, 12000, 31536, 12000, 4000, 1000],
]


def codec_tables() -> bytes:
    """Bytes of the file `codec.safetensors`."""
    tensors: list[tuple[str, str, list[int], bytes]] = []
    for codec in CODECS:
        count = len(CLASSES[codec][0])
        for name, rows in (("analysis", ANALYSIS[codec]), ("synthesis", SYNTHESIS[codec])):
            tensors.append((f"{codec}.{name}", "F32", [count, WIDTH], _floats(_flat(rows))))
        classes = bytes(_flat(CLASSES[codec]))
        tensors.append((f"{codec}.classes", "U8", [BLOCK, count], classes))
        counts = struct.pack("<14H", *_flat(FREQUENCIES))
        tensors.append((f"{codec}.frequencies", "U16", [2, 7], counts))
        tensors.append((f"{codec}.mean", "F32", [WIDTH], _floats(MEAN)))
    header: dict[str, Any] = {"__metadata__": {"fingerprint": FINGERPRINT, "split": "qformer"}}
    body = b""
    for name, kind, shape, data in tensors:
        place = [len(body), len(body) + len(data)]
        header[name] = {"dtype": kind, "shape": shape, "data_offsets": place}
        body += data
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text + body


def _flat(rows: list[list[Any]]) -> list[Any]:
    return [value for row in rows for value in row]


def _floats(values: list[float]) -> bytes:
    return struct.pack(f"<{len(values)}f", *values)


# --- The codec ----------------------------------------------------------------------------------


def _basis(length: int) -> Rows:
    """Row f, column t of the orthonormal DCT-II."""
    return [
        [
            math.sqrt((1 if f == 0 else 2) / length) * math.cos(math.pi * f * (t + 0.5) / length)
            for t in range(length)
        ]
        for f in range(length)
    ]


def _blocks(tokens: int) -> list[tuple[int, int]]:
    """Begin and length of each block."""
    return [(begin, min(BLOCK, tokens - begin)) for begin in range(0, tokens, BLOCK)]


def _classes(codec: str, tokens: int) -> list[list[int]]:
    return [
        CLASSES[codec][f * BLOCK // length] for _, length in _blocks(tokens) for f in range(length)
    ]


def quantize(codec: str, rows: Rows) -> list[list[int]]:
    """Integers by row and coefficient; a row is a frequency of a block."""
    centred = [[x - m for x, m in zip(row, MEAN, strict=True)] for row in rows]
    y = [
        [sum(a * x for a, x in zip(axis, row, strict=True)) for axis in ANALYSIS[codec]]
        for row in centred
    ]
    integers = []
    for begin, length in _blocks(len(rows)):
        for line in _basis(length):
            integers.append(
                [
                    sum(line[t] * y[begin + t][k] for t in range(length))
                    for k in range(len(ANALYSIS[codec]))
                ]
            )
    limits = {0: 0, 1: 1, 2: 3}
    clipped = []
    for values, classes in zip(integers, _classes(codec, len(rows)), strict=True):
        for value in values:  # far from a tie, so any order of additions rounds the same way
            assert abs(abs(value % 1) - 0.5) > 1e-4, value
        clipped.append(
            [
                max(-limits[c], min(limits[c], round(value)))
                for value, c in zip(values, classes, strict=True)
            ]
        )
    return clipped


def reconstruct(codec: str, integers: list[list[int]]) -> Rows:
    """Features from integers."""
    rows: Rows = []
    for begin, length in _blocks(len(integers)):
        basis = _basis(length)
        for t in range(length):
            y = [
                sum(basis[f][t] * integers[begin + f][k] for f in range(length))
                for k in range(len(SYNTHESIS[codec]))
            ]
            rows.append(
                [
                    MEAN[w] + sum(y[k] * SYNTHESIS[codec][k][w] for k in range(len(y)))
                    for w in range(WIDTH)
                ]
            )
    return rows


def words_of(codec: str, integers: list[list[int]]) -> list[int]:
    """Entropy coder: symbols sorted by class and written in reverse order."""
    classes = _classes(codec, len(integers))
    symbols = [
        (number, integers[t][k])
        for number in (1, 2)
        for t in range(len(integers))
        for k in range(len(integers[0]))
        if classes[t][k] == number
    ]
    state, words = 0, []
    for number, q in reversed(symbols):
        table = FREQUENCIES[number - 1]
        place = q + 3
        share = table[place] << PRECISION - 16
        below = sum(table[:place]) << PRECISION - 16
        if state >> 2 * WORD - PRECISION >= share:
            words.append(state % 2**WORD)
            state >>= WORD
        state = (state // share << PRECISION) + below + state % share
    while state:
        words.append(state % 2**WORD)
        state >>= WORD
    return words


# --- The vectors --------------------------------------------------------------------------------


def _packet(codec: str, payload: bytes, tokens: int, split: int = 0, width: int = WIDTH) -> bytes:
    head = struct.pack(
        "<4sBBBB8sHHII",
        b"ESRT",
        1,
        split,
        CODECS[codec],
        0,
        bytes.fromhex(FINGERPRINT),
        tokens,
        width,
        1500,
        len(payload),
    )
    return head + struct.pack("<I", zlib.crc32(head + payload)) + payload


def _valid(name: str, codec: str, rows: Rows, identity: bytes) -> dict[str, Any]:
    integers = quantize(codec, rows)
    words = words_of(codec, integers)
    payload = identity + struct.pack(f"<{len(words)}I", *words)
    return {
        "name": name,
        "codec": codec,
        "input": rows,
        "packet": _packet(codec, payload, len(rows)).hex(),
        "decoded": reconstruct(codec, integers),
    }


def _pattern(tokens: int, size: float) -> Rows:
    return [
        [MEAN[w] + size * (((29 * (t * WIDTH + w) + 7) % 61 - 30) / 31) for w in range(WIDTH)]
        for t in range(tokens)
    ]


def files() -> dict[str, bytes]:
    """Content of every file in the folder, by name."""
    tables = codec_tables()
    identity = hashlib.sha256(tables).digest()[:4]
    valid = [
        _valid(f"{codec}-{name}", codec, _pattern(tokens, size), identity)
        for codec in CODECS
        for name, tokens, size in (
            ("one-token", 1, 1.1),
            ("short-block", 3, 1.1),
            ("whole-blocks", 8, 1.1),
            ("many-tokens", 21, 1.3),
            ("clipped", 5, 9.1),
            ("mean", 6, 0.0),
        )
    ]
    good = words_of("klt", quantize("klt", _pattern(8, 1.1)))

    def payload(words: list[int]) -> bytes:
        return identity + struct.pack(f"<{len(words)}I", *words)

    def refused(name: str, kind: tuple[str, int], packet: bytes) -> dict[str, Any]:
        return {"name": name, "packet": packet.hex(), "type": kind[0], "status": kind[1]}

    malformed, mismatch, content = (
        ("packet-malformed", 400),
        ("fingerprint-mismatch", 409),
        ("packet-content", 422),
    )
    other = bytes([identity[0] ^ 1]) + identity[1:]
    refusals = [
        refused("no-identity", malformed, _packet("klt", b"", 8)),
        refused("cut-identity", malformed, _packet("klt", identity[:3], 8)),
        refused("half-a-word", malformed, _packet("klt", payload(good)[:-2], 8)),
        refused("other-statistics", mismatch, _packet("klt", other + payload(good)[4:], 8)),
        refused("adapter", content, _packet("klt", payload(good), 8, split=1)),
        refused("other-width", content, _packet("klt", payload(good), 8, width=5)),
        refused("last-word-0", content, _packet("klt", payload([*good, 0]), 8)),
        refused("words-missing", content, _packet("klt", payload(good[1:]), 8)),
        refused("words-left-over", content, _packet("klt", payload([1, 2, *good]), 8)),
        refused("fewer-tokens", content, _packet("klt", payload(good), 4)),
        refused("klt-words-as-klt-low", content, _packet("klt-low", payload(good), 8)),
    ]
    index = {"valid": valid, "refused": refusals}
    text = json.dumps(index, indent=1, allow_nan=False) + "\n"
    return {"codec.safetensors": tables, "index.json": text.encode()}


if __name__ == "__main__":
    FOLDER.mkdir(exist_ok=True)
    for file_name, content in files().items():
        (FOLDER / file_name).write_bytes(content)
    sys.stdout.write(f"{len(files())} files\n")
