"""From requests to prompts: what the language model is told, and what callers are told when it cannot be."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from random import Random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chattts_serving.audio import HOP_LENGTH, SAMPLES_PER_TOKEN
from chattts_serving.errors import ConfigError, InvalidInputError
from chattts_serving.request import MAX_TEXT_CHARACTERS, GenerationRequest, SynthesisRequest
from chattts_serving.text.frontend import TextFrontend
from chattts_serving.text.part import NOTHING, Part, SoFar
from chattts_serving.text.tokenizer import Tokenizer
from chattts_serving.text.unfinished import UnfinishedText
from chattts_serving.voice.speaker import normalize
from tests.frontend_assets import make_frontend_assets
from tests.voices import encode_sample, encode_speaker

SAMPLE = encode_sample(np.arange(40).reshape(4, 10))


@pytest.fixture(scope="module")
def assets(tmp_path_factory) -> Path:
    return make_frontend_assets(tmp_path_factory.mktemp("assets"))


@pytest.fixture(scope="module")
def frontend(assets) -> TextFrontend:
    return TextFrontend(assets)


@pytest.fixture(scope="module")
def encode(assets) -> Callable[[str], tuple[int, ...]]:
    return Tokenizer(assets / "tokenizer.json").encode


@pytest.fixture(scope="module")
def hidden_size(assets) -> int:
    return json.loads((assets / "frontend.json").read_text())["hidden_size"]


def prepare(frontend: TextFrontend, text: str = "Hello world.", **values) -> GenerationRequest:
    return frontend.prepare(SynthesisRequest(text=text, **values)).generation


def pauses_of(generation: GenerationRequest) -> list[float]:
    """The usual ones between sentences, in audio tokens beside the hop that a sentence's end lacks."""
    lead, *between, behind = generation.pauses
    assert (lead, behind) == (0, 0)
    return [(pause - HOP_LENGTH) / SAMPLES_PER_TOKEN for pause in between]


def test_refining_comes_first(frontend, encode):
    generation = prepare(frontend, refine_prompt="[oral_2][break_6]")
    assert generation.refine
    assert generation.texts == ("Hello world.",)
    assert generation.prompts == (encode("[Sbreak]Hello world.[Pbreak][oral_2][break_6]"),)


def test_without_refining_the_text_is_spoken_as_it_is(frontend, encode):
    generation = prepare(frontend, skip_refine=True, prompt="[speed_3]")
    assert not generation.refine
    assert generation.prompts == (encode("[Stts][spk_emb][speed_3]Hello world.[Ptts]"),)


def test_reference_recording_comes_with_its_transcript(frontend, encode):
    generation = prepare(frontend, skip_refine=True, speaker_sample=SAMPLE, sample_text="as I said")
    assert generation.prompts == (encode("[Stts][empty_spk]as I said[speed_5]Hello world.[Ptts]"),)
    assert generation.sample_codes == tuple((n, 10 + n, 20 + n, 30 + n) for n in range(10))


def test_sentences_are_normalised_one_by_one_in_their_own_language(frontend):
    generation = prepare(frontend, "我有3个苹果和5个梨。\nI have 3 apples and 5 pears.\n其中2个是红的吧！")
    assert generation.texts == ("我有三个苹果和五个梨。", "I have three apples and five pears.", "其中两个是红的吧。")
    assert len(generation.prompts) == 3


def test_sentence_without_words_has_the_language_of_the_text(frontend):
    assert prepare(frontend, "电话号码是多少呢？\n13812345678\n").texts[1] == "幺三八幺二三四五六七八"


