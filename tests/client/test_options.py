"""Options and their tensors, without a server."""

from __future__ import annotations

import math
import re
from dataclasses import fields

import numpy as np
import pytest
from chattts_client import InvalidInputError, SynthesisOptions, TTSClient
from chattts_client.client import DEFAULT_TIMEOUT, MAX_DEADLINE_MS, Endpoint
from chattts_client.options import DATATYPES, PIECE_DATATYPES, STREAM_DATATYPES, OptionValues, input_tensors, merged
from hypothesis import given
from hypothesis import strategies as st
from tritonclient.utils import triton_to_np_dtype

from chattts_serving.request import SynthesisRequest
from tests.client.conftest import FAKE_MODEL

CONFIG_TYPES = {"STRING": "BYTES"}  # config.pbtxt's word for the wire's


def arrays(text: str, **options: object) -> dict[str, np.ndarray]:
    return {name: array for name, _, array in input_tensors(text, SynthesisOptions(**options))}


def test_the_inputs_are_those_of_the_servers_request():
    assert set(DATATYPES) == {field.name for field in fields(SynthesisRequest)}


def test_the_keyword_arguments_are_the_options():
    assert set(OptionValues.__annotations__) == {field.name for field in fields(SynthesisOptions)}


@pytest.mark.parametrize(
    ("model", "datatypes"), [("chattts", DATATYPES), ("chattts_stream", {**STREAM_DATATYPES, **PIECE_DATATYPES})]
)
def test_the_datatypes_are_those_of_the_contract(model, datatypes):
    config = (FAKE_MODEL / model / "config.pbtxt").read_text(encoding="utf-8").partition("output [")[0]
    declared = dict(re.findall(r'name: "(\w+)" data_type: TYPE_(\w+)', config))
    assert {name: CONFIG_TYPES.get(kind, kind) for name, kind in declared.items()} == datatypes


def test_every_tensor_is_a_batch_of_one_value_of_its_datatype():
    values = {"JSON": {"x": "y"}, "BYTES": "x", "INT64": 1, "INT32": 1, "FP32": 1.0, "BOOL": True}
    options = SynthesisOptions(**{field.name: values[field.metadata["datatype"]] for field in fields(SynthesisOptions)})
    tensors = input_tensors("x", options)
    assert [tensor.name for tensor in tensors] == list(DATATYPES)
    for name, datatype, array in tensors:
        assert array.shape == (1, 1), name
        assert array.dtype == triton_to_np_dtype(datatype), name


def test_options_that_are_not_given_make_no_tensor():
    assert list(arrays("x")) == ["text"]


@pytest.mark.parametrize(("name", "value"), [("skip_refine", False), ("seed", 0), ("prompt", ""), ("temperature", 0.0)])
def test_a_false_value_is_given_all_the_same(name, value):
    assert arrays("x", **{name: value})[name].item() in (value, b"")


@given(st.text(st.characters(exclude_categories=["Cs"])))
def test_any_text_without_surrogates_becomes_its_utf8_bytes(text):
    assert arrays(text)["text"].item() == text.encode()


@given(st.integers(-(2**63), 2**63 - 1))
def test_every_seed_of_64_bits_arrives_exactly(seed):
    assert arrays("x", seed=seed)["seed"].item() == seed


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_nan_and_infinities_are_left_to_the_server(value):
    assert str(arrays("x", top_p=value)["top_p"].item()) == str(value)


@pytest.mark.parametrize(
    ("name", "value", "allowed"),
    [
        ("seed", 2**63, "64 bits"),
        ("seed", -(2**63) - 1, "64 bits"),
        ("seed", True, "an integer"),
        ("seed", 1.0, "an integer"),
        ("seed", "1", "an integer"),
        ("top_k", 2**31, "32 bits"),
        ("max_new_tokens", -(2**31) - 1, "32 bits"),
        ("deadline_ms", 10**30, "32 bits"),
        ("temperature", 1e39, "32-bit floating point"),
        ("temperature", -1e39, "32-bit floating point"),
        ("temperature", 10**400, "32-bit floating point"),
        ("temperature", "warm", "a number"),
        ("top_p", False, "a number"),
        ("skip_refine", 1, "True or False"),
        ("normalize", "no", "True or False"),
        ("speaker", b"bytes", "a string"),
        ("prompt", "ab\udc80", "character 3 is a lone surrogate"),
        ("language", 1, "a string"),
    ],
)
def test_a_value_that_fits_no_tensor_is_refused_with_its_name(name, value, allowed):
    with pytest.raises(InvalidInputError, match=f"^input '{name}' is .*; allowed is .*{allowed}"):
        arrays("x", **{name: value})


@pytest.mark.parametrize("text", [None, 5, b"bytes", "\ud800"])
def test_a_text_that_is_none_is_refused(text):
    with pytest.raises(InvalidInputError, match=r"^input 'text' is "):
        arrays(text)


def test_long_values_are_cut_in_messages():
    with pytest.raises(InvalidInputError) as caught:
        arrays("\ud800" * 10_000)
    assert len(str(caught.value)) < 500


def test_single_options_go_in_front_of_an_options_object():
    options = SynthesisOptions(seed=1, top_k=5)
    assert merged(options, {"seed": 2}) == SynthesisOptions(seed=2, top_k=5)


def test_an_unknown_option_is_a_type_error():
    with TTSClient("127.0.0.1:1") as client, pytest.raises(TypeError, match="tempo"):
        client.synthesize("x", tempo=3)


@pytest.mark.parametrize(
    ("timeout", "deadline_ms"),
    [
        (2.5, 2500),
        (0.0001, 1),
        (MAX_DEADLINE_MS / 1000, MAX_DEADLINE_MS),
        (MAX_DEADLINE_MS / 1000 + 1, None),
        (None, None),
    ],
)
def test_the_timeout_is_the_servers_deadline(timeout, deadline_ms):
    tensors = Endpoint("grpc", "h:1", "m", timeout).tensors("x", SynthesisOptions())
    assert {name: array.item() for name, _, array in tensors}.get("deadline_ms") == deadline_ms


def test_a_deadline_that_is_given_stays():
    tensors = Endpoint("grpc", "h:1", "m", 5.0).tensors("x", SynthesisOptions(deadline_ms=77))
    assert {name: array.item() for name, _, array in tensors}["deadline_ms"] == 77


@pytest.mark.parametrize(
    ("settings", "name"),
    [
        ({"url": "http://127.0.0.1:8000"}, "url"),
        ({"url": "127.0.0.1"}, "url"),
        ({"url": ""}, "url"),
        ({"url": "host:0"}, "url"),
        ({"url": "host:65536"}, "url"),
        ({"protocol": "https"}, "protocol"),
        ({"timeout": 0}, "timeout"),
        ({"timeout": -1}, "timeout"),
        ({"timeout": math.nan}, "timeout"),
        ({"timeout": math.inf}, "timeout"),
    ],
)
def test_a_wrong_setting_is_refused_with_its_name(settings, name):
    with pytest.raises(InvalidInputError, match=f"^input '{name}' is "):
        TTSClient(**settings)


def test_the_default_url_goes_with_the_protocol():
    assert TTSClient().endpoint == Endpoint("grpc", "127.0.0.1:8001", "chattts", DEFAULT_TIMEOUT)
    assert TTSClient(protocol="http").endpoint.url == "127.0.0.1:8000"
