"""The answer of `POST /v1/audio/speech/batch`: each text is a synthesis of its own, some at once, at low priority."""

from __future__ import annotations

import asyncio
from contextlib import aclosing, suppress
from functools import partial
from typing import Any

from chattts_client import TTSError
from chattts_client.several import as_they_end, with_patience
from chattts_client.tracing import About
from starlette.types import Message, Send

from gateway.audio import FORMATS
from gateway.batch_answers import ANSWERS, BatchResult, Outcome, Usage
from gateway.batch_request import BatchItem, BatchRequest
from gateway.errors import GatewayError, from_client
from gateway.shared import Gateway
from gateway.speech import LIVE_HEADERS, LiveResponse, Utterance, as_headers, body_message, usage
from gateway.words import heard

BATCH = "/v1/audio/speech/batch"


class BatchResponse(LiveResponse):
    """The answer, made while it is sent."""

    def __init__(self, here: Gateway, request: BatchRequest, *, about: About, owner: str) -> None:
        """Nothing is sent yet.

        Raises:
            GatewayError: all of the request is wrong.
        """
        super().__init__()
        request.check(strict=here.settings.strict)
        self._here, self._request, self._about = here, request, about
        self._place = here.access.batch(owner, len(request.items))

    async def speak(self, send: Send) -> None:
        """Send what becomes of the texts; a client that takes nothing for the time of a synthesis is given up.

        Raises:
            GatewayError: there is no place.
        """

        async def sent(message: Message) -> None:
            await asyncio.wait_for(send(message), self._here.settings.timeout_s)

        with suppress(TimeoutError, asyncio.TimeoutError):  # two classes until Python 3.11
            await self._speak(sent)

    async def _speak(self, send: Send) -> None:
        answer, num_texts, num_spoken = ANSWERS[self._request.answer_format](), len(self._request.items), 0
        with self._place as at_once:
            headers = as_headers({"content-type": answer.media_type, **LIVE_HEADERS})
            await send({"type": "http.response.start", "status": 200, "headers": headers})
            works = (partial(self._outcome, index) for index in range(num_texts))
            async with aclosing(as_they_end(works, at_once)) as outcomes:
                async for outcome in outcomes:
                    num_spoken += outcome.result.error is None
                    body = await asyncio.to_thread(answer.add, outcome)  # megabytes of base64 take a while
                    await send(body_message(body, more=True))
        totals = {"id": self._about.request_id, "total": num_texts, "succeeded": num_spoken}
        await send(body_message(answer.finish({**totals, "failed": num_texts - num_spoken}), more=False))

    async def _outcome(self, index: int) -> Outcome:
        try:
            item = self._request.item(index)
            voices = [await self._here.voices.resolved(name) for name in item.voice_names]
            return await self._spoken(index, item, voices)
        except GatewayError as error:
            failure = error
        except TTSError as error:
            failure = from_client(error)
        return Outcome(
            BatchResult(
                index=index,
                id=self._request.items[index].get("id"),
                status="error",
                error=str(failure),
                code=failure.code,
                param=failure.param,
                http_status=failure.status,
            )
        )

    async def _spoken(self, index: int, item: BatchItem, voices: list[str]) -> Outcome:
        about = About(f"{self._about.request_id}.{index}", self._about.traceparent)
        utterance = Utterance(self._here, item, voices, about=about, whole=True)

        async def work() -> tuple[dict[str, Any], int, bytes]:
            """What is told of the file, its number of tokens, the file."""
            told, words, num_tokens, parts = {}, [], 0, []
            async with aclosing(utterance.parts(report)) as all_parts:
                async for chunk, part in all_parts:
                    parts.append(part)
                    if chunk is not None:
                        told = {
                            "sample_rate": chunk.sample_rate,
                            "seed": str(chunk.seed),
                            "warning": chunk.warning or None,
                        }
                        words += heard(chunk.words, utterance.tempo)
                        num_tokens += chunk.num_tokens
            if item.word_times:
                told |= {"words": words, "words_file": item.words_name(index)}
            return told, num_tokens, b"".join(parts)

        with self._here.metrics.speech(is_heard=False) as report:
            try:
                told, num_tokens, audio = await with_patience(work, self._here.settings.timeout_s)
            except TTSError as error:
                report.failed(from_client(error).status)
                raise
        result = BatchResult(
            index=index,
            id=item.id,
            status="success",
            file=item.file_name(index),
            media_type=FORMATS[item.response_format].media_type,
            ignored=item.ignored or None,
            usage=Usage(**usage(num_tokens)),
            **told,
        )
        return Outcome(result, audio)
