"""`python -m training`: the steps that make the demo checkpoint, in this order; each goes on where it was stopped."""

from __future__ import annotations

import argparse
import json
import os
from functools import partial
from pathlib import Path

import torch

from training import checkpoint, corpus, language, pictures, served, sound, timings
from training.loop import load
from training.modules import Codec
from training.sentences import draw, draw_words, sentences
from training.settings import FOLDER, SIZES


def main() -> None:
    """One step."""
    parser = argparse.ArgumentParser(prog="python -m training", description="Make the demo checkpoint.")
    parser.add_argument("--folder", type=Path, default=FOLDER, help="where everything lies (default %(default)s)")
    every = ",".join(corpus.VOICES)
    parser.add_argument("--voices", type=_voices, default=every, help="of flite, with commas (default %(default)s)")
    parser.add_argument("--minutes", type=float, default=10.0, help="how long this run trains (default %(default)s)")
    steps = parser.add_subparsers(dest="step", required=True)
    spoken = steps.add_parser("corpus", help="have flite speak")
    spoken.add_argument("--sentences", type=int, default=12_000, help="for each voice (default %(default)s)")
    spoken.add_argument("--loose", type=int, default=1_500, help="and of words in any order (default %(default)s)")
    spoken.add_argument("--words", type=int, default=14, help="of a sentence at most (default %(default)s)")
    steps.add_parser("codec", help="train the DVAE, and encode the corpus")
    steps.add_parser("encode", help="encode the corpus again, after it grew")
    steps.add_parser("vocoder", help="train Vocos")
    spoken = steps.add_parser("language", help="train the language model and the decoder")
    spoken.add_argument("--rate", type=float, default=2e-3, help="of learning at most (default %(default)s)")
    spoken.add_argument("--tokens", type=int, default=3_000, help="of audio in a batch (default %(default)s)")
    spoken.add_argument("--longest", type=int, default=250, help="utterance in audio tokens (default %(default)s)")
    spoken = steps.add_parser("checkpoint", help="write what was trained in the official layout")
    spoken.add_argument("--out", type=Path, default=FOLDER / "checkpoint")
    steps.add_parser("timings", help="have flite say the held-out sentences, and write down when it says each word")
    drawn = steps.add_parser("curves", help="draw how the losses fell")
    drawn.add_argument("--out", type=Path, default=Path(__file__).parent / "curves.png")
    drawn = steps.add_parser("picture", help="draw the spectrogram of a recording")
    drawn.add_argument("recording", type=Path, metavar="WAV")
    drawn.add_argument("--out", type=Path, required=True)
    drawn.add_argument("--title", default="")
    heard = steps.add_parser("listen", help="serve a checkpoint and count the words that are not understood")
    heard.add_argument("--checkpoint", help="as the export takes it (default: what the step before wrote)")
    heard.add_argument("--ways", nargs="+", default=served.WAYS, choices=served.WAYS, help="of asking (default all)")
    heard.add_argument("--precision", nargs="+", default=["fp32"], choices=["fp32", "int8"], help="of the engine")
    heard.add_argument("--repository", type=Path, default=FOLDER / "repository", help="where it is exported to")
    heard.add_argument("--temperature", type=float, default=0.3)
    heard.add_argument("--sentences", type=int, default=60, help="the first so many (default %(default)s)")
    heard.add_argument("--out", type=Path, help="folder for the recordings")
    options = parser.parse_args()
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    _STEPS[options.step](options)


def _voices(text: str) -> list[str]:
    voices = text.split(",")
    if unknown := set(voices) - set(corpus.VOICES):
        raise argparse.ArgumentTypeError(f"unknown: {', '.join(sorted(unknown))}")
    return voices


def _corpus(options: argparse.Namespace) -> None:
    for number, voice in enumerate(options.voices):
        said = sentences(options.sentences, number, partial(draw, longest=options.words))
        loose = sentences(options.loose, number, draw_words)
        corpus.make(options.folder, voice, [*said, *loose], len(os.sched_getaffinity(0)))
    print("\n".join(corpus.shares(options.folder, options.voices)))


def _codec(options: argparse.Namespace) -> None:
    sound.train_codec(options.folder, options.voices, options.minutes)
    _encode(options)


def _encode(options: argparse.Namespace) -> None:
    codec = load(Codec(SIZES.dvae_encoder, SIZES.dvae_decoder), options.folder / sound.CODEC_FILE)
    for voice in options.voices:
        sound.encode(codec, options.folder, voice)


def _vocoder(options: argparse.Namespace) -> None:
    sound.train_vocoder(options.folder, options.voices, options.minutes)


def _language(options: argparse.Namespace) -> None:
    language.train_language(
        options.folder,
        options.voices,
        options.minutes,
        rate=options.rate,
        tokens=options.tokens,
        longest=options.longest,
    )


def _checkpoint(options: argparse.Namespace) -> None:
    checkpoint.write(options.folder, options.out)


def _timings(options: argparse.Namespace) -> None:
    timings.write(options.folder)


def _curves(options: argparse.Namespace) -> None:
    pictures.draw_losses(options.folder, options.out)


def _picture(options: argparse.Namespace) -> None:
    pictures.draw_recording(options.recording, options.out, options.title)


def _listen(options: argparse.Namespace) -> None:
    rates = served.listen(
        options.checkpoint or str(options.folder / "checkpoint"),
        options.repository,
        options.voices,
        sentences=options.sentences,
        temperature=options.temperature,
        precisions=options.precision,
        ways=options.ways,
        out=options.out,
    )
    if options.checkpoint is None:
        minutes = torch.load(options.folder / language.FILE, weights_only=True)["spent_s"] / 60
        with (options.folder / pictures.HEARD_FILE).open("a", encoding="utf-8") as file:
            file.write(json.dumps({"minutes": round(minutes, 2)} | rates) + "\n")


_STEPS = {
    "corpus": _corpus,
    "codec": _codec,
    "encode": _encode,
    "vocoder": _vocoder,
    "language": _language,
    "checkpoint": _checkpoint,
    "timings": _timings,
    "curves": _curves,
    "picture": _picture,
    "listen": _listen,
}


if __name__ == "__main__":
    main()
