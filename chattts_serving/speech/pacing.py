"""Who goes first among open requests: streams that are about to run dry; others rest meanwhile, but not for long.

A listener hears a stream from its first chunk on, in real time, so what is left to hear is what was sent less the time
since. Whoever waits for a whole answer hears nothing before it is there, and a stream far ahead loses nothing. A text
that is still written may run dry while nothing of it is there to say; it is as a new stream when it goes on.

Where decoder and vocoder need the CPUs that the engine computes on, it waits while they make a stream's first sound.
"""

from __future__ import annotations

from collections.abc import Collection

from chattts_serving.speech.open_request import OpenRequest

LOOK_S = 0.05  # between two looks at all requests; one at 256 of them takes 0.15 ms (measured)
FIRST_S = 0.5  # a stream whose first chunk is not there by then is late
SHORT_S = 0.1  # a stream runs dry that has less to hear than this when its next chunk can be there
ENOUGH_S = 0.5  # those that rest go on once every stream has so much
AHEAD_S = 2.0  # a stream that has more rests like a whole answer
MOST_REST_S = 1.0  # at a stretch, and then
LEAST_WORK_S = 0.25  # before the next one: at the worst, a fifth of the time is theirs
FIRST_SOUND_S = 0.03  # at most, that the engine waits for a first chunk to be sent
_WEIGHT = 0.1  # of the newest measurement in a running mean


class Pacing:
    """Decides who rests, from how long a step and a chunk's sound have taken."""

    def __init__(self, *, waits_for_sound: bool = False) -> None:
        """Nobody rests. `waits_for_sound` is whether the engine waits while a stream's first sound is made."""
        self._waits_for_sound = waits_for_sound
        self._unheard: dict[OpenRequest, float] = {}  # whose first sound is made: until when it is waited for
        self._step_s = self._sound_s = 0.0
        self._next_look = 0.0
        self._is_short = False

    def took_step(self, seconds: float) -> None:
        """A step of the engine has taken `seconds`."""
        self._step_s += _WEIGHT * (seconds - self._step_s)

    def begins_sound(self, request: OpenRequest, now: float) -> None:
        """A chunk of `request`, which is not its last, goes to decoder and vocoder at `now`."""
        if self._waits_for_sound and request.heard_since is None and _is_heard(request):
            self._unheard[request] = now + FIRST_SOUND_S

    def took_sound(self, request: OpenRequest, seconds: float) -> None:
        """From a chunk's tokens to the next read, which means that it was sent, it has taken `seconds`."""
        self._unheard.pop(request, None)
        self._sound_s += _WEIGHT * (seconds - self._sound_s)

    def forget(self, request: OpenRequest) -> None:
        """`request` has ended."""
        self._unheard.pop(request, None)

    def waits_s(self, now: float) -> float:
        """For how long the engine waits for first sounds, s; 0.0 where it does not, as while a stream runs dry."""
        if self._is_short:
            return 0.0
        return max(0.0, max(self._unheard.values(), default=now) - now)

    def rests_from_now(self, request: OpenRequest) -> bool:
        """Whether `request`, which is new, begins with a rest."""
        return self._is_short and not _is_heard(request)

    def changes(self, requests: Collection[OpenRequest], now: float) -> tuple[list[OpenRequest], list[OpenRequest]]:
        """Who is to rest from `now` on, s (monotonic), and who no longer; none where the last look was not long ago."""
        if now < self._next_look:
            return [], []
        self._next_look = now + LOOK_S
        busy = [request for request in requests if not request.waits_for_text]
        left = {request: self._left_s(request, now) for request in busy if _is_heard(request)}
        self._is_short = min(left.values(), default=ENOUGH_S) < (ENOUGH_S if self._is_short else SHORT_S)
        if not self._is_short:
            return [], [request for request in requests if request.rests]
        rest = {one for one in busy if left.get(one, AHEAD_S) >= AHEAD_S and self._may_rest(one, now)}
        return (
            [request for request in requests if request in rest and not request.rests],
            [request for request in requests if request.rests and request not in rest],
        )

    def _left_s(self, request: OpenRequest, now: float) -> float:
        """What is left to hear of a stream when its next chunk can be there, s."""
        heard_until = request.heard_until
        due = request.text_since + FIRST_S if heard_until is None else heard_until
        return due - now - request.num_missing_steps() * self._step_s - self._sound_s

    @staticmethod
    def _may_rest(request: OpenRequest, now: float) -> bool:
        """Whether `request` has worked for long enough, or not rested for too long."""
        since = now - request.rest_changed_at
        return since < MOST_REST_S if request.rests else since >= LEAST_WORK_S


def _is_heard(request: OpenRequest) -> bool:
    return request.opening.plan.live and not request.is_batch and request.error is None
