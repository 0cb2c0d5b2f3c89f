"""Runs tritonserver in the foreground: `python -m chattts_serving.server --model-repository DIR`.

Checks all that can be checked before it starts anything, waits until the server is ready, prints one line on stdout,
and stays until it is told to stop. Behind it no process and no shared memory stays.
"""

from __future__ import annotations

import os
import re
import secrets
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path

from chattts_serving.errors import ConfigError
from chattts_serving.launcher.addresses import joined, of_grpc, of_http, to_call
from chattts_serving.launcher.draining import Drain
from chattts_serving.launcher.fleet import serve_each
from chattts_serving.launcher.gpus import choose_gpus, first_gpu
from chattts_serving.launcher.limits import MemoryLimit, check_threads, threads_needed
from chattts_serving.launcher.options import (
    PORT_OPTIONS,
    RESTRICTED_APIS,
    RESTRICTING_FLAGS,
    ServerOptions,
    parse_arguments,
)
from chattts_serving.launcher.ports import choose_ports, hold_ports
from chattts_serving.launcher.probe import check
from chattts_serving.launcher.processes import adopt_orphans, end_with_parent
from chattts_serving.launcher.supervisor import Supervision, Supervisor, TritonProcess, open_log, say
from chattts_serving.launcher.tritonserver import (
    PACKAGE,
    check_repository,
    environment,
    find_installation,
    lay_out_backends,
)
from chattts_serving.launcher.warning import warn_of_little_shared_memory, warn_of_the_network
from chattts_serving.triton.device import VISIBLE
from chattts_serving.variables import LEXICON, LOG_REQUESTS, TRACES_URL

EXIT_CONFIG = 2  # nothing was started
EXIT_TIMEOUT_S = 5  # that tritonserver takes to end, within supervisor.STOP_TIMEOUT_S
PROBED_MODELS = {"text_frontend", "gpt_decoder", "speech", "chattts_stream"}  # that chattts_serving.launcher.probe asks
# Per process of a Python model, taken from /dev/shm at the start and where an answer is longer (measured).
SHM_DEFAULT_BYTES = 16 * 2**20  # two sentences of 2,048 hidden states of 768 float32
SHM_GROWTH_BYTES = 16 * 2**20
# Paths that the Python backend may hand to a shell without quotes, and Python, which takes names for ASCII, to C++.
SHELL_SAFE = re.compile(r"[\w./+@%=:,-]+", re.ASCII)
TMP = "/tmp"  # noqa: S108 - in place of a TMPDIR that is none of them
NO_METRICS = "--allow-metrics=false"  # of tritonserver
OTLP_SETTING, OTLP_DEFAULT = "opentelemetry,url=", "http://localhost:4318/v1/traces"  # tritonserver's own


def has_gpu() -> bool:
    """Whether an NVIDIA device is there; without one Triton's GPU metrics only fill the log with warnings."""
    return any(Path("/dev").glob("nvidia[0-9]*")) or Path("/dev/dxg").exists()


def tritonserver_flags(options: ServerOptions, models: Path, backends: Path, shm_prefix: str) -> list[str]:
    """The flags of tritonserver; names of its shared memory begin with `shm_prefix`."""
    flags = [
        f"--model-repository={models}",
        f"--backend-directory={backends}",
        "--model-control-mode=none",  # no model ends before the server does: see supervisor.py
        "--exit-on-error=true",
        f"--exit-timeout-secs={EXIT_TIMEOUT_S}",
        f"--http-address={of_http(options.http_host)}",
        f"--grpc-address={of_grpc(options.host)}",
        f"--metrics-address={of_http(options.host)}",
        *(f"{option}={getattr(options, name)}" for name, option in PORT_OPTIONS.items()),
        f"--allow-gpu-metrics={str(has_gpu()).lower()}",
        # By default Triton keeps eight whole answers and eight chunks for reuse, each as large as its largest was.
        "--grpc-infer-allocation-pool-size=0",
        # Backends written in Python have these, too: the library is one, and reads its own settings alone.
        f"--backend-config=python,shm-region-prefix-name={shm_prefix}",
        f"--backend-config=python,shm-default-byte-size={SHM_DEFAULT_BYTES}",
        f"--backend-config=python,shm-growth-byte-size={SHM_GROWTH_BYTES}",
    ]
    given = {flag.split("=", maxsplit=1)[0] for flag in options.flags}
    # Restricted to callers that send this header with a value that nobody is told. The syntax is that of Triton 2.51's
    # parser; its --help has another.
    restriction = f"{RESTRICTED_APIS}:restricted-key={secrets.token_hex(16)}"
    flags += [f"{flag}={restriction}" for flag in RESTRICTING_FLAGS if flag not in given]
    return [*flags, *options.flags]  # last, so that they win


