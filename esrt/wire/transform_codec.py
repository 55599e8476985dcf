"""Transform codecs: a linear transform, a cosine transform in time, and an entropy coder.

`TransformTables` hold one codec's parameters, which `training.codec` makes for a checkpoint:

1. The mean is subtracted. A matrix turns the W values of a token into K uncorrelated coefficients,
   scaled so that one quantization step of each costs the decoder about the same accuracy.
2. A DCT-II transforms each coefficient along blocks of tokens.
3. Coefficients are rounded to integers. A coefficient whose variance is below the step is not
   written at all (reverse water-filling).
4. An asymmetric numeral system (ANS) writes the integers by tables of frequencies.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache, cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from esrt.arrays import Float32Array
from esrt.errors import EsrtError, FingerprintMismatch, PacketContentError, PacketError
from esrt.wire.codec import CHECK_MODEL, RE_ENCODE, Codec, Split, reject_values

FREQUENCY_BITS = 16
ID_BYTES = 4
# The coder's probabilities have 24 bits, so the tables' frequencies are scaled up.
_WIDENING = 24 - FREQUENCY_BITS

Integers = npt.NDArray[np.int32]


def _stream() -> Any:
    """Import constriction's stream coders on demand: Linux on ARM has no build of the package.

    Raises:
        EsrtError: it is not installed.
    """
    try:
        import constriction
    except ModuleNotFoundError as error:
        raise EsrtError(
            f"The codecs {Codec.KLT} and {Codec.KLT_LOW} need the package constriction.",
            f"Install it (for Linux on ARM this compiles Rust), or use the codec {Codec.INT8}.",
        ) from error
    return constriction.stream


@dataclass(frozen=True, eq=False)
class _ScanOrder:
    """Order in which the integers of R rows (R, K) are written.

    Attributes:
        order: indices into the flattened rows.
        counts: number of integers of each class from 1.
        zeros: symbol of the integer 0 at each index.
    """

    order: npt.NDArray[np.intp]
    counts: list[int]
    zeros: Integers


@dataclass(frozen=True, eq=False)
class TransformTables:
    """Parameters of one transform codec for features of width W.

    Attributes:
        mean: float32, (W,): mean of the features.
        analysis: float32, (K, W): features to K coefficients, in quantization steps.
        synthesis: float32, (K, W): coefficients to features.
        classes: uint8, (B, K): frequency table of each coefficient at each frequency of a block
            of B tokens; 0 for a coefficient that is not written.
        frequencies: uint16, (C, 2 M + 1): tables of the classes from 1. An entry is the frequency
            of an integer from -M to M out of 65,536; zeros at both ends limit the table's range.
    """

    mean: Float32Array
    analysis: Float32Array
    synthesis: Float32Array
    classes: npt.NDArray[np.uint8]
    frequencies: npt.NDArray[np.uint16]

    @property
    def width(self) -> int:
        """Width W of the features."""
        return len(self.mean)

    @cached_property
    def limits(self) -> Integers:
        """Largest magnitude of each class, (C + 1,); 0 for class 0."""
        largest = np.count_nonzero(self.frequencies, axis=1) // 2
        return np.asarray([0, *largest], np.int32)

    @cached_property
    def _models(self) -> list[Any]:
        """Probability models of the classes from 1.

        constriction gives every symbol one count and distributes the remaining counts by weight.
        Weights that sum to the remaining counts are kept exactly.
        """
        middle = self.frequencies.shape[1] // 2
        return [
            _stream().model.Categorical(
                (table[middle - limit : middle + limit + 1].astype(np.float64) * 2**_WIDENING) - 1,
                perfect=False,
            )
            for table, limit in zip(self.frequencies, self.limits[1:], strict=True)
        ]

    @cached_property
    def _scan_orders(self) -> list["_ScanOrder"]:
        """Scan order of each number of rows, from 0 to a whole block."""
        return [self._scan_order_of(rows) for rows in range(self._block + 1)]

    def _scan_order_of(self, rows: int) -> "_ScanOrder":
        classes = self._classes_of(rows).reshape(-1)
        order = np.argsort(classes, kind="stable")[np.count_nonzero(classes == 0) :]
        counts = np.bincount(classes, minlength=len(self.limits))[1:].tolist()
        return _ScanOrder(order, counts, self.limits[classes[order]])

    def quantize(self, features: Float32Array) -> Integers:
        """Transform and round features (T, W) to integers (T, K) within the tables' ranges.

        Raises:
            PacketContentError: the features are so large that a coefficient is not finite.
        """
        with np.errstate(over="ignore", invalid="ignore"):
            coefficients = cosine(np.matmul(features - self.mean, self.analysis.T), self._block)
        reject_values(
            ~np.isfinite(coefficients), coefficients, "coefficient", "a finite number", CHECK_MODEL
        )
        limits = self.limits[self._classes_of(len(features))]
        return np.asarray(np.rint(coefficients).clip(-limits, limits), np.int32)

    def reconstruct(self, coefficients: Float32Array) -> Float32Array:
        """Features (T, W) from coefficients (T, K)."""
        in_time = cosine(coefficients, self._block, inverse=True)
        features: Float32Array = in_time @ self.synthesis
        features += self.mean
        return features

    def ordered(self, integers: Integers) -> list[Integers]:
        """Integers (T, K) that are written: one array for each class from 1, in scan order."""
        classes = self._classes_of(len(integers))
        return [integers[classes == number] for number in range(1, len(self.limits))]

    def write(self, integers: Integers) -> bytes:
        """Entropy-code integers (T, K) from `quantize`."""
        coder = _stream().stack.AnsCoder()
        parts = zip(self.ordered(integers), self._models, self.limits[1:], strict=True)
        for symbols, model, limit in reversed(list(parts)):
            coder.encode_reverse(symbols + limit, model)
        words: npt.NDArray[np.uint32] = coder.get_compressed()
        return words.astype("<u4").tobytes()

    def read(self, words: bytes, tokens: int) -> Float32Array:
        """Decode the integer coefficients (T, K) that `write` has coded.

        Args:
            words: output of `write`.
            tokens: number of tokens T.

        Raises:
            PacketContentError: `write` does not produce these words for any integers.
        """
        compressed = np.frombuffer(words, "<u4").astype(np.uint32)
        if len(compressed) and compressed[-1] == 0:
            raise PacketContentError("The payload's last word is 0.", RE_ENCODE)
        coder = _stream().stack.AnsCoder(compressed)
        blocks, rest = divmod(tokens, self._block)
        whole, last = self._scan_orders[self._block], self._scan_orders[rest]
        in_blocks, in_rest = [], []
        for model, per_block, in_last in zip(self._models, whole.counts, last.counts, strict=True):
            symbols = coder.decode(model, blocks * per_block + in_last)
            in_blocks.append(symbols[: blocks * per_block].reshape(blocks, per_block))
            in_rest.append(symbols[blocks * per_block :])
        coefficients = np.zeros((tokens, len(self.analysis)), np.float32)
        # One assignment for all classes: one for each class would take longer than the decoder.
        body = coefficients[: tokens - rest].reshape(blocks, self._block * len(self.analysis))
        body[:, whole.order] = np.concatenate(in_blocks, axis=1) - whole.zeros
        tail = coefficients[tokens - rest :].reshape(-1)
        tail[last.order] = np.concatenate(in_rest) - last.zeros
        if not coder.is_empty():
            raise PacketContentError(
                f"The payload does not end with the last of {tokens} tokens.", RE_ENCODE
            )
        return coefficients

    @property
    def _block(self) -> int:
        return len(self.classes)

    def _classes_of(self, tokens: int) -> npt.NDArray[np.uint8]:
        """Class of every coefficient, (T, K).

        Row f of a short last block of R tokens has the frequency of row f B / R of a whole block,
        so it takes the classes of the nearest lower row.
        """
        block, rest = self._block, tokens % self._block
        rows = [np.arange(tokens - rest) % block, np.arange(rest) * block // max(rest, 1)]
        classes: npt.NDArray[np.uint8] = self.classes[np.concatenate(rows)]
        return classes


@dataclass(frozen=True, eq=False)
class CodecTables:
    """Tables of all transform codecs of one checkpoint: the content of `codec.safetensors`.

    Attributes:
        split: split point of the features that the tables were made for.
        by_codec: tables of each transform codec.
        identity: first four bytes of the file's SHA-256; every packet of these codecs has them.
    """

    split: Split
    by_codec: Mapping[Codec, TransformTables]
    identity: bytes


def encode(
    codec: Codec, features: Float32Array, split: Split, codec_tables: CodecTables | None
) -> bytes:
    """Payload of features (T, W).

    Raises:
        PacketContentError: the codec has no tables, or its tables are for other features.
    """
    if codec_tables is None or codec not in codec_tables.by_codec:
        raise PacketContentError(
            f"The codec {codec} needs codec tables, which this model does not have.",
            "Make them with python -m training.codec and export again, or use int8.",
        )
    tables = _tables_for(codec_tables, codec, split, features.shape[1])
    return codec_tables.identity + tables.write(tables.quantize(features))


def require_tables(codec: Codec, codec_tables: CodecTables | None) -> CodecTables:
    """The codec tables, if they include the codec.

    Raises:
        PacketError: there are no tables for the codec.
    """
    if codec_tables is None or codec not in codec_tables.by_codec:
        raise PacketError(
            f"The codec {codec} needs codec tables, which the model here does not have.",
            "Use a codec that /v1/models lists.",
        )
    return codec_tables


def decode(
    codec: Codec,
    payload: memoryview,
    tokens: int,
    width: int,
    split: Split,
    codec_tables: CodecTables,
) -> Float32Array:
    """Features (tokens, width) of a payload; `codec_tables` must include the codec.

    Raises:
        PacketError: the payload has an impossible length.
        FingerprintMismatch: the payload was written with other codec tables.
        PacketContentError: the tables are for other features, or the payload is damaged.
    """
    if len(payload) < ID_BYTES or len(payload) % 4:
        raise PacketError(
            f"The payload has {len(payload)} bytes, expected at least 4, and a multiple of 4.",
            RE_ENCODE,
        )
    identity = bytes(payload[:ID_BYTES])
    if identity != codec_tables.identity:
        raise FingerprintMismatch(
            f"The packet was written with the codec tables {identity.hex()},"
            f" but {codec_tables.identity.hex()} are used here.",
            "Export the encoder again from the checkpoint that serves.",
        )
    tables = _tables_for(codec_tables, codec, split, width)
    return tables.reconstruct(tables.read(bytes(payload[ID_BYTES:]), tokens))


def _tables_for(
    codec_tables: CodecTables, codec: Codec, split: Split, width: int
) -> TransformTables:
    tables = codec_tables.by_codec[codec]
    if split != codec_tables.split or width != tables.width:
        raise PacketContentError(
            f"The features are {split} features of width {width}, but the codec tables are for"
            f" {codec_tables.split} features of width {tables.width}.",
            "Use int8 for other features.",
        )
    return tables


@cache
def _basis(length: int) -> Float32Array:
    """Matrix of the orthonormal DCT-II: (frequency, time)."""
    time, frequency = np.arange(length) + 0.5, np.arange(length)[:, np.newaxis]
    basis = np.sqrt(2 / length) * np.cos(np.pi * frequency * time / length)
    basis[0] *= np.sqrt(0.5)
    return np.asarray(basis, np.float32)


def cosine(values: Float32Array, block: int, *, inverse: bool = False) -> Float32Array:
    """Orthonormal DCT-II of (T, K) along T in blocks, or its inverse; the last block may be short.

    Args:
        values: float32, (T, K).
        block: tokens of a block.
        inverse: apply the inverse transform.
    """
    whole, transformed = len(values) - len(values) % block, np.empty_like(values)
    for part in (slice(0, whole), slice(whole, None)):
        length = min(block, len(values[part]))
        if length:
            basis, shape = _basis(length), (-1, length, values.shape[1])
            out = transformed[part].reshape(shape)
            np.matmul(basis.T if inverse else basis, values[part].reshape(shape), out=out)
    return transformed
