"""`python -m training`: the steps that make the demo checkpoint; each goes on where it was stopped."""

from __future__ import annotations

import argparse
import json
import os
import random
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from training.sentences import EVERYDAY_FILE, LONG_FILE, SETS, draw_words, sentences
from training.settings import DEMO, FOLDER, SIZES
from training.utterances import PIECE, VOICES

if TYPE_CHECKING:
    from training.served import Way

WAYS: tuple[Way, ...] = ("one at a time", "streamed", "low latency", "16 at once")

# Each step imports what it alone needs: where a GPU is there may be no flite, no listener and no client.


def main() -> None:
    """One step."""
    parser = argparse.ArgumentParser(prog="python -m training", description="Make the demo checkpoint.")
    parser.add_argument("--folder", type=Path, default=FOLDER, help="where everything lies (default %(default)s)")
    every = ",".join(VOICES)
    parser.add_argument("--voices", type=_voices, default=every, help="of flite, with commas (default %(default)s)")
    parser.add_argument("--minutes", type=float, default=10.0, help="how long this run trains (default %(default)s)")
    steps = parser.add_subparsers(dest="step", required=True)
    spoken = steps.add_parser("corpus", help="have flite speak")
    spoken.add_argument("--sentences", type=int, default=25_000, help="for each voice (default %(default)s)")
    spoken.add_argument("--simple", type=int, default=3_000, help="and of the grammar (default %(default)s)")
    spoken.add_argument("--loose", type=int, default=4_000, help="and of words in any order (default %(default)s)")
    steps.add_parser("vocabulary", help="choose the tokens by the words of the corpus, and write vocabulary.txt")
    steps.add_parser("judged", help="choose the sentences by which voices are judged: everyday.txt and long.txt")
    source = steps.add_parser("take", help="the models of a checkpoint, to go on from, and encode the corpus")
    source.add_argument("--checkpoint", type=Path, default=DEMO, help="(default %(default)s)")
    steps.add_parser("codec", help="train the DVAE, and encode the corpus")
    steps.add_parser("encode", help="encode the corpus again, after it grew")
    steps.add_parser("vocoder", help="train Vocos")
    packed = steps.add_parser("pack", help="the corpus and the codec in one small file, without recordings")
    packed.add_argument("--megabytes", type=float, default=30.0, help="at most (default %(default)s)")
    packed.add_argument("--out", type=Path, default=FOLDER / "corpus.zip")
    packed = steps.add_parser("unpack", help="such a file, where the corpus is to lie")
    packed.add_argument("file", type=Path)
    spoken = steps.add_parser("language", help="train the language model and the decoder")
    spoken.add_argument("--rate", type=float, default=1.2e-3, help="of learning at most (default %(default)s)")
    spoken.add_argument("--tokens", type=int, default=3_000, help="of audio in a batch (default %(default)s)")
    spoken.add_argument("--longest", type=int, default=420, help="utterance in audio tokens (default %(default)s)")
    spoken.add_argument(
        "--device", default="cuda" if torch.cuda.is_available() else "cpu", help="(default %(default)s)"
    )
    spoken.add_argument("--workers", type=int, default=0, help="processes that make batches (default %(default)s)")
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
    heard.add_argument("--ways", nargs="+", default=WAYS, choices=WAYS, help="of asking (default all)")
    heard.add_argument("--precision", nargs="+", default=["fp32"], choices=["fp32", "int8"], help="of the engine")
    heard.add_argument("--repository", type=Path, default=FOLDER / "repository", help="where it is exported to")
    heard.add_argument("--temperature", type=float, default=0.3)
    heard.add_argument("--of", choices=SETS, default="everyday", help="which sentences (default %(default)s)")
    heard.add_argument("--sentences", type=int, default=100, help="at most, the first (default %(default)s)")
    heard.add_argument("--out", type=Path, help="folder for the recordings")
    options = parser.parse_args()
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    _STEPS[options.step](options)


def _voices(text: str) -> list[str]:
    voices = text.split(",")
    if unknown := set(voices) - set(VOICES):
        raise argparse.ArgumentTypeError(f"unknown: {', '.join(sorted(unknown))}")
    return voices


