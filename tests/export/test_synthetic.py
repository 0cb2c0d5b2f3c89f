import importlib
import json
from dataclasses import asdict

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file
from tokenizers import Tokenizer

from chattts_serving.errors import ConfigError
from export.chattts_package import import_chattts
from export.layout import DECODER_FILE, DVAE_FILE, EMBED_FILE, TENSOR_FILES, VOCOS_FILE, tensor_shapes
from export.sizes import SIZES
from export.synthetic import MARKER_FILE, ensure_checkpoint, write_checkpoint
from export.synthetic_tokenizer import BERT_TOKENS, CHATTTS_TOKENS, wordpiece_vocabulary, write_tokenizer


def contents(directory):
    return {path.relative_to(directory): path.read_bytes() for path in directory.rglob("*") if path.is_file()}


def test_the_same_seed_gives_the_same_files_whatever_else_was_drawn(checkpoint, tmp_path):
    np.random.seed(7)
    torch.manual_seed(7)
    assert contents(write_checkpoint("tiny", tmp_path / "again").directory) == contents(checkpoint.directory)


@pytest.mark.parametrize("file", TENSOR_FILES)
def test_another_seed_gives_other_weights(checkpoint, tmp_path, file):
    other = write_checkpoint("tiny", tmp_path / "other", seed=1)
    assert (other.directory / file).read_bytes() != (checkpoint.directory / file).read_bytes()


def test_a_checkpoint_is_reused_and_a_broken_one_written_anew(tmp_path):
    directory = ensure_checkpoint("tiny", tmp_path / "tiny").directory
    before, written = contents(directory), (directory / DECODER_FILE).stat().st_mtime_ns
    ensure_checkpoint("tiny", directory)
    assert (directory / DECODER_FILE).stat().st_mtime_ns == written
    (directory / DECODER_FILE).write_bytes(b"")
    ensure_checkpoint("tiny", directory)
    assert contents(directory) == before


def test_a_checkpoint_of_another_seed_is_written_anew(tmp_path):
    ensure_checkpoint("tiny", tmp_path / "tiny", seed=0)
    ensure_checkpoint("tiny", tmp_path / "tiny", seed=1)
    assert json.loads((tmp_path / "tiny" / MARKER_FILE).read_text())["seed"] == 1


def test_a_folder_with_something_else_is_left_alone(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(ConfigError, match="no synthetic checkpoint"):
        ensure_checkpoint("tiny", tmp_path)
    assert (tmp_path / "notes.txt").read_text() == "mine"


def test_a_failed_write_leaves_nothing(tmp_path, monkeypatch):
    def fail(*_):
        raise OSError("disk full")

    monkeypatch.setattr("export.synthetic.write_tokenizer", fail)
    with pytest.raises(OSError, match="disk full"):
        write_checkpoint("tiny", tmp_path / "tiny")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("size", "seed"), [("huge", 0), ("tiny", -1)])
def test_unknown_sizes_and_seeds_are_refused(tmp_path, size, seed):
    with pytest.raises(ConfigError, match="allowed"):
        write_checkpoint(size, tmp_path / "x", seed)


def test_the_layout_of_official_size_is_that_of_chattts_modules():
    config = import_chattts().Chat().config
    model, vocos, pretrained = (
        importlib.import_module(name) for name in ("ChatTTS.model", "vocos", "vocos.pretrained")
    )
    parts = (config.vocos.feature_extractor, config.vocos.backbone, config.vocos.head)
    modules = {
        EMBED_FILE: model.Embed(768, 626, 21_178, 4),
        DECODER_FILE: model.DVAE(decoder_config=asdict(config.decoder), dim=config.decoder.idim),
        DVAE_FILE: model.DVAE(
            decoder_config=asdict(config.dvae.decoder),
            encoder_config=asdict(config.dvae.encoder),
            vq_config=asdict(config.dvae.vq),
            dim=config.dvae.decoder.idim,
        ),
        VOCOS_FILE: vocos.Vocos(*(pretrained.instantiate_class(args=(), init=asdict(part)) for part in parts)),
    }
    layout = tensor_shapes(SIZES["synthetic"])
    for file, module in modules.items():
        assert {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()} == layout[file]


