"""The command line: flags, and the jobs that they ask for."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import fields, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any, get_args

from chattts_client.audio_file import audio_format
from chattts_client.client import DEFAULT_TIMEOUT, DEFAULT_URLS, MAX_DEADLINE_MS, Endpoint
from chattts_client.commands import STANDARD_STREAM, CloneCommand, Job, SpeakCommand, VoicesCommand
from chattts_client.detecting import DetectCommand
from chattts_client.dialogue import Turn, turns_from, voices_from
from chattts_client.errors import InvalidInputError, invalid_input
from chattts_client.options import Mode, SynthesisOptions
from chattts_client.recording import MAX_SECONDS, read_recording
from chattts_client.several import PRIORITY
from chattts_client.subtitles import ENDINGS
from chattts_client.watermark import KEY_VARIABLE, key_from

DEFAULT_CONCURRENCY = 4  # the server batches what arrives together
FOLDER_FILE_STEM = "speech"  # of files where --output or --srt is a folder
TURNS = "turns"
VOICES, CLONE, DETECT = "voices", "clone", "detect"  # words that are commands where they come first

EPILOG = f"""\
other commands (a text that is one of their names goes behind the flags):
  chattts {VOICES}                  list the voices that --speaker takes by name
  chattts {CLONE} REFERENCE.wav     print the voice of a recording, for --speaker-sample
  chattts {DETECT} RECORDING.wav    whether it has the watermark of a gateway

a dialogue: --turns FILE has lines "NAME: text", spoken as one; --voice NAME=VOICE gives a name its voice, which is
  otherwise the server's voice of that name. VOICE is as for --speaker, or @FILE with what "chattts clone" wrote.

several texts:
  They are spoken in this order: TEXT arguments, then the files of -f.
  -o out.wav is then a pattern: out-1.wav, out-2.wav, ... (out-01.wav with ten or more). So is --srt out.srt.
  -o folder/ makes folder/speech-1.wav, folder/speech-2.wav, ..., and the folder where there is none.
  Each text gets a voice of its own unless --seed or --speaker is given.
  They let interactive callers go first, unless --priority says otherwise, and wait where the server has no room.

output: the ending decides: .wav (16-bit PCM), .flac, .ogg (Vorbis), .mp3. A file of that name is replaced.
Each text gives one line on standard error: file, audio length, tokens, seed, time taken, real-time factor, and how
many sentences were cut at --max-new-tokens.

--stream -o - writes raw samples as they come, 16-bit integers (--float: 32-bit floats), little-endian, 24 kHz, mono:
  chattts "Hello" --stream -o - | aplay -f S16_LE -r 24000

exit status: 0 all texts were spoken, 1 some were not, 2 the command line is wrong, 130 interrupted.
The timeout also goes to the server as --deadline-ms, up to {MAX_DEADLINE_MS // 1000} s.
"""

Command = SpeakCommand | VoicesCommand | CloneCommand | DetectCommand


def command_from(argv: Sequence[str] | None) -> Command:
    """The command of `argv`, None for the process's own; a wrong one prints why and ends the process with status 2."""
    arguments = sys.argv[1:] if argv is None else list(argv)
    if arguments[:1] == [VOICES]:
        return _checked(_voices_parser(), _voices_command, arguments[1:])
    if arguments[:1] == [CLONE]:
        return _checked(_clone_parser(), _clone_command, arguments[1:])
    if arguments[:1] == [DETECT]:
        return _checked(_detect_parser(), _detect_command, arguments[1:])
    return _checked(_speak_parser(), _speak_command, arguments)


def _checked(
    parser: argparse.ArgumentParser, read: Callable[[argparse.Namespace], Command], arguments: Sequence[str]
) -> Command:
    parsed = parser.parse_args(arguments)
    try:
        return read(parsed)
    except (InvalidInputError, OSError) as error:
        parser.error(str(error))


def _parser(name: str, description: str, epilog: str = "") -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=f"chattts {name}".strip(),
        description=description,
        epilog=epilog,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,  # a later flag must not change what a shortened one means
    )
    parser.add_argument("--version", action="version", version=f"chattts-client {version('chattts-client')}")
    return parser


def _add_server_flags(parser: argparse.ArgumentParser) -> None:
    server = parser.add_argument_group("server")
    server.add_argument("--protocol", choices=tuple(DEFAULT_URLS), default="grpc", help="default %(default)s")
    urls = ", ".join(f"{url} for {protocol}" for protocol, url in DEFAULT_URLS.items())
    server.add_argument("--url", metavar="HOST:PORT", help=f"default {urls}")
    timeout_help = "seconds for one request (%(default)g)"
    server.add_argument("--timeout", type=float, default=DEFAULT_TIMEOUT, metavar="S", help=timeout_help)


