"""Every GPU kernel is compiled to machine code for the GPUs that are supported; needs Triton, no GPU."""

import pytest

triton = pytest.importorskip("triton")
from triton.backends.compiler import GPUTarget  # noqa: E402
from triton.compiler import ASTSource  # noqa: E402

from chattts_serving.engine.gpu import lanes, triton_kernels, triton_ops  # noqa: E402

ARCHITECTURES = {80: "A100", 86: "A10", 89: "L4, L20, 4090", 90: "H100"}
HIDDEN = {"HIDDEN": 768, "BLOCK": 1024}
HEADS = {"HEADS": 12, "HEAD_DIM": 64}
BOOKS = {"CODEBOOKS": 4, "CODES_IN_BOOK": 626}
LANES = {"WIDTH": lanes.row_width(4)}
PROMPT = {"COLUMNS": lanes.PROMPT_TOKENS + 4}
PARTS = {**LANES, **HEADS, "BLOCK": triton_ops.CACHE_BLOCK}
INT32 = ("state", "rows", "prompt", "drawn", "candidates")
FLOAT32 = ("cos", "sin", "partial", "logits")
NUMBERS = {"eps": "fp32", "scale": "fp32", "unused_row": "i32", "num_tokens": "i32", "end_token": "i32"}
WARPS = {
    "sample_text": triton_ops.TEXT_WARPS,
    "attend_lanes": triton_ops.CACHE_WARPS,
    "merge_parts": 1,
    "cache_prompt": 1,
}

KERNELS = [
    ("rms_norm", HIDDEN),
    ("add_rms_norm", HIDDEN),
    ("silu_mul", {"INTERMEDIATE": 3072, "BLOCK": triton_ops.SILU_BLOCK}),
    ("embed_prompt", {**PROMPT, **HIDDEN, **BOOKS}),
    ("embed_lanes", {**LANES, **HIDDEN, **BOOKS}),
    ("store_lanes", {**LANES, **HIDDEN}),
    ("attend_lanes", {**PARTS, "SPLITS": 1}),
    ("attend_lanes", {**PARTS, "SPLITS": triton_ops.MAX_SPLITS}),
    ("merge_parts", {**PARTS, "SPLITS": triton_ops.MAX_SPLITS}),
    ("cache_prompt", {**PROMPT, **HEADS}),
    ("attend_prompt", {**PROMPT, **HEADS, "BLOCK_Q": triton_ops.PROMPT_BLOCK, "BLOCK_K": triton_ops.PROMPT_BLOCK}),
    ("store_prompt", {**PROMPT, **HIDDEN}),
    (
        "sample_text",
        {**LANES, "CODEBOOKS": 4, "VOCABULARY": 21_178, "BLOCK": 32_768, "CANDIDATES": triton_ops.MAX_CANDIDATES},
    ),
    ("sample_codes", {**LANES, "CODEBOOKS": 4, "VOCABULARY": 626, "BLOCK": 1024}),
]


def argument_type(name, dtype):
    if name in NUMBERS:
        return NUMBERS[name]
    return "*i32" if name in INT32 else "*fp32" if name in FLOAT32 else f"*{dtype}"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("dtype", "architecture"), [*(("bf16", architecture) for architecture in ARCHITECTURES), ("fp16", 86), ("fp32", 90)]
)
def test_kernels_compile(dtype, architecture):
    for name, constants in KERNELS:
        kernel = getattr(triton_kernels, name)
        signature = {
            argument: "constexpr" if argument in constants else argument_type(argument, dtype)
            for argument in kernel.arg_names
        }
        compiled = triton.compile(
            ASTSource(kernel, signature, constants),
            target=GPUTarget("cuda", architecture, 32),
            options={"num_warps": WARPS.get(name, 4)},
        )
        assert compiled.asm["cubin"], name
