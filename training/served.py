"""Whether a checkpoint is understood when it is served."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np

from chattts_serving.audio import SAMPLE_RATE
from chattts_serving.server import running_server
from client import TTSClient
from client.audio_file import save
from training.corpus import speak
from training.listen import Listener, word_error_rate
from training.sentences import held_out


def listen(
    checkpoint: Path, repository: Path, voices: list[str], *, sentences: int, temperature: float, out: Path | None
) -> None:
    """Export `checkpoint`, have the server say held-out sentences, and print what was heard of it and of flite."""
    command = [sys.executable, "-m", "export", "--checkpoint", str(checkpoint), "--out", str(repository)]
    subprocess.run(command, check=True)  # noqa: S603 - our own arguments
    listener = Listener()
    with (
        running_server(repository, log_path=repository / "server.log") as server,
        TTSClient(server.grpc_url, "grpc", timeout=120) as client,
    ):
        for voice in voices:
            heard = []
            for number, sentence in enumerate(held_out()[:sentences]):
                speech = client.synthesize(
                    sentence,
                    speaker=voice,
                    skip_refine=True,
                    temperature=temperature,
                    max_new_tokens=400,
                    seed=number,
                )
                heard.append(listener.listen(speech.audio, sentence))
                if out is not None:
                    out.mkdir(parents=True, exist_ok=True)
                    save(out / f"{voice}-{number:02}.wav", speech.audio, SAMPLE_RATE)
            for one in heard:
                print(f"{one.errors:3} {one.said} | {one.heard}")
            spoken = [(speak(voice, one)[0].astype(np.float32) / 32768, one) for one in held_out()[:sentences]]
            flite = word_error_rate(listener.listen(audio, one) for audio, one in spoken)
            print(f"{voice}: word error rate {word_error_rate(heard):.3f}, of flite itself {flite:.3f}")
