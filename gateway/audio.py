"""Samples as they come to bytes of an audio file: tempo, watermark, then the encoders of FFmpeg's libraries (PyAV)."""

from __future__ import annotations

import asyncio
import io
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Literal, NamedTuple

import av
import numpy as np
from av.filter import Graph
from chattts_client import Chunk
from chattts_client.audio_file import MARK, pcm
from chattts_client.watermark import Marker
from numpy.typing import NDArray

FormatName = Literal["mp3", "opus", "aac", "flac", "wav", "pcm"]
INT16_MAX = 32_767
LEAST_ATEMPO = 0.5  # of one filter; slower is a chain of them
OGG_PAGE_US = 60_000  # a page of Ogg leaves when it is full; FFmpeg's own is 1 s long


class Format(NamedTuple):
    """How a format is written.

    Attributes:
        media_type: for the header Content-Type.
        container, codec: FFmpeg's names; None for samples without a header.
        sample_rate: that it is resampled to, None to leave it. What MP3 and AAC encoders add at both ends is a number
            of samples: 94 ms at 24 kHz, 47 ms at 48 kHz.
        options: of the container, where it is a stream.
        streams: whether programs can read it while its length is open; otherwise it is always written whole.
    """

    media_type: str
    container: str | None = None
    codec: str = ""
    sample_rate: int | None = None
    options: Mapping[str, str] = {}
    streams: bool = True


FORMATS: Mapping[FormatName, Format] = {
    # In a stream no frame of statistics in front, which could only be filled in at the end.
    "mp3": Format("audio/mpeg", "mp3", "libmp3lame", 48_000, {"write_xing": "0"}),
    "opus": Format("audio/ogg", "ogg", "libopus", 48_000, {"page_duration": str(OGG_PAGE_US)}),
    "aac": Format("audio/aac", "adts", "aac", 48_000),
    "flac": Format("audio/flac", "flac", "flac", streams=False),
    "wav": Format("audio/wav", "wav", "pcm_s16le"),
    "pcm": Format("audio/pcm"),  # 16 bits, little-endian
}


class AudioWriter:
    """One audio file, as bytes that may be sent as soon as they are there.

    Attributes:
        num_written: samples so far, the tempo counted in, and not what an encoder adds; all of them after `finish`.
    """

    def __init__(
        self,
        name: FormatName,
        sample_rate: int,
        tempo: float = 1.0,
        *,
        whole: bool = False,
        marker: Marker | None = None,
    ) -> None:
        """Samples of one channel at `sample_rate` Hz are to come.

        Args:
            name: of a format.
            sample_rate: of the samples, in Hz.
            tempo: 2 halves their length at the same pitch.
            whole: leave no size in the file open, for which the end gives all of it; otherwise sizes are unknown.
            marker: gives the samples a watermark, which another tempo would spoil, so it comes behind.
        """
        self._sample_rate, self._marker = sample_rate, marker
        self._tempo = None if tempo == 1 else _tempo_graph(sample_rate, tempo)
        self._encoder = None if FORMATS[name].container is None else _Encoder(FORMATS[name], sample_rate, whole)
        self._num_samples = self.num_written = 0

    def write(self, audio: NDArray[np.float32]) -> bytes:
        """Bytes that follow from `audio` [num_samples], -1 to 1, clipped; often those of samples before it."""
        if not len(audio):
            return b""
        if self._tempo is None and self._marker is not None:
            audio = self._marker(audio)
        if self._tempo is None and self._encoder is None:
            self.num_written += len(audio)
            return pcm(audio)
        frame = self._frame(audio, self._num_samples)
        self._num_samples += len(audio)
        return self._encoded(self._stretched(self._tempo, frame) if self._tempo else [frame])

    def finish(self) -> bytes:
        """The rest of the file."""
        end = self._encoded(self._stretched(self._tempo, None)) if self._tempo and self._num_samples else b""
        return end + (self._encoder.finish() if self._encoder else b"")

    def _frame(self, audio: NDArray[np.float32], place: int | None) -> av.AudioFrame:
        frame = av.AudioFrame.from_ndarray(_int16(audio)[None], format="s16", layout="mono")
        frame.sample_rate, frame.pts = self._sample_rate, place
        return frame

    def _stretched(self, tempo: Graph, frame: av.AudioFrame | None) -> Iterator[av.AudioFrame]:
        """What follows from `frame`; None is the end."""
        for stretched in _filtered(tempo, frame):
            if self._marker is None:
                yield stretched
            else:
                audio = stretched.to_ndarray()[0].astype(np.float32) / INT16_MAX
                yield self._frame(self._marker(audio), stretched.pts)

    def _encoded(self, frames: Iterable[av.AudioFrame]) -> bytes:
        parts = []
        for frame in frames:
            self.num_written += frame.samples
            parts.append(self._encoder.write(frame) if self._encoder else frame.to_ndarray().astype("<i2").tobytes())
        return b"".join(parts)