def _endpoint(arguments: argparse.Namespace) -> Endpoint:
    url = arguments.url if arguments.url is not None else DEFAULT_URLS[arguments.protocol]
    return Endpoint(arguments.protocol, url, timeout=arguments.timeout)


def _speak_parser() -> argparse.ArgumentParser:
    parser = _parser("", "Speak texts with the Triton model chattts.", EPILOG)
    add = parser.add_argument
    add("texts", nargs="*", metavar="TEXT", help="what to say; - reads standard input")
    add(
        "-f", "--file", action="append", default=[], help="a UTF-8 file with one text, - for standard input; repeatable"
    )
    add("--lines", action="store_true", help="files and standard input hold one text per line; empty lines are skipped")
    add("--turns", metavar="FILE", help="a dialogue: lines NAME: TEXT, - for standard input; in place of texts")
    add("--voice", action="append", default=[], metavar="NAME=VOICE", help="the voice of a name of --turns; repeatable")
    add("-o", "--output", help="audio file, pattern or folder; - writes WAV to standard output; not for --refine-only")
    add(
        "--srt",
        metavar="FILE",
        help="subtitles, a cue a sentence, or a word with --word-times: .srt or .vtt file, pattern or folder",
    )
    add("--float", action="store_true", help="32-bit floating point samples (WAV only)")
    add("--stream", action="store_true", help="write the audio as it comes, from the model chattts_stream")
    add("--mode", choices=get_args(Mode), help="of --stream: exact (the default), or low_latency to hear it sooner")
    add("-j", "--concurrency", type=int, default=DEFAULT_CONCURRENCY, help="texts in flight at once (%(default)s)")
    add("--json", action="store_true", help="one JSON object per text on standard output")
    _add_server_flags(parser)
    _add_option_flags(parser.add_argument_group("inputs of the model"))
    return parser


def _add_option_flags(group: Any) -> None:
    """One flag per field of `SynthesisOptions`; what is not given stays None."""
    types: dict[str, tuple[Callable[[str], object], str]] = {
        "BYTES": (str, "S"),
        "JSON": (_read_json, "FILE"),
        "FP32": (float, "X"),
        "INT32": (int, "N"),
        "INT64": (int, "N"),
    }
    for option in fields(SynthesisOptions):
        if option.name == TURNS:  # has a flag of its own
            continue
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


def _read_json(name: str) -> object:
    """What a JSON file holds, for argparse, which knows ValueError and ArgumentTypeError."""
    try:
        return json.loads(Path(name).read_text(encoding="utf-8-sig"))
    except (OSError, ValueError, RecursionError) as error:
        raise argparse.ArgumentTypeError(f"cannot read {name!r} as JSON: {error}") from error


def _voices_parser() -> argparse.ArgumentParser:
    parser = _parser(VOICES, "List the voices of the server, a line each: name and description.")
    parser.add_argument("--json", action="store_true", help="a JSON list instead")
    _add_server_flags(parser)
    return parser


def _clone_parser() -> argparse.ArgumentParser:
    parser = _parser(
        CLONE,
        "Print the voice of a recording: a line for --speaker-sample and, with --text, a second one for --sample-text.",
    )
    help_text = f"audio file of one channel, at most {MAX_SECONDS} s: WAV, FLAC, OGG, MP3"
    parser.add_argument("recording", type=Path, metavar="FILE", help=help_text)
    parser.add_argument("--text", help="what is said in it")
    parser.add_argument("-o", "--output", help="write to this file; - and the default are standard output")
    _add_server_flags(parser)
    return parser


def _detect_parser() -> argparse.ArgumentParser:
    epilog = "exit status: 0 all have it, 1 some have not, 2 the command line is wrong or a file cannot be read."
    about = f"Search recordings for the watermark of a gateway (--watermark). {KEY_VARIABLE} has a key of yours."
    parser = _parser(DETECT, about, epilog)
    parser.add_argument("recordings", nargs="+", type=Path, metavar="FILE", help="audio: WAV, FLAC, OGG, MP3")
    parser.add_argument("--json", action="store_true", help="one JSON object per file")
    return parser


def _detect_command(arguments: argparse.Namespace) -> DetectCommand:
    return DetectCommand(tuple(arguments.recordings), key_from(os.environ), arguments.json)


def _voices_command(arguments: argparse.Namespace) -> VoicesCommand:
    return VoicesCommand(_endpoint(arguments), arguments.json)


def _clone_command(arguments: argparse.Namespace) -> CloneCommand:
    """Raises InvalidInputError or OSError for what argparse cannot see."""
    output = None if arguments.output in (None, STANDARD_STREAM) else Path(arguments.output)
    if output is not None:
        _prepare_folder("output", arguments.output, output.parent)
    transcript = None if arguments.text is None else " ".join(arguments.text.split())
    return CloneCommand(_endpoint(arguments), *read_recording(arguments.recording), transcript, output)