@pytest.mark.parametrize("seed", range(40))
def test_parts_of_a_text_are_prepared_as_the_whole(frontend, seed):
    random = Random(seed)
    said = [
        "It costs $3.50. ",
        "42! ",
        "... ",
        "***\n\n",
        "今天有3个人。",
        "[laugh]\n",
        "Here we go again. ",
        "Yes. ",
        "。。。",
        "[pause 500ms]",
        " [pause 1.5s]\n",
        "[spell A-1]. ",
    ]
    text = "".join(random.choice(said) for _ in range(random.randint(2, 12))) + "The end is 7 words from here."
    options = {"seed": 1, "skip_refine": seed % 2 == 0}
    whole = prepare(frontend, text, **options)
    unfinished, so_far, parts = UnfinishedText(), NOTHING, []
    while not parts or parts[-1].goes_on:
        length = random.choice((3, 20, 100))
        sentences, goes_on = (unfinished.add(text[:length]), True) if text else (unfinished.end(), False)
        text = text[length:]
        part = Part(tuple(sentences), not parts, goes_on, so_far)
        prepared = frontend.prepare(SynthesisRequest(text=" ", **options), part)
        so_far = SoFar.from_json(prepared.so_far.to_json())
        parts.append(GenerationRequest.from_json(prepared.generation.to_json()))
    for name in ("prompts", "texts", "fewest_tokens", "most_tokens"):
        assert sum((getattr(part, name) for part in parts), ()) == getattr(whole, name)
    pauses = []
    for part in parts:
        pauses[-1:] = part.pauses
    assert tuple(pauses) == whole.pauses


def test_given_language_holds_for_every_sentence(frontend):
    assert prepare(frontend, "12 34", language="zh").texts == ("十二 三十四",)
    assert prepare(frontend, "12 34", language="en").texts == ("twelve thirty four",)


def test_digits_stay_without_normalising(frontend):
    assert prepare(frontend, "I have 3.", normalize=False).texts == ("I have 3.",)


def test_sentences_with_nothing_to_say_are_left_out(frontend):
    assert prepare(frontend, "The first sentence.\n????????????\nThe second one.").texts == (
        "The first sentence.",
        "The second one.",
    )


@pytest.mark.parametrize(
    ("text", "pauses"),
    [
        ("One sentence here.", []),
        ("The first one here. The second one here.\nThe third one here.", [12, 28]),
        ("The first one here.\n\n\nThe second one here.", [28]),
        ("word " * 100 + "here. The next sentence.", [4, 12]),
    ],
)
def test_pauses_are_longest_between_paragraphs_and_shortest_inside_a_sentence(frontend, text, pauses):
    assert pauses_of(prepare(frontend, text)) == pauses


@pytest.mark.parametrize(
    ("text", "pause"),
    [
        ("The first sentence. ????????????\nThe second one.", 28),
        ("The first sentence.\n????????????. The second one.", 28),
        ("The first sentence. ????????????. The second one.", 12),
        ("????????????\nThe first sentence. The second one.", 12),
        ("The first sentence. The second one. ????????????", 12),
    ],
)
def test_around_a_sentence_with_nothing_to_say_the_longer_pause_is_kept(frontend, text, pause):
    generation = prepare(frontend, text)
    assert generation.texts == ("The first sentence.", "The second one.")
    assert pauses_of(generation) == [pause]


@pytest.mark.parametrize(
    "text", [" ", "\n", "...", "！？。", "😀😀", "[laugh]", "[uv_break] [laugh]。", "—", "\u200b", "ไทย"]
)
def test_text_with_nothing_to_say_is_refused(frontend, text):
    with pytest.raises(InvalidInputError, match="input 'text' is"):
        prepare(frontend, text)


@pytest.mark.parametrize("name", ["text", "prompt", "refine_prompt", "sample_text"])
@pytest.mark.parametrize("value", ["[nonsense]", "[spk_emb]", "hi \ud800"])
def test_unknown_tags_and_broken_unicode_are_refused_where_they_are(frontend, name, value):
    values = {"text": "Hello", "speaker_sample": SAMPLE, name: value, "strict_tags": True}
    with pytest.raises(InvalidInputError) as error:
        prepare(frontend, **values)
    assert error.value.name == name


@pytest.mark.parametrize("text", ["[sic]", "Dear [Customer],", "array[i]", "[INFO] started", "[Laugh]"])
def test_a_bracketed_word_that_is_no_tag_is_spoken_unless_tags_are_strict(frontend, text):
    assert "[" not in "".join(prepare(frontend, text).texts)
    with pytest.raises(InvalidInputError, match=r"allowed is text with control tags"):
        prepare(frontend, text, strict_tags=True)


