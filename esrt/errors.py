"""Every error that this project raises on purpose.

An error names its cause and a remedy in one line, and knows how it ends: as a command's exit code
or as an HTTP problem (RFC 9457) with a stable ``type`` and a status.
"""

import re
from typing import ClassVar


class EsrtError(Exception):
    """Base of all deliberate errors.

    Args:
        cause: what is wrong, as a sentence.
        remedy: what the reader can do about it, as a sentence.
    """

    exit_code: ClassVar[int] = 2
    status: ClassVar[int] = 500
    type: ClassVar[str] = "internal"

    def __init__(self, cause: str, remedy: str) -> None:
        super().__init__(cause, remedy)
        self.cause = cause
        self.remedy = remedy

    def __str__(self) -> str:
        return f"{self.cause} {self.remedy}"


class CheckFailed(EsrtError):
    """A check ran and found the result out of bounds (parity after export, for example)."""

    exit_code = 1


class AudioError(EsrtError):
    """The input is not speech that can be encoded: unreadable, empty or silent."""


class ArtifactError(EsrtError):
    """An exported artifact or its manifest is missing, damaged or not what was asked for."""


class CheckpointError(EsrtError):
    """A checkpoint is missing, incomplete or of another shape than its configuration."""


class LanguageError(EsrtError):
    """An unknown language, or a direction that is none."""

    status = 422
    type = "language"


class PacketError(EsrtError):
    """Bytes that are not a packet this version can read."""

    status = 400
    type = "packet-malformed"


class PacketTooLarge(PacketError):
    """A packet beyond the size limit of the wire format."""

    status = 413
    type = "packet-too-large"


class PacketContentError(PacketError):
    """A well-formed packet whose features this model cannot take (width, count, split, NaN)."""

    status = 422
    type = "packet-content"


class FingerprintMismatch(PacketError):
    """A packet made by another model than the one that serves."""

    status = 409
    type = "fingerprint-mismatch"


class MediaTypeError(EsrtError):
    """A request body that is not declared as a feature packet."""

    status = 415
    type = "media-type"


class RequestError(EsrtError):
    """A request that lacks a parameter or carries one of the wrong form."""

    status = 422
    type = "request"


class IdempotencyKeyReused(RequestError):
    """A key that stands for another request already."""

    type = "idempotency-key"


class UploadTimeout(EsrtError):
    """A request body that did not arrive in time."""

    exit_code = 3
    status = 408
    type = "upload-timeout"


class NotReady(EsrtError):
    """The engine is still loading, or has died."""

    exit_code = 3
    status = 503
    type = "not-ready"


class EngineFailed(EsrtError):
    """The engine could not be loaded, or broke off while it decoded."""

    exit_code = 3
    status = 503
    type = "engine-failed"


class EngineDied(EngineFailed):
    """The engine's process has ended or hangs; it is no fault of the request, it seems."""


class DeadlineExceeded(EsrtError):
    """An answer that took longer than the service allows."""

    exit_code = 3
    status = 504
    type = "deadline-exceeded"


class ServerError(EsrtError):
    """The client's view: the server cannot be reached, is not ready, or broke off."""

    exit_code = 3
    status = 502
    type = "server"


class Unauthorized(EsrtError):
    """A request without a valid API key."""

    status = 401
    type = "unauthorized"


class Forbidden(EsrtError):
    """A valid API key that was made for something else."""

    status = 403
    type = "forbidden"


class _Later(EsrtError):
    """A refusal of the moment.

    Args:
        cause: what is wrong, as a sentence.
        remedy: what the reader can do about it, as a sentence.
        retry_after: the seconds after which another attempt makes sense.
    """

    exit_code: ClassVar[int] = 3

    def __init__(self, cause: str, remedy: str, retry_after: int = 1) -> None:
        super().__init__(cause, remedy)
        self.retry_after = retry_after


class TooManyRequests(_Later):
    """A key that asks faster, or for more at once, than it may."""

    status = 429
    type = "too-many-requests"


class Overloaded(_Later):
    """A service whose queue is full, whoever asks."""

    status = 503
    type = "overloaded"


class UnknownFeatures(EsrtError):
    """A handle that names no features that the caller may use: never, no longer, or not theirs."""

    status = 404
    type = "features-unknown"


def printable(text: str) -> str:
    """Text from elsewhere without control characters, which could drive a terminal."""
    return re.sub(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]", "", text)
