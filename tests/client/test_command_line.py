"""`chattts` as its users run it: a process of its own."""

from __future__ import annotations

import io
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import soundfile
from chattts_client.audio_file import FORMATS

from tests.client.conftest import content
from tests.client.fake_synthesis import SAMPLES_PER_CHARACTER
from tests.client.test_client import ALL_OPTIONS, AS_SENT

ROOT = Path(__file__).resolve().parents[2]


def start(server, *arguments: str, protocol: str = "grpc", url: str | None = None) -> subprocess.Popen[bytes]:
    url = url or (server.grpc_url if protocol == "grpc" else server.http_url)
    command = [sys.executable, "-m", "chattts_client", *map(str, arguments), "--url", url, "--protocol", protocol]
    environment = os.environ | {"PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'client'}"}
    pipes = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
    return subprocess.Popen(command, env=environment, **pipes)


def run(server, *arguments: str, stdin: bytes = b"", **where: str) -> tuple[int, bytes, str]:
    """Exit status, standard output, standard error. No run may show a traceback."""
    with start(server, *arguments, **where) as process:
        stdout, stderr = process.communicate(stdin, timeout=60)
    assert b"Traceback" not in stderr, stderr.decode()
    return process.returncode, stdout, stderr.decode()


def characters(path: Path) -> int:
    """How many characters were spoken into `path`, which must be 24 kHz mono."""
    info = soundfile.info(path)
    assert (info.samplerate, info.channels) == (24_000, 1)
    assert info.frames % SAMPLES_PER_CHARACTER == 0
    return info.frames // SAMPLES_PER_CHARACTER


def names_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("protocol", ["grpc", "http"])
def test_a_text_becomes_a_file_and_a_line(server, tmp_path, protocol):
    status, stdout, stderr = run(server, "Hello 你好", "-o", tmp_path / "out.wav", "--seed", 7, protocol=protocol)
    assert (status, stdout) == (0, b"")
    line = rf"{tmp_path}/out\.wav: 0\.17 s of audio, 8 tokens, seed 7, \d+\.\d\d s taken, RTF \d+\.\d\d"
    assert re.fullmatch(line, stderr.strip())
    assert characters(tmp_path / "out.wav") == 8
    assert names_in(tmp_path) == ["out.wav"]


@pytest.mark.parametrize("ending", FORMATS)
def test_the_ending_decides_the_format(server, tmp_path, ending):
    assert run(server, "Hello there", "-o", tmp_path / f"out{ending}")[0] == 0
    assert characters(tmp_path / f"out{ending}") == 11
    info = soundfile.info(tmp_path / f"out{ending}")
    assert (info.format, info.subtype) == FORMATS[ending]


def test_what_is_not_spoken_is_named(server, tmp_path):
    status, stdout, _ = run(server, "a ☃", "-o", tmp_path / "out.wav", "--json")
    assert (status, json.loads(stdout)["warning"]) == (0, "not all")
    assert run(server, "a ☃", "-o", tmp_path / "out.wav")[2].strip().endswith(", warning: not all")


def test_floating_point_samples(server, tmp_path):
    assert run(server, "x", "-o", tmp_path / "out.wav", "--float")[0] == 0
    assert soundfile.info(tmp_path / "out.wav").subtype == "FLOAT"


def test_every_flag_arrives_as_its_input(server, tmp_path):
    flags = ["--skip-refine", "--no-normalize", "--ssml", "--strict-tags", "--redraw-long"]
    for name, value in ALL_OPTIONS.items():
        if name == "turns":  # are lines of another file: see test_dialogue.py
            continue
        if isinstance(value, (dict, list)):
            (tmp_path / f"{name}.json").write_text(json.dumps(value), encoding="utf-8")
            flags += [f"--{name}", tmp_path / f"{name}.json"]
        elif not isinstance(value, bool):
            flags += [f"--{name.replace('_', '-')}", str(value)]
    status, stdout, _ = run(server, "x", "-o", tmp_path / "out.wav", "--json", *flags)
    assert status == 0
    seen = json.loads(json.loads(stdout)["refined_text"])
    sent = {name: value for name, value in AS_SENT.items() if name not in ("refine_only", "turns")}
    assert {name: entry["value"] for name, entry in seen.items()} == {"text": "x", **sent}


