"""This machine's addresses: which interface holds one, and whether its host name leads there.

Asks the kernel and the resolver; changes nothing.
"""

import fcntl
import ipaddress
import socket
import struct

_SIOCGIFADDR = 0x8915


def interface_of(address: str) -> str | None:
    """Name of the network interface that holds `address`, None if none does or the address does not resolve."""
    try:
        wanted = ipaddress.ip_address(socket.gethostbyname(address))
    except OSError:
        return None
    if wanted.is_loopback:
        return "lo"
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        for _, name in socket.if_nameindex():
            try:
                answer = fcntl.ioctl(probe, _SIOCGIFADDR, struct.pack("256s", name.encode()[:15]))
            except OSError:
                continue  # an interface without an IPv4 address
            if ipaddress.ip_address(answer[20:24]) == wanted:
                return name
    return None


def host_name_problem(address: str, host_name: str) -> str | None:
    """Why workers of other nodes may not reach those of this one, None if nothing is known against it.

    Horovod makes the sockets of its process sets at the address of the host name, whatever interface it is told.
    """
    try:
        found = ipaddress.ip_address(socket.gethostbyname(host_name))
        wanted = ipaddress.ip_address(socket.gethostbyname(address))
    except OSError:
        return f"the host name {host_name} has no address, which Horovod needs: add it to /etc/hosts with {address}"
    if wanted.is_loopback or not found.is_loopback:
        return None
    return (
        f"the host name {host_name} leads to {found}, where Horovod's workers of other nodes cannot reach those of "
        f"this one: let it lead to {address} in /etc/hosts"
    )
