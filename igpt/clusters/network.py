"""Which network interface leads to another node. Linux, as Slurm's nodes are."""

import fcntl
import socket
import struct

_SIOCGIFADDR = 0x8915


def interface_of(address: str) -> str | None:
    """The interface that has this IPv4 address; None where none has."""
    for _, name in socket.if_nameindex():
        if address_of(name) == address:
            return name
    return None


def interface_towards(address: str) -> str | None:
    """The interface by which packets to this IPv4 address leave."""
    return interface_of(address_towards(address))


def address_towards(address: str) -> str:
    """The IPv4 address of this machine from which packets to that one leave."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect((address, 9))  # sends nothing: it only asks for the route
        own: str = probe.getsockname()[0]
    return own


def address_of(interface: str) -> str | None:
    """The IPv4 address of an interface; None where it has none."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        request = struct.pack("256s", interface.encode()[:15])
        try:
            answer = fcntl.ioctl(probe.fileno(), _SIOCGIFADDR, request)
        except OSError:  # it has no address
            return None
    return socket.inet_ntoa(answer[20:24])
