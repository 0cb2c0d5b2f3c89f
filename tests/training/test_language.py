"""The language model learns, and what it learnt is a checkpoint."""

import subprocess
import sys
from itertools import islice

import pytest
import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer
from torch.nn import functional as F

from export.checkpoint import Checkpoint
from export.layout import DECODER_FILE, EMBED_FILE, GPTSizes
from tests.conftest import ROOT
from tests.training.spoken import BYE
from training import batches, checkpoint, language, taken
from training.language import FILE, Ear, Speaker, compile_parts, total, train_language
from training.modules import Codec, Language, Vocoder
from training.settings import DEMO, SIZES
from training.sound import CODEC_FILE, VOCODER_FILE
from training.table import TextTable
from training.taken import take
from training.vocabulary import CHECKSUM, IDS

ELSEWHERE = "pocketsphinx", "soxr", "chattts_client", "tritonclient", "matplotlib", "wetext"  # not where a GPU is
SIZE_LIMIT = 25_000_000  # bytes of the checkpoint


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


@pytest.fixture
def started(folder, monkeypatch):
    """A folder with a corpus, a codec and a vocoder; one utterance is not for training."""
    monkeypatch.setattr(batches, "is_for_evaluation", lambda one: one.tokens == BYE.tokens)
    take(DEMO, folder)
    return folder


@pytest.mark.parametrize("is_recorded", [True, False])
def test_losses_fall(started, is_recorded):
    if not is_recorded:
        (started / "slt.i16").unlink()
    corpus = batches.Corpus(started, ["slt"], seed=0, longest=100, tokens=100, seen=0)
    ear, speaker = Ear(started, torch.device("cpu")), Speaker()
    optimizer, batch = torch.optim.Adam(speaker.parameters(), 1e-3), next(iter(corpus))
    seen = []
    for _ in range(3):
        losses = ear.losses(speaker, batch)
        optimizer.zero_grad()
        total(losses).backward()
        optimizer.step()
        seen.append(losses)
    assert set(seen[0]) == {"code_0", "code_1", "code_2", "code_3", "mel", "guide", "text"}
    assert all(seen[-1][name] < seen[0][name] for name in ("mel", "guide", "text"))


def test_half_precision_loses_little(started):
    """As on a GPU, and on CPUs that have it; nothing is disturbed by chance here."""
    batch = next(iter(batches.Corpus(started, ["slt"], seed=0, longest=100, tokens=100, seen=0)))
    ear, speaker = Ear(started, torch.device("cpu")), Speaker().eval()
    with torch.no_grad():
        ear.in_half = False
        exact = ear.losses(speaker, batch)
        ear.in_half = True
        found = ear.losses(speaker, batch)
    for name in ("code_0", "code_3", "guide", "text"):
        torch.testing.assert_close(found[name], exact[name], atol=0.05, rtol=0.02)
    assert all(loss.dtype == torch.float32 for loss in found.values())


def test_what_is_compiled_on_a_gpu_is_traced_whole_and_gives_the_same(started):
    corpus = batches.Corpus(started, ["slt"], seed=0, longest=100, tokens=100, seen=0)
    ear, speaker = Ear(started, torch.device("cpu")), Speaker().eval()
    with torch.no_grad():
        expected = [ear.losses(speaker, one) for one in islice(corpus, 2)]
    compile_parts(speaker, "aot_eager")
    for losses, one in zip(expected, islice(corpus, 2), strict=True):
        found = ear.losses(speaker, one)
        total(found).backward()
        for name, loss in losses.items():
            torch.testing.assert_close(found[name], loss, atol=0.02, rtol=0.02)


