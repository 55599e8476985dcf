"""The listening socket, and the check of who can reach it; imports no web framework."""

import errno
import socket

from cloud_vllm.settings import Settings
from esrt.errors import RequestError
from esrt.network import is_loopback


def check_exposure(settings: Settings) -> None:
    """Check that a gateway without API keys listens on loopback, or that exposure is intended.

    Raises:
        RequestError: the gateway would accept every request from the network.
    """
    if settings.allows_anonymous_by_default and not is_loopback(settings.host):
        raise RequestError(
            f"Without API keys, everyone who reaches {settings.host or 'any address'} could use"
            " this gateway.",
            "Give --key-file a file made by: python -m cloud_vllm keys create --key-file FILE"
            " --name NAME; or allow it with --allow-anonymous.",
        )


def listen(settings: Settings) -> socket.socket:
    """Open the listening socket.

    Raises:
        RequestError: the address cannot be used.
    """
    is_ipv6 = ":" in settings.host
    family = socket.AF_INET6 if is_ipv6 else socket.AF_INET
    place = f"[{settings.host}]:{settings.port}" if is_ipv6 else f"{settings.host}:{settings.port}"
    try:
        return socket.create_server((settings.host, settings.port), family=family)
    except (OSError, UnicodeError) as error:  # an empty label of a host name
        in_use = isinstance(error, OSError) and error.errno == errno.EADDRINUSE
        raise RequestError(
            f"Cannot listen on {place}: {getattr(error, 'strerror', None) or error}.",
            "Choose another --port, or stop the process that listens there."
            if in_use
            else "Give another --host or --port: an address of this machine, a port that is free.",
        ) from error


def address(bound: socket.socket, settings: Settings) -> str:
    """The URL of a listening socket."""
    host, port = bound.getsockname()[:2]
    scheme = "https" if settings.tls_certificate else "http"
    return f"{scheme}://{f'[{host}]' if ':' in host else host}:{port}"
