"""What a gateway is told when it starts: flags of the command line, and keys from a file or the environment."""

from __future__ import annotations

import argparse
import hashlib
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from urllib.parse import urlsplit

from chattts_client import InvalidInputError
from chattts_client.watermark import KEY_VARIABLE, Marker, key_from

KEYS_VARIABLE = "CHATTTS_API_KEYS"
LOOPBACK = ("127.0.0.1", "::1", "localhost")
LEAST_KEY_CHARACTERS = 16
USUAL_PORTS = {"http": 80, "https": 443}
_COMMENT = re.compile(r"(^|\s)#.*")
# What follows the sign is long enough for a key; in base64 signs stand at the end.
_NAMED = re.compile(rf"([\w.-]{{1,64}})\s*=\s*([^=].{{{LEAST_KEY_CHARACTERS - 1},}})", re.ASCII)


class SettingsError(ValueError):
    """A setting is wrong; the message says which and what is allowed."""


@dataclass(frozen=True)
class Settings:
    """A gateway's settings.

    Attributes:
        host, port: where it listens.
        triton: "host:port" of Triton's gRPC.
        keys: SHA-256 of each API key -> the name of its owner; none lets everybody in.
        max_concurrent: syntheses at once for each key.
        requests_per_minute: syntheses for each key, 0 for no limit.
        max_upload_bytes: of a recording.
        timeout_s: for one synthesis.
        drain_timeout_s: that open answers have when the gateway is stopped.
        cors_origins: web pages of other servers that may call this one, as the header Origin has them; "*" for all.
        allowed_hosts: names in the header Host; other ones are refused. Empty lets all through.
        speed_tags: ChatTTS's speed tag -> how fast it makes the voice; what is missing to a wish is stretched.
        voice_aliases: name of a voice -> the one that speaks for it; before the server's own names.
        public_voices: whether the names of voices are listed without a key.
        public_metrics: whether metrics are told without a key.
        strict: whether fields that would be ignored are refused.
        allow_silence: whether a text with nothing to say is answered a silence, where the request does not decide.
        log_text: whether the log may have the text of requests.
        watermark_key: of the watermark that speech gets; empty for none.
    """

    host: str = "127.0.0.1"
    port: int = 8080
    triton: str = "127.0.0.1:8001"
    keys: Mapping[bytes, str] = field(default_factory=dict)
    max_concurrent: int = 64
    requests_per_minute: int = 0
    max_upload_bytes: int = 10 * 2**20
    timeout_s: float = 600.0
    drain_timeout_s: int = 10
    cors_origins: Sequence[str] = ()
    allowed_hosts: Sequence[str] = ()
    speed_tags: Mapping[int, float] = field(default_factory=dict)
    voice_aliases: Mapping[str, str] = field(default_factory=dict)
    public_voices: bool = False
    public_metrics: bool = False
    strict: bool = False
    allow_silence: bool = False
    log_text: bool = False
    watermark_key: str = field(default="", repr=False)

    @property
    def url(self) -> str:
        """Where a browser on this machine finds it."""
        return f"http://[{self.host}]:{self.port}" if ":" in self.host else f"http://{self.host}:{self.port}"

    def marker(self, sample_rate: int) -> Marker | None:
        """What gives the samples of one answer their watermark, at `sample_rate` Hz; None for none."""
        return Marker(self.watermark_key, sample_rate) if self.watermark_key else None

    def __post_init__(self) -> None:
        """Check what belongs together.

        Raises:
            SettingsError: it does not.
        """
        allowed = {
            "port": (1, 65_535),
            "max_concurrent": (1, 1_000_000),
            "requests_per_minute": (0, 1_000_000),
            "max_upload_bytes": (1, 2**30),
            "drain_timeout_s": (0, 3600),
        }
        for name, (least, most) in allowed.items():
            if not least <= getattr(self, name) <= most:
                raise SettingsError(f"{name} is {getattr(self, name)}; allowed is {least} to {most}")
        if not 0 < self.timeout_s <= 3600:
            raise SettingsError(f"timeout_s is {self.timeout_s}; allowed is above 0 to 3600 s")


