"""The C library by ctypes: its structures (as in gpt.h), weights in its layout, and the threads that run a step."""

from __future__ import annotations

import ctypes
import threading
from enum import IntEnum
from functools import cache
from pathlib import Path

import numpy as np
import numpy.typing as npt

from chattts_serving.errors import ConfigError

Array = npt.NDArray[np.generic]

PANEL = 32  # output columns that lie together
ALIGNMENT = 64  # bytes, a cache line
LANES = 16  # sizes have to be multiples of the widest vector
MAX_CODEBOOKS = 8
MAX_HEAD_DIM = 256
INT8_MAX = 127
SMALLEST_ROW = (
    1e-8  # largest magnitude of a weight's row that is still scaled: keeps rows of zeros from dividing by zero
)

INSTRUCTION_SETS = ("avx512", "avx2", "plain")


class WeightKind(IntEnum):
    """What `Model.weights` of gpt.h says."""

    FLOAT32 = 0
    BFLOAT16 = 1
    INT8 = 2


class Matrix(ctypes.Structure):
    """`Matrix` of gpt.h."""

    _fields_ = (
        ("data", ctypes.c_void_p),
        ("scales", ctypes.c_void_p),
        ("offsets", ctypes.c_void_p),
        ("panels", ctypes.c_int64),
        ("inputs", ctypes.c_int32),
    )


class Layer(ctypes.Structure):
    """`Layer` of gpt.h."""

    _fields_ = (
        *((name, Matrix) for name in ("qkv", "o", "gate_up", "down")),
        *((name, ctypes.c_void_p) for name in ("input_norm", "post_norm")),
    )


class Model(ctypes.Structure):
    """`Model` of gpt.h."""

    _fields_ = (
        *(
            (name, ctypes.c_int32)
            for name in (
                "hidden",
                "intermediate",
                "num_layers",
                "heads",
                "head_dim",
                "num_codebooks",
                "num_text_tokens",
                "num_audio_tokens",
                "ebreak",
                "eos",
                "weights",
            )
        ),
        ("rms_norm_eps", ctypes.c_float),
        ("cache_tokens", ctypes.c_int64),
        ("max_positions", ctypes.c_int64),
        ("layers", ctypes.POINTER(Layer)),
        ("head_text", Matrix),
        ("head_code", Matrix),
        *(
            (name, ctypes.c_void_p)
            for name in (
                "norm",
                "embed_text",
                "embed_code",
                "rope_cos",
                "rope_sin",
                "keys",
                "values",
                "key_scales",
                "value_scales",
                "hidden_states",
                "tokens",
                "looks",
                "text_heads",
            )
        ),
        ("num_text_heads", ctypes.c_int64),
    )


class Batch(ctypes.Structure):
    """`Batch` of gpt.h."""

    _fields_ = (
        ("entries", ctypes.c_void_p),
        ("tokens", ctypes.c_void_p),
        *((name, ctypes.c_int64) for name in ("num_entries", "num_rows", "num_audio", "num_text")),
    )


WORKSPACE = (
    "x",
    "normed",
    "qkv",
    "attended",
    "activated",
    "bytes",
    "scales",
    "last",
    "text_logits",
    "code_logits",
    "scores",
    "sampling",
)


class Workspace(ctypes.Structure):
    """`Workspace` of gpt.h."""

    _fields_ = tuple((name, ctypes.c_void_p) for name in WORKSPACE)


ENTRY = np.dtype(
    [
        ("cache_start", np.int64),
        ("num_cached", np.int64),
        ("num_new", np.int64),
        ("first_row", np.int64),
        ("text_first", np.int64),
        ("text_end", np.int64),
        ("seed", np.int64),
        ("speaker", np.uint64),
        ("draws", np.int32),
        ("top_k", np.int32),
        ("ban_end", np.int32),
        ("step", np.int32),
        ("stream", np.uint32),
        ("temperature", np.float32),
        ("top_p", np.float32),
        ("repetition_penalty", np.float32),
        ("head_row", np.int32),
        ("drawn", np.int32, (MAX_CODEBOOKS,)),
    ],
    align=True,
)
"""`Entry` of gpt.h."""


@cache
def load() -> ctypes.CDLL:
    """The library that installing the project has built.

    Raises:
        ConfigError: it has not been built, does not load on this machine, or was built from other sources.
    """
    folder = Path(__file__).parent
    path = next(folder.glob("_gpt*.so"), None)
    if path is None:
        raise ConfigError(f"there is no library _gpt*.so in {folder}: install the project with a C compiler")
    try:
        library = ctypes.CDLL(str(path))
        library.chattts_sizes.restype = None
        sizes = (ctypes.c_int64 * 4)()
        library.chattts_sizes(sizes)
    except (OSError, AttributeError) as error:
        raise ConfigError(f"cannot load {path}: {error}; install the project again on this machine") from error
    expected = [*(ctypes.sizeof(kind) for kind in (Model, Batch, Workspace)), ENTRY.itemsize]
    if list(sizes) != expected:
        raise ConfigError(f"{path} was built from other sources than these: install the project again")
    library.chattts_instruction_set.restype = ctypes.c_char_p
    library.chattts_open.argtypes = (ctypes.c_int, ctypes.c_char_p)
    library.chattts_open.restype = ctypes.c_void_p
    library.chattts_close.argtypes = (ctypes.c_void_p,)
    library.chattts_close.restype = None
    pointers = (ctypes.POINTER(Model), ctypes.POINTER(Batch), ctypes.POINTER(Workspace))
    library.chattts_step.argtypes = (ctypes.c_void_p, *pointers)
    library.chattts_step.restype = None
    return library