def test_the_buffers_are_those_of_torchaudio(checkpoint):
    import_chattts()
    torchaudio = importlib.import_module("torchaudio")  # loads only after ChatTTS's import has prepared it
    tensors = load_file(checkpoint.vocos)
    filters = torchaudio.functional.melscale_fbanks(513, 0.0, 12_000.0, 100, 24_000, norm=None, mel_scale="htk")
    np.testing.assert_allclose(tensors["feature_extractor.mel_spec.mel_scale.fb"], filters.numpy(), atol=1e-5)
    np.testing.assert_allclose(tensors["head.istft.window"], torch.hann_window(1024).numpy(), atol=1e-6)


@pytest.mark.parametrize("size", SIZES)
def test_special_tokens_stand_where_chattts_expects_them(tmp_path, size):
    num_tokens = SIZES[size].gpt.num_text_tokens
    write_tokenizer(wordpiece_vocabulary(num_tokens - len(CHATTTS_TOKENS)), tmp_path / "tokenizer")
    tokenizer = Tokenizer.from_file(str(tmp_path / "tokenizer" / "tokenizer.json"))
    assert tokenizer.get_vocab_size() == num_tokens
    assert [tokenizer.id_to_token(i) for i in range(104)] == BERT_TOKENS
    assert [tokenizer.id_to_token(i) for i in range(num_tokens - 50, num_tokens)] == CHATTTS_TOKENS


def test_the_official_size_has_the_official_ids():
    assert SIZES["synthetic"].gpt.num_text_tokens == 21_178
    assert 21_128 + CHATTTS_TOKENS.index("[Ebreak]") == 21_136
    assert 21_128 + CHATTTS_TOKENS.index("[spk_emb]") == 21_143
    assert 21_128 + CHATTTS_TOKENS.index("[break_0]") == 21_147


@pytest.mark.parametrize("num_tokens", [100, 10**6])
def test_a_vocabulary_that_cannot_be_made_is_refused(num_tokens):
    with pytest.raises(ValueError, match="allowed is"):
        wordpiece_vocabulary(num_tokens)


@torch.inference_mode()
def test_activations_are_healthy(chat):
    """Argmax is well separated, and noise comes out as audible sound within [-1, 1]."""
    torch.manual_seed(0)
    ids = torch.randint(1_150, (4, 40, 1)).expand(-1, -1, 4)
    hidden = chat.gpt.gpt(inputs_embeds=chat.embed(ids, torch.ones(4, 40, dtype=torch.bool))).last_hidden_state
    assert 0.8 < hidden.std() < 1.3
    assert 2 < chat.embed.head_text(hidden).std() < 3
    for head in chat.embed.head_code:
        assert 2 < head(hidden).std() < 3
    waveform = chat._decode_to_wavs(list(hidden.clone()), use_decoder=True)
    assert np.isfinite(waveform).all()
    assert 0.05 < waveform.std() < 0.3
    assert np.abs(waveform).max() < 1
    codes = chat.dvae.sample_audio(waveform[0])
    assert min(len(codebook.unique()) for codebook in codes) > 5


def test_refined_texts_and_utterances_end_by_themselves_but_not_at_once(chat):
    torch.manual_seed(0)
    texts = ["你好，今天天气很好", "hello world"]
    refined = chat._refine_text(texts, "cpu", chat.RefineTextParams(show_tqdm=False))
    spoken = next(chat._infer_code(texts, False, "cpu", False, chat.InferCodeParams(show_tqdm=False)))
    for ids, most in ((refined.ids, 384), (spoken.ids, 2_048)):
        lengths = [len(sequence) for sequence in ids]
        assert min(lengths) > 0
        assert max(lengths) < most
