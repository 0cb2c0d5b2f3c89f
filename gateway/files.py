"""Files of samples that were spoken before: encoded while they come, and nothing is spoken."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import numpy as np
from starlette.requests import ClientDisconnect

from gateway.audio import INT16_MAX, AudioWriter, FormatName
from gateway.errors import GatewayError, invalid_field

SAMPLE_BYTES = 2
MAX_SAMPLES_BYTES = SAMPLE_BYTES * 98_304 * 512  # of the longest answer at its own speed
SAMPLES: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "description": "16 bits, little-endian, one channel: what the format `pcm` gives",
        "content": {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}},
    }
}


async def written(name: FormatName, sample_rate: int, parts: AsyncIterator[bytes]) -> bytes:
    """The file of format `name` whose samples are `parts`, cut anywhere, at `sample_rate` Hz.

    Raises:
        GatewayError: there are none, half a sample is left, or the parts broke off.
    """
    writer = AudioWriter(name, sample_rate, whole=True)
    num_bytes, rest, held = 0, b"", []
    try:
        async for part in parts:
            num_bytes += len(part)
            rest += part
            whole = len(rest) - len(rest) % SAMPLE_BYTES
            samples = np.frombuffer(rest[:whole], "<i2").astype(np.float32) / INT16_MAX
            held.append(await asyncio.to_thread(writer.write, samples))
            rest = rest[whole:]
    except ClientDisconnect as error:
        raise GatewayError(400, "the body broke off", "incomplete") from error
    if not num_bytes or rest:
        raise invalid_field("body", f"has {num_bytes} bytes; allowed are samples of {SAMPLE_BYTES} bytes, one or more")
    return b"".join([*held, await asyncio.to_thread(writer.finish)])
