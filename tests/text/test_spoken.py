"""The table of what people send, at the frontend's door."""

from __future__ import annotations

import pytest

from chattts_serving.request import SynthesisRequest
from chattts_serving.text.frontend import TextFrontend
from chattts_serving.text.units import CURRENCIES, UNITS
from tests.frontend_assets import make_frontend_assets
from tests.text.spoken import CASES


@pytest.fixture(scope="module")
def frontend(tmp_path_factory: pytest.TempPathFactory) -> TextFrontend:
    return TextFrontend(make_frontend_assets(tmp_path_factory.mktemp("assets")))


def spoken(frontend: TextFrontend, text: str) -> str:
    return "\n".join(frontend.prepare(SynthesisRequest(text=text, skip_refine=True)).generation.texts)


@pytest.mark.parametrize(
    ("text", "expected", "why"),
    [case for cases in CASES.values() for case in cases],
    ids=lambda value: repr(value)[:40],
)
def test_what_is_spoken(frontend: TextFrontend, text: str, expected: str, why: str) -> None:
    assert spoken(frontend, text) == expected, why


@pytest.mark.parametrize("unit", UNITS)
def test_every_unit_is_said_in_either_language(frontend: TextFrontend, unit: str) -> None:
    _, more, chinese = UNITS[unit]
    assert spoken(frontend, f"There are 7 {unit} of it") == f"There are seven {more} of it"
    assert spoken(frontend, f"这里一共有7{unit}左右") == f"这里一共有七{chinese}左右"


@pytest.mark.parametrize("sign", CURRENCIES)
def test_every_currency_is_said_in_either_language(frontend: TextFrontend, sign: str) -> None:
    _, more, chinese = CURRENCIES[sign]
    assert spoken(frontend, f"They paid {sign}7 for it") == f"They paid seven {more} for it"
    assert spoken(frontend, f"他们付了{sign}7左右") == spoken(frontend, f"他们付了七{chinese}左右")


def test_the_table_is_large() -> None:
    texts = [text for cases in CASES.values() for text, _, _ in cases]
    assert len(texts) == len(set(texts)) >= 200
    assert sum(any("\u4e00" <= character <= "\u9fff" for character in text) for text in texts) >= 60