@pytest.mark.parametrize(
    "tag", ["[Stts]", "[Ebreak]", "[spk_emb]", "[PAD]", "[laugh_3]", "[speed_10]", "[la\u200bugh_9]"]
)
def test_a_tag_of_the_frame_or_out_of_range_is_refused(frontend, tag):
    with pytest.raises(InvalidInputError, match=r"allowed is text with control tags"):
        prepare(frontend, f"Hello {tag} there")


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("The word Привет is Russian for hello.", "6 letters (Cyrillic)"),
        ("我在東京吃すしととラメン，非常好吃的东西", "7 letters (Hiragana, Katakana)"),
        ("The Greek word λόγος is old, as is שלום.", "9 letters (Greek, Hebrew)"),
        ("他叫王𠀀，是我的同学", "1 letters (rare Chinese characters)"),
    ],
)
def test_what_is_left_out_is_named(frontend, text, named):
    prepared = frontend.prepare(SynthesisRequest(text=text))
    assert prepared.warning == f"not spoken, as the model speaks Chinese and English: {named}"


@pytest.mark.parametrize(
    "text", ["Hello 😀, 你好！", "café, Łódź, ⽅⽤, 5 ㎏", "α and Ω", "5 kΩ and 5 μm", "[laugh] 3:30 — “yes”"]
)
def test_of_what_is_spoken_or_has_no_words_nothing_is_said(frontend, text):
    assert frontend.prepare(SynthesisRequest(text=text)).warning == ""


@pytest.mark.parametrize("text", ["これはテストです", "Привет, мир", "مرحبا", "ok, Привет всем", "안녕하세요"])
def test_a_text_that_is_mostly_in_another_script_is_refused(frontend, text):
    with pytest.raises(InvalidInputError, match="allowed is text in Chinese or English; "):
        prepare(frontend, text)


@pytest.mark.parametrize(
    ("text", "fewest"), [("Hi", 2), ("7", 4), ("好", 3), ("Hello there, you.", 8), ("[laugh] No", 2)]
)
def test_a_text_takes_some_tokens_to_say(frontend, text, fewest):
    assert prepare(frontend, text).fewest_tokens == (fewest,)


@pytest.mark.parametrize(
    ("text", "options", "most"),
    [
        ("Hi", {"skip_refine": True}, 94 + 2 * 10),
        ("好", {"skip_refine": True}, 94 + 2 * 15),
        ("Hi [laugh] you", {"skip_refine": True}, 94 + 2 * (25 + 47)),
        ("Hi", {}, 94 + 4 * 10),
        ("Hello" * 50, {}, 2_048),
    ],
)
def test_a_text_takes_no_more_than_some_tokens_to_say(frontend, text, options, most):
    assert prepare(frontend, text, **options).most_tokens == (most,)


def test_markup_is_left_alone_where_nothing_is_to_be_normalised(frontend):
    assert prepare(frontend, "# 5 **apples** [here](there)", normalize=False).texts == (
        " 5 apples here,there,".strip(),
    )


@pytest.mark.parametrize("name", ["prompt", "refine_prompt"])
def test_prompts_take_tags_only(frontend, name):
    with pytest.raises(InvalidInputError, match=f"input '{name}' is 'slowly'"):
        prepare(frontend, **{name: "slowly"})


@pytest.mark.parametrize("name", ["speaker", "speaker_sample"])
def test_bad_voices_are_refused(frontend, name):
    with pytest.raises(InvalidInputError, match=f"input '{name}' is 'Alice'"):
        prepare(frontend, **{name: "Alice"})


def test_transcript_without_recording_is_refused(frontend):
    with pytest.raises(InvalidInputError, match="input 'sample_text' is 'hello'"):
        prepare(frontend, sample_text="hello")


@pytest.mark.parametrize("skip_refine", [True, False])
def test_recording_that_leaves_no_room_is_refused(frontend, skip_refine):
    sample = encode_sample(np.zeros((4, 2_045), np.uint16))
    with pytest.raises(InvalidInputError, match="input 'speaker_sample' is '2045 tokens'"):
        prepare(frontend, skip_refine=skip_refine, speaker_sample=sample)


