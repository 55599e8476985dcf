"""The learned codecs: a transform that knows what the decoder reads, and an entropy coder.

Features are centred and transformed (`TransformTables.analysis`) into coefficients that are
uncorrelated and scaled so that one step of each costs the decoder about as much as one step of any
other; blocks of tokens go through a cosine transform; what is left is rounded to integers and
written by an asymmetric numeral system with tables of frequencies. A coefficient whose variance
lies below the step is not written at all, which is reverse water-filling. `training.codec`
makes the tables.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import constriction
import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError, safe_open

from esrt.arrays import Float32Array
from esrt.errors import CheckpointError, FingerprintMismatch, PacketContentError, PacketError
from esrt.wire.codec import CHECK_MODEL, RE_ENCODE, Codec, Split, refuse

CODEC_TABLES_FILE = "codec.safetensors"
FREQUENCY_BITS = 16
ID_BYTES = 4
MAX_CLASSES = 64
# The coder counts probabilities in 24 bits; the tables' frequencies are widened to that.
_WIDENING = 24 - FREQUENCY_BITS

Integers = npt.NDArray[np.int32]


@dataclass(frozen=True, eq=False)
class _ScanOrder:
    """Where the integers of some rows (R, K) stand, flat, in the order in which they are written.

    Attributes:
        order: their places.
        counts: how many there are of each class from 1.
        zeros: the symbol that stands for 0 at each place.
    """

    order: npt.NDArray[np.intp]
    counts: list[int]
    zeros: Integers


@dataclass(frozen=True, eq=False)
class TransformTables:
    """What one learned codec knows of a checkpoint's features of width W: K coefficients.

    Attributes:
        mean: float32, (W,), which is subtracted first.
        analysis: float32, (K, W): features to coefficients, in steps of the quantizer.
        synthesis: float32, (K, W): coefficients to features.
        classes: uint8, (B, K): the table of each coefficient at each frequency of a block of B
            tokens; 0 where none is written.
        frequencies: uint16, (C, 2 M + 1): the tables of the classes from 1; how often -M to M
            occur in 65,536, symmetric zeros at both ends being beyond the table's range.
    """

    mean: Float32Array
    analysis: Float32Array
    synthesis: Float32Array
    classes: npt.NDArray[np.uint8]
    frequencies: npt.NDArray[np.uint16]

    @property
    def width(self) -> int:
        """W, the width of the features."""
        return len(self.mean)

    @cached_property
    def _limits(self) -> Integers:
        """The largest magnitude of each class; 0 for class 0."""
        within = np.count_nonzero(self.frequencies, axis=1) // 2
        return np.asarray([0, *within], np.int32)

    @cached_property
    def _models(self) -> list[Any]:
        """The coder's tables of the classes from 1.

        constriction gives each symbol one count and shares out the rest by weight; weights that
        sum to just that rest come out as they are.
        """
        middle = self.frequencies.shape[1] // 2
        return [
            constriction.stream.model.Categorical(
                (table[middle - limit : middle + limit + 1].astype(np.float64) * 2**_WIDENING) - 1,
                perfect=False,
            )
            for table, limit in zip(self.frequencies, self._limits[1:], strict=True)
        ]

    @cached_property
    def _scan_orders(self) -> list["_ScanOrder"]:
        """By the number of rows, up to those of a whole block: where its integers stand."""
        return [self._scan_order_of(rows) for rows in range(self._block + 1)]

    def _scan_order_of(self, rows: int) -> "_ScanOrder":
        classes = self._classes_of(rows).reshape(-1)
        order = np.argsort(classes, kind="stable")[np.count_nonzero(classes == 0) :]
        counts = np.bincount(classes, minlength=len(self._limits))[1:].tolist()
        return _ScanOrder(order, counts, self._limits[classes[order]])

    def quantize(self, features: Float32Array) -> Integers:
        """The integers (T, K) of features (T, W), each within the range of its table.

        Raises:
            PacketContentError: the features are so large that the transform is not finite.
        """
        with np.errstate(over="ignore", invalid="ignore"):
            coefficients = cosine(np.matmul(features - self.mean, self.analysis.T), self._block)
        refuse(~np.isfinite(coefficients), coefficients, "coefficient", "finite ones", CHECK_MODEL)
        limits = self._limits[self._classes_of(len(features))]
        return np.asarray(np.rint(coefficients).clip(-limits, limits), np.int32)

    def reconstruct(self, coefficients: Float32Array) -> Float32Array:
        """The features (T, W) of coefficients (T, K)."""
        turned = cosine(coefficients, self._block, inverse=True)
        features: Float32Array = turned @ self.synthesis
        features += self.mean
        return features

    def ordered(self, integers: Integers) -> list[Integers]:
        """The integers (T, K) that are written, by class and then as they come."""
        classes = self._classes_of(len(integers))
        return [integers[classes == number] for number in range(1, len(self._limits))]

    def write(self, integers: Integers) -> bytes:
        """The integers (T, K) of `quantize` as words of an asymmetric numeral system."""
        coder = constriction.stream.stack.AnsCoder()
        parts = zip(self.ordered(integers), self._models, self._limits[1:], strict=True)
        for symbols, model, limit in reversed(list(parts)):
            coder.encode_reverse(symbols + limit, model)
        words: npt.NDArray[np.uint32] = coder.get_compressed()
        return words.astype("<u4").tobytes()

    def read(self, words: bytes, tokens: int) -> Float32Array:
        """The coefficients (T, K) of so many tokens, all integers.

        Raises:
            PacketContentError: the words are not what `write` makes of any integers.
        """
        compressed = np.frombuffer(words, "<u4").astype(np.uint32)
        if len(compressed) and compressed[-1] == 0:
            raise PacketContentError("The payload's last word is 0.", RE_ENCODE)
        coder = constriction.stream.stack.AnsCoder(compressed)
        blocks, rest = divmod(tokens, self._block)
        inside, after = self._scan_orders[self._block], self._scan_orders[rest]
        in_blocks, in_rest = [], []
        for model, in_block, in_end in zip(self._models, inside.counts, after.counts, strict=True):
            symbols = coder.decode(model, blocks * in_block + in_end)
            in_blocks.append(symbols[: blocks * in_block].reshape(blocks, in_block))
            in_rest.append(symbols[blocks * in_block :])
        coefficients = np.zeros((tokens, len(self.analysis)), np.float32)
        # One assignment for all classes: an array operation for each would take longer than the
        # coder does.
        whole = coefficients[: tokens - rest].reshape(blocks, self._block * len(self.analysis))
        whole[:, inside.order] = np.concatenate(in_blocks, axis=1) - inside.zeros
        end = coefficients[tokens - rest :].reshape(-1)
        end[after.order] = np.concatenate(in_rest) - after.zeros
        if not coder.is_empty():
            raise PacketContentError(
                f"The payload does not end with the last of {tokens} tokens.", RE_ENCODE
            )
        return coefficients

    @property
    def _block(self) -> int:
        return len(self.classes)

    def _classes_of(self, tokens: int) -> npt.NDArray[np.uint8]:
        """The class of every coefficient, (T, K); a short last block takes the nearest lower row.

        The cosine of a short block of R tokens at row f has the frequency of row f B / R.
        """
        block, rest = self._block, tokens % self._block
        rows = [np.arange(tokens - rest) % block, np.arange(rest) * block // max(rest, 1)]
        classes: npt.NDArray[np.uint8] = self.classes[np.concatenate(rows)]
        return classes


@dataclass(frozen=True, eq=False)
class CodecTables:
    """What the learned codecs know of one checkpoint: `codec.safetensors`.

    Attributes:
        split: which of the model's outputs they describe.
        rungs: each learned codec's.
        identity: four bytes of the file's SHA-256, in every packet that is written with it.
    """

    split: Split
    by_codec: Mapping[Codec, TransformTables]
    identity: bytes


def read_codec_tables(path: Path, fingerprint: str) -> CodecTables:
    """Read `codec.safetensors`.

    Raises:
        CheckpointError: the file is damaged, its tensors do not fit each other, or it was made of
            a model of another fingerprint.
    """
    try:
        with safe_open(path, "numpy") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        if metadata.get("fingerprint") != fingerprint:
            raise ValueError(f"it is of model {metadata.get('fingerprint')}, not {fingerprint}")
        split = Split(metadata.get("split", ""))  # type: ignore[call-arg]  # by its value
        names = {name.partition(".")[0] for name in tensors}
        by_codec = {Codec(name): _tables_of(name, tensors) for name in names}  # type: ignore[call-arg]
        identity = hashlib.sha256(path.read_bytes()).digest()[:ID_BYTES]
    except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
        raise CheckpointError(
            f"The statistics of the codec in {path} cannot be used: {error}.",
            "Make them again: python -m training.codec.",
        ) from error
    return CodecTables(split, by_codec, identity)


def _tables_of(name: str, tensors: Mapping[str, npt.NDArray[np.generic]]) -> TransformTables:
    """One codec's tensors; ValueError says what does not fit."""
    kinds = {"mean": ("f4", 1), "analysis": ("f4", 2), "synthesis": ("f4", 2)}
    kinds |= {"classes": ("u1", 2), "frequencies": ("u2", 2)}
    found = {key: tensors[f"{name}.{key}"] for key in kinds}
    for key, (kind, axes) in kinds.items():
        if found[key].dtype != kind or (kind == "f4" and not np.isfinite(found[key]).all()):
            raise ValueError(f"{name}.{key} is not of finite {kind}")
        if found[key].ndim != axes:
            raise ValueError(f"{name}.{key} has {found[key].ndim} axes, not {axes}")
    tables = TransformTables(**found)  # type: ignore[arg-type]
    (block, count), counts = tables.classes.shape, tables.frequencies.astype(np.int64)
    if tables.analysis.shape != (count, tables.width) or tables.synthesis.shape != (
        count,
        tables.width,
    ):
        raise ValueError(f"{name}'s analysis, synthesis and classes are of different shapes")
    if block == 0 or not 0 < len(counts) <= MAX_CLASSES or tables.classes.max() > len(counts):
        raise ValueError(f"{name}'s classes have no tables")
    middle = counts.shape[1] // 2
    written = np.abs(np.arange(counts.shape[1]) - middle) <= tables._limits[1:, np.newaxis]
    if counts.shape[1] % 2 == 0 or (written != (counts > 0)).any():
        raise ValueError(f"{name}'s frequencies are not of a range around 0")
    if (counts.sum(axis=1) != 1 << FREQUENCY_BITS).any() or not tables._limits[1:].all():
        raise ValueError(f"{name}'s frequencies do not sum to {1 << FREQUENCY_BITS}")
    return tables