def digest(key: str) -> bytes:
    """An API key as it is kept."""
    return hashlib.sha256(key.encode()).digest()


def read_keys(lines: str, where: str) -> dict[bytes, str]:
    """Keys, one on each line or between commas, each with or without "NAME=" in front.

    A line may end in a comment, "#" behind a blank. A key without a name is called by the beginning of its digest.

    Raises:
        SettingsError: a key is too short, or there is none; the message shows no key.
    """
    keys: dict[bytes, str] = {}
    entries = [entry.strip() for line in lines.splitlines() for entry in _COMMENT.sub("", line).split(",")]
    for number, entry in enumerate(filter(None, entries), start=1):
        found = _NAMED.fullmatch(entry)
        key = found[2] if found else entry
        if len(key) < LEAST_KEY_CHARACTERS or not key.isascii() or not key.isprintable() or " " in key:
            allowed = f"{LEAST_KEY_CHARACTERS} or more printable ASCII characters without blanks"
            raise SettingsError(f"key {number} of {where} has {len(key)} characters; allowed are {allowed}")
        keys[digest(key)] = found[1] if found else f"key-{digest(key).hex()[:8]}"
    if not keys:
        raise SettingsError(f"{where} has no key")
    return keys


def parse(arguments: Sequence[str] | None = None, environment: Mapping[str, str] = os.environ) -> Settings:
    """The settings of a command line.

    Raises:
        SettingsError: a value is not allowed, or a gateway for the network has no keys.
    """
    parser = argparse.ArgumentParser(prog="python -m gateway", description="OpenAI-compatible speech and a web page.")
    parser.add_argument("--version", action="version", version=f"chattts-triton {version('chattts-triton')}")
    default = Settings()
    parser.add_argument("--host", default=default.host, help="address to listen on (default %(default)s)")
    parser.add_argument("--port", type=int, default=default.port, help="(default %(default)s)")
    parser.add_argument("--triton", default=default.triton, metavar="HOST:PORT", help="gRPC (default %(default)s)")
    parser.add_argument("--keys-file", type=Path, help=f"API keys, one on each line; or {KEYS_VARIABLE}, with commas")
    parser.add_argument("--anonymous", action="store_true", help="let everybody in, on any address")
    parser.add_argument(
        "--max-concurrent", type=int, default=default.max_concurrent, help="of each key (default %(default)s)"
    )
    parser.add_argument("--requests-per-minute", type=int, default=0, help="of each key; 0: no limit (default)")
    parser.add_argument("--max-upload-mib", type=int, default=10, help="of a recording (default %(default)s)")
    parser.add_argument("--timeout", type=float, default=default.timeout_s, help="seconds (default %(default)s)")
    parser.add_argument(
        "--drain-timeout",
        type=int,
        default=default.drain_timeout_s,
        help="seconds that open answers have when the gateway is stopped (default %(default)s)",
    )
    parser.add_argument(
        "--cors-origin",
        action="append",
        default=[],
        metavar="ORIGIN",
        type=_origin,
        help="whose pages may call, too: https://example.org, or * for all",
    )
    parser.add_argument("--allowed-host", action="append", default=[], metavar="NAME", help="in the header Host")
    parser.add_argument(
        "--speed-tag",
        action="append",
        default=[],
        metavar="TAG=FACTOR",
        type=_speed_tag,
        help="how fast a speed tag of ChatTTS, 0 to 9, makes your voices: 7=1.2",
    )
    parser.add_argument(
        "--voice-alias",
        action="append",
        default=[],
        metavar="NAME=VOICE",
        type=_voice_alias,
        help="another name of a voice, such as one of OpenAI's: nova=seed-1",
    )
    parser.add_argument("--public-metrics", action="store_true", help="tell metrics without a key")
    parser.add_argument("--public-voices", action="store_true", help="list the names of voices without a key")
    parser.add_argument("--strict", action="store_true", help="refuse fields that would be ignored")
    parser.add_argument(
        "--allow-silence", action="store_true", help="answer a short silence to texts with nothing to say"
    )
    parser.add_argument("--log-text", action="store_true", help="write what is spoken into the log")
    watermark_help = (
        f"put an inaudible mark into speech, which 'chattts detect' finds; {KEY_VARIABLE} has a key of yours"
    )
    parser.add_argument("--watermark", action="store_true", help=watermark_help)
    options = parser.parse_args(arguments)
    keys: dict[bytes, str] = {}
    if options.keys_file:
        try:
            keys |= read_keys(options.keys_file.read_text(encoding="utf-8"), str(options.keys_file))
        except (OSError, UnicodeDecodeError) as error:
            raise SettingsError(f"--keys-file {options.keys_file}: {error}") from error
    if environment.get(KEYS_VARIABLE):
        keys |= read_keys(environment[KEYS_VARIABLE], KEYS_VARIABLE)
    try:
        watermark_key = key_from(environment) if options.watermark else ""
    except InvalidInputError as error:
        raise SettingsError(str(error)) from error
    is_local = options.host in LOOPBACK
    if not (keys or options.anonymous or is_local):
        raise SettingsError(
            f"--host {options.host} is open to the network: give keys (--keys-file, {KEYS_VARIABLE}) or --anonymous"
        )
    # A page of any site may send requests to a name of its own that leads here; it cannot choose the header's name.
    hosts = options.allowed_host or (list(LOOPBACK) if is_local and not keys else [])
    return Settings(
        host=options.host,
        port=options.port,
        triton=options.triton,
        keys=keys,
        max_concurrent=options.max_concurrent,
        requests_per_minute=options.requests_per_minute,
        max_upload_bytes=options.max_upload_mib * 2**20,
        timeout_s=options.timeout,
        drain_timeout_s=options.drain_timeout,
        cors_origins=options.cors_origin,
        allowed_hosts=hosts,
        speed_tags=dict(options.speed_tag),
        voice_aliases=dict(options.voice_alias),
        public_voices=options.public_voices,
        public_metrics=options.public_metrics,
        strict=options.strict,
        allow_silence=options.allow_silence,
        log_text=options.log_text,
        watermark_key=watermark_key,
    )


