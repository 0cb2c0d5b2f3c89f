"""Exported artifacts beside what they come from: ChatTTS, vocos and transformers on the same checkpoint."""

from __future__ import annotations

from pathlib import Path

from export.chattts_package import load_chat
from export.checkpoint import Checkpoint
from export.frontend_assets import check_tokenizer
from export.gpt_parity import check_gpt
from export.onnx_models import MODEL_FILE
from export.onnx_parity import check_decoder, check_encoder, check_vocos
from export.parity import ParityResult


def compare(checkpoint: Checkpoint, repository: Path, precision: str) -> list[ParityResult]:
    """How far each artifact in `repository` is from its source; `precision` is that of `export_onnx_models`.

    Raises:
        ConfigError: ChatTTS cannot be imported or does not load the checkpoint.
    """
    chat = load_chat(checkpoint.directory)
    return [
        check_tokenizer(checkpoint, repository / "text_frontend" / "1"),
        *check_gpt(chat, repository / "gpt_decoder" / "1"),
        check_decoder(chat.decoder, repository / "dvae_decoder" / MODEL_FILE, precision),
        check_vocos(chat.vocos, repository / "vocos" / MODEL_FILE, precision),
        check_encoder(chat.dvae, repository / "dvae_encoder" / MODEL_FILE),
    ]
