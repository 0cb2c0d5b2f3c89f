"""What a run launches is compiled to machine code for the GPUs that are supported; needs Triton, no GPU.

The runner's own steps choose the kernels and their arguments, by which Triton specialises them. A stand-in for Triton's
driver names the GPU, and kernels are not launched, so that tensors may lie on the CPU.
"""

import re
import subprocess
from collections import defaultdict
from dataclasses import replace
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch

triton = pytest.importorskip("triton")
from triton.backends.compiler import GPUTarget  # noqa: E402
from triton.runtime.driver import driver  # noqa: E402
from triton.runtime.jit import JITFunction  # noqa: E402

from chattts_serving.engine.gpt_config import TextHead, weight_shapes  # noqa: E402
from chattts_serving.engine.gpu import lanes  # noqa: E402
from chattts_serving.engine.gpu.gpt import GPT  # noqa: E402
from chattts_serving.engine.gpu.runner import TorchRunner  # noqa: E402
from chattts_serving.engine.gpu.triton_ops import TritonOps  # noqa: E402
from chattts_serving.engine.gpu.variants import Variant  # noqa: E402
from tests.engine.gpu.test_triton_kernels import INTERPRETED  # noqa: E402
from tests.engine.models import CONFIG  # noqa: E402

SHARED_KIB = {80: 163, 86: 99, 89: 99, 90: 227}  # that a program may have: A100; A10; L4, L20, 4090; H100
SIZES = replace(
    CONFIG,
    hidden_size=768,
    intermediate_size=3072,
    num_layers=1,
    num_heads=12,
    max_position_embeddings=4096,
    num_text_tokens=21_178,
    num_audio_tokens=626,
    text_heads=(TextHead(0, 3, 0), TextHead(0, 7, 2)),
)
OTHER = Variant(cache_chunk=64, cache_stages=3, merge_in_place=True, own_products=True, one_pass=True)
WATCHING = {"attend_lanes": 2}  # with looks and without
OWN_PRODUCTS = {"linear": 5, "add_rms_norm": 2}  # qkv, o, down and two heads; after our own products, the library's
MOST_STACK = 16  # bytes a thread: what does not fit into registers goes there
MAX_SEQUENCES = 256
CUOBJDUMP = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"

pytestmark = pytest.mark.skipif(INTERPRETED, reason="the interpreter compiles nothing")


class Target:
    """In place of Triton's driver. Kernels are kept by device, so its number is the architecture's."""

    def __init__(self, architecture):
        self.architecture = architecture

    def get_current_target(self):
        return GPUTarget("cuda", self.architecture, 32)

    def get_current_device(self):
        return self.architecture

    def get_current_stream(self, _device):
        return 0


def launched(patch, dtype, architecture, variant):
    """Kernels that a run launches, compiled, a set for each name."""
    compiled, run = defaultdict(set), JITFunction.run

    def record(self, *args, grid, warmup, **options):
        assert all(0 < size < 65_536 for size in grid[1:]), (self.__name__, grid)
        compiled[self.__name__].add(run(self, *args, grid=grid, warmup=True, **options))

    def zeros(x, weight):
        return torch.zeros(len(x), len(weight))

    patch.setattr(JITFunction, "run", record)
    patch.setattr(driver, "_active", Target(architecture))
    patch.setattr(torch.nn.functional, "linear", lambda x, weight: x.new_zeros(len(x), len(weight)))
    patch.setattr("chattts_serving.engine.gpu.triton_layer_ops.float32_linear", zeros)
    weights = {name: torch.zeros(shape) for name, shape in weight_shapes(SIZES).items()}
    model = GPT(SIZES, weights, torch.device("cpu"))
    model.dtype = dtype
    for table in (model.embed_table, model._matrix, model._norm):
        table.update({name: tensor.to(dtype) for name, tensor in table.items()})
    runner = TorchRunner(model, kv_cache_gb=0.1, max_sequences=MAX_SEQUENCES, max_prefill_tokens=512)
    runner._ops = TritonOps(model, runner._buffers, variant)
    for sizes in product(runner._lane_buckets, (False, True)):
        runner._decode(*sizes)
    for size in runner._prompt_buckets:
        runner._compute_prompt(size)
    for size in (1, 333, 1040):  # prompts for which there is no graph
        rows = lanes.unused_prompt_rows(0, size, SIZES.num_codebooks, runner.num_cache_tokens, MAX_SEQUENCES)
        runner._compute_tokens(torch.from_numpy(rows.astype(np.int32)))
    if variant.one_pass:
        for size, watch in product(runner._lane_buckets, (False, True)):
            runner._decode_and_prompt(size, 64, watch)
    for size in (1, 3, 16):
        runner._ops.sample_text(model.text_logits(torch.zeros(size, SIZES.hidden_size, dtype=dtype), runner._ops))
    return compiled


def usage(kernel, folder):
    """Registers and bytes of stack of one thread."""
    path = folder / "kernel.cubin"
    path.write_bytes(kernel.asm["cubin"])
    told = subprocess.run([CUOBJDUMP, "-res-usage", path], capture_output=True, text=True, check=True)
    registers, stack, local = re.search(r"REG:(\d+) STACK:(\d+) .*LOCAL:(\d+)", told.stdout + told.stderr).groups()
    return int(registers), int(stack) + int(local)


@pytest.mark.slow
@pytest.mark.parametrize("variant", [Variant(), OTHER], ids=["default", "other"])
@pytest.mark.parametrize(
    ("dtype", "architecture"),
    [
        *((torch.bfloat16, architecture) for architecture in SHARED_KIB),
        *((dtype, architecture) for dtype in (torch.float16, torch.float32) for architecture in (80, 90)),
    ],
)
def test_what_a_run_launches_fits_into_registers_and_shared_memory(monkeypatch, tmp_path, dtype, architecture, variant):
    """And a batch or prompt of another size compiles nothing anew."""
    for name, kernels in launched(monkeypatch, dtype, architecture, variant).items():
        expected = WATCHING.get(name, OWN_PRODUCTS.get(name, 1) if variant.own_products else 1)
        assert len(kernels) == expected, f"{name} was compiled {len(kernels)} times"
        for kernel in kernels:
            registers, stack = usage(kernel, tmp_path)
            shared, warps = kernel.metadata.shared, kernel.metadata.num_warps
            print(f"{name:14} {warps:2} warps, {registers:3} registers, {stack} bytes of stack, {shared:6} shared")
            assert stack <= MOST_STACK, f"{name}: {stack} bytes of stack"
            assert shared <= SHARED_KIB[architecture] * 1024, f"{name}: {shared} bytes of shared memory"