def test_without_flags_only_text_and_deadline_arrive(server, tmp_path):
    _, stdout, _ = run(server, "x", "-o", tmp_path / "out.wav", "--json", "--timeout", 9)
    seen = json.loads(json.loads(stdout)["refined_text"])
    assert {name: entry["value"] for name, entry in seen.items()} == {"text": "x", "deadline_ms": 9_000}


def test_several_texts_are_numbered_in_their_order(server, tmp_path):
    (tmp_path / "text").write_text("file\n", encoding="utf-8")
    arguments = ["a", "-", "-f", tmp_path / "text", "-o", tmp_path / "out.flac", "-j", 2]
    assert run(server, *arguments, stdin=b" standard input \n")[0] == 0
    assert [characters(tmp_path / f"out-{number}.flac") for number in (1, 2, 3)] == [1, 14, 4]
    assert not (tmp_path / "out.flac").exists()


def test_lines_of_a_file_are_texts_of_their_own(server, tmp_path):
    lines = ["x" * n for n in range(1, 12)]
    (tmp_path / "lines").write_bytes("﻿".encode() + "\r\n\r\n  ".join(lines).encode() + b"\n\n")
    assert run(server, "--lines", "-f", tmp_path / "lines", "-o", tmp_path / "out.wav", "-j", 16)[0] == 0
    assert [characters(tmp_path / f"out-{number:02}.wav") for number in range(1, 12)] == list(range(1, 12))


def test_several_texts_let_others_go_first(server, tmp_path):
    def priorities(*flags):
        _, stdout, _ = run(server, *flags, "-o", tmp_path / "out.wav", "--json")
        seen = [json.loads(json.loads(line)["refined_text"]) for line in stdout.splitlines()]
        return [inputs.get("priority", {}).get("value") for inputs in seen]

    (tmp_path / "lines").write_text("ab\ncd\n", encoding="utf-8")
    assert priorities("--lines", "-f", tmp_path / "lines") == ["batch", "batch"]
    assert priorities("ab", "cd", "--priority", "interactive") == ["interactive", "interactive"]
    assert priorities("-f", tmp_path / "lines") == [None]


@pytest.mark.parametrize("stream", [[], ["--stream"]])
def test_several_texts_wait_for_room(server, tmp_path, stream):
    texts = ["a", f"full {tmp_path / 'room'}"]
    status, _, stderr = run(server, *texts, "-o", tmp_path / "out.wav", *stream)
    assert status == 0, stderr
    assert characters(tmp_path / "out-2.wav") == len(texts[1])
    assert "try again later" in run(server, "fail UNAVAILABLE full; try again later", "-o", tmp_path / "one.wav")[2]


def test_a_file_with_several_lines_is_one_text(server, tmp_path):
    (tmp_path / "text").write_text("ab\ncd\n", encoding="utf-8")
    assert run(server, "-f", tmp_path / "text", "-o", tmp_path / "out.wav")[0] == 0
    assert characters(tmp_path / "out.wav") == 5


@pytest.mark.parametrize(("texts", "names"), [(["a"], ["speech.wav"]), (["a", "b"], ["speech-1.wav", "speech-2.wav"])])
def test_a_folder_takes_files_of_its_own_names(server, tmp_path, texts, names):
    assert run(server, *texts, "-o", f"{tmp_path}/")[0] == 0
    assert names_in(tmp_path) == names


def test_a_folder_that_is_not_there_is_made(server, tmp_path):
    assert run(server, "a", "b", "-o", f"{tmp_path}/new/folder/")[0] == 0
    assert names_in(tmp_path / "new" / "folder") == ["speech-1.wav", "speech-2.wav"]


def test_standard_output_takes_wav(server):
    status, stdout, stderr = run(server, "abc", "-o", "-")
    assert (status, stderr[:2]) == (0, "-:")
    assert len(soundfile.read(io.BytesIO(stdout))[0]) == 3 * SAMPLES_PER_CHARACTER