def _speak_command(arguments: argparse.Namespace) -> SpeakCommand:
    """Raises InvalidInputError or OSError for what argparse cannot see."""
    if arguments.concurrency < 1:
        raise invalid_input("concurrency", arguments.concurrency, "1 or more")
    _check_combination(arguments)
    endpoint = _endpoint(arguments)
    values = {option.name: getattr(arguments, option.name) for option in fields(SynthesisOptions)}
    options = SynthesisOptions(**values | {TURNS: _turns(arguments)})
    mode: Mode | None = (arguments.mode or "exact") if arguments.stream else None
    texts = _texts(arguments.texts, arguments.file, by_line=arguments.lines) if options.turns is None else [""]
    if len(texts) > 1 and options.priority is None:
        options = replace(options, priority=PRIORITY)
    for text in texts:
        endpoint.tensors(text, options, mode)  # what cannot be sent is refused before anything is
    outputs = _outputs(arguments, len(texts))
    return SpeakCommand(
        endpoint=endpoint,
        options=options,
        mode=mode,
        jobs=tuple(Job(number, text, *outputs[number - 1]) for number, text in enumerate(texts, 1)),
        concurrency=arguments.concurrency,
        floating=arguments.float,
        json=arguments.json,
    )


def _check_combination(arguments: argparse.Namespace) -> None:
    if arguments.refine_only:
        for name in ("output", "srt", "stream", "float"):
            if getattr(arguments, name):
                raise invalid_input(name, getattr(arguments, name), "none with --refine-only, which has no audio")
    elif arguments.output is None:
        raise invalid_input("output", None, "a file, - for standard output, or --refine-only")
    if arguments.mode and not arguments.stream:
        raise invalid_input("mode", arguments.mode, "none without --stream")
    if arguments.json and arguments.output == STANDARD_STREAM:
        raise invalid_input("output", STANDARD_STREAM, "a file, because --json writes to standard output")


def _turns(arguments: argparse.Namespace) -> list[Turn] | None:
    if arguments.turns is None:
        if arguments.voice:
            raise invalid_input("voice", arguments.voice[0], "none without --turns; --speaker is the voice of texts")
        return None
    if arguments.texts or arguments.file:
        raise invalid_input("turns", arguments.turns, "none beside texts")
    (text,) = _read(arguments.turns, by_line=False)
    return turns_from(text, voices_from(arguments.voice))


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


def _outputs(arguments: argparse.Namespace, count: int) -> list[tuple[Path | None, Path | None]]:
    """Audio file and subtitle file of each of `count` texts; folders that end in a slash are made."""
    audio: list[Path | None] = [None] * count
    subtitles: list[Path | None] = [None] * count
    if arguments.output == STANDARD_STREAM and count > 1:
        raise invalid_input("output", arguments.output, f"a file, pattern or folder for {count} texts")
    if arguments.output not in (None, STANDARD_STREAM):
        path = _file_at(arguments.output, ".wav")
        audio_format(path, floating=arguments.float)
        audio[:] = _numbered(path, count)
    if arguments.srt is not None:
        path = _file_at(arguments.srt, ENDINGS[0])
        if path.suffix.lower() not in ENDINGS:
            raise invalid_input("srt", arguments.srt, f"a file name that ends in {' or '.join(ENDINGS)}")
        subtitles[:] = _numbered(path, count)
    for name, files in (("output", audio), ("srt", subtitles)):
        if files[0] is not None:
            _prepare_folder(name, getattr(arguments, name), files[0].parent)
    return list(zip(audio, subtitles, strict=True))


def _file_at(value: str, ending: str) -> Path:
    """The file that `value` names, in it where it is a folder."""
    path = Path(value)
    return path / f"{FOLDER_FILE_STEM}{ending}" if value.endswith(os.sep) or path.is_dir() else path


def _numbered(path: Path, count: int) -> list[Path]:
    if count == 1:
        return [path]
    width = len(str(count))
    return [path.with_name(f"{path.stem}-{number:0{width}}{path.suffix}") for number in range(1, count + 1)]


def _prepare_folder(name: str, value: str, folder: Path) -> None:
    """Make `folder`, where flag `name` has `value`, if that ends in a slash, and check it.

    Raises:
        InvalidInputError: files cannot be written there.
        OSError: it cannot be made.
    """
    if value.endswith(os.sep):
        folder.mkdir(parents=True, exist_ok=True)
    if not folder.is_dir():
        raise invalid_input(name, value, f"a path in an existing folder; {folder} is none")
    if not os.access(folder, os.W_OK):
        raise invalid_input(name, value, f"a path in a writable folder; {folder} is not")
