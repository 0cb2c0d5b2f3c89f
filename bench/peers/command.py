"""The run: starts the systems, compares their logits, measures them in turns, and says how they compare."""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from bench import report
from bench.model import LOGIT_TOLERANCE, OFFICIAL, causal_logits, distance, random_weights
from bench.peers.processes import Worker, busy_loops, machine_seconds, versions
from bench.peers.table import Group, Point, Turn, group_table, worst_ratios
from bench.peers.weights import draw_codes, write
from bench.plots import draw_beside
from chattts_serving.engine.gpt_config import Precision
from chattts_serving.engine.gpu.gpt import GPT
from chattts_serving.errors import ConfigError

SIZES = replace(OFFICIAL, num_text_tokens=16, spk_emb_id=1, ebreak_id=2, break_0_id=3)  # only codes are computed
WARM_STEPS = 2  # of each turn, not timed: the caches still hold another system's weights
CHECKED = {"sequences": 3, "tokens": 40}  # prompts whose next CHECKED_STEPS logits are compared with float32
CHECKED_STEPS = 12
SLEEPING = ", sleeping"  # OpenMP's threads, which otherwise wait in loops: quicker while they have cores of their own
PACKAGE = {"llama": "llama-cpp-python", "openvino": "openvino"}


@dataclass(frozen=True)
class _System:
    """What a worker is started with, and how far its logits may be from float32, as LOGIT_TOLERANCE.

    `sleeps`: its threads, if it has several, sleep while they wait for each other.
    """

    kind: str
    number_format: str
    tolerance: tuple[float, float]
    sleeps: bool = False


FP32, BF16, INT8 = (LOGIT_TOLERANCE[precision] for precision in (Precision.FP32, Precision.BF16, Precision.INT8))
SYSTEMS = {
    "ours fp32": _System("ours", "fp32", FP32),
    "ours bf16": _System("ours", "bf16", BF16),
    "ours int8": _System("ours", "int8", INT8),
    **{
        f"llama.cpp {number_format}{suffix}": _System("llama", number_format, tolerance, sleeps=bool(suffix))
        for number_format, tolerance in (
            ("F32", FP32),
            ("BF16", BF16),
            ("Q8_0", INT8),
            ("Q4_0", (0.6, 3.0)),  # 0.41 and 1.9 measured
        )
        for suffix in ("", SLEEPING)
    },
    "OpenVINO fp32": _System("openvino", "fp32", FP32),
    "OpenVINO bf16": _System("openvino", "bf16", BF16),
    "OpenVINO int8": _System("openvino", "int8", INT8),
}
GROUPS = (
    Group(
        "int8",
        ("llama.cpp Q8_0", f"llama.cpp Q8_0{SLEEPING}", "OpenVINO int8"),
        ("llama.cpp Q4_0", f"llama.cpp Q4_0{SLEEPING}"),
    ),
    Group("bf16", ("llama.cpp BF16", f"llama.cpp BF16{SLEEPING}", "OpenVINO bf16")),
    Group("fp32", ("llama.cpp F32", f"llama.cpp F32{SLEEPING}", "OpenVINO fp32")),
)