def test_json_has_one_object_per_text(server, tmp_path):
    arguments = ["ab", "fail INTERNAL boom", "-o", tmp_path / "out.wav", "--json", "--seed", 3]
    status, stdout, _ = run(server, *arguments)
    good, bad = sorted(map(json.loads, stdout.splitlines()), key=lambda report: report["number"])
    assert status == 1
    assert good["file"] == str(tmp_path / "out-1.wav")
    assert (good["text"], good["seed"], good["num_tokens"], good["sample_rate"]) == ("ab", 3, 2, 24_000)
    assert good["seconds"] == pytest.approx(2 * SAMPLES_PER_CHARACTER / 24_000)
    assert good["rtf"] == pytest.approx(good["seconds_taken"] / good["seconds"])
    assert bad == {
        "number": 2,
        "text": "fail INTERNAL boom",
        "file": None,
        "error": {"type": "ServerError", "message": "INTERNAL: boom"},
    }


def test_one_failure_does_not_stop_the_other_texts(server, tmp_path):
    status, _, stderr = run(server, "a", "fail INVALID_ARG input 'x'", "b", "-o", tmp_path / "out.wav", "-j", 1)
    assert status == 1
    assert f"{tmp_path}/out-2.wav: failed: input 'x'" in stderr
    assert names_in(tmp_path) == ["out-1.wav", "out-3.wav"]


def test_a_file_that_is_there_is_replaced_only_by_a_success(server, tmp_path):
    target = tmp_path / "out.wav"
    target.write_bytes(b"old")
    assert run(server, "fail INTERNAL boom", "-o", target)[0] == 1
    assert target.read_bytes() == b"old"
    assert run(server, "abc", "-o", target)[0] == 0
    assert characters(target) == 3


def test_a_target_that_cannot_be_replaced_fails_and_leaves_nothing(server, tmp_path):
    (tmp_path / "out-1.wav").mkdir()
    status, _, stderr = run(server, "a", "b", "-o", tmp_path / "out.wav")
    assert status == 1
    assert "out-1.wav: failed: " in stderr
    assert names_in(tmp_path) == ["out-1.wav", "out-2.wav"]


def test_no_server_is_one_clear_line(server, tmp_path, refusing_url):
    status, _, stderr = run(server, "a", "-o", tmp_path / "out.wav", url=refusing_url)
    assert status == 1
    assert stderr.startswith(f"{tmp_path}/out.wav: failed: no connection to {refusing_url}")
    assert not names_in(tmp_path)