def _speed_tag(text: str) -> tuple[int, float]:
    tag, _, factor = text.partition("=")
    try:
        pair = int(tag), float(factor)
    except ValueError:
        pair = -1, 0.0
    if not (0 <= pair[0] <= 9 and 0.25 <= pair[1] <= 4):
        raise argparse.ArgumentTypeError(f"{text!r}; allowed is TAG=FACTOR, 0 to 9 and 0.25 to 4, such as 7=1.2")
    return pair


def _origin(text: str) -> str:
    """As browsers write it: in small letters, without the scheme's own port, and nothing behind."""
    if text == "*":
        return text
    try:
        found = urlsplit(text.strip().lower())
        port = found.port
    except ValueError:
        found, port = urlsplit(""), None
    if not found.scheme or not found.hostname or found.path not in ("", "/") or found.query or found.fragment:
        raise argparse.ArgumentTypeError(f"{text!r}; allowed is SCHEME://HOST[:PORT] (https://example.org) or *")
    host = f"[{found.hostname}]" if ":" in found.hostname else found.hostname
    return f"{found.scheme}://{host}" + ("" if port in (None, USUAL_PORTS.get(found.scheme)) else f":{port}")


def _voice_alias(text: str) -> tuple[str, str]:
    name, _, voice = text.partition("=")
    if not name.strip() or not voice.strip():
        raise argparse.ArgumentTypeError(f"{text!r}; allowed is NAME=VOICE, such as nova=seed-1")
    return name.strip(), voice.strip()
