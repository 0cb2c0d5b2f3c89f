"""The models of a checkpoint, to go on from; tokens that it does not know get rows by what it does with the others."""

from __future__ import annotations

from pathlib import Path
from typing import cast

import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer
from torch.nn import functional as F

from chattts_serving.voice.speaker import decode_speaker
from chattts_serving.voice.voices import load_voices
from export.gpt import fold_weight_norm
from export.layout import DECODER_FILE, DVAE_FILE, EMBED_FILE, GPT_FILE, VOCOS_FILE
from export.voice_library import VOICES_FOLDER
from training import language
from training.batches import CURRICULUM
from training.language import Speaker
from training.modules import Codec, Vocoder
from training.settings import SIZES
from training.sound import CODEC_FILE, VOCODER_FILE
from training.table import TextTable
from training.utterances import VOICES
from training.vocabulary import CHECKSUM, IDS

Tensors = dict[str, torch.Tensor]

ROW_STEPS = 400  # in which the sounds of tokens learn the rows of those that are known
ROW_RATE = 1e-2
OWN_WEIGHT = 0.3  # of what no sound explains


def take(checkpoint: Path, folder: Path) -> None:
    """Write the codec and the vocoder of `checkpoint`, of the sizes of the demo checkpoint, to `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    codec, vocoder = Codec(SIZES.dvae_encoder, SIZES.dvae_decoder), Vocoder(SIZES.vocos)
    codec.load_state_dict(codec_state(load_file(checkpoint / DVAE_FILE)))
    vocoder.load_state_dict(vocoder_state(load_file(checkpoint / VOCOS_FILE)))
    for module, name in ((codec, CODEC_FILE), (vocoder, VOCODER_FILE)):
        torch.save({"model": module.state_dict()}, folder / name)


def take_language(checkpoint: Path, folder: Path) -> None:
    """Write the language model of `checkpoint` to `folder`; it may have other tokens, and more neurons in a layer."""
    state = {"model": taken_speaker(checkpoint).state_dict(), "seen": CURRICULUM // 2}
    torch.save(state | {"voices": list(VOICES), "vocabulary": CHECKSUM}, folder / language.FILE)


def codec_state(tensors: Tensors) -> Tensors:
    """DVAE.safetensors as `Codec` has it."""
    named = {name.replace("vq_layer.quantizer.rvqs.", "quantizers."): tensor for name, tensor in tensors.items()}
    tail = ("coef", "decoder.", "out_conv.")
    return {
        f"tail.{name}" if name.startswith(tail) else name: tensor.float()
        for name, tensor in named.items()
        if not name.startswith("preprocessor_mel.")
    }


def vocoder_state(tensors: Tensors) -> Tensors:
    """Vocos.safetensors as `Vocoder` has it."""
    return {
        name.removeprefix("backbone.").removeprefix("head."): tensor.float()
        for name, tensor in tensors.items()
        if not name.startswith(("feature_extractor.", "head.istft."))
    }


def taken_speaker(checkpoint: Path) -> Speaker:
    """The language model and the decoder of `checkpoint`; the head of text alone begins anew."""
    speaker = Speaker()
    model, embed = speaker.language, load_file(checkpoint / EMBED_FILE)
    model.load_state_dict(fewer_neurons(load_file(checkpoint / GPT_FILE), SIZES.gpt.intermediate), strict=False)
    speaker.decoder.load_state_dict({name: one.float() for name, one in load_file(checkpoint / DECODER_FILE).items()})
    arrays = {name: one.float().numpy() for name, one in embed.items()}
    speakers = {one.name: one.speaker for one in load_voices(checkpoint / VOICES_FOLDER)}
    with torch.no_grad():
        for number, (table, head) in enumerate(zip(model.emb_code, model.head_code, strict=True)):
            cast(torch.Tensor, table.weight).copy_(embed[f"emb_code.{number}.weight"])
            cast(torch.Tensor, head.weight).copy_(torch.from_numpy(fold_weight_norm(arrays, f"head_code.{number}")))
        for number, name in enumerate(VOICES):
            model.voices[number] = torch.from_numpy(decode_speaker(speakers[name]).copy())
    known = Tokenizer.from_file(str(checkpoint / "asset" / "tokenizer" / "tokenizer.json")).get_vocab()
    pairs = [(IDS[token], number) for token, number in known.items() if token in IDS]
    mine, theirs = torch.tensor(pairs).T
    learn_rows(model.text, mine, embed["emb_text.weight"].float()[theirs])
    return speaker


def fewer_neurons(tensors: Tensors, neurons: int) -> Tensors:
    """The layers of gpt/model.safetensors with the `neurons` of each that matter most, by their weights' norms."""
    kept = {name: tensor.float() for name, tensor in tensors.items()}
    for name in [one.removesuffix("gate_proj.weight") for one in tensors if one.endswith("gate_proj.weight")]:
        gate, up, down = (f"{name}{part}_proj.weight" for part in ("gate", "up", "down"))
        weight = kept[gate].norm(dim=1) * kept[up].norm(dim=1) * kept[down].norm(dim=0)
        best = weight.topk(neurons).indices.sort().values
        kept |= {gate: kept[gate][best], up: kept[up][best], down: kept[down][:, best]}
    return kept


def learn_rows(table: TextTable, places: torch.Tensor, rows: torch.Tensor) -> None:
    """Make `rows`, [n, hidden], those of `places`, int64 [n]; others get what their sounds and letters have learnt."""
    optimizer = torch.optim.Adam([one for name, one in table.named_parameters() if name != "head.weight"], ROW_RATE)
    for _ in range(ROW_STEPS):
        loss = F.mse_loss(table.rows()[places], rows) + OWN_WEIGHT * table.own.weight[places].square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    with torch.no_grad():
        table.own.weight[places] += rows - table.rows()[places]