@pytest.mark.parametrize("protocol", ["grpc", "http"])
def test_a_timeout_is_one_clear_line(server, tmp_path, protocol):
    arguments = ["hang 2", "-o", tmp_path / "out.wav", "--timeout", 0.25]
    status, _, stderr = run(server, *arguments, protocol=protocol)
    assert status == 1
    assert re.fullmatch(r".*out\.wav: failed: no answer from 127\.0\.0\.1:\d+ in time", stderr.strip())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["a"], "input 'output' is None; allowed is a file, - for standard output, or --refine-only"),
        (["-o", "out.wav"], "input 'text' is []"),
        (["a", "-o", "out.aac"], "input 'output' is 'out.aac'; allowed is a file name that ends in .wav"),
        (["a", "-o", "out"], "input 'output' is 'out'"),
        (["a", "-o", "out.mp3", "--float"], "for floating point samples"),
        (["a", "-o", "missing/out.wav"], "missing is none"),
        (["a", "-o", "a-file/out.wav"], "a-file is none"),
        (["a", "-o", "a-file/"], "File exists: 'a-file'"),
        (["a", "-o", "new/", "--seed", str(2**63)], "input 'seed' is"),
        (["a", "b", "-o", "-"], "a file, pattern or folder for 2 texts"),
        (["a", "-o", "-", "--json"], "because --json writes to standard output"),
        (["-f", "missing", "-o", "out.wav"], "No such file or directory: 'missing'"),
        (["-f", "not-utf8", "-o", "out.wav"], "input 'file' is 'not-utf8'; allowed is UTF-8 text; byte 1 is none"),
        (["-f", "a-file", "--lines", "-o", "out.wav"], "input 'text' is []"),
        (["a", "-o", "out.wav", "-j", "0"], "input 'concurrency' is 0"),
        (["a", "-o", "out.wav", "--timeout", "0"], "input 'timeout' is 0.0"),
        (["a", "-o", "out.wav", "--url", "http://h:1"], "input 'url' is 'http://h:1'"),
        (["a", "-o", "out.wav", "--protocol", "smtp"], "invalid choice: 'smtp'"),
        (["a", "-o", "out.wav", "--seed", "x"], "--seed: invalid int value: 'x'"),
        (["a", "-o", "out.wav", "--seed", str(2**63)], f"input 'seed' is {2**63}; allowed is an integer of 64 bits"),
        (["a", "-o", "out.wav", "--top-k", str(2**31)], "input 'top_k' is"),
        (["a", "-o", "out.wav", "--mode", "exact"], "input 'mode' is 'exact'; allowed is none without --stream"),
        (["a", "-o", "out.wav", "--stream", "--mode", "slow"], "invalid choice: 'slow'"),
        (
            ["a", "-o", "out.wav", "--srt", "out.txt"],
            "input 'srt' is 'out.txt'; allowed is a file name that ends in .srt or .vtt",
        ),
        (["a", "-o", "out.wav", "--srt", "-"], "input 'srt' is '-'"),
        (["a", "-o", "out.wav", "--srt", "missing/out.srt"], "missing is none"),
        (["a", "--refine-only", "-o", "out.wav"], "input 'output' is 'out.wav'; allowed is none with --refine-only"),
        (["a", "--refine-only", "--srt", "out.srt"], "input 'srt' is 'out.srt'; allowed is none with --refine-only"),
        (["a", "--refine-only", "--stream"], "input 'stream' is True; allowed is none with --refine-only"),
        (["voices", "now"], "unrecognized arguments: now"),
        (["voices", "--url", "h"], "input 'url' is 'h'"),
        (["clone"], "required: FILE"),
        (["clone", "missing.wav"], "No such file or directory: 'missing.wav'"),
        (["clone", "a-file"], "input 'recording' is 'a-file'; allowed is an audio file"),
        (["clone", "a-file", "-o", "missing/voice"], "missing is none"),
        (["a", "-o", "out.wav", "--temp", "1"], "unrecognized arguments: --temp 1"),
        ([b"\xff", "-o", "out.wav"], "input 'text' is '\\udcff'; allowed is text that UTF-8 can encode"),
    ],
)
def test_a_wrong_command_line_exits_with_2_and_sends_nothing(tmp_path, refusing_url, arguments, message):
    (tmp_path / "a-file").write_bytes(b"\n \n")
    (tmp_path / "not-utf8").write_bytes(b"a\xff")
    command = [sys.executable, "-m", "chattts_client", *arguments]
    command += [] if "--url" in arguments else ["--url", refusing_url]
    result = subprocess.run(
        command, cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, timeout=60, check=False
    )
    stderr = result.stderr.decode()
    assert result.returncode == 2
    assert message in stderr
    assert "no connection" not in stderr
    assert "Traceback" not in stderr
    assert names_in(tmp_path) == ["a-file", "not-utf8"]


@pytest.mark.parametrize(
    ("audio", "message"),
    [
        (np.zeros((100, 2)), "an audio file of one channel; it has 2"),
        (np.zeros(0), "input 'audio' is '0 samples'; allowed is above 0 to 30 s of samples"),
        (np.zeros(30 * 8_000 + 1), "input 'audio' is '240001 samples'"),
        (np.array([np.nan]), "input 'audio' is nan; allowed is samples that are finite numbers"),
    ],
)
def test_a_recording_that_is_of_no_use_exits_with_2_and_sends_nothing(server, tmp_path, refusing_url, audio, message):
    soundfile.write(tmp_path / "a.wav", audio, 8_000, subtype="FLOAT")
    status, stdout, stderr = run(server, "clone", tmp_path / "a.wav", url=refusing_url)
    assert (status, stdout) == (2, b"")
    assert message in stderr
    assert "no connection" not in stderr


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_without_permission_exits_with_2(server, tmp_path):
    tmp_path.chmod(0o500)
    status, _, stderr = run(server, "a", "-o", tmp_path / "out.wav")
    assert (status, "is not" in stderr) == (2, True)