def _corpus(options: argparse.Namespace) -> None:
    from training import corpus, texts

    words = sorted(texts.word_counts())
    for voice in options.voices:
        number = VOICES.index(voice)
        said = [one for one in texts.written() if texts.speaker(one) == voice][: options.sentences]
        simple = sentences(options.simple, number)
        loose = sentences(options.loose, number, partial(draw_words, known=words))
        everything = [*said, *simple, *loose]
        random.Random(number).shuffle(everything)  # noqa: S311 - nothing secret
        corpus.make(options.folder, voice, everything, len(os.sched_getaffinity(0)))
    print("\n".join(corpus.shares(options.folder, options.voices)))


def _vocabulary(_options: argparse.Namespace) -> None:
    from training import pieces, texts, vocabulary

    counts = texts.word_counts()
    for sentence in sentences(5_000, seed=0):
        counts.update(piece for piece in PIECE.findall(sentence) if piece.isalpha())
    vocabulary.write(pieces.choose(counts, vocabulary.NUM_PIECES))


def _judged(_options: argparse.Namespace) -> None:
    from training import texts

    for file, chosen in ((EVERYDAY_FILE, texts.choose_everyday()), (LONG_FILE, texts.choose_long())):
        file.write_text("".join(f"{one}\n" for one in chosen), encoding="utf-8")


def _take(options: argparse.Namespace) -> None:
    from training import taken

    taken.take(options.checkpoint, options.folder)
    taken.take_language(options.checkpoint, options.folder)
    _encode(options)


def _pack(options: argparse.Namespace) -> None:
    from training import pack

    print("\n".join(pack.pack(options.folder, options.voices, options.megabytes, options.out)))


def _unpack(options: argparse.Namespace) -> None:
    from training import pack

    pack.unpack(options.file, options.folder)


def _codec(options: argparse.Namespace) -> None:
    from training import sound

    sound.train_codec(options.folder, options.voices, options.minutes)
    _encode(options)


def _encode(options: argparse.Namespace) -> None:
    from training import sound
    from training.loop import load
    from training.modules import Codec

    codec = load(Codec(SIZES.dvae_encoder, SIZES.dvae_decoder), options.folder / sound.CODEC_FILE)
    for voice in options.voices:
        sound.encode(codec, options.folder, voice)


def _vocoder(options: argparse.Namespace) -> None:
    from training import sound

    sound.train_vocoder(options.folder, options.voices, options.minutes)


def _language(options: argparse.Namespace) -> None:
    from training import language

    language.train_language(
        options.folder,
        options.voices,
        options.minutes,
        rate=options.rate,
        tokens=options.tokens,
        longest=options.longest,
        device=torch.device(options.device),
        workers=options.workers,
    )


def _checkpoint(options: argparse.Namespace) -> None:
    from training import checkpoint

    checkpoint.write(options.folder, options.out)


def _timings(options: argparse.Namespace) -> None:
    from training import timings

    timings.write(options.folder)


def _curves(options: argparse.Namespace) -> None:
    from training import pictures

    pictures.draw_losses(options.folder, options.out)


def _picture(options: argparse.Namespace) -> None:
    from training import pictures

    pictures.draw_recording(options.recording, options.out, options.title)


def _listen(options: argparse.Namespace) -> None:
    from training import language, pictures, served

    rates = served.listen(
        options.checkpoint or str(options.folder / "checkpoint"),
        options.repository,
        options.voices,
        of=options.of,
        sentences=options.sentences,
        temperature=options.temperature,
        precisions=options.precision,
        ways=options.ways,
        out=options.out,
    )
    if options.checkpoint is None:
        minutes = torch.load(options.folder / language.FILE, weights_only=True, map_location="cpu")["spent_s"] / 60
        with (options.folder / pictures.HEARD_FILE).open("a", encoding="utf-8") as file:
            file.write(json.dumps({"minutes": round(minutes, 2)} | rates) + "\n")


_STEPS = {
    "corpus": _corpus,
    "vocabulary": _vocabulary,
    "judged": _judged,
    "take": _take,
    "pack": _pack,
    "unpack": _unpack,
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