def traces_url(flags: Sequence[str]) -> str:
    """Where tritonserver sends traces of OpenTelemetry, with `flags`; "" where it makes none."""
    given = [flag.removeprefix("--trace-config=") for flag in flags if flag.startswith("--trace-config=")]
    if "mode=opentelemetry" not in given:
        return ""
    urls = [one.removeprefix(OTLP_SETTING) for one in given if one.startswith(OTLP_SETTING)]
    return urls[-1] if urls else OTLP_DEFAULT


def serve(options: ServerOptions) -> int:
    """Check, start, wait, supervise; the exit status for the shell.

    Raises:
        ConfigError: something is missing or taken; nothing was started.
    """
    if options.exit_with_parent:
        end_with_parent()
    adopt_orphans()
    installation = find_installation()
    models = check_repository(options.model_repository)
    check_threads(threads_needed(len(models), len(os.sched_getaffinity(0))))
    options = choose_ports(options)
    warn_of_little_shared_memory()
    warn_of_the_network(installation, options.host)
    with ExitStack() as stack:
        hold_ports(options, stack)
        log = open_log(options.log_file, stack)
        folder = _folder(stack)
        shm_prefix = f"chattts_{os.getpid()}_{secrets.token_hex(8)}_"  # no name that a caller could guess
        flags = tritonserver_flags(
            options,
            _shell_safe(options.model_repository.resolve(), folder),
            lay_out_backends(installation, folder / "backends"),
            shm_prefix,
        )
        command = [str(installation.binary), *flags]
        http = to_call(options.http_host), options.http_port
        drain = Drain(folder / "drain", options.drain_timeout_s, (to_call(options.host), options.metrics_port))
        env = {**environment(installation, folder / "lib"), **drain.environment()}
        if has_gpu():
            env[VISIBLE] = first_gpu(os.environ.get(VISIBLE))
        # The working directory of Python models, which is first on their path: this package, and nothing else.
        imports = folder / "imports"
        imports.mkdir()
        (imports / PACKAGE.name).symlink_to(PACKAGE)
        if options.lexicon is not None:
            env[LEXICON] = str(options.lexicon.resolve())
        if options.log_requests:
            env[LOG_REQUESTS] = "1"
        if traces_url(options.flags):
            env[TRACES_URL] = traces_url(options.flags)

        def start() -> TritonProcess:
            return TritonProcess(command, env, imports, shm_prefix, log)

        supervision = Supervision(
            health=http,
            metrics=None if NO_METRICS in options.flags else drain.metrics,
            ready_line=" ".join(["ready", *(f"{name}={url}" for name, url in options.endpoints.items())]),
            num_models=len(models),
            start_timeout_s=options.start_timeout_s,
            repeat_complaints=options.log_file is not None,
            ask=partial(check, joined(*http)),
            hang_timeout_s=options.hang_timeout_s if set(models) >= PROBED_MODELS else 0.0,
            drain=drain,
            memory=MemoryLimit(),
        )
        return Supervisor(start, supervision).run()


def _folder(stack: ExitStack) -> Path:
    """A folder of this server's own, for as long as `stack` is open."""
    try:
        place = tempfile.gettempdir() if SHELL_SAFE.fullmatch(tempfile.gettempdir()) else TMP
        return Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="chattts_server_", dir=place)))
    except OSError as error:
        raise ConfigError(
            f"a server needs a folder that can be written, and there is none ({error.strerror}): "
            "mount one at /tmp (docker run --tmpfs /tmp:exec), or name one in TMPDIR"
        ) from error


def _shell_safe(repository: Path, folder: Path) -> Path:
    """`repository`, or a link to it in `folder`, where it is not SHELL_SAFE."""
    if SHELL_SAFE.fullmatch(str(repository)):
        return repository
    link = folder / "models"
    link.symlink_to(repository)
    return link


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; the exit status: 0 stopped, 1 the server failed, 2 nothing was started."""
    try:
        options = parse_arguments(arguments)
        gpus = choose_gpus(options.gpus) if options.gpus else []
        if len(gpus) > 1:
            return serve_each(options, gpus)
        for gpu in gpus:
            os.environ[VISIBLE] = gpu.visible
            os.sched_setaffinity(0, gpu.cpus)
        return serve(options)
    except ConfigError as error:
        say(f"error: {error}")
        return EXIT_CONFIG
