"""The feature packet, version 1: encoding to bytes and decoding; see `docs/wire-format.md`.

`packet` implements the frame, `scalar` and `transform_codec` the codecs, `codec_tables` the file of
the transform codecs' tables.
"""

from esrt.wire.codec import Codec, Split
from esrt.wire.codec_tables import CODEC_TABLES_FILE, read_codec_tables
from esrt.wire.packet import (
    HEADER_BYTES,
    MAX_PACKET_BYTES,
    MEDIA_TYPE,
    Packet,
    claimed_tokens,
    decode,
    encode,
)
from esrt.wire.transform_codec import CodecTables, TransformTables

__all__ = [
    "CODEC_TABLES_FILE",
    "HEADER_BYTES",
    "MAX_PACKET_BYTES",
    "MEDIA_TYPE",
    "Codec",
    "CodecTables",
    "Packet",
    "Split",
    "TransformTables",
    "claimed_tokens",
    "decode",
    "encode",
    "read_codec_tables",
]
