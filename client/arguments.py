"""The command line: flags, and the jobs that they ask for."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from client.audio_file import audio_format
from client.client import DEFAULT_TIMEOUT, DEFAULT_URLS, MAX_DEADLINE_MS, Endpoint
from client.errors import InvalidInputError, invalid_input
from client.options import SynthesisOptions

STANDARD_STREAM = "-"
DEFAULT_CONCURRENCY = 4  # the server batches what arrives together
FOLDER_FILE_NAME = "speech.wav"  # where --output is a folder

EPILOG = f"""\
several texts:
  They are spoken in this order: TEXT arguments, then the files of -f.
  -o out.wav is then a pattern: out-1.wav, out-2.wav, ... (out-01.wav with ten or more).
  -o folder/ makes folder/speech-1.wav, folder/speech-2.wav, ..., and the folder where there is none.
  Each text gets a voice of its own unless --seed or --speaker is given.

output: the ending decides: .wav (16-bit PCM), .flac, .ogg (Vorbis), .mp3. A file of that name is replaced.
Each text gives one line on standard error: file, audio length, tokens, seed, time taken, real-time factor.

exit status: 0 all texts were spoken, 1 some were not, 2 the command line is wrong, 130 interrupted.
The timeout also goes to the server as --deadline-ms, up to {MAX_DEADLINE_MS // 1000} s.
"""


@dataclass(frozen=True)
class Job:
    """One text and where its audio goes.

    Attributes:
        number: 1 for the first text.
        text: what to say.
        output: the file, or None for standard output.
    """

    number: int
    text: str
    output: Path | None

    @property
    def name(self) -> str:
        """The output as messages call it."""
        return STANDARD_STREAM if self.output is None else str(self.output)


@dataclass(frozen=True)
class Command:
    """A checked command line."""

    endpoint: Endpoint
    options: SynthesisOptions
    jobs: tuple[Job, ...]
    concurrency: int
    floating: bool
    json: bool


def command_from(argv: Sequence[str] | None) -> Command:
    """The command of `argv`, None for the process's own; a wrong one prints why and ends the process with status 2."""
    parser = _parser()
    arguments = parser.parse_args(argv)
    try:
        return _command(arguments)
    except (InvalidInputError, OSError) as error:
        parser.error(str(error))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m client",
        description="Speak texts with the Triton model chattts.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,  # a later flag must not change what a shortened one means
    )
    add = parser.add_argument
    add("texts", nargs="*", metavar="TEXT", help="what to say; - reads standard input")
    add(
        "-f", "--file", action="append", default=[], help="a UTF-8 file with one text, - for standard input; repeatable"
    )
    add("--lines", action="store_true", help="files and standard input hold one text per line; empty lines are skipped")
    add("-o", "--output", required=True, help="audio file, pattern or folder; - writes WAV to standard output")
    add("--float", action="store_true", help="32-bit floating point samples (WAV only)")
    add("-j", "--concurrency", type=int, default=DEFAULT_CONCURRENCY, help="texts in flight at once (%(default)s)")
    add("--json", action="store_true", help="one JSON object per text on standard output")
    server = parser.add_argument_group("server")
    server.add_argument("--protocol", choices=tuple(DEFAULT_URLS), default="grpc", help="default %(default)s")
    urls = ", ".join(f"{url} for {protocol}" for protocol, url in DEFAULT_URLS.items())
    server.add_argument("--url", metavar="HOST:PORT", help=f"default {urls}")
    timeout_help = "seconds for one text (%(default)g)"
    server.add_argument("--timeout", type=float, default=DEFAULT_TIMEOUT, metavar="S", help=timeout_help)
    _add_option_flags(parser.add_argument_group("inputs of the model"))
    return parser


def _add_option_flags(group: Any) -> None:
    """One flag per field of `SynthesisOptions`; what is not given stays None."""
    types = {"BYTES": (str, "S"), "FP32": (float, "X"), "INT32": (int, "N"), "INT64": (int, "N")}
    for option in fields(SynthesisOptions):
        flag = "--" + option.name.replace("_", "-")
        description = option.metadata["help"].replace("%", "%%")
        datatype = option.metadata["datatype"]
        if datatype != "BOOL":
            kind, metavar = types[datatype]
            group.add_argument(flag, dest=option.name, type=kind, metavar=metavar, help=description)
        elif option.name == "normalize":  # on by default
            group.add_argument(
                "--no-normalize", dest=option.name, action="store_const", const=False, help=f"do not {description}"
            )
        else:
            group.add_argument(flag, dest=option.name, action="store_const", const=True, help=description)


def _command(arguments: argparse.Namespace) -> Command:
    """Raises InvalidInputError or OSError for what argparse cannot see."""
    if arguments.concurrency < 1:
        raise invalid_input("concurrency", arguments.concurrency, "1 or more")
    if arguments.json and arguments.output == STANDARD_STREAM:
        raise invalid_input("output", STANDARD_STREAM, "a file, because --json writes to standard output")
    url = arguments.url if arguments.url is not None else DEFAULT_URLS[arguments.protocol]
    endpoint = Endpoint(arguments.protocol, url, "chattts", arguments.timeout)
    options = SynthesisOptions(**{option.name: getattr(arguments, option.name) for option in fields(SynthesisOptions)})
    texts = _texts(arguments.texts, arguments.file, by_line=arguments.lines)
    for text in texts:
        endpoint.tensors(text, options)  # what cannot be sent is refused before anything is
    outputs = _outputs(arguments.output, len(texts), floating=arguments.float)
    return Command(
        endpoint=endpoint,
        options=options,
        jobs=tuple(Job(number, *pair) for number, pair in enumerate(zip(texts, outputs, strict=True), 1)),
        concurrency=arguments.concurrency,
        floating=arguments.float,
        json=arguments.json,
    )


def _texts(arguments: Sequence[str], files: Sequence[str], *, by_line: bool) -> list[str]:
    texts: list[str] = []
    for argument in arguments:
        texts += _read(argument, by_line=by_line) if argument == STANDARD_STREAM else [argument]
    for name in files:
        texts += _read(name, by_line=by_line)
    if not texts:
        raise invalid_input("text", texts, "1 or more texts, as arguments or with -f FILE")
    return texts


def _read(name: str, *, by_line: bool) -> list[str]:
    """The texts of one file, without the white space around each."""
    data = sys.stdin.buffer.read() if name == STANDARD_STREAM else Path(name).read_bytes()
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise invalid_input("file", name, f"UTF-8 text; byte {error.start} is none") from error
    if not by_line:
        return [text.strip()]
    return [line.strip() for line in text.splitlines() if line.strip()]


def _outputs(output: str, count: int, *, floating: bool) -> list[Path | None]:
    """Where each of `count` texts goes; an `output` that ends in a slash is made a folder."""
    if output == STANDARD_STREAM:
        if count > 1:
            raise invalid_input("output", output, f"a file, pattern or folder for {count} texts")
        return [None]
    path = Path(output)
    if output.endswith(os.sep) or path.is_dir():
        path /= FOLDER_FILE_NAME
    audio_format(path, floating=floating)
    if output.endswith(os.sep):
        path.parent.mkdir(parents=True, exist_ok=True)
    if not path.parent.is_dir():
        raise invalid_input("output", output, f"a path in an existing folder; {path.parent} is none")
    if not os.access(path.parent, os.W_OK):
        raise invalid_input("output", output, f"a path in a writable folder; {path.parent} is not")
    if count == 1:
        return [path]
    width = len(str(count))
    return [path.with_name(f"{path.stem}-{number:0{width}}{path.suffix}") for number in range(1, count + 1)]