@dataclass(frozen=True)
class Plan:
    """What is measured.

    Attributes:
        batches, contexts: each with each; a context is what sequences have half way through.
        precisions: of GROUPS.
        steps: timed ones of a turn.
        rounds: turns of each system at each point.
        threads: for the time that a step takes; CPU time is measured with one.
        busy: loops beside which all is measured again; 0: it is not.
    """

    batches: tuple[int, ...] = (1, 4, 16)
    contexts: tuple[int, ...] = (150, 300)
    precisions: tuple[str, ...] = ("int8", "bf16", "fp32")
    steps: int = 20
    rounds: int = 3
    threads: int = 1
    busy: int = 0

    def __post_init__(self) -> None:
        """Check it.

        Raises:
            ConfigError: a number is out of its range.
        """
        for name in ("steps", "rounds", "threads"):
            if getattr(self, name) < 1:
                raise ConfigError(f"--{name} is {getattr(self, name)}; allowed is 1 or more")
        if self.busy < 0:
            raise ConfigError(f"--busy is {self.busy}; allowed is 0 or more")
        if min(self.batches) < 1:
            raise ConfigError(f"--batches has {min(self.batches)}; allowed is 1 or more")
        least, most = self.num_steps // 2 + 1, SIZES.max_position_embeddings - self.num_steps
        for context in self.contexts:
            if not least <= context <= most:
                raise ConfigError(
                    f"--contexts has {context}; allowed is {least} to {most}, since {self.num_steps} steps are taken"
                )

    @property
    def num_steps(self) -> int:
        """That each system takes at each point."""
        return self.rounds * (self.steps + WARM_STEPS) * len(self.loops)

    @property
    def loops(self) -> tuple[int, ...]:
        """Busy loops of the turns of a round."""
        return (0, self.busy) if self.busy else (0,)

    @property
    def groups(self) -> list[Group]:
        """Of its precisions."""
        return [group for group in GROUPS if group.precision in self.precisions]

    @property
    def measures(self) -> dict[str, int]:
        """What is measured with how many threads."""
        return {"cpu_ms": 1, "wall_ms": self.threads}

    @property
    def most_tokens(self) -> int:
        """That any system has to cache at once."""
        return max(*self.batches, CHECKED["sequences"]) * (max(*self.contexts, CHECKED["tokens"]) + self.num_steps)


def run(plan: Plan, python: str) -> None:
    """Compare the logits with float32, measure, print tables and ratios, write JSON and plot.

    Args:
        plan: what is measured.
        python: the interpreter that has the peers' packages; a peer without its package is left out.

    Raises:
        ConfigError: no peer is there, or a system does not start.
        AssertionError: a system's logits are too far from those of float32: it computes something else.
    """
    found = versions(python)
    groups = [_installed(group, found) for group in plan.groups]
    if not any(group.peers for group in groups):
        raise ConfigError(
            f"{python} has neither llama-cpp-python nor openvino: install the extra 'peers', or say --python"
        )
    weights = random_weights(SIZES)
    turns: list[Turn] = []
    errors: dict[str, dict[str, float]] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write(folder, SIZES, {name: weight.numpy() for name, weight in weights.items()})
        expected = _expected_logits(GPT(SIZES, weights, torch.device("cpu")))
        passes = [(threads, group) for threads in sorted(set(plan.measures.values())) for group in groups]
        with tqdm(total=len(passes) * len(plan.contexts) * len(plan.batches), desc="peers", unit="point") as bar:
            for threads, group in passes:
                with _started(group, python, folder, threads, plan.most_tokens) as workers:
                    errors |= _check(workers, expected, folder)
                    for context in plan.contexts:
                        for sequences in plan.batches:
                            turns += _measure(workers, plan, Point(threads, 0, context, sequences))
                            bar.update()
    for system, error in errors.items():
        print("{}: logits differ from float32 by {rms:.2g} rms and {largest:.2g} at most".format(system, **error))
    ratios = {group.precision: worst_ratios(turns, group, plan.measures) for group in groups}
    others = float(np.mean([turn.others for turn in turns if not turn.point.busy]))
    settings = {**asdict(plan), "versions": found}
    results = {
        "settings": settings,
        "groups": [asdict(group) for group in groups],
        "logit_errors": errors,
        "others": others,
        "worst_ratios": ratios,
        "turns": [asdict(turn) for turn in turns],
    }
    path = report.write("peers", results)
    print(f"raw numbers: {path}")
    draw_beside([path])
    for group in groups:
        for what, threads in plan.measures.items():
            unit = "CPU ms" if what == "cpu_ms" else "ms"
            print(f"\n{group.precision}, {unit} a step, threads: {threads}")
            print(group_table(turns, group, threads, what))
    print(f"\nother programs kept {others:.2f} cores busy meanwhile")
    print(ratio_lines(ratios))


