"""Voices: those of the server by name, and cloned ones, whose id carries all that the server needs.

So nothing of anybody's voice is kept here, and any gateway knows every cloned voice.
"""

from __future__ import annotations

import asyncio
import base64
import io
import json
import math
import time
import zlib
from collections.abc import Callable, Mapping
from typing import Any

import av
import numpy as np
from chattts_client import AsyncTTSClient, Voice
from numpy.typing import NDArray

from gateway.errors import invalid_field

CLONE_PREFIX = "clone_"
MAX_ID_CHARACTERS = 65_536
MAX_CLONE_BYTES = 262_144  # of an unpacked id
MAX_TRANSCRIPT_CHARACTERS = 1_000
MAX_RECORDING_S = 30  # the server's limit
RECORDING_RATE = 24_000  # Hz
SPARE_SAMPLES = RECORDING_RATE // 10  # that encoders add to both ends
SAMPLE_RATES = range(8_000, 192_001)
# Playlists and the like would have FFmpeg open files and addresses of this machine.
ONLY_RECORDINGS = {
    "format_whitelist": "wav,mp3,flac,ogg,aac,mov,matroska,webm",
    "protocol_whitelist": "none",
    # No decoder of pictures: one frame of them may be as large as it likes.
    "codec_whitelist": "pcm_u8,pcm_s16le,pcm_s24le,pcm_s32le,pcm_f32le,pcm_f64le,pcm_alaw,pcm_mulaw,"
    "mp3,mp3float,flac,vorbis,opus,libopus,aac,alac",
}
# OpenAI's voices, which its clients send unless they are told another one. A voice of the server goes before.
ALIASES = frozenset(
    ["alloy", "ash", "ballad", "cedar", "coral", "echo", "fable", "marin", "nova", "onyx", "sage", "shimmer", "verse"]
)
DEFAULT = "default"
NAMES_KEPT_S = 60.0  # a server whose voices change has been restarted


class ServerVoices:
    """The names of the server's voices, asked for again once they are NAMES_KEPT_S old."""

    def __init__(
        self,
        client: AsyncTTSClient,
        aliases: Mapping[str, str] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Nothing is asked yet; `aliases` are names of voices for others, `clock` gives seconds."""
        self._client, self._aliases, self._clock = client, aliases or {}, clock
        self._names: frozenset[str] = frozenset()
        self._until = -math.inf

    async def resolved(self, voice: str) -> str:
        """What an alias stands for, else `voice`, or `default` where it is a name of OpenAI's and none of the server's.

        Raises:
            TTSError: the server cannot be asked.
        """
        if voice in self._aliases:
            return self._aliases[voice]
        if voice not in ALIASES:
            return voice
        if self._clock() >= self._until:
            self._names = frozenset(one.name for one in await self._client.voices())
            self._until = self._clock() + NAMES_KEPT_S
        return voice if voice in self._names else DEFAULT


def spoken_by(voice: str) -> dict[str, str]:
    """The inputs of the models for a voice.

    Args:
        voice: name, speaker string, or id of a cloned voice.

    Raises:
        GatewayError: the id of a cloned voice is broken.
    """
    if not voice.startswith(CLONE_PREFIX):
        return {"speaker": voice}
    try:
        packed = base64.urlsafe_b64decode(voice.removeprefix(CLONE_PREFIX).encode("ascii"))
        plain = zlib.decompressobj().decompress(packed, MAX_CLONE_BYTES)
        sample, transcript = map(str, json.loads(plain))
    except (ValueError, TypeError, RecursionError, zlib.error) as error:
        raise invalid_field("voice", "is no id of a cloned voice; POST /v1/audio/voices makes them") from error
    return {"speaker_sample": sample} | ({"sample_text": transcript} if transcript else {})


def clone_id(speaker_sample: str, transcript: str) -> str:
    """The id by which `spoken_by` knows a cloned voice."""
    plain = json.dumps([speaker_sample, transcript], ensure_ascii=False).encode()
    return CLONE_PREFIX + base64.urlsafe_b64encode(zlib.compress(plain, 9)).decode()


async def clone(client: AsyncTTSClient, recording: bytes, name: str, transcript: str) -> dict[str, Any]:
    """A voice of a recording, as OpenAI describes one.

    Raises:
        GatewayError: a field is wrong.
        TTSError: the server does not take it.
    """
    if not 0 < len(name) <= 100:
        raise invalid_field("name", f"has {len(name)} characters; allowed are 1 to 100")
    if len(transcript) > MAX_TRANSCRIPT_CHARACTERS:
        raise invalid_field(
            "transcript", f"has {len(transcript)} characters; allowed are up to {MAX_TRANSCRIPT_CHARACTERS}"
        )
    audio = await asyncio.to_thread(decoded, recording)
    sample = await client.clone(audio, RECORDING_RATE)
    return {
        "id": clone_id(sample, transcript),
        "object": "audio.voice",
        "name": name,
        "created_at": int(time.time()),
    }


def decoded(recording: bytes) -> NDArray[np.float32]:
    """Samples [num_samples] of a recording in any format that FFmpeg reads, one channel, RECORDING_RATE Hz.

    Raises:
        GatewayError: it is none, or longer than MAX_RECORDING_S.
    """
    resampler = av.AudioResampler("fltp", None, RECORDING_RATE)  # all channels: FFmpeg's sum of them may clip
    most, parts, num_samples = MAX_RECORDING_S * RECORDING_RATE, [], 0
    try:
        with av.open(io.BytesIO(recording), options=ONLY_RECORDINGS) as container:
            if not container.streams.audio:
                raise invalid_field("audio_sample", "has no sound")
            for frame in container.decode(audio=0):
                if frame.sample_rate not in SAMPLE_RATES:  # a low one would grow without measure
                    allowed = f"{SAMPLE_RATES[0]} to {SAMPLE_RATES[-1]}"
                    raise invalid_field(
                        "audio_sample", f"has {frame.sample_rate} samples per second; allowed are {allowed}"
                    )
                for resampled in resampler.resample(frame):
                    parts.append(resampled.to_ndarray().mean(axis=0))
                    num_samples += resampled.samples
                if num_samples > most + SPARE_SAMPLES:
                    raise invalid_field("audio_sample", f"is longer than {MAX_RECORDING_S} s")
            parts += [resampled.to_ndarray().mean(axis=0) for resampled in resampler.resample(None)]
    except (av.FFmpegError, ValueError) as error:
        raise invalid_field("audio_sample", f"is no recording that FFmpeg can read: {error}") from error
    if not parts:
        raise invalid_field("audio_sample", "has no sound")
    audio: NDArray[np.float32] = np.concatenate(parts)[:most]
    return audio


def listed(voices: list[Voice]) -> dict[str, Any]:
    """The answer of `GET /v1/audio/voices`. Some clients look for "voices", others for "data"."""
    data = [
        {"id": voice.name, "object": "audio.voice", "name": voice.name, "description": voice.description}
        for voice in voices
    ]
    return {"object": "list", "data": data, "voices": data}
