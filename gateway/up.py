"""`make up`: a Triton server and a gateway in front of it, in one command; both end together."""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from chattts_client import TTSError

from chattts_serving.demo import REPOSITORY, export_if_needed
from chattts_serving.errors import ConfigError
from chattts_serving.launcher.gpus import ALLOWED
from chattts_serving.launcher.options import PORT_OPTIONS, ServerOptions
from chattts_serving.launcher.ports import bound
from chattts_serving.launcher.running import running_server
from gateway.__main__ import listeners, serve
from gateway.settings import SettingsError, parse

LOG = Path("build", "up-server.log")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run both until told to stop; the exit status for the shell."""
    parser = argparse.ArgumentParser(
        prog="python -m gateway.up", description="Triton and the gateway; further flags are those of python -m gateway."
    )
    parser.add_argument("--model-repository", type=Path, metavar="DIR", help=f"models (default {REPOSITORY.name})")
    parser.add_argument(
        "--triton-flag", action="append", default=[], metavar="FLAG", help="--triton-flag=--NAME=VALUE, again and again"
    )
    parser.add_argument("--gpus", default="", metavar="WHICH", help=f"a Triton for each behind a balancer: {ALLOWED}")
    parser.add_argument("--lexicon", type=Path, metavar="FILE", help="words and how to say them, as a JSON object")
    options, flags = parser.parse_known_args(arguments)
    try:
        # All before the minutes that an export may take.
        ServerOptions(gpus=options.gpus, lexicon=options.lexicon, flags=tuple(options.triton_flag))
        sockets = listeners(parse(flags))
        if options.model_repository is None:
            export_if_needed()
        LOG.parent.mkdir(exist_ok=True)
        LOG.unlink(missing_ok=True)
        signal.signal(signal.SIGTERM, _stop)  # uvicorn raises it again when it has ended
        with running_server(
            options.model_repository or REPOSITORY,
            log_path=LOG,
            flags=options.triton_flag,
            launcher_flags=[
                *_ports(options.gpus),
                f"--gpus={options.gpus}",
                *([f"--lexicon={options.lexicon}"] if options.lexicon else []),
            ],
        ) as server:
            threading.Thread(target=_end_with, args=[server.launcher], daemon=True).start()
            print(
                f"Triton: http={server.http_url} grpc={server.grpc_url} metrics={server.metrics_url}, its log is {LOG}"
            )
            settings = parse([*flags, "--triton", server.grpc_url])
            print(f"open {settings.url} (Ctrl-C ends)", flush=True)
            try:
                serve(settings, sockets)
            finally:
                signal.signal(signal.SIGTERM, signal.SIG_IGN)  # only the server's end is left, and that is waited for
    except (ConfigError, SettingsError, TTSError, OSError, subprocess.CalledProcessError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    return 0


def _ports(gpus: str) -> list[str]:
    """Flags of the launcher: Triton's usual ports, a free one for each that is taken."""
    default, flags = ServerOptions(), []
    for name, option in PORT_OPTIONS.items():
        if gpus and name == "metrics_port":  # further ones follow it, and some of those may be taken
            continue
        port = getattr(default, name)
        with suppress(ConfigError), bound(default.host, port, option, listening=True):
            flags.append(f"{option}={port}")
    return flags


def _stop(*_: object) -> None:
    sys.exit(0)


def _end_with(launcher: subprocess.Popen[str]) -> None:
    """A gateway without its server would answer errors for ever."""
    launcher.wait()
    os.kill(os.getpid(), signal.SIGTERM)


if __name__ == "__main__":
    sys.exit(main())
