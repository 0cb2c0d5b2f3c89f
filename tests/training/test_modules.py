"""Modules that learn, against those that serve: the same weights make the same numbers."""

import copy
import importlib

import numpy as np
import onnxruntime
import pytest
import torch

from export.chattts_package import import_chattts
from export.convnext import Weights
from export.dvae import MAX_INPUT, decoder_delay
from export.onnx_models import decoder_model, encoder_model, vocos_model
from export.synthetic import write_gpt_config
from tests.codes import check_codes, on_no_edge
from training.modules import Codec, Language, LogMel, MelDecoder, Vocoder
from training.settings import SIZES

FRAMES = 24


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def random_audio(rows=2):
    return torch.randn(rows, FRAMES * 256) * 0.1


def weights(tensors):
    return Weights({name: tensor.detach().numpy() for name, tensor in tensors.items()})


def run(model, *inputs):
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    names = [node.name for node in session.get_inputs()]
    return session.run(None, {name: value.numpy() for name, value in zip(names, inputs, strict=True)})


def closed(length):
    """The mask of sentences that are rendered to their end in one call."""
    return torch.cat([torch.ones(2, length), torch.zeros(2, 1)], dim=1)


def test_the_codec_makes_the_codes_that_are_served():
    codec, audio = Codec(SIZES.dvae_encoder, SIZES.dvae_decoder).eval(), random_audio()
    codes, is_sure = exact_codes(codec, audio)
    lengths = torch.full((2, 1), audio.shape[1], dtype=torch.int32)
    found, num_tokens = run(encoder_model(weights(codec.tensors())), audio, lengths)
    assert num_tokens.tolist() == [[FRAMES // 2]] * 2
    # the served one sees the last frame, too, which the last token's convolutions notice
    check_codes(found[:, :-4], codes[:, :-4], is_sure[:, :-4])
    assert len(np.unique(codes)) > 4


def exact_codes(codec, audio):
    """What `codec` makes of `audio` in float64, and which codes lie on no edge."""
    exact, features = copy.deepcopy(codec).double(), []
    for one in exact.quantizers:
        one.project_in.register_forward_hook(
            lambda _module, _inputs, found: features.append(MAX_INPUT * torch.tanh(found / MAX_INPUT))
        )
    _, codes = exact.encode(LogMel().double()(audio.double())[..., :-1])
    return codes.numpy(), on_no_edge(torch.stack(features).detach().numpy())


def test_what_is_quantised_lets_the_gradient_through():
    codec = Codec(SIZES.dvae_encoder, SIZES.dvae_decoder)
    codec(LogMel()(random_audio())[..., :-1]).abs().mean().backward()
    assert all(
        parameter.grad is not None and parameter.grad.any() for parameter in codec.downsample_conv[0].parameters()
    )


def test_the_decoder_makes_the_mel_that_is_served():
    decoder = MelDecoder(SIZES.decoder).eval()
    decoder.coef.uniform_(0.5, 2)
    hidden = torch.randn(2, FRAMES // 2, SIZES.gpt.hidden)
    model = decoder_model(weights(decoder.state_dict()), SIZES.gpt.hidden)
    found, *_ = run(model, hidden, closed(FRAMES // 2), torch.zeros(2, 1))
    with torch.inference_mode():
        np.testing.assert_allclose(found.transpose(0, 2, 1), decoder(hidden), atol=1e-5)


def test_the_vocoder_makes_the_waveform_that_is_served():
    vocoder, mel = Vocoder(SIZES.vocos).eval(), torch.randn(2, 100, FRAMES)
    model = vocos_model(weights(vocoder.tensors()), decoder_delay(weights(MelDecoder(SIZES.decoder).state_dict())))
    found, _ = run(model, mel.transpose(1, 2).contiguous(), closed(FRAMES), torch.zeros(2, 1))
    with torch.inference_mode():
        np.testing.assert_allclose(found[:, : (FRAMES - 1) * 256], vocoder(mel), atol=1e-4)


def test_the_language_model_is_a_llama(tmp_path):
    """Padding before a sequence changes nothing."""
    language = Language(SIZES.gpt, num_voices=1).eval()
    write_gpt_config(SIZES.gpt, tmp_path / "config.json")
    import_chattts()  # where transformers is imported so that torchaudio does not keep it from loading
    transformers = importlib.import_module("transformers")
    llama = transformers.LlamaModel(transformers.LlamaConfig.from_pretrained(tmp_path)).eval()
    del llama.embed_tokens  # as ChatTTS does
    llama.load_state_dict(language.gpt_tensors())
    embedded, padding = torch.randn(2, 20, SIZES.gpt.hidden), torch.randn(2, 3, SIZES.gpt.hidden)
    real = torch.tensor([[False] * 3 + [True] * 4] * 2)
    with torch.inference_mode():
        expected = llama(inputs_embeds=embedded).last_hidden_state
        found, (attention,) = language(torch.cat([padding, embedded], dim=1), real, {1: 2})
    np.testing.assert_allclose(found[:, 3:], expected, atol=1e-4)
    assert attention.shape == (2, 2, 23, 23)
    np.testing.assert_allclose(attention.exp()[:, :, 3:, 3:].sum(3), 1, atol=1e-5)
    assert not attention.exp()[:, :, 3:, :3].any()
