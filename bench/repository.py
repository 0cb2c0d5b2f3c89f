"""The model repository under test, and the sentences that it speaks."""

from __future__ import annotations

import re
import shutil
from collections.abc import Sequence
from pathlib import Path

from chattts_serving.errors import ConfigError, shown

FOLDER = Path("build", "bench")  # copies of repositories, and the servers' logs
# Sixteen ways to say each part of a sentence, in two languages.
WORDS = (
    (
        "The librarian|My neighbour|Our teacher|The old baker|A young doctor|The bus driver|Her brother|The gardener|"
        "His aunt|The new manager|A tired nurse|The postman|Their uncle|The painter|A quiet student|The landlord",
        "will bring|has lost|is looking for|carefully packed|forgot to send|wants to keep|would like to see|"
        "already sold|cannot find|has borrowed|might need|quickly hid|is repairing|kindly returned|never opened|"
        "still remembers",
        "the blue folder|a box of letters|the second key|two heavy chairs|the garden gate|an old radio|the yellow map|"
        "three wet coats|the broken clock|a bag of apples|the morning paper|the silver spoon|some warm bread|"
        "the long ladder|a pair of boots|the last ticket",
        "near the meeting room.|before the library closes.|on the second floor.|behind the railway station.|"
        "when the rain stops.|for the last reader.|after a long winter.|next to the river.|until half past nine.|"
        "without telling anyone.|across the market square.|during the summer holidays.|under the kitchen stairs.|"
        "as soon as possible.|with a little help.|in front of the school.",
    ),
    (
        "图书馆的老师|我的邻居|新来的医生|隔壁的奶奶|公司的经理|年轻的司机|他的叔叔|热心的护士|"
        "小区的保安|认真的学生|她的弟弟|早上的邮差|会画画的阿姨|教音乐的先生|做面包的师傅|种花的爷爷",
        "昨天晚上|今天下午|星期一早上|刚才|上个月|大雨之后|吃完午饭|开会以前|"
        "天黑的时候|去年冬天|不久以前|放学以后|火车到站时|半夜里|周末|回家的路上",
        "找到了|借走了|送来了|忘记了|收好了|打开了|买下了|修好了|带走了|看见了|换掉了|寄出了|画完了|搬走了|洗干净了|卖掉了",
        "那把蓝色的雨伞。|一本很厚的书。|桌上的旧照片。|两张电影票。|门口的自行车。|爷爷留下的手表。|一箱新鲜的苹果。|客厅里的椅子。|"
        "会议室的钥匙。|几封没有写完的信。|厨房里的大锅。|花园的小木门。|一件厚厚的大衣。|窗边的白花。|弟弟的新书包。|墙上的地图。",
    ),
)
NUM_WAYS = 16
NUM_SENTENCES = NUM_WAYS ** len(WORDS[0])  # of each language
BETWEEN = (" ", "")  # the parts
STRIDE = 40_503  # odd, so that it reaches each of them; neighbours share few words


def sentence(number: int) -> str:
    """The text of request `number`, 0 or more: English and Chinese in turns, none twice in 131,072.

    A text that is said again and again flatters whatever remembers what it has said.
    """
    number, language = divmod(number, len(WORDS))
    place = number * STRIDE % NUM_SENTENCES
    said = []
    for ways in WORDS[language]:
        place, way = divmod(place, NUM_WAYS)
        said.append(ways.split("|")[way])
    return BETWEEN[language].join(said)


def setting(repository: Path, name: str) -> str:
    """What `repository` sets for the parameter `name` of its GPT.

    Raises:
        ConfigError: there is no such repository, or it does not set the parameter once.
    """
    config = repository / "gpt_decoder" / "config.pbtxt"
    try:
        found = re.findall(_parameter(name), config.read_text("utf-8"))
    except OSError as error:
        raise ConfigError(f"cannot read {config}: {error.strerror}; run python -m export") from error
    if len(found) != 1:
        raise ConfigError(f"{config} sets '{name}' {len(found)} times, not once")
    return str(found[0][1])


def precision_of(repository: Path) -> str:
    """The precision that `repository` sets for its GPT; errors as `setting`."""
    return setting(repository, "precision")


def with_settings(repository: Path, copy: Path, **values: object) -> Path:
    """`copy`, made anew from `repository` with its artifacts linked, whose GPT has these parameters.

    Raises:
        ConfigError: as `setting`, for each of `values`.
    """
    for name in values:
        setting(repository, name)
    shutil.rmtree(copy, ignore_errors=True)
    shutil.copytree(
        repository, copy, copy_function=lambda source, target: Path(target).symlink_to(Path(source).resolve())
    )
    config = copy / "gpt_decoder" / "config.pbtxt"
    text = config.read_text("utf-8")
    for name, value in values.items():
        text = re.sub(_parameter(name), rf"\g<1>{value}", text)
    config.unlink()  # the link, not the file
    config.write_text(text, "utf-8")
    return copy


def with_precision(repository: Path, precision: str, **values: object) -> Path:
    """`with_settings` in FOLDER, for a GPT that runs in `precision` with these other parameters."""
    return with_settings(repository, FOLDER / f"repository_{precision}", precision=precision, **values)


def parse_settings(texts: Sequence[str]) -> dict[str, str]:
    """Parameters written as NAME=VALUE, for `with_settings`.

    Raises:
        ConfigError: one is not written like that, is set twice, or is the precision, which has a flag of its own.
    """
    settings: dict[str, str] = {}
    for text in texts:
        name, is_set, value = text.partition("=")
        if not is_set or not re.fullmatch(r"\w+", name) or not re.fullmatch(r"[\w.]+", value):
            raise ConfigError(
                f"--set is {shown(text)}; allowed is NAME=VALUE, a parameter of gpt_decoder's config.pbtxt"
            )
        if name in settings or name == "precision":
            raise ConfigError(f"--set is {shown(text)}: {name} is set twice, or has the flag --precision")
        settings[name] = value
    return settings


def _parameter(name: str) -> str:
    """A pattern: what stands before the value of a parameter, and the value."""
    return rf'(key: "{name}" value: \{{ string_value: ")([^"]*)'
