"""Memory and CPU time of real process trees; the GPU through a stand-in for NVML."""

import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import pytest

from bench import watch
from bench.watch import MB, Gpu, Memory, Watch, cpu_seconds, memory_of, process_tree
from chattts_serving.errors import ConfigError


@contextmanager
def running(script: str, *arguments: str):
    """A Python process that runs `script` and has printed a line."""
    command = [sys.executable, "-c", script, *arguments]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "ready\n"
        try:
            yield process
        finally:
            process.stdin.close()  # ends it, and what it forked
            process.wait(10)


SHARE = """
import mmap, os, sys
shared = mmap.mmap(-1, 100_000_000)
shared.write(b"x" * len(shared))
reader, writer = os.pipe()
pid = os.fork()
if pid == 0:
    own = b"y" * 50_000_000
    shared.seek(0)
    sum(shared[place] for place in range(0, len(shared), 4096))
    os.write(writer, b"!")
else:
    os.read(reader, 1)
    print("ready", flush=True)
sys.stdin.read()
if pid:
    os.waitpid(pid, 0)
"""


def test_memory_of_a_tree_counts_shared_pages_once():
    with running(SHARE) as process:
        tree = process_tree(process.pid)
        resident = sum(int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * 4096 for pid in tree)
        memory = memory_of(process.pid)
    assert len(tree) == 2
    assert resident > 250e6  # both have all 100 MB of it
    assert 150e6 < memory.held < memory.pss < 190e6  # 100 MB shared, 50 MB of the child, and two interpreters


def test_processes_below_children_and_with_odd_names_are_found(tmp_path):
    odd = tmp_path / "a) R 1 (b"
    odd.symlink_to("/bin/sleep")
    script = (
        "import subprocess, sys\n"
        "inner = 'import subprocess, sys; p = subprocess.Popen([sys.argv[1], \"60\"]); print(p.pid, flush=True);'\n"
        "inner += 'sys.stdin.read(); p.kill(); p.wait()'\n"
        "p = subprocess.Popen([sys.executable, '-c', inner, sys.argv[1]], stdout=subprocess.PIPE, text=True)\n"
        "pid = p.stdout.readline()\n"
        "print('ready', flush=True); print(pid, flush=True)\n"
        "sys.stdin.read(); p.wait()\n"
    )
    with running(script, str(odd)) as process:
        grandchild = int(process.stdout.readline())
        tree = process_tree(process.pid)
        assert len(tree) == 3
        assert tree[0] == process.pid
        assert tree[2] == grandchild
        assert memory_of(process.pid).pss > memory_of(grandchild).pss > 0


def test_a_process_that_is_gone_has_nothing():
    with running("import sys; print('ready', flush=True); sys.stdin.read()") as process:
        pid = process.pid
    assert process_tree(pid) == []
    assert memory_of(pid) == (0, 0)
    assert cpu_seconds(pid) == 0


def test_cpu_time_of_a_process():
    burn = "import sys, time\nwhile time.process_time() < 0.5: pass\nprint('ready', flush=True); sys.stdin.read()"
    with running(burn) as process:
        assert cpu_seconds(process.pid) == pytest.approx(0.5, abs=0.1)


def test_a_watch_sees_a_peak_and_what_is_left_after_it(monkeypatch):
    monkeypatch.setattr(watch, "INTERVAL_S", 0.05)
    script = (
        "import sys, time\n"
        "print('ready', flush=True); sys.stdin.readline()\n"
        "data = b'x' * 80_000_000; time.sleep(0.5); del data\n"
        "print('done', flush=True); sys.stdin.read()\n"
    )
    with running(script) as process:
        with Watch(process.pid, None) as watched:
            process.stdin.write("\n")
            process.stdin.flush()
            assert process.stdout.readline() == "done\n"
        usage = watched.usage
    assert usage.peak_memory_mb > usage.memory_after_mb + 70
    assert 0 < usage.memory_after_mb < 70
    assert 0 <= usage.server_cpu_share < 0.5
    assert (usage.gpu_share, usage.gpu_memory_mb) == (None, None)


def test_the_clients_own_cpu_time_is_counted():
    with Watch(None, None) as watched:
        end = time.process_time() + 0.3
        while time.process_time() < end:
            pass
    assert 0.2 < watched.usage.client_cpu_cores < 1.2
    assert watched.usage.peak_memory_mb is None
    assert watched.usage.server_cpu_share is None


def test_an_error_of_the_thread_is_raised_at_the_end(monkeypatch):
    monkeypatch.setattr(watch, "INTERVAL_S", 0.01)
    answers = iter([Memory(1, 1)])

    def once(_root):
        for answer in answers:
            return answer
        raise ConfigError("no more")

    monkeypatch.setattr(watch, "memory_of", once)
    with pytest.raises(ConfigError, match="no more"), Watch(1, None):
        time.sleep(0.3)


class FakeNvml:
    """NVML with a GPU that works half of the time."""

    class NVMLError(Exception):
        pass

    def __init__(self):
        self.samples = 0

    def nvmlInit(self):  # noqa: N802
        pass

    def nvmlDeviceGetHandleByIndex(self, _index):  # noqa: N802
        return "GPU 0"

    def nvmlDeviceGetUtilizationRates(self, _device):  # noqa: N802
        self.samples += 1
        return SimpleNamespace(gpu=50)

    def nvmlDeviceGetMemoryInfo(self, _device):  # noqa: N802
        return SimpleNamespace(used=3_000_000_000 if self.samples == 2 else 1_000_000_000)


def test_the_gpu_is_sampled(monkeypatch):
    monkeypatch.setattr(watch, "INTERVAL_S", 0.01)
    monkeypatch.setitem(sys.modules, "pynvml", FakeNvml())
    with Watch(None, Gpu()) as watched:
        time.sleep(0.2)
    assert watched.usage.gpu_share == 0.5
    assert watched.usage.gpu_memory_mb == 3e9 / MB


def test_without_a_gpu_or_its_package_the_error_says_so(monkeypatch):
    fake = FakeNvml()
    monkeypatch.setattr(fake, "nvmlInit", lambda: (_ for _ in ()).throw(fake.NVMLError("no library")))
    monkeypatch.setitem(sys.modules, "pynvml", fake)
    with pytest.raises(ConfigError, match=r"no NVIDIA GPU \(no library\)"):
        Gpu()
    monkeypatch.setitem(sys.modules, "pynvml", None)
    with pytest.raises(ConfigError, match="nvidia-ml-py is not installed"):
        Gpu()
