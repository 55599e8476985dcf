"""Records what a command sends to the network, in a network namespace of its own.

``unshare --net python -m tests.network_watch COMMAND...`` runs the command where the default route
leads to a wire that nobody answers, and prints one JSON object: the exit code, and the packets that
left for any address but this machine's, or for a name server. Needs root and ``ip``.
"""

import json
import socket
import struct
import subprocess
import sys
import threading
import time
from pathlib import Path

_ALL_PROTOCOLS = 0x0003
_IPV4 = 0x0800
_DNS = 53
_LOCAL, _WIRE = "esrt0", "esrt1"


def ip(arguments: str) -> None:
    """Run ``ip``; its message goes to stderr."""
    subprocess.run(["ip", *arguments.split()], check=True)


def set_up() -> None:
    """Create a wire with a default route, so that packets for other machines are sent on it."""
    ip("link set lo up")
    ip(f"link add {_LOCAL} type veth peer name {_WIRE}")
    for name in (_LOCAL, _WIRE):  # no announcements of the kernel itself
        Path(f"/proc/sys/net/ipv6/conf/{name}/disable_ipv6").write_text("1")
        ip(f"link set {name} up")
    ip(f"addr add 192.0.2.1/24 dev {_LOCAL}")
    ip("route add default via 192.0.2.2")
    # Without a neighbour's address the kernel would ask for it and send nothing else.
    ip(f"neigh add 192.0.2.2 lladdr 02:00:00:00:00:01 dev {_LOCAL}")


class Watch(threading.Thread):
    """Records the packets of one interface as "protocol address:port"."""

    def __init__(self, interface: str, *, only_dns: bool) -> None:
        super().__init__(daemon=True)
        self.packets: set[str] = set()
        self._only_dns = only_dns
        self._socket = socket.socket(
            socket.AF_PACKET, socket.SOCK_DGRAM, socket.htons(_ALL_PROTOCOLS)
        )
        self._socket.bind((interface, _ALL_PROTOCOLS))

    def run(self) -> None:
        """Read packets until the process ends."""
        while True:
            packet, (_, protocol, *_) = self._socket.recvfrom(65535)
            if protocol != _IPV4:
                continue
            header = 4 * (packet[0] & 15)
            address = socket.inet_ntoa(packet[16:20])
            (port,) = struct.unpack("!H", packet[header + 2 : header + 4])
            if not self._only_dns or port == _DNS:
                self.packets.add(f"{packet[9]} {address}:{port}")


def main() -> None:
    """Set up the namespace, run the command, print what it sent."""
    set_up()
    watches = [Watch(_WIRE, only_dns=False), Watch("lo", only_dns=True)]
    for watch in watches:
        watch.start()
    result = subprocess.run(sys.argv[1:], capture_output=True, text=True, check=False)
    time.sleep(0.5)  # the last packets are read
    sent = sorted(set().union(*(watch.packets for watch in watches)))
    print(
        json.dumps(
            {"code": result.returncode, "sent": sent, "output": result.stdout + result.stderr}
        )
    )


if __name__ == "__main__":
    main()