def encode(
    codec: Codec, features: Float32Array, split: Split, codec_tables: CodecTables | None
) -> bytes:
    """The payload of features (T, W).

    Raises:
        PacketContentError: there are no statistics, or they are of other features.
    """
    if codec_tables is None or codec not in codec_tables.by_codec:
        raise PacketContentError(
            f"The codec {codec} needs the statistics of the model, which has none.",
            "Make them with python -m training.codec and export again, or use int8.",
        )
    tables = _fitting(codec_tables, codec, split, features.shape[1])
    return codec_tables.identity + tables.write(tables.quantize(features))


def known(codec: Codec, codec_tables: CodecTables | None) -> CodecTables:
    """The statistics, which a packet of the codec cannot be read without.

    Raises:
        PacketError: there are none.
    """
    if codec_tables is None or codec not in codec_tables.by_codec:
        raise PacketError(
            f"The codec {codec} needs the statistics of the model, which has none here.",
            "Use a codec that /v1/models names.",
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
    """The features (tokens, width) of a payload, by statistics that know the codec.

    Raises:
        PacketError: the payload is of no length that it can have.
        FingerprintMismatch: it was written with other statistics.
        PacketContentError: the statistics are of other features, or the payload is damaged.
    """
    if len(payload) < ID_BYTES or len(payload) % 4:
        raise PacketError(
            f"The payload has {len(payload)} bytes, expected 4 and words of 4.", RE_ENCODE
        )
    identity = bytes(payload[:ID_BYTES])
    if identity != codec_tables.identity:
        raise FingerprintMismatch(
            f"The packet was written with the statistics {identity.hex()},"
            f" but {codec_tables.identity.hex()} are used here.",
            "Export the encoder again from the checkpoint that serves.",
        )
    tables = _fitting(codec_tables, codec, split, width)
    return tables.reconstruct(tables.read(bytes(payload[ID_BYTES:]), tokens))


def _fitting(codec_tables: CodecTables, codec: Codec, split: Split, width: int) -> TransformTables:
    tables = codec_tables.by_codec[codec]
    if split != codec_tables.split or width != tables.width:
        raise PacketContentError(
            f"The features are {split} of width {width}, but the codec's statistics are of"
            f" {codec_tables.split} of width {tables.width}.",
            "Use int8 for other features.",
        )
    return tables


@cache
def _basis(length: int) -> Float32Array:
    """The orthonormal DCT-II of that length: (frequency, time)."""
    time, frequency = np.arange(length) + 0.5, np.arange(length)[:, np.newaxis]
    basis = np.sqrt(2 / length) * np.cos(np.pi * frequency * time / length)
    basis[0] *= np.sqrt(0.5)
    return np.asarray(basis, np.float32)


def cosine(values: Float32Array, block: int, *, inverse: bool = False) -> Float32Array:
    """The cosine transform of (T, K) along T, in blocks, the last of which may be shorter."""
    whole, turned = len(values) - len(values) % block, np.empty_like(values)
    for part in (slice(0, whole), slice(whole, None)):
        length = min(block, len(values[part]))
        if length:
            basis, shape = _basis(length), (-1, length, values.shape[1])
            out = turned[part].reshape(shape)
            np.matmul(basis.T if inverse else basis, values[part].reshape(shape), out=out)
    return turned
