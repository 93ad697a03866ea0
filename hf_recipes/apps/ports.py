"""Free TCP ports."""

import errno
import socket

from hf_recipes.core.errors import UserError

LOCAL = "127.0.0.1"


def in_url(host: str) -> str:
    """An address as an URL has it: that of IPv6 in brackets."""
    return f"[{host}]" if ":" in host else host


def is_free(port: int, host: str = LOCAL) -> bool:
    """Whether the port can be bound; OSError if `host` is no address of this machine."""
    family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    with socket.socket(family, kind, protocol) as candidate:
        candidate.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            candidate.bind(address)
        except OSError as error:
            if error.errno in (errno.EADDRINUSE, errno.EACCES):
                return False
            raise
    return True


def free_port(first: int, host: str = LOCAL) -> int | None:
    """The lowest port from `first` on that is free, also on 127.0.0.1, where Gradio looks too; or None."""
    return next((port for port in range(first, 65536) if all(is_free(port, name) for name in {host, LOCAL})), None)


def check_port(port: int, host: str) -> None:
    try:
        if free_port(port, host) != port:
            following = free_port(port + 1, host)
            hint = f"the next free one is {following}" if following else "choose a lower one"
            raise UserError(f"--port {port}: in use; {hint}")
    except OSError as error:
        raise UserError(f"--host {host}: no address of this machine ({error.strerror})") from None
