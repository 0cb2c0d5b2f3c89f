"""Checkpoints of seeded random weights in the official layout, which ChatTTS itself loads.

`synthetic` has the official sizes and serves as oracle and load-test model; `tiny` is for tests; `slim`, for
`python -m bench host`, has hidden states of the official width and next to nothing else. Their audio is noise.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
from pathlib import Path

from safetensors.numpy import save_file

from chattts_serving.errors import ConfigError, shown
from export.checkpoint import Checkpoint
from export.layout import (
    GPT_CONFIG_FILE,
    SPEAKER_STATISTICS_FILE,
    GPTSizes,
    Sizes,
    tensor_shapes,
)
from export.sizes import SIZES
from export.synthetic_tokenizer import CHATTTS_TOKENS, wordpiece_vocabulary, write_tokenizer
from export.synthetic_weights import make_speaker_statistics, make_tensors

MARKER_FILE = "synthetic.json"  # what a folder was made of, so that it is reused only for the same
_SOURCES = ("layout.py", "sizes.py", "synthetic.py", "synthetic_tokenizer.py", "synthetic_weights.py")


def write_checkpoint(size: str, out_dir: Path, seed: int = 0) -> Checkpoint:
    """Write a checkpoint folder; nothing half-written stays under its name.

    The same size and seed give the same tensors, whatever torch's and NumPy's global generators have drawn.

    Args:
        size: "synthetic" (official sizes, 1.1 GB), "tiny" (2 MB) or "slim".
        out_dir: an earlier synthetic checkpoint there is replaced.
        seed: >= 0.

    Raises:
        ConfigError: an unknown size, a seed out of range, or `out_dir` holds something else.
    """
    if size not in SIZES:
        raise ConfigError(f"size of a synthetic checkpoint is {shown(size)}; allowed is one of {', '.join(SIZES)}")
    if seed < 0:
        raise ConfigError(f"seed of a synthetic checkpoint is {seed}; allowed is 0 or more")
    if out_dir.exists() and any(out_dir.iterdir()) and not (out_dir / MARKER_FILE).is_file():
        raise ConfigError(f"{out_dir} exists and is no synthetic checkpoint; remove it or choose another folder")
    out_dir.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out_dir.parent, prefix=f".{out_dir.name}-") as temporary:
        folder = Path(temporary) / "checkpoint"
        _write_folder(SIZES[size], folder, seed)
        (folder / MARKER_FILE).write_text(json.dumps(_marker(size, seed)), encoding="utf-8")
        shutil.rmtree(out_dir, ignore_errors=True)
        folder.replace(out_dir)
    return Checkpoint.load(out_dir)


def ensure_checkpoint(size: str, out_dir: Path, seed: int = 0) -> Checkpoint:
    """The checkpoint in `out_dir`, written first unless an equal and complete one is there.

    Raises:
        ConfigError: as `write_checkpoint`.
    """
    try:
        if json.loads((out_dir / MARKER_FILE).read_text(encoding="utf-8")) == _marker(size, seed):
            return Checkpoint.load(out_dir)
    except (OSError, ValueError, ConfigError):
        pass  # absent or broken: written anew
    return write_checkpoint(size, out_dir, seed)


def _marker(size: str, seed: int) -> dict[str, object]:
    digest = hashlib.sha256()
    for name in _SOURCES:
        digest.update((Path(__file__).parent / name).read_bytes())
    return {"size": size, "seed": seed, "generator": digest.hexdigest()}


def _write_folder(sizes: Sizes, folder: Path, seed: int) -> None:
    for file, shapes in tensor_shapes(sizes).items():
        path = folder / file
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file(make_tensors(sizes, file, shapes, seed), path, metadata={"format": "pt"})
    write_gpt_config(sizes.gpt, folder / GPT_CONFIG_FILE)
    write_tokenizer(wordpiece_vocabulary(sizes.gpt.num_text_tokens - len(CHATTTS_TOKENS)), folder / "asset/tokenizer")
    if sizes.gpt.hidden != SIZES["synthetic"].gpt.hidden:  # ChatTTS's own statistics fit the official size only
        statistics = make_speaker_statistics(sizes.gpt.hidden, seed)
        (folder / SPEAKER_STATISTICS_FILE).write_text(statistics, encoding="utf-8")


def write_gpt_config(gpt: GPTSizes, path: Path) -> None:
    """The config.json of a Llama of these sizes."""
    config = {
        "architectures": ["LlamaModel"],
        "model_type": "llama",
        "hidden_size": gpt.hidden,
        "intermediate_size": gpt.intermediate,
        "num_hidden_layers": gpt.num_layers,
        "num_attention_heads": gpt.num_heads,
        "num_key_value_heads": gpt.num_heads,
        "max_position_embeddings": gpt.max_positions,
        "rms_norm_eps": gpt.rms_norm_eps,
        "rope_theta": gpt.rope_theta,
        "hidden_act": "silu",
        "attention_bias": False,
        "mlp_bias": False,
        "torch_dtype": "float32",
        "vocab_size": 1,  # ChatTTS deletes the Llama's own embedding; none is stored
        "bos_token_id": None,
        "eos_token_id": None,
    }
    path.write_text(json.dumps(config, indent=2), encoding="utf-8")
