"""Sizes of the demo checkpoint and where its parts lie while they are made."""

from __future__ import annotations

from pathlib import Path

from export.layout import ConvNeXtSizes, GPTSizes, Sizes, VocosSizes
from export.synthetic_tokenizer import CHATTTS_TOKENS
from training.vocabulary import VOCABULARY

FOLDER = Path(__file__).parent.parent / "build" / "training"
DEMO = Path(__file__).parent.parent / "export" / "demo"

HIDDEN = 256
SIZES = Sizes(
    gpt=GPTSizes(
        hidden=HIDDEN,
        intermediate=640,
        num_layers=5,
        num_heads=4,
        max_positions=4096,
        rms_norm_eps=1e-6,
        rope_theta=10_000.0,
        num_text_tokens=len(VOCABULARY) + len(CHATTTS_TOKENS),
    ),
    decoder=ConvNeXtSizes(idim=HIDDEN // 2, odim=HIDDEN // 2, hidden=128, num_layers=6, bn_dim=64),
    dvae_encoder=ConvNeXtSizes(idim=128, odim=256, hidden=128, num_layers=4, bn_dim=64),
    dvae_decoder=ConvNeXtSizes(idim=128, odim=128, hidden=128, num_layers=4, bn_dim=64),
    vq=256,
    vocos=VocosSizes(dim=256, intermediate=768, num_layers=6),
)
