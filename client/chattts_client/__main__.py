"""`chattts "text" -o out.wav`: speak texts from the command line, list voices, clone one."""

from __future__ import annotations

import asyncio
import io
import json
import os
import sys
from collections.abc import Sequence
from dataclasses import asdict

from chattts_client.arguments import command_from
from chattts_client.audio_file import write_whole
from chattts_client.client import Endpoint, TTSClient
from chattts_client.commands import CloneCommand, SpeakCommand, VoicesCommand
from chattts_client.detecting import DetectCommand, detect
from chattts_client.errors import TTSError
from chattts_client.speaking import speak


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; the exit status is 0, 1 (something failed), 2 (wrong command line) or 130 (interrupted)."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(encoding="utf-8")  # texts and speaker strings, whatever the locale
    try:
        command = command_from(argv)
        if isinstance(command, SpeakCommand):
            return 0 if asyncio.run(speak(command)) else 1
        if isinstance(command, DetectCommand):
            return detect(command)
        if isinstance(command, VoicesCommand):
            _list_voices(command)
        else:
            _clone(command)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:  # whoever read standard output has gone
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # Python flushes it once more at exit
        return 1
    except (TTSError, OSError) as error:
        print(f"failed: {error}", file=sys.stderr)
        return 1
    return 0


def _list_voices(command: VoicesCommand) -> None:
    with _client(command.endpoint) as client:
        voices = client.voices()
    if command.json:
        print(json.dumps([asdict(voice) for voice in voices]), flush=True)
        return
    width = max((len(voice.name) for voice in voices), default=0)
    for voice in voices:
        print(f"{voice.name:{width}}  {voice.description}".rstrip(), flush=True)


def _clone(command: CloneCommand) -> None:
    with _client(command.endpoint) as client:
        lines = [client.clone(command.audio, command.sample_rate)]
    if command.transcript is not None:
        lines.append(command.transcript)
    text = "".join(f"{line}\n" for line in lines)
    if command.output is None:
        print(text, end="", flush=True)
    else:
        write_whole(command.output, text.encode())


def _client(endpoint: Endpoint) -> TTSClient:
    return TTSClient(endpoint.url, endpoint.protocol, timeout=endpoint.timeout)


if __name__ == "__main__":
    sys.exit(main())
