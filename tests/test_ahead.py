"""Helpers that compile on a first run: what they are told to compile, and that nothing depends on them."""

import subprocess
import sys
import threading
import time
from importlib.util import find_spec
from pathlib import Path

import pytest

from mtpref import kernels
from mtpref.base.errors import MtprefError
from mtpref.front import cli

sys.path.append(str(Path(__file__).parents[1] / "tools"))
import make_random

if not kernels.available():
    pytest.skip("NUMBA_DISABLE_JIT is set: nothing is compiled", allow_module_level=True)

from mtpref.kernels import needed
from mtpref.kernels.compiling import ahead, compile
from mtpref.kernels.fused import delta_mixer, nets
from mtpref.kernels.layers import attend, delta, norms
from mtpref.kernels.products import matmul, mul_mats, panels

SHAPE = ("--n-layer", "4", "--n-embd", "256", "--n-ff", "512", "--n-vocab", "400", "--n-head", "2", "--n-head-kv", "1")
SIZES = ("--head-dim", "64", "--n-rot", "16", "--state-size", "64", "--n-k-head", "4", "--n-v-head", "4")


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A small file of each of these types."""
    found = {}
    folder = tmp_path_factory.mktemp("models")
    for name in ("Q8_0", "BF16", "F16"):
        found[name] = str(folder / f"{name}.gguf")
        assert make_random.main(["-o", found[name], "--type", name, *SHAPE, *SIZES]) == 0
    moe = ("--n-layer", "4", "--n-embd", "256", "--n-vocab", "400", "--n-expert", "4", "--n-expert-used", "2")
    moe += ("--n-ff-exp", "64", "--set", "n_ff_shexp=64", "--n-head", "2", "--n-head-kv", "1")
    found["moe"] = str(folder / "moe.gguf")
    assert make_random.main(["-o", found["moe"], "--shape", "35b-a3b", *moe, *SIZES]) == 0
    glm = ("--n-layer", "2", "--n-embd", "256", "--n-ff", "64", "--n-vocab", "400", "--n-expert", "4")
    glm += ("--n-expert-used", "2", "--n-ff-exp", "64", "--n-head", "2", "--n-head-kv", "1", "--head-dim", "64")
    found["glm"] = str(folder / "glm.gguf")
    assert make_random.main(["-o", found["glm"], "--shape", "glm-4.5-air", *glm, "--n-rot", "32", "--type", "F16"]) == 0
    kimi = ("--n-layer", "2", "--n-embd", "256", "--n-ff", "64", "--n-vocab", "400", "--n-expert", "4")
    kimi += ("--n-expert-used", "2", "--n-ff-exp", "64", "--n-head", "2", "--set", "n_q_latent=64")
    found["kimi"] = str(folder / "kimi.gguf")
    assert make_random.main(["-o", found["kimi"], "--shape", "kimi-k2", *kimi]) == 0
    small = ("--n-layer", "3", "--n-embd", "256", "--n-vocab", "400", "--n-head", "2", "--n-expert", "8")
    small += ("--n-expert-used", "2", "--n-ff-exp", "64", "--set", "n_q_latent=64")
    found["dsa"] = str(folder / "dsa.gguf")
    dsa = ("--shape", "deepseek-v3.2", "--n-ff", "64", "--set", "n_dense=1", "--set", "n_expert_group=2")
    dsa += ("--set", "n_expert_group_used=1")
    assert make_random.main(["-o", found["dsa"], *dsa, *small]) == 0
    found["v4"] = str(folder / "v4.gguf")
    v4 = ("--shape", "deepseek-v4-flash", "--set", "n_output_group=2", "--set", "n_window_only=1")
    assert make_random.main(["-o", found["v4"], *v4, *small, "--head-dim", "64"]) == 0
    if find_spec("libgguf"):
        found["Q4_K_M"] = str(folder / "Q4_K_M.gguf")
        assert cli.main(["quantize", found["BF16"], found["Q4_K_M"], "Q4_K_M"]) == 0
    return found


# ------------------------------------------------------------------------------------------------ the list


def listed_and_used(monkeypatch, arguments):
    """Kernels that `mtpref warmup` would have compiled ahead, and kernels that it called."""
    listed, used = [], set()
    monkeypatch.setattr(kernels, "is_cold", lambda: True)
    monkeypatch.setattr(kernels, "compile_ahead", listed.extend, raising=False)
    call, address = compile.Kernel.__call__, compile.Kernel.address
    monkeypatch.setattr(compile.Kernel, "__call__", lambda self, *args: used.add(self.name) or call(self, *args))
    monkeypatch.setattr(compile.Kernel, "address", lambda self: used.add(self.name) or address(self))
    mul_mats.how.cache_clear()
    nets._how.cache_clear()
    assert cli.main(["warmup", *arguments]) == 0
    monkeypatch.setattr(kernels, "is_cold", lambda: False)
    for module in (attend, delta, delta_mixer, matmul, mul_mats, norms, panels):
        monkeypatch.setattr(module, "PARALLEL_FROM", 0)  # a large model's loops
    mul_mats.how.cache_clear()
    nets._how.cache_clear()
    assert cli.main(["warmup", *arguments]) == 0
    return listed, used


CASES = [
    (None, ()),
    ("Q8_0", ()),
    ("Q4_K_M", ()),
    ("BF16", ()),
    ("F16", ("-ctk", "f32", "-ctkd", "f32")),
    ("Q8_0", ("--no-repack",)),
    ("Q4_K_M", ("--no-repack",)),
    ("Q8_0", ("--numerics", "exact")),
    ("BF16", ("--numerics", "exact")),
    ("moe", ()),
    ("moe", ("--no-repack",)),
    ("moe", ("--numerics", "exact")),
    ("glm", ()),
    ("kimi", ()),
    ("kimi", ("--no-repack", "-ctk", "bf16", "-ctkd", "f32")),
    ("kimi", ("--numerics", "exact")),
    ("dsa", ()),
    ("v4", ()),
    ("v4", ("--numerics", "exact", "--no-repack")),
]


@pytest.mark.parametrize(("name", "options"), CASES)
def test_the_list_is_what_a_run_calls(monkeypatch, files, name, options):
    if compile.n_threads() == 1:
        pytest.skip("one processor: no parallel loops")
    if name is not None and name not in files:
        pytest.skip(f"{name} needs the extra quantize")
    listed, used = listed_and_used(monkeypatch, [*(("-m", files[name]) if name else ()), *options])
    assert set(listed) == used
    assert len(listed) == len(set(listed))


def test_one_thread_starts_nothing_and_the_specification_neither(monkeypatch, files):
    started = []
    monkeypatch.setattr(ahead, "_start", lambda: started.append(1))
    monkeypatch.setattr(kernels, "is_cold", lambda: True)
    before = compile.n_threads()
    try:
        assert cli.main(["generate", "-p", "x", "-n", "1", "--ops", "spec"]) == 0
        assert cli.main(["warmup", "-m", files["Q8_0"], "-t", "1"]) == 0
    finally:
        compile.set_threads(before)
    assert not started


def test_a_warm_cache_starts_nothing(monkeypatch):
    monkeypatch.setattr(kernels, "is_cold", lambda: False)
    monkeypatch.setattr(kernels, "compile_ahead", lambda names: pytest.fail("started"), raising=False)
    assert cli.main(["generate", "-p", "x", "-n", "1"]) == 0


def test_a_list_names_kernels_and_the_slowest_come_first():
    for wide in (False, True):
        types = (*needed.PANEL_TYPES, *needed.FLOAT_TYPES, "Q2_K", "Q5_0", "IQ4_XS")
        for repack in (False, True):
            needs = needed.Needs(frozenset(types), frozenset(types[:-1]))
            names = needed.needed_kernels(needs, ["F16"], wide=wide, repack=repack, n_threads=2)
            assert all(
                isinstance(ahead._find(name), compile.Kernel) and ahead._find(name).name == name for name in names
            )
            assert names[0] in needed.SLOWEST
    assert set(needed.PANEL_TYPES) == set(panels.LAYOUTS)
    assert all(isinstance(ahead._find(name), compile.Kernel) for name in needed.SLOWEST)


# --------------------------------------------------------------------------------------------- the helpers

ANSWERS = "import sys, time\nfor line in sys.stdin: time.sleep(0.2); print('noise'); print(line, end='', flush=True)"
DIES = "import sys; sys.stdin.readline(); sys.exit(1)"
HANGS = "import time; time.sleep(600)"


class Compiled:
    """In place of kernels: the names that this process compiled."""

    def __init__(self, monkeypatch, code):
        self.names, self.processes = [], []
        monkeypatch.setattr(ahead, "_find", self.find)
        monkeypatch.setattr(ahead, "_start", self.start)
        self.code = code

    def find(self, name):
        self.last = name
        return self

    def compile(self):
        self.names.append(self.last)

    def start(self):
        pipe = subprocess.PIPE
        process = subprocess.Popen([sys.executable, "-c", self.code], stdin=pipe, stdout=pipe, text=True)
        self.processes.append(process)
        return process


def wait_until(is_so):
    end = time.monotonic() + 20
    while not is_so():
        assert time.monotonic() < end
        time.sleep(0.01)


def test_while_a_helper_compiles_what_is_needed_this_process_compiles_what_is_left(monkeypatch):
    ours = Compiled(monkeypatch, ANSWERS)
    helpers = ahead._Helpers(["a", "b", "c", "d", "e"], 1)
    wait_until(lambda: "a" in helpers._running)
    helpers.give_way("d")
    assert ours.names == []
    helpers.give_way("a")
    assert ours.names[:1] == ["e"]  # from the end, and d is the caller's
    assert "a" not in helpers._running
    assert not {"a", "d"} & set(ours.names)
    wait_until(lambda: ours.processes[0].poll() is not None)
    assert not helpers._left
    assert not helpers._running


@pytest.mark.parametrize("code", [DIES, HANGS])
def test_a_helper_that_dies_or_hangs_holds_nobody_up(monkeypatch, code):
    monkeypatch.setattr(ahead, "PATIENCE_S", 0.2)
    ours = Compiled(monkeypatch, code)
    helpers = ahead._Helpers(["a", "b"], 1)
    wait_until(lambda: "a" in helpers._running or not helpers._threads[0].is_alive())
    helpers.give_way("a")
    assert ours.names in (["b"], [])
    helpers.end()
    wait_until(lambda: not any(thread.is_alive() for thread in helpers._threads))
    assert all(process.poll() is not None for process in ours.processes)


def test_where_no_process_can_be_started_all_is_compiled_here(monkeypatch):
    def refuse():
        raise OSError("no processes")

    monkeypatch.setattr(ahead, "_start", refuse)
    helpers = ahead._Helpers(["a"], 2)
    helpers.give_way("a")
    helpers.end()


def test_an_error_of_a_kernel_compiled_meanwhile_is_not_raised(monkeypatch):
    ours = Compiled(monkeypatch, ANSWERS)

    def fail():
        raise MtprefError("broken")

    monkeypatch.setattr(ours, "compile", fail)
    helpers = ahead._Helpers(["a", "b"], 1)
    wait_until(lambda: "a" in helpers._running)
    helpers.give_way("a")
    helpers.end()


def test_a_real_helper_answers_and_ends_with_its_input():
    process = ahead._start()
    assert ahead._ask(process, "norms._rms_norm")
    assert ahead._ask(process, "norms.no_such_kernel")
    process.stdin.write("attend._attention_tiles\n")
    process.stdin.flush()
    threading.Timer(0.2, process.stdin.close).start()
    assert process.wait(20) == 0
    process.stdout.close()


def test_a_helper_with_another_cache_folder_ends(monkeypatch, tmp_path):
    monkeypatch.setattr(kernels, "cache_folder", lambda: tmp_path)
    process = ahead._start()
    assert process.wait(20) == 0
    process.stdin.close()
    process.stdout.close()
