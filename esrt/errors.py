"""Errors of this project.

An error has a cause and a remedy, which make one line. It also has a command's exit code, and the
status and stable ``type`` of an HTTP problem document (RFC 9457).
"""

import re
from typing import ClassVar


class EsrtError(Exception):
    """Base class of the errors.

    Args:
        cause: what is wrong, as a sentence.
        remedy: how the user can correct the problem, as a sentence.
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
    """A check found a result out of bounds, for example parity after an export."""

    exit_code = 1


class AudioError(EsrtError):
    """Audio without usable speech: unreadable, empty or silent."""


class ArtifactError(EsrtError):
    """Exported artifact or manifest that is missing, damaged or not supported."""


class CheckpointError(EsrtError):
    """Checkpoint that is missing, incomplete or does not fit its configuration."""


class LanguageError(EsrtError):
    """Unknown language code, or identical source and target languages."""

    status = 422
    type = "language"


class PacketError(EsrtError):
    """Bytes that are not a packet of this version."""

    status = 400
    type = "packet-malformed"


class PacketTooLarge(PacketError):
    """Packet that exceeds the size limit of the wire format."""

    status = 413
    type = "packet-too-large"


class PacketContentError(PacketError):
    """Well-formed packet whose features do not fit the model: width, count, split or NaN."""

    status = 422
    type = "packet-content"


class FingerprintMismatch(PacketError):
    """Packet of another model than the serving one."""

    status = 409
    type = "fingerprint-mismatch"


class MediaTypeError(EsrtError):
    """Request body whose content type is not that of a feature packet."""

    status = 415
    type = "media-type"


class RequestError(EsrtError):
    """Request with a missing or invalid parameter."""

    status = 422
    type = "request"


class MalformedRequest(EsrtError):
    """Bytes that are not an HTTP request."""

    status = 400
    type = "bad-request"


class IdempotencyKeyReused(RequestError):
    """Idempotency key that was already used for another request."""

    type = "idempotency-key"


class UploadTimeout(EsrtError):
    """Request body that did not arrive in time."""

    exit_code = 3
    status = 408
    type = "upload-timeout"


class NotReady(EsrtError):
    """Engine that is still loading, or has died."""

    exit_code = 3
    status = 503
    type = "not-ready"


class EngineFailed(EsrtError):
    """Engine that could not be loaded, or failed while decoding."""

    exit_code = 3
    status = 503
    type = "engine-failed"


class EngineDied(EngineFailed):
    """Engine process that died or hung; the request can be retried."""


class DeadlineExceeded(EsrtError):
    """Answer that took longer than the service allows."""

    exit_code = 3
    status = 504
    type = "deadline-exceeded"


class ServerError(EsrtError):
    """Server that cannot be reached, is not ready, or broke off; raised by clients."""

    exit_code = 3
    status = 502
    type = "server"


class Unauthorized(EsrtError):
    """Request without a valid API key."""

    status = 401
    type = "unauthorized"


class Forbidden(EsrtError):
    """Valid API key without permission for the request."""

    status = 403
    type = "forbidden"


class _RetryLater(EsrtError):
    """Temporary rejection.

    Args:
        cause: what is wrong, as a sentence.
        remedy: how the user can correct the problem, as a sentence.
        retry_after: seconds until the next attempt.
    """

    exit_code: ClassVar[int] = 3

    def __init__(self, cause: str, remedy: str, retry_after: int = 1) -> None:
        super().__init__(cause, remedy)
        self.retry_after = retry_after


class TooManyRequests(_RetryLater):
    """API key that exceeds its request rate or its number of concurrent requests."""

    status = 429
    type = "too-many-requests"


class Overloaded(_RetryLater):
    """Service with a full queue."""

    status = 503
    type = "overloaded"


class UnknownFeatures(EsrtError):
    """Handle that is unknown, has expired, or belongs to another API key."""

    status = 404
    type = "features-unknown"


def printable(text: str) -> str:
    """Text without control characters except tab and line feed.

    Control characters could change the state of a terminal.
    """
    return re.sub(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]", "", text)
