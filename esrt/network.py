"""Checks of network addresses."""

import ipaddress


def is_loopback(host: str) -> bool:
    """Whether a host is this machine: an address in 127.0.0.0/8, ::1 or ``localhost``."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