def ratio_lines(ratios: Mapping[str, Mapping[str, float]]) -> str:
    """The largest ratios of each precision, as the last lines of the output; programs read them."""
    return "\n".join(
        " ".join(
            [f"ours_vs_best_peer precision={precision}", *(f"{name}={value:.2f}" for name, value in found.items())]
        )
        for precision, found in ratios.items()
    )


def _installed(group: Group, found: Mapping[str, str]) -> Group:
    """Without the peers whose package is not there."""

    def kept(names: Sequence[str]) -> tuple[str, ...]:
        return tuple(name for name in names if PACKAGE[SYSTEMS[name].kind] in found)

    return replace(group, peers=kept(group.peers), others=kept(group.others))


@contextmanager
def _started(group: Group, python: str, folder: Path, threads: int, num_tokens: int) -> Iterator[dict[str, Worker]]:
    """The workers of `group`, by system."""
    with ExitStack() as stack:
        workers = {}
        for name in group.systems:
            system = SYSTEMS[name]
            if system.sleeps and threads == 1:
                continue  # it waits for nobody
            interpreter = sys.executable if system.kind == "ours" else python
            worker = Worker(
                interpreter,
                system.kind,
                system.number_format,
                folder=folder,
                threads=threads,
                num_tokens=num_tokens,
                sleeps=system.sleeps,
            )
            stack.callback(worker.close)
            worker.wait_until_ready()
            workers[name] = worker
        yield workers


def _expected_logits(reference: GPT) -> torch.Tensor:
    """In float32, [sequences, steps, outputs]."""
    codes = draw_codes(SIZES, CHECKED["sequences"], CHECKED["tokens"] + CHECKED_STEPS)
    with torch.inference_mode():
        logits = [causal_logits(reference, reference.embed_codes(torch.from_numpy(one).long())) for one in codes]
    return torch.stack(logits)[:, CHECKED["tokens"] :].flatten(2)


def _check(workers: Mapping[str, Worker], expected: torch.Tensor, folder: Path) -> dict[str, dict[str, float]]:
    """How far each system's logits are from `expected`."""
    errors = {}
    for name, worker in workers.items():
        path = folder / "logits.npy"
        worker.ask("begin", **CHECKED, room=CHECKED_STEPS)
        worker.ask("logits", steps=CHECKED_STEPS, path=str(path))
        error = errors[name] = distance(torch.from_numpy(np.load(path)).transpose(0, 1), expected)
        rms, largest = (share * error["size"] for share in SYSTEMS[name].tolerance)
        if not (error["rms"] <= rms and error["largest"] <= largest):
            raise AssertionError(
                f"{name}: logits differ from float32 by {error['rms']:.2g} rms and {error['largest']:.2g} at most; "
                f"allowed are {rms:.2g} and {largest:.2g}"
            )
    return errors


def _measure(workers: Mapping[str, Worker], plan: Plan, point: Point) -> list[Turn]:
    """The turns of all systems at `point`, quiet, and beside loops."""
    for worker in workers.values():
        first = point.context - plan.num_steps // 2
        worker.ask("begin", sequences=point.sequences, tokens=first, room=plan.num_steps)
    turns = []
    for _ in range(plan.rounds):
        for busy in plan.loops:
            with busy_loops(busy):
                for name, worker in workers.items():
                    turns.append(_turn(name, worker, plan.steps, replace(point, busy=busy)))
    return turns


def _turn(name: str, worker: Worker, steps: int, point: Point) -> Turn:
    worker.ask("steps", count=WARM_STEPS)
    busy, started = machine_seconds(), time.perf_counter()
    times = worker.ask("steps", count=steps)
    seconds = time.perf_counter() - started
    others = (machine_seconds() - busy - sum(times["cpu_ms"]) / 1e3) / seconds
    return Turn(name, point, float(np.mean(times["wall_ms"])), float(np.mean(times["cpu_ms"])), others)
