"""One run of training, the same for every model: goes on where the last one was stopped; writes curves and weights."""

from __future__ import annotations

import json
import math
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TypeVar

import torch
from torch import nn

from training.modules import repeated

Module = TypeVar("Module", bound=nn.Module)
Losses = Callable[[], tuple[torch.Tensor, Mapping[str, torch.Tensor]]]  # what is minimised, and what is shown

SAVE_EVERY_S = 60.0
SHOW_EVERY = 50  # steps of which the mean is shown
WARM_UP_STEPS = 100  # of optimizers that know nothing yet
LEAST_RATE = 0.05  # of the rate, at the end of a run
WEIGHT_DECAY = 0.05
MOST_GRADIENT = 1.0  # norm


def train(
    module: nn.Module,
    losses: Losses,
    file: Path,
    minutes: float,
    *,
    rate: float,
    beside: Callable[[], Mapping[str, object]] = dict,
) -> None:
    """Train `module` for `minutes`; the rate falls as a cosine of the time.

    Matrices of what is repeated learn by Muon (Jordan et al. 2024), scaled as in Liu et al. 2025, so that one rate does
    for all; everything else by AdamW (Loshchilov and Hutter 2019).

    Args:
        module: goes on with the weights of `file`, if it is there.
        losses: of one step, on a batch of its own.
        file: weights, optimizer and what is `beside` them; the curve has the same name and ends in ".jsonl".
        minutes: of this run.
        rate: of learning, at most.
        beside: plain values that the file is to have when it is written.
    """
    optimizers = _optimizers(module)
    step, spent_s = 0, 0.0
    if file.exists():
        state = torch.load(file, weights_only=True, map_location="cpu")
        module.load_state_dict(state["model"])
        if "optimizers" in state:  # weights that were taken or unpacked have none
            for optimizer, known in zip(optimizers, state["optimizers"], strict=True):
                optimizer.load_state_dict(known)
            step, spent_s = state["step"], state["spent_s"]
    curve, first = _Curve(file.with_suffix(".jsonl")), step - (WARM_UP_STEPS if step else 0)
    began = saved = time.monotonic()
    share = 0.0
    while share < 1:
        share = min(1.0, (time.monotonic() - began) / (60 * minutes))
        falling = LEAST_RATE + (1 - LEAST_RATE) * 0.5 * (1 + math.cos(math.pi * share))
        for group in (group for optimizer in optimizers for group in optimizer.param_groups):
            group["lr"] = rate * falling * min(1.0, (step - first + 1) / WARM_UP_STEPS)
        loss, shown = losses()
        module.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(module.parameters(), MOST_GRADIENT)
        for optimizer in optimizers:
            optimizer.step()
        step += 1
        now = time.monotonic()
        curve.add(step, spent_s + now - began, shown)
        if now > saved + SAVE_EVERY_S or share == 1:
            saved = now
            state = {"model": module.state_dict(), "optimizers": [one.state_dict() for one in optimizers]}
            torch.save({**state, "step": step, "spent_s": spent_s + now - began, **beside()}, file.with_suffix(".new"))
            file.with_suffix(".new").replace(file)


def load(module: Module, file: Path) -> Module:
    """`module` with the weights of `file`."""
    module.load_state_dict(torch.load(file, weights_only=True, map_location="cpu")["model"])
    return module.eval()


def _optimizers(module: nn.Module) -> list[torch.optim.Optimizer]:
    """Of the matrices of repeated blocks, and of all else, of which vectors and embeddings do not decay."""
    in_blocks = {id(one): one for block in repeated(module) for one in block.parameters() if one.ndim == 2}
    embeddings = {id(one.weight) for one in module.modules() if isinstance(one, nn.Embedding)}
    decaying: list[nn.Parameter] = []
    rest: list[nn.Parameter] = []
    for one in module.parameters():
        if id(one) not in in_blocks:
            (decaying if one.ndim >= 2 and id(one) not in embeddings else rest).append(one)
    groups = [{"params": decaying, "weight_decay": WEIGHT_DECAY}, {"params": rest, "weight_decay": 0.0}]
    return [
        torch.optim.Muon(in_blocks.values(), weight_decay=WEIGHT_DECAY, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(groups, betas=(0.9, 0.98)),
    ]


class _Curve:
    """Losses as they fall: means over some steps, a line of JSON each, on the terminal and in a file."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self._values: dict[str, list[torch.Tensor]] = defaultdict(list)

    def add(self, step: int, seconds: float, values: Mapping[str, torch.Tensor]) -> None:
        """What step number `step` saw, `seconds` of training after the first."""
        for name, value in values.items():
            self._values[name].append(value.detach())  # a GPU is not waited for
        if step % SHOW_EVERY == 0:
            means = {name: round(torch.stack(seen).mean().item(), 4) for name, seen in self._values.items()}
            line = json.dumps({"step": step, "minutes": round(seconds / 60, 2)} | means)
            with self._file.open("a", encoding="utf-8") as file:
                file.write(line + "\n")
            print(line, file=sys.stderr, flush=True)
            self._values.clear()
