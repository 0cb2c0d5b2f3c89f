"""The tokenizer of synthetic checkpoints: BERT's arrangement, and ids of special tokens as in the official one.

The official vocabulary is that of bert-base-chinese; ours is made of character ranges and word lists so that none of
it has to be shipped. Ids 0 to 103 (`[PAD]`, `[unused1]` ..., `[UNK]`, `[CLS]`, `[SEP]`, `[MASK]`) and the 50 tokens at
the end are the same.
"""

from __future__ import annotations

import json
import string
from pathlib import Path

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

# Most frequent characters of modern Chinese, by rank (public frequency lists agree but for the order).
COMMON_CHARACTERS = (
    "的一是不了人我在有他这为之大来以个中上们到说国和地也子时道出而要于就下得可你年生自会那后能对着事其里所去行过家十用发天如"
    "然作方成者多日都三小军二无同么经法当起与好看学进种将还分此心前面又定见只主没公从知使全两些明长已手情向理民文回样身种什"
    "名实部业本动头开意现把些想问但外点正高老被最间气神真由信进世美因话机儿几水力打路西走重今反应体门安先太代月五合新放张白"
    "再死此却听更声果感常叫让物望别难女才处四每马己做电表车斯解活爱口光它位次许受给加原平总结少性员工北南东入比认利百快花夜"
    "王万记件何场真远完带吃相目连早金请士哪边战语半音李近程思喜吗吧呢啊欢谢您哈笑林海山河风雨雪春夏秋冬今昨周星期点钟零六七"
    "八九亿千岁块钱元角米克斤度省市县区街村店校师朋友父母妈爸哥弟姐妹爷奶孩医院药病书报纸笔字词句读写唱歌跳舞跑步球赛视影戏"
    "画图照片网络脑机手号码密件送接找买卖贵便宜热冷温暖凉红黄蓝绿黑鱼鸡牛羊肉菜饭茶酒果糖盐油面包牛奶蛋床桌椅窗灯墙房屋楼层"
)
COMMON_WORDS = """
    the of and to in is you that it he was for on are as with his they at be this have from or one had by word but
    not what all were we when your can said there use an each which she do how their if will up other about out many
    then them these so some her would make like him into time has look two more write go see number no way could
    people my than first water been call who oil its now find long down day did get come made may part over new
    sound take only little work know place year live me back give most very after thing our just name good sentence
    man think say great where help through much before line right too mean old any same tell boy follow came want
    show also around form three small set put end does another well large must big even such because turn here why
    ask went men read need land different home us move try kind hand picture again change off play spell air away
    animal house point page letter mother answer found study still learn should world hello speech voice text model
    server please thank today
""".split()  # noqa: SIM905 - a list of 240 quoted words is no easier to read
WORD_PIECES = "ing ed er est ly ion tion ness ment able al ic ous ful less es en th st nd re".split()  # noqa: SIM905
CHINESE_PUNCTUATION = "，。！？、；：“”‘’…—（）《》【】·"
UNKNOWN = "[UNK]"
UNUSED_TOKENS = [f"[unused{number}]" for number in range(1, 100)]
BERT_TOKENS = ["[PAD]", *UNUSED_TOKENS, UNKNOWN, "[CLS]", "[SEP]", "[MASK]"]

# In the official order, from id 21128 on.
CHATTTS_TOKENS = [
    *("[Sasr]", "[Pasr]", "[Easr]", "[Stts]", "[Ptts]", "[Etts]", "[Sbreak]", "[Pbreak]", "[Ebreak]"),
    *("[uv_break]", "[v_break]", "[lbreak]", "[llbreak]", "[undefine]", "[laugh]", "[spk_emb]", "[empty_spk]"),
    *("[music]", "[pure]"),
    *(f"[break_{number}]" for number in range(8)),
    *(f"[laugh_{number}]" for number in range(3)),
    *(f"[oral_{number}]" for number in range(10)),
    *(f"[speed_{number}]" for number in range(10)),
]


def wordpiece_vocabulary(num_tokens: int) -> list[str]:
    """The first `num_tokens` entries of the vocabulary, in the order of their ids; CHATTTS_TOKENS are not among them.

    Single characters come first, so that a short vocabulary still spells every English word; then the commonest Chinese
    characters, words, and all other Chinese characters, those of GB 2312 before the rest.

    Raises:
        ValueError: fewer than fit the single characters, or more than there are.
    """
    ascii_characters = [chr(code) for code in range(33, 127) if chr(code) not in string.ascii_uppercase]
    continuations = [f"##{character}" for character in string.ascii_lowercase + string.digits]
    must = [*BERT_TOKENS, *ascii_characters, *CHINESE_PUNCTUATION, *continuations]
    ideographs = [chr(code) for code in range(0x4E00, 0x9FA6)]
    ideographs.sort(key=lambda character: not _in_gb2312(character))  # stable: by code point within each group
    wanted = [*must, *COMMON_CHARACTERS, *COMMON_WORDS, *(f"##{piece}" for piece in WORD_PIECES), *ideographs]
    vocabulary = list(dict.fromkeys(wanted))
    if not len(must) <= num_tokens <= len(vocabulary):
        raise ValueError(f"vocabulary has {num_tokens} tokens; allowed is {len(must)} to {len(vocabulary)}")
    return vocabulary[:num_tokens]


def write_tokenizer(vocabulary: list[str], folder: Path) -> None:
    """The three files of a BertTokenizerFast with the tokens of `vocabulary` and, at the end, ChatTTS's 50."""
    folder.mkdir(parents=True)
    names = {"pad_token": "[PAD]", "unk_token": UNKNOWN, "cls_token": "[CLS]", "sep_token": "[SEP]"}
    special = {**names, "mask_token": "[MASK]", "additional_special_tokens": CHATTTS_TOKENS}
    config = {
        **special,
        "tokenizer_class": "BertTokenizer",
        "do_lower_case": True,
        "strip_accents": None,
        "tokenize_chinese_chars": True,
        "clean_up_tokenization_spaces": True,
        "model_max_length": 1_000_000,
    }
    _make_tokenizer(vocabulary).save(str(folder / "tokenizer.json"))
    for name, values in (("special_tokens_map", special), ("tokenizer_config", config)):
        (folder / f"{name}.json").write_text(json.dumps(values, indent=2), encoding="utf-8")


def _make_tokenizer(vocabulary: list[str]) -> Tokenizer:
    """BERT's lower-casing WordPiece tokenizer."""
    tokenizer = Tokenizer(models.WordPiece({token: i for i, token in enumerate(vocabulary)}, unk_token=UNKNOWN))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece(prefix="##")
    special = ["[PAD]", UNKNOWN, "[CLS]", "[SEP]", "[MASK]", *CHATTTS_TOKENS]
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in special])
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[(token, tokenizer.token_to_id(token)) for token in ("[CLS]", "[SEP]")],
    )
    return tokenizer


def _in_gb2312(character: str) -> bool:
    try:
        character.encode("gb2312")
    except UnicodeEncodeError:
        return False
    return True
