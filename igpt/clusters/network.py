"""Where ranks can meet: which network interface leads to another node. Linux, as nodes are."""

import fcntl
import socket
import struct

_SIOCGIFADDR = 0x8915


def interfaces(address: str, *, first: bool, chosen: str | None) -> dict[str, str]:
    """The variables by which gloo and NCCL know the interface between the ranks.

    address: where they meet. first: whether that is here. chosen: what the cluster file names.
    """
    found = chosen or (interface_of(address) if first else interface_towards(address))
    # gloo would take the address that the node's own name resolves to: often a loopback.
    variables = {} if found is None else {"GLOO_SOCKET_IFNAME": found}
    return variables if chosen is None else variables | {"NCCL_SOCKET_IFNAME": chosen}


def free_port(address: str = "") -> int:
    """A port that nobody has at the moment."""
    with socket.socket() as probe:
        probe.bind((address, 0))
        return int(probe.getsockname()[1])


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