def test_a_run_goes_on_where_the_last_one_stopped_and_ends_as_a_checkpoint(started, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(language, "EVALUATED", 1)
    options = {"rate": 1e-3, "tokens": 60, "longest": 100, "device": torch.device("cpu"), "workers": 0}
    states = []
    for _ in range(2):
        train_language(started, ["slt"], 1e-9, **options)
        states.append(torch.load(started / FILE, weights_only=True))
        assert "not for training" in capsys.readouterr().out
    assert [state["step"] for state in states] == [1, 2]
    assert [state["seen"] for state in states] == [34, 68]
    checkpoint.write(started, tmp_path / "checkpoint")
    found = Checkpoint.load(tmp_path / "checkpoint")
    assert found.sizes == SIZES
    assert sum(path.stat().st_size for path in (tmp_path / "checkpoint").rglob("*") if path.is_file()) < SIZE_LIMIT


def test_a_checkpoint_has_the_rows_that_were_trained(started, tmp_path):
    speaker = Speaker()
    torch.save({"model": speaker.state_dict(), "voices": ["slt"], "vocabulary": CHECKSUM}, started / FILE)
    checkpoint.write(started, tmp_path / "checkpoint")
    tensors = load_file(tmp_path / "checkpoint" / EMBED_FILE)
    rows = speaker.language.text.rows()
    torch.testing.assert_close(tensors["emb_text.weight"].float(), rows, atol=2e-3, rtol=1e-3)
    length, direction = (tensors[f"head_text.parametrizations.weight.original{i}"].float() for i in range(2))
    torch.testing.assert_close(
        F.normalize(direction, dim=1) * length, speaker.language.text.head_rows(rows), atol=2e-3, rtol=2e-3
    )


def test_what_was_trained_with_another_vocabulary_is_refused(started, tmp_path):
    torch.save({"model": Speaker().state_dict(), "voices": ["slt"], "vocabulary": CHECKSUM - 1}, started / FILE)
    with pytest.raises(ValueError, match=r"was trained with another .*vocabulary.txt"):
        checkpoint.write(started, tmp_path / "checkpoint")


def test_tokens_of_the_same_sounds_have_rows_that_are_alike():
    table = TextTable(
        ["[x]", "see", "##see", "sea", "owl"],
        {"see": ("s", "iy"), "##see": ("s", "iy"), "sea": ("s", "iy"), "owl": ("aw", "l")},
        64,
    )
    control, see, inner, sea, owl = F.normalize(table.rows(), dim=1)
    assert see @ sea > see @ owl + 0.2
    assert see @ inner > see @ owl + 0.2
    assert abs(see @ control) < 0.5


def test_codec_and_vocoder_are_taken_as_they_are(tmp_path):
    take(DEMO, tmp_path)
    files = (
        ("DVAE", CODEC_FILE, Codec(SIZES.dvae_encoder, SIZES.dvae_decoder)),
        ("Vocos", VOCODER_FILE, Vocoder(SIZES.vocos)),
    )
    for name, file, module in files:
        module.load_state_dict(torch.load(tmp_path / file, weights_only=True)["model"])
        expected = load_file(DEMO / "asset" / f"{name}.safetensors")
        for tensor, value in module.tensors().items():
            torch.testing.assert_close(value.detach().half(), expected[tensor])


def test_a_language_model_is_taken_with_the_rows_of_its_tokens(monkeypatch):
    monkeypatch.setattr(taken, "ROW_STEPS", 1)
    speaker = taken.taken_speaker(DEMO)
    embed, decoder = load_file(DEMO / EMBED_FILE), load_file(DEMO / DECODER_FILE)
    known = Tokenizer.from_file(str(DEMO / "asset" / "tokenizer" / "tokenizer.json")).get_vocab()
    rows = speaker.language.text.rows()
    for token in ("manager", "[Stts]", ",", "##e"):
        torch.testing.assert_close(rows[IDS[token]], embed["emb_text.weight"][known[token]].float(), atol=1e-4, rtol=0)
    torch.testing.assert_close(speaker.language.emb_code[2].weight, embed["emb_code.2.weight"].float())
    length, direction = (embed[f"head_code.3.parametrizations.weight.original{i}"].float() for i in range(2))
    torch.testing.assert_close(speaker.language.head_code[3].weight, F.normalize(direction, dim=1) * length)
    for name, value in speaker.decoder.state_dict().items():
        torch.testing.assert_close(value, decoder[name].float())


def test_neurons_that_do_nothing_are_left_out():
    size, more = GPTSizes(**{**vars(SIZES.gpt), "num_layers": 1}), 24
    small = Language(size, 1)
    tensors = small.gpt_tensors()
    big = {name: tensor.clone() for name, tensor in tensors.items()}
    for part, dim in (("gate", 0), ("up", 0), ("down", 1)):
        name = f"layers.0.mlp.{part}_proj.weight"
        nothing = torch.full_like(big[name].narrow(dim, 0, more), 1e-9)
        big[name] = torch.cat([nothing, big[name]], dim=dim)
    found = taken.fewer_neurons(big, size.intermediate)
    assert found.keys() == tensors.keys()
    for name, tensor in tensors.items():
        torch.testing.assert_close(found[name], tensor)


def test_other_tokens_have_rows_by_what_sounds_have_learnt():
    sounds = {"see": ("s", "iy"), "bee": ("b", "iy"), "sow": ("s", "ow"), "bow": ("b", "ow"), "sea": ("s", "iy")}
    table, rows = TextTable(list(sounds), sounds, 32), torch.randn(4, 32)
    taken.learn_rows(table, torch.arange(4), rows)
    found = table.rows()
    torch.testing.assert_close(found[:4], rows, atol=1e-5, rtol=0)
    nearest = F.cosine_similarity(found[4][None], rows).argmax()
    assert nearest == 0


def test_codes_are_heard_as_what_they_came_from():
    codec = Codec(SIZES.dvae_encoder, SIZES.dvae_decoder).eval()
    mel = torch.randn(2, 100, 24)
    with torch.inference_mode():
        _, codes = codec.encode(mel)
        torch.testing.assert_close(codec.decode(codes), codec(mel), atol=1e-5, rtol=1e-4)


def test_a_machine_with_a_gpu_needs_no_flite_and_no_listener():
    missing = f"import sys; sys.modules.update(dict.fromkeys({ELSEWHERE}))"
    command = f"{missing}; import training.__main__, training.language, training.pack, training.checkpoint"
    subprocess.run([sys.executable, "-c", command], cwd=ROOT, check=True)