def test_prompt_that_does_not_fit_is_refused(assets, tmp_path):
    shutil.copytree(assets, tmp_path, dirs_exist_ok=True)
    config = json.loads((assets / "frontend.json").read_text())
    (tmp_path / "frontend.json").write_text(json.dumps({**config, "max_prompt_tokens": 10}))
    with pytest.raises(InvalidInputError, match=r"input 'text' is .* at most 10 tokens"):
        prepare(TextFrontend(tmp_path), "one two three four five six seven eight", skip_refine=True)


def test_given_voice_is_normalised(frontend, hidden_size):
    voice = np.arange(hidden_size).astype(np.float16)
    vector = frontend.prepare(SynthesisRequest(text="Hello", speaker=encode_speaker(voice))).speaker_embedding
    assert vector.dtype == np.float32
    assert np.array_equal(vector, normalize(voice))


def test_voice_comes_from_the_seed(frontend):
    first, again, other = (
        frontend.prepare(SynthesisRequest(text="Hello", seed=seed)).speaker_embedding for seed in (1, 1, 2)
    )
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


def test_seed_is_kept_or_drawn(frontend):
    assert prepare(frontend, seed=2**63 - 1).seed == 2**63 - 1
    drawn = {prepare(frontend).seed for _ in range(3)}
    assert len(drawn) == 3
    assert all(0 <= seed < 2**63 for seed in drawn)


def test_deadline_counts_from_now_on_the_monotonic_clock(frontend):
    before = time.monotonic_ns()
    deadline_ns = prepare(frontend, deadline_ms=5_000).deadline_ns
    assert deadline_ns is not None
    assert before <= deadline_ns - 5_000_000_000 <= time.monotonic_ns()
    assert prepare(frontend).deadline_ns is None


def test_sampling_options_are_handed_on(frontend):
    request = SynthesisRequest(text="Hello", temperature=0.5, top_k=3, max_new_tokens=77, refine_max_new_tokens=12)
    assert frontend.prepare(request).generation.sampling == request.sampling


UNITS = st.one_of(
    st.text(max_size=30),
    st.text(st.sampled_from("你好世界hello, .!?。0123456789%$￥:/-\n"), max_size=60),
    st.sampled_from(
        [
            "[uv_break]",
            "[laugh]",
            "[pause 1.5s]",
            "[pause 20ms]",
            "[spell a-1]",
            "[spell",
            "[1]",
            "[",
            "]",
            "3.14",
            "2023年1月5日",
        ]
    ),
)


@settings(max_examples=200, deadline=None)
@given(text=st.lists(UNITS, min_size=1, max_size=6).map("".join), skip_refine=st.booleans(), normalize=st.booleans())
def test_any_text_is_prepared_or_refused(frontend, text, skip_refine, normalize):
    """And what is prepared crosses to gpt_decoder unchanged."""
    try:
        generation = prepare(frontend, text, skip_refine=skip_refine, normalize=normalize)
    except InvalidInputError:
        return
    assert GenerationRequest.from_json(generation.to_json()) == generation


@pytest.mark.parametrize(
    "unit", ["word ", "好", "9", "1,", "[laugh]a", "#1 ", "好。", "a\n", "a[pause 0s]", "[spell A1]", "99[pause 0s]9。"]
)
def test_longest_text_of_any_kind_is_prepared(frontend, unit):
    generation = prepare(frontend, (unit * MAX_TEXT_CHARACTERS)[:MAX_TEXT_CHARACTERS], skip_refine=True)
    assert max(map(len, generation.prompts)) <= 2_048


@pytest.mark.parametrize("name", ["tokenizer.json", "homophones.json", "frontend.json"])
def test_missing_asset_is_refused_by_name(assets, tmp_path, name):
    shutil.copytree(assets, tmp_path, dirs_exist_ok=True)
    (tmp_path / name).unlink()
    with pytest.raises(ConfigError, match=name):
        TextFrontend(tmp_path)


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"spk_stat": "", "hidden_size": 4}'])
def test_broken_configuration_is_refused(assets, tmp_path, content):
    shutil.copytree(assets, tmp_path, dirs_exist_ok=True)
    (tmp_path / "frontend.json").write_text(content)
    with pytest.raises(ConfigError, match=r"frontend\.json"):
        TextFrontend(tmp_path)
