import json
import re
from pathlib import Path

import pytest

from chattts_serving.engine.gpt_config import Precision
from chattts_serving.errors import ConfigError, InvalidInputError
from chattts_serving.speech.windows import CONTEXT_TOKENS, ReadingPlan
from chattts_serving.triton.config import DecoderConfig, ReadingConfig
from chattts_serving.triton.decoder import sequences_on
from tests.engine.models import random_gpt

ROOT = Path(__file__).resolve().parent.parent.parent


def triton(**parameters):
    return json.dumps({"parameters": {name: {"string_value": value} for name, value in parameters.items()}})


def read(**parameters):
    return DecoderConfig.from_triton(triton(**parameters))


def test_parameters_are_read_and_the_rest_has_defaults():
    config = read(max_requests="3", kv_cache_gb="0.5", precision="int8", max_sequences="7")
    assert config == DecoderConfig(max_requests=3, kv_cache_gb=0.5, precision=Precision.INT8, max_sequences=7)


def test_no_parameters_are_all_defaults():
    assert DecoderConfig.from_triton("{}") == DecoderConfig()


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("max_request", "3", "'max_request' is unknown; known are kv_cache_gb"),
        ("max_requests", "many", "'max_requests' is 'many'; allowed is a number"),
        ("max_requests", "0", "'max_requests' is 0; allowed is 1 or more"),
        ("max_sequences", "0", "'max_sequences' is 0; allowed is 1 or more"),
        ("max_sequences", "1.5", "'max_sequences' is '1.5'; allowed is auto or a whole number"),
        ("kv_cache_gb", "half", "'kv_cache_gb' is 'half'; allowed is auto or a number"),
        ("max_prefill_tokens", "0", "'max_prefill_tokens' is 0; allowed is 1 or more"),
        ("lease_s", "0", "'lease_s' is 0.0; allowed is a number above 0"),
        ("lease_s", "nan", "'lease_s' is nan; allowed is a number above 0"),
        ("num_threads", "-1", "'num_threads' is -1; allowed is 0 or more"),
        ("precision", "int4", "'precision' is 'int4'; allowed is auto, fp32, bf16, fp16, int8"),
    ],
)
def test_a_wrong_parameter_is_named(name, value, message):
    with pytest.raises(ConfigError, match=message):
        read(**{name: value})


def test_auto_leaves_it_to_the_device():
    assert read(precision="auto", max_sequences="auto", kv_cache_gb="auto") == DecoderConfig()


@pytest.mark.parametrize(
    ("parameters", "device", "number"),
    [({}, "cpu", 64), ({}, "cuda:1", 256), ({"max_sequences": "7"}, "cpu", 7), ({"max_sequences": "7"}, "cuda:0", 7)],
)
def test_how_many_sequences_run_at_once_suits_the_device(parameters, device, number):
    assert sequences_on(device, read(**parameters)) == number


def test_what_the_repository_says_suits_any_device():
    config = (ROOT / "model_repository" / "gpt_decoder" / "config.pbtxt").read_text("utf-8")
    written = dict(re.findall(r'key: "(\w+)" value: \{ string_value: "([^"]*)"', config))
    assert read(**written) == DecoderConfig()


@pytest.mark.parametrize("precision", [Precision.BF16, Precision.FP16, Precision.INT8])
def test_pytorch_on_a_cpu_computes_in_float32_alone(precision):
    with pytest.raises(ConfigError, match=f"precision is {precision.value}; allowed on cpu is fp32"):
        random_gpt(precision=precision)


def test_each_mode_of_a_stream_has_its_plan():
    parameters = {"least_tokens": "4,8", "most_tokens": "16", "sentences_ahead": "3"}
    config = ReadingConfig.from_triton(
        triton(**parameters, low_latency_lookahead_tokens="6,8", low_latency_fade_tokens="2")
    )
    assert config.plan("exact") == ReadingPlan((4, 8), 16, (CONTEXT_TOKENS,), 0, 3)
    assert config.plan("low_latency") == ReadingPlan((4, 8), 16, (6, 8), 2, 3)
    assert config.plan("exact", live=True) == ReadingPlan((4, 8), 16, (CONTEXT_TOKENS,), 0, 3, live=True)
    sooner = ReadingConfig.from_triton(triton(**parameters, low_latency_least_tokens="2,3"))
    assert sooner.plan("exact") == config.plan("exact")
    assert sooner.plan("low_latency") == ReadingPlan((2, 3), 16, (10,), 1, 3)
    with pytest.raises(InvalidInputError, match="'mode' is 'fast'; allowed is one of exact, low_latency"):
        config.plan("fast")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("least_tokens", "0"),
        ("least_tokens", ""),
        ("least_tokens", "8;9"),
        ("most_tokens", "3"),
        ("low_latency_least_tokens", "0"),
        ("low_latency_least_tokens", "600"),
        ("low_latency_lookahead_tokens", "53"),
        ("low_latency_fade_tokens", "13"),
        ("sentences_ahead", "0"),
    ],
)
def test_parameters_that_make_no_plan_are_refused_at_start(name, value):
    with pytest.raises(ConfigError, match=name.removeprefix("low_latency_")):
        ReadingConfig.from_triton(triton(**{"least_tokens": "4", "most_tokens": "16"} | {name: value}))
