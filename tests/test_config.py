import json

import pytest

from chattts_serving.config import DecoderConfig
from chattts_serving.engine.engine import EngineConfig
from chattts_serving.errors import ConfigError
from chattts_serving.gpt import Precision
from tests.engine.models import random_gpt


def read(**parameters):
    return DecoderConfig.from_triton(
        json.dumps({"parameters": {name: {"string_value": value} for name, value in parameters.items()}})
    )


def test_parameters_are_read_and_the_rest_has_defaults():
    config = read(max_requests="3", kv_cache_gb="0.5", precision="int8", max_sequences="7")
    assert (config.max_requests, config.precision, config.num_threads) == (3, Precision.INT8, 0)
    assert config.engine == EngineConfig(max_sequences=7, kv_cache_gb=0.5)


def test_no_parameters_are_all_defaults():
    assert DecoderConfig.from_triton("{}") == DecoderConfig()


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("max_request", "3", "'max_request' is unknown; known are kv_cache_gb"),
        ("max_requests", "many", "'max_requests' is 'many'; allowed is a number"),
        ("max_requests", "0", "'max_requests' is 0; allowed is 1 or more"),
        ("num_threads", "-1", "'num_threads' is -1; allowed is 0 or more"),
        ("precision", "int4", "'precision' is 'int4'; allowed is fp32 or int8"),
    ],
)
def test_a_wrong_parameter_is_named(name, value, message):
    with pytest.raises(ConfigError, match=message):
        read(**{name: value})


def test_int8_is_refused_where_it_cannot_run():
    with pytest.raises(ConfigError, match="int8 on meta"):
        random_gpt(device="meta", precision=Precision.INT8)
