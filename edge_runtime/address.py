"""The gateway's address, and the proxy of the environment that leads to it."""

import ipaddress
import urllib.request
from contextlib import suppress

import httpx

from esrt.errors import RequestError

# An environment variable, because every user of a machine can read options in its process list.
API_KEY_VARIABLE = "ESRT_API_KEY"
_LARGEST_PORT = 65535


def parse_address(server: str) -> httpx.URL:
    """The URL of a gateway; an address without a scheme is one of http.

    Raises:
        RequestError: the address is not an http(s) URL with a host, or holds a password, a port
            out of range, a query or a fragment.
    """
    with suppress(httpx.InvalidURL, UnicodeError):
        url = httpx.URL(server if "://" in server else f"http://{server}")
        url.host.encode("idna")  # the resolver does the same, and fails on an empty label
        if url.scheme in ("http", "https") and url.host and "@" not in server:
            _check(url, server)
            return url
    if "@" in server:  # not printed, because it may hold a password
        raise RequestError(
            "The address of the server has a user name or password.",
            f"Give the address alone, and the API key in {API_KEY_VARIABLE}.",
        )
    raise RequestError(
        f"{server!r} is not the address of a server.",
        "Give one like http://127.0.0.1:8080, by --server or ESRT_SERVER.",
    )


def _check(url: httpx.URL, server: str) -> None:
    # A resolver takes a port modulo 65536, and so another one.
    if url.port is not None and not 0 < url.port <= _LARGEST_PORT:
        raise RequestError(
            f"The port of {server!r} is {url.port}.", f"Give a port from 1 to {_LARGEST_PORT}."
        )
    if url.query or url.fragment:
        raise RequestError(
            f"{server!r} has a query or a fragment.", "Give an address like http://127.0.0.1:8080."
        )


def find_proxy(url: httpx.URL) -> httpx.Proxy | None:
    """The proxy that HTTP_PROXY, HTTPS_PROXY or ALL_PROXY names for a URL, unless NO_PROXY does.

    Raises:
        RequestError: the variable does not hold the address of a proxy.
    """
    proxies = urllib.request.getproxies()
    name = url.scheme if proxies.get(url.scheme) else "all"
    address = proxies.get(name)
    if not address or _is_excepted(url, proxies.get("no", "")):
        return None
    with suppress(httpx.InvalidURL, ValueError):
        proxy = httpx.Proxy(address if "://" in address else f"http://{address}")
        port = proxy.url.port
        if proxy.url.host and (port is None or 0 < port <= _LARGEST_PORT):
            return proxy
    # The value is not printed, because it may hold a password.
    raise RequestError(
        f"{name.upper()}_PROXY is not the address of a proxy.",
        "Set it to one like http://proxy.example:3128, or unset it.",
    )


def _is_excepted(url: httpx.URL, no_proxy: str) -> bool:
    """Whether a list of NO_PROXY has a URL's host: as a name, a domain, an address or a range."""
    host = url.host.lower()
    for entry in no_proxy.lower().split(","):
        entry = entry.strip()
        if entry in ("*", f"{host}:{url.port}"):
            return True
        with suppress(ValueError):
            address = ipaddress.ip_address(host)
            if address in ipaddress.ip_network(entry.replace("[", "").replace("]", ""), False):
                return True
        domain = entry.lstrip("*.")
        if domain and (host == domain or host.endswith(f".{domain}")):
            return True
    return False
