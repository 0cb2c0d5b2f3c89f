"""The three ports of a server: looked at before anything is started, and held while it runs."""

from __future__ import annotations

import socket
from contextlib import ExitStack
from dataclasses import replace

from chattts_serving.errors import ConfigError
from chattts_serving.launcher.addresses import resolved
from chattts_serving.launcher.options import PORT_OPTIONS, ServerOptions


def choose_ports(options: ServerOptions) -> ServerOptions:
    """`options` with the address of its host, and a free port in place of each 0.

    Raises:
        ConfigError: a port is taken, or `host` cannot be bound.
    """
    options = replace(options, host=resolved(options.host))
    with ExitStack() as held:  # all three at once, so that none is chosen twice
        ports = {
            name: held.enter_context(bound(options.host_of(name), getattr(options, name), option, listening=True))
            for name, option in PORT_OPTIONS.items()
        }
        return replace(options, **{name: listener.getsockname()[1] for name, listener in ports.items()})


def hold_ports(options: ServerOptions, held: ExitStack) -> None:
    """Keep the ports of `choose_ports` while `held` is open: only who asks for them by number gets them.

    Else one may be gone when the models are loaded, or after a restart (seen on a busy machine).
    """
    for name, option in PORT_OPTIONS.items():
        held.enter_context(bound(options.host_of(name), getattr(options, name), option))


def bound(address: str, port: int, option: str, *, listening: bool = False) -> socket.socket:
    """A socket with `port` of `address`; 0 takes a free one.

    Raises:
        ConfigError: it cannot be had; the message names `option`.
    """
    listener = socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, socket.SOCK_STREAM)
    # As tritonserver has it: connections of a server that has ended do not count, nor do sockets that only have a port.
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((address, port))
        if listening:
            listener.listen()
    except OSError as error:
        listener.close()
        raise ConfigError(
            f"port {port} on {address} cannot be used ({error.strerror}): choose another {option}, or 0 for a free one"
        ) from error
    return listener