def test_an_interrupt_ends_quietly_and_leaves_nothing(server, tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"127.0.0.1:{silent.getsockname()[1]}"
        with start(server, "x", "-o", tmp_path / "out.wav", url=url, protocol="http") as process:
            connection, _ = silent.accept()
            process.send_signal(signal.SIGINT)
            _, stderr = process.communicate(timeout=60)
            connection.close()
    assert process.returncode == 130
    assert stderr == b"interrupted\n"
    assert not names_in(tmp_path)


def test_an_answer_without_audio_is_a_failure(server, tmp_path):
    status, _, stderr = run(server, "silence", "-o", tmp_path / "out.wav")
    assert (status, "input 'audio' is []" in stderr) == (1, True)
    assert not names_in(tmp_path)


def test_a_reader_that_leaves_is_no_traceback(server):
    with start(server, "a" * 4_000, "-o", "-") as process:
        process.stdout.close()
        stderr = process.stderr.read()
        assert process.wait(30) == 1
    assert stderr == b""


def test_a_cut_sentence_is_told(server, tmp_path):
    arguments = ["four\nsentences\nof\nwords", "-o", tmp_path / "out.wav", "--max-new-tokens", 4]
    _, _, stderr = run(server, *arguments)
    assert stderr.endswith(", warning: cut at --max-new-tokens: 2 of 4 sentences\n")
    _, stdout, _ = run(server, *arguments, "--json")
    sentences = json.loads(stdout)["sentences"]
    assert [sentence["finish_reason"] for sentence in sentences] == ["stop", "length", "stop", "length"]


def test_a_sentence_that_went_on_too_long_is_told(server, tmp_path):
    _, _, stderr = run(server, "on and on\nends", "-o", tmp_path / "out.wav", "--redraw-long")
    assert stderr.endswith(", warning: went on long after their text: 1 of 2 sentences\n")


@pytest.mark.parametrize("protocol", ["grpc", "http"])
def test_refined_text_goes_to_standard_output_alone(server, tmp_path, protocol):
    status, stdout, stderr = run(server, "Hello 你好", "--refine-only", "--seed", 7, protocol=protocol)
    assert status == 0
    assert json.loads(stdout)["refine_only"]["value"] is True
    assert re.fullmatch(r"text 1: refined, seed 7, \d+\.\d\d s taken", stderr.strip())


def test_refined_texts_come_in_their_order_without_those_that_failed(server):
    texts = ["hang 0.5", "fail INTERNAL boom", "second"]
    status, stdout, _ = run(server, *texts, "--refine-only", "-j", 3)
    assert status == 1
    assert [json.loads(line)["text"]["value"] for line in stdout.splitlines()] == ["hang 0.5", "second"]


def test_refined_text_as_json(server):
    status, stdout, _ = run(server, "Hello", "--refine-only", "--json")
    report = json.loads(stdout)
    assert (status, report["file"], report["number"]) == (0, None, 1)
    assert json.loads(report["refined_text"])["text"]["value"] == "Hello"
    assert "rtf" not in report


@pytest.mark.parametrize("stream", [[], ["--stream"]])
def test_subtitles_have_a_cue_a_sentence(server, tmp_path, stream):
    arguments = ["Hello\n你好 [laugh]", "-o", tmp_path / "out.wav", "--srt", tmp_path / "out.srt", *stream]
    assert run(server, *arguments)[0] == 0
    assert (tmp_path / "out.srt").read_text(encoding="utf-8") == (
        "1\n00:00:00,000 --> 00:00:00,107\nHello\n\n2\n00:00:00,128 --> 00:00:00,341\n你好\n\n"
    )


def test_subtitles_have_a_cue_a_word_with_word_times_and_are_webvtt_by_their_ending(server, tmp_path):
    arguments = ["Hello\n你好", "-o", tmp_path / "out.wav", "--srt", tmp_path / "out.vtt", "--word-times", "--json"]
    status, stdout, _ = run(server, *arguments)
    assert status == 0
    assert (tmp_path / "out.vtt").read_text(encoding="utf-8") == (
        "WEBVTT\n\n00:00:00.000 --> 00:00:00.107\nhello\n\n00:00:00.128 --> 00:00:00.171\n你好\n\n"
    )
    assert [word["text"] for word in json.loads(stdout)["words"]] == ["hello", "你好"]


@pytest.mark.parametrize("stream", [[], ["--stream"]])
def test_subtitles_are_numbered_as_the_texts_are(server, tmp_path, stream):
    texts, times = ("Hello\n你好", "Two"), ["--word-times", *stream]
    assert run(server, *texts, "-o", f"{tmp_path}/audio/", "--srt", f"{tmp_path}/text/", *times)[0] == 0
    assert names_in(tmp_path / "audio") == ["speech-1.wav", "speech-2.wav"]
    assert names_in(tmp_path / "text") == ["speech-1.srt", "speech-2.srt"]
    first, second = ((tmp_path / f"text/speech-{number}.srt").read_text(encoding="utf-8") for number in (1, 2))
    assert first == "1\n00:00:00,000 --> 00:00:00,107\nhello\n\n2\n00:00:00,128 --> 00:00:00,171\n你好\n\n"
    assert second == "1\n00:00:00,000 --> 00:00:00,064\ntwo\n\n"


@pytest.mark.parametrize(("protocol", "ending"), [*(("grpc", ending) for ending in FORMATS), ("http", ".wav")])
def test_a_stream_becomes_a_file_and_a_line(server, tmp_path, protocol, ending):
    target = tmp_path / f"out{ending}"
    status, stdout, stderr = run(server, "Hello there", "-o", target, "--stream", "--seed", 7, protocol=protocol)
    assert (status, stdout) == (0, b"")
    line = rf"{target}: 0\.23 s of audio, 11 tokens, seed 7, \S+ s taken, RTF \S+, first audio after \d+\.\d\d s"
    assert re.fullmatch(line, stderr.strip())
    assert characters(target) == 11
    info = soundfile.info(target)
    assert (info.format, info.subtype) == FORMATS[ending]
    assert names_in(tmp_path) == [target.name]


def test_a_streamed_file_is_the_whole_answers_file(server, tmp_path):
    run(server, "Hello there", "-o", tmp_path / "whole.wav")
    run(server, "Hello there", "-o", tmp_path / "stream.wav", "--stream")
    assert (tmp_path / "whole.wav").read_bytes() == (tmp_path / "stream.wav").read_bytes()


@pytest.mark.parametrize(("flags", "mode"), [([], "exact"), (["--mode", "low_latency"], "low_latency")])
def test_the_mode_arrives(server, tmp_path, flags, mode):
    _, stdout, _ = run(server, "x", "-o", tmp_path / "out.wav", "--stream", "--json", *flags)
    report = json.loads(stdout)
    assert json.loads(report["refined_text"])["mode"]["value"] == mode
    assert 0 < report["seconds_to_first_audio"] <= report["seconds_taken"]


def test_several_texts_are_streamed_into_their_files(server, tmp_path):
    assert run(server, "a", "bcde", "-o", tmp_path / "out.wav", "--stream")[0] == 0
    assert [characters(tmp_path / f"out-{number}.wav") for number in (1, 2)] == [1, 4]


@pytest.mark.parametrize("text", ["break INTERNAL boom", "fail INTERNAL boom", "unfinished", "silence"])
def test_a_stream_that_fails_leaves_the_old_file_and_no_partial_one(server, tmp_path, text):
    (tmp_path / "out.wav").write_bytes(b"old")
    status, _, stderr = run(server, text, "-o", tmp_path / "out.wav", "--stream")
    assert (status, "out.wav: failed: " in stderr) == (1, True)
    assert (tmp_path / "out.wav").read_bytes() == b"old"
    assert names_in(tmp_path) == ["out.wav"]


@pytest.mark.parametrize(("flags", "dtype", "scale"), [([], "<i2", 32_767), (["--float"], "<f4", 1)])
def test_a_stream_on_standard_output_is_raw_samples(server, flags, dtype, scale):
    status, stdout, stderr = run(server, "Hello there", "-o", "-", "--stream", *flags)
    assert (status, stderr[:2]) == (0, "-:")
    times = np.arange(11 * SAMPLES_PER_CHARACTER) / 24_000
    tone = 0.5 * np.sin(2 * np.pi * 440 * times)
    np.testing.assert_allclose(np.frombuffer(stdout, dtype) / scale, tone, atol=1 / 32_767)


@pytest.mark.parametrize("protocol", ["grpc", "http"])
def test_samples_come_at_once_and_a_reader_that_leaves_cancels(server, tmp_path, protocol):
    with start(server, f"endless {tmp_path}/seen", "-o", "-", "--stream", protocol=protocol) as process:
        assert len(process.stdout.read(6_144)) == 6_144  # two chunks of a stream that does not end
        process.stdout.close()
        stderr = process.stderr.read()
        assert process.wait(30) == 1
    assert stderr == b""
    assert content(tmp_path / "seen") == "cancelled"


def test_a_slow_reader_does_not_use_up_the_timeout(server):
    """A pipe holds 64 KB; the rest of the 2 MB waits in the client, not in the server."""
    with start(server, "a" * 2_000, "-o", "-", "--stream", "--timeout", 3) as process:
        time.sleep(4)
        stdout, _ = process.communicate(timeout=60)
    assert process.returncode == 0
    assert len(stdout) == 2 * 2_000 * SAMPLES_PER_CHARACTER


@pytest.mark.parametrize("protocol", ["grpc", "http"])
def test_an_interrupt_cancels_a_stream_and_leaves_nothing(server, tmp_path, protocol):
    (tmp_path / "out").mkdir()
    with start(server, f"endless {tmp_path}/seen", "-o", f"{tmp_path}/out/", "--stream", protocol=protocol) as process:
        while not names_in(tmp_path / "out"):  # the part of the file that is there
            time.sleep(0.02)
        process.send_signal(signal.SIGINT)
        _, stderr = process.communicate(timeout=60)
    assert process.returncode == 130
    assert stderr == b"interrupted\n"
    assert not names_in(tmp_path / "out")
    assert content(tmp_path / "seen") == "cancelled"


@pytest.mark.parametrize("protocol", ["grpc", "http"])
def test_voices_are_listed(server, protocol):
    status, stdout, stderr = run(server, "voices", protocol=protocol)
    assert (status, stdout.decode(), stderr) == (0, "default\nwarm_2   warm, 低沉\n", "")


def test_voices_as_json(server):
    _, stdout, _ = run(server, "voices", "--json")
    voices = [{"name": "default", "description": ""}, {"name": "warm_2", "description": "warm, 低沉"}]
    assert json.loads(stdout) == voices


@pytest.mark.parametrize("arguments", [["voices"], ["clone"]])
def test_a_command_without_a_server_is_one_clear_line(server, tmp_path, refusing_url, arguments):
    soundfile.write(tmp_path / "a.wav", np.zeros(100), 24_000)
    files = [tmp_path / "a.wav"] if arguments == ["clone"] else []
    status, stdout, stderr = run(server, *arguments, *files, url=refusing_url)
    assert (status, stdout) == (1, b"")
    assert stderr.startswith(f"failed: no connection to {refusing_url}")


def test_the_name_of_a_command_is_a_text_where_it_does_not_come_first(server, tmp_path):
    assert run(server, "-o", tmp_path / "out.wav", "voices")[0] == 0
    assert characters(tmp_path / "out.wav") == len("voices")


@pytest.mark.parametrize("protocol", ["grpc", "http"])
def test_a_recording_becomes_a_speaker_sample(server, tmp_path, protocol):
    audio = 0.5 * np.sin(np.arange(16_000) / 10)
    soundfile.write(tmp_path / "a.wav", audio, 16_000, subtype="FLOAT")
    status, stdout, stderr = run(server, "clone", tmp_path / "a.wav", protocol=protocol)
    assert (status, stderr) == (0, "")
    seen = json.loads(stdout)
    assert (seen["shapes"], seen["sample_rate"]) == ([[1, 16_000], [1, 1]], 16_000)
    assert seen["sum"] == pytest.approx(audio.sum(), abs=1e-3)


def test_a_transcript_is_the_second_line(server, tmp_path):
    soundfile.write(tmp_path / "a.wav", np.zeros(100), 16_000)
    arguments = ["clone", tmp_path / "a.wav", "--text", " what I\nsaid 你好 ", "-o", tmp_path / "voice"]
    status, stdout, _ = run(server, *arguments)
    assert (status, stdout) == (0, b"")
    sample, transcript = (tmp_path / "voice").read_text(encoding="utf-8").splitlines()
    assert json.loads(sample)["sample_rate"] == 16_000
    assert transcript == "what I said 你好"


def test_a_recording_that_the_server_refuses_is_one_clear_line(server, tmp_path):
    soundfile.write(tmp_path / "a.wav", np.zeros(100), 4_000)
    status, _, stderr = run(server, "clone", tmp_path / "a.wav")
    assert (status, stderr) == (1, "failed: input 'sample_rate' is 4000; allowed is 8000 or more\n")


def test_help_names_every_input(server):
    status, stdout, _ = run(server, "--help")
    assert status == 0
    for name in ALL_OPTIONS:
        flag = "no-normalize" if name == "normalize" else name.replace("_", "-")
        assert f"--{flag}" in stdout.decode()