async def encoded(name: FormatName, writer: AudioWriter, chunk: Chunk) -> bytes:
    """What `writer`, of format `name`, gives for `chunk`.

    Encoders take some milliseconds, for which other requests should not wait; plain samples take none.
    """
    if name in ("pcm", "wav"):
        return writer.write(chunk.audio)
    return await asyncio.to_thread(writer.write, chunk.audio)


class _Encoder:
    def __init__(self, form: Format, sample_rate: int, whole: bool) -> None:
        self._sink = _File() if whole else Sink()
        options = {} if whole else {"flush_packets": "1", **form.options}
        self._container = av.open(self._sink, "w", format=form.container, options=options)
        self._container.metadata["comment"] = MARK  # ID3, Vorbis comment or RIFF INFO; AAC has no place for it
        self._stream: Any = self._container.add_stream(form.codec, rate=form.sample_rate or sample_rate, layout="mono")
        self._container.start_encoding()  # the header, which a file without samples has, too

    def write(self, frame: av.AudioFrame | None) -> bytes:
        """The codec's context resamples; None is the end."""
        self._container.mux(self._stream.encode(frame))
        return self._sink.taken()

    def finish(self) -> bytes:
        rest = self.write(None)
        self._container.close()
        return rest + self._sink.rest()


class Sink:
    """A file that can only be written, neither read nor sought; what was written waits to be taken."""

    def __init__(self) -> None:
        """Nothing is written yet."""
        self._written = bytearray()

    def write(self, data: bytes) -> int:
        """Add `data`; the number of its bytes."""
        self._written += data
        return len(data)

    def flush(self) -> None:
        """Nothing is kept back."""

    def close(self) -> None:
        """What was written can still be taken."""

    def taken(self) -> bytes:
        """What was written since the last time."""
        taken = bytes(self._written)
        self._written.clear()
        return taken

    rest = taken


class _File(io.BytesIO):
    """One whose beginning FFmpeg may write again when it knows the end."""

    def taken(self) -> bytes:
        return b""

    def rest(self) -> bytes:
        return self.getvalue()


def _int16(audio: NDArray[np.float32]) -> NDArray[np.int16]:
    samples: NDArray[np.int16] = np.round(np.clip(audio, -1, 1) * INT16_MAX).astype(np.int16)
    return samples


def _tempo_graph(sample_rate: int, tempo: float) -> Graph:
    graph = Graph()
    nodes = [graph.add_abuffer(sample_rate=sample_rate, format="s16", layout="mono")]
    while tempo < LEAST_ATEMPO:
        nodes.append(graph.add("atempo", str(LEAST_ATEMPO)))
        tempo /= LEAST_ATEMPO
    nodes += [graph.add("atempo", f"{tempo:.6f}"), graph.add("aformat", "sample_fmts=s16:channel_layouts=mono")]
    graph.link_nodes(*nodes, graph.add("abuffersink")).configure()
    return graph


def _filtered(graph: Graph, frame: av.AudioFrame | None) -> Iterator[av.AudioFrame]:
    """What `graph` gives for `frame`; None is the end."""
    graph.push(frame)
    while True:
        try:
            yield graph.pull()  # type: ignore[misc]
        except (av.BlockingIOError, av.EOFError):
            return