def instruction_set() -> str:
    """The fastest of INSTRUCTION_SETS that this CPU does."""
    name: bytes = load().chattts_instruction_set()
    return name.decode()


class Threads:
    """Threads that compute steps together, the caller's among them; one caller at a time."""

    def __init__(self, count: int, instructions: str | None = None) -> None:
        """Start `count` - 1 threads.

        Args:
            count: 1 or more.
            instructions: one of INSTRUCTION_SETS, which this CPU must do; None takes the fastest.

        Raises:
            ConfigError: the threads cannot be started.
        """
        self._library = load()
        self._pool = self._library.chattts_open(count, (instructions or instruction_set()).encode())
        if not self._pool:
            raise ConfigError(f"cannot start {count} threads of {instructions or instruction_set()}")

    def step(self, model: Model, batch: Batch, work: Workspace) -> None:
        """Compute one step; the other Python threads go on meanwhile."""
        self._library.chattts_step(self._pool, ctypes.byref(model), ctypes.byref(batch), ctypes.byref(work))

    def close(self) -> None:
        """End the threads."""
        if self._pool:
            self._library.chattts_close(self._pool)
            self._pool = None

    def __del__(self) -> None:
        """End the threads with the object."""
        if getattr(self, "_pool", None):
            self.close()


class Memory:
    """Arrays whose addresses C holds, kept alive here.

    Weights lie in large blocks: for those NumPy asks Linux for huge pages, so that reading them all takes few
    translations of addresses.
    """

    BLOCK = 2**26  # bytes

    def __init__(self) -> None:
        """Empty."""
        self._arrays: list[Array] = []
        self._block = np.empty(0, np.uint8)
        self._lock = threading.Lock()

    def address(self, array: Array) -> int:
        """Where `array`, kept from now on, begins."""
        self._arrays.append(array)
        return array.ctypes.data

    def take_over(self, array: Array) -> int:
        """Where a copy of `array` begins, in one piece whatever its strides are."""
        with self._lock:
            if array.nbytes > len(self._block):
                self._block = np.empty(max(self.BLOCK, array.nbytes), np.uint8)
            place, self._block = np.split(self._block, [array.nbytes])
            self._block = self._block[-place.nbytes % ALIGNMENT :]
        copy = place.view(array.dtype).reshape(array.shape)
        copy[...] = array
        return self.address(copy)

    def matrix(self, weight: npt.NDArray[np.float32], kind: WeightKind) -> Matrix:
        """`weight` [outputs, inputs] in panels, its outputs padded with zeros to a multiple of 32."""
        missing = -len(weight) % PANEL
        if missing:
            weight = np.concatenate([weight, np.zeros((missing, weight.shape[1]), np.float32)])
        panels, inputs = len(weight) // PANEL, weight.shape[1]
        if kind is not WeightKind.INT8:
            numbers = weight if kind is WeightKind.FLOAT32 else bfloat16(weight)
            data = numbers.reshape(panels, PANEL, inputs).transpose(0, 2, 1)
            return Matrix(self.take_over(data), None, None, panels, inputs)
        scales = np.maximum(np.abs(weight).max(1), SMALLEST_ROW) / np.float32(INT8_MAX)
        integers = np.rint(weight / scales[:, None]).astype(np.int8)
        data = integers.reshape(panels, PANEL, inputs // 4, 4).transpose(0, 2, 1, 3)
        offsets = 128 * integers.sum(1, dtype=np.int32)
        return Matrix(self.take_over(data), self.take_over(scales), self.take_over(offsets), panels, inputs)


def bfloat16(numbers: npt.NDArray[np.float32]) -> npt.NDArray[np.uint16]:
    """The bits of `numbers` rounded to bfloat16, to the nearest, ties to even."""
    bits = np.ascontiguousarray(numbers).view(np.uint32)
    return ((bits + 0x7FFF + (bits >> 16 & 1)) >> 16).astype(np.uint16)


def gate_and_up(weight: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Rows [2 * intermediate, hidden], gate before up, in the order of `Epilogue` GATE: 16 of each in turns."""
    half = PANEL // 2
    return weight.reshape(2, -1, half, weight.shape[1]).swapaxes(0, 1).reshape(weight.shape)


def check_sizes(*, hidden: int, intermediate: int, head_dim: int, num_codebooks: int) -> None:
    """Check that the library can compute a model of these sizes.

    Raises:
        ConfigError: names the size, its value and what is allowed.
    """
    for name, value in (("hidden size", hidden), ("MLP size", intermediate), ("head size", head_dim)):
        if value % LANES:
            raise ConfigError(f"the model's {name} is {value}; allowed on a CPU are multiples of {LANES}")
    for name, value, most in (("head size", head_dim, MAX_HEAD_DIM), ("codebooks", num_codebooks, MAX_CODEBOOKS)):
        if value > most:
            raise ConfigError(f"the model's {name} is {value}; allowed on a CPU is {most} or less")
