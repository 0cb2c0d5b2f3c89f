import json

import pytest

from chattts_serving.config import DecoderConfig
from chattts_serving.errors import ConfigError
from chattts_serving.gpt_config import Precision
from tests.engine.models import random_gpt


def read(**parameters):
    return DecoderConfig.from_triton(
        json.dumps({"parameters": {name: {"string_value": value} for name, value in parameters.items()}})
    )


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
        ("max_prefill_tokens", "0", "'max_prefill_tokens' is 0; allowed is 1 or more"),
        ("num_threads", "-1", "'num_threads' is -1; allowed is 0 or more"),
        ("precision", "int4", "'precision' is 'int4'; allowed is auto, fp32, bf16, fp16, int8"),
    ],
)
def test_a_wrong_parameter_is_named(name, value, message):
    with pytest.raises(ConfigError, match=message):
        read(**{name: value})


def test_precision_auto_leaves_it_to_the_device():
    assert read(precision="auto").precision is None


@pytest.mark.parametrize("precision", [Precision.BF16, Precision.FP16, Precision.INT8])
def test_pytorch_on_a_cpu_computes_in_float32_alone(precision):
    with pytest.raises(ConfigError, match=f"precision is {precision.value}; allowed on cpu is fp32"):
        random_gpt(precision=precision)
