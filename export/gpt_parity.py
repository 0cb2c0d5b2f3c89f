"""Whether the GPT in PyTorch, over the exported weights, computes what ChatTTS does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

from chattts_serving.engine.gpt_config import GPTConfig
from chattts_serving.engine.gpu.gpt import GPT
from export.parity import ParityResult

ALLOWED_HIDDEN_DIFFERENCE = 1e-4  # float32 over 20 layers, hidden states of size 1
ALLOWED_LOGIT_DIFFERENCE = 1e-3  # logits of size 10
PARITY_BATCHES = (1, 2, 5)  # sequences packed into one forward pass
PARITY_MAX_TOKENS = 60  # of one sequence


@torch.inference_mode()
def check_gpt(chat: Any, folder: Path) -> list[ParityResult]:
    """Compare the serving model over the files in `folder` with ChatTTS: hidden states and logits.

    Sequences of random lengths, text followed by audio tokens, run packed here and each alone in ChatTTS.
    """
    model = GPT.load(folder, torch.device("cpu"))
    generator = torch.Generator().manual_seed(0)
    hidden_difference = logit_difference = 0.0
    for batch in PARITY_BATCHES:
        sequences = [_random_sequence(model.config, generator) for _ in range(batch)]
        expected = torch.cat([_chattts_hidden(chat, *sequence) for sequence in sequences])
        found = _packed_hidden(model, sequences)
        hidden_difference = max(hidden_difference, _difference(found, expected))
        logit_difference = max(
            logit_difference,
            _difference(model.text_logits(found), chat.embed.head_text(expected)),
            _difference(
                model.code_logits(found), torch.stack([head(expected) for head in chat.embed.head_code], dim=1)
            ),
        )
    return [
        ParityResult("gpt_decoder hidden states", hidden_difference, ALLOWED_HIDDEN_DIFFERENCE),
        ParityResult("gpt_decoder logits", logit_difference, ALLOWED_LOGIT_DIFFERENCE),
    ]


def _random_sequence(config: GPTConfig, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    """Text ids [n] and audio tokens [m, 4]."""
    num_text, num_audio = torch.randint(1, PARITY_MAX_TOKENS, (2,), generator=generator).tolist()
    text = torch.randint(config.num_text_tokens, (num_text,), generator=generator)
    codes = torch.randint(config.num_audio_tokens, (num_audio, config.num_codebooks), generator=generator)
    return text, codes


def _chattts_hidden(chat: Any, text: torch.Tensor, codes: torch.Tensor) -> torch.Tensor:
    """ChatTTS's hidden states [n + m, hidden]."""
    ids = torch.cat([text[:, None].expand(-1, codes.shape[1]), codes])[None]
    is_text = (torch.arange(ids.shape[1]) < len(text))[None]
    hidden: torch.Tensor = chat.gpt.gpt(inputs_embeds=chat.embed(ids, is_text)).last_hidden_state
    return hidden[0]


def _packed_hidden(model: GPT, sequences: list[tuple[torch.Tensor, torch.Tensor]]) -> torch.Tensor:
    """The serving model's hidden states of all sequences, one after another: [sum of n + m, hidden]."""
    lengths = [len(text) + len(codes) for text, codes in sequences]

    def attend(_layer: int, qkv: torch.Tensor) -> torch.Tensor:
        heads = [torch.split(tensor.transpose(0, 1), lengths, dim=1) for tensor in model.split_heads(qkv, positions)]
        attended = [
            F.scaled_dot_product_attention(query, key, value, is_causal=True)
            for query, key, value in zip(*heads, strict=True)
        ]
        return torch.cat(attended, dim=1).transpose(0, 1).flatten(1)

    x = torch.cat([torch.cat([model.embed_text(text), model.embed_codes(codes)]) for text, codes in sequences])
    positions = torch.cat([torch.arange(length) for length in lengths])
    return model.forward(x, attend)


def _difference(found: torch.Tensor, expected: torch.Tensor) -> float:
    return (found - expected).abs().max().item()
