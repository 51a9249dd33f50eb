"""Settings of all tests: property tests draw the same examples on every machine and in every run; two workers share
one folder of compiled kernels and the processor."""

import fcntl
import os
import signal
import time
from collections import Counter
from contextlib import suppress
from itertools import combinations
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from tests.samples import ALL_EXAMPLES

settings.register_profile(
    "mtpref", derandomize=True, database=None, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("mtpref")

# Files that take longest, the longest first: no worker is left alone with one of them at the end. What is missing here
# costs time only.
LONGEST = (
    *("test_instruction_sets", "test_check", "test_golden", "test_stock_logs", "test_panel_instructions"),
    *("test_golden_runner", "test_learn", "test_diagnose_log", "test_checkpoints", "test_kernel_cache", "test_cli"),
    *("test_readme", "test_plan", "test_convert_moe", "test_chain_model", "test_faults", "test_moe_model"),
    *("test_llama_moe", "test_fault_catalogue", "test_kill_matrix", "test_into_hf", "test_llama_chains"),
    *("test_fetch_kinds", "test_hostile", "test_diagnose_moe", "test_golden_sources", "test_verbs"),
    *("test_crash_writers", "test_sampling_loop", "test_diagnose_sparse", "test_porting_doc", "test_doc_commands"),
    *("test_session", "test_bench", "test_decode_properties", "test_probe", "test_files", "test_llama_dsa"),
    *("test_vocab", "test_selftest", "test_golden_export", "test_sampling_exact", "test_sampling_fit"),
    *("test_cli_habits", "test_conversation", "test_chat_hostile", "test_session_file", "test_llama_decisions"),
    *("test_layout", "test_diagnose_rates", "test_mutations", "test_golden_gen", "test_stock_moe", "test_ahead"),
)
PATIENCE_S = 120.0
N_SLICES = 40


def pytest_addoption(parser):
    parser.addoption("--slow", action="store_true", help="run the tests marked slow, and nothing else")
    parser.addoption("--slow-slice", type=int, metavar="SEED", help=f"of those, one in {N_SLICES}: the SEEDth slice")


def pytest_configure(config):
    """Programs that tests start run this checkout, whatever is installed. Before workers start: NumPy's own threads
    would only wait for each other where two processes multiply."""
    paths = [str(Path(__file__).parent.parent), *filter(None, [os.environ.get("PYTHONPATH")])]
    os.environ["PYTHONPATH"] = os.pathsep.join(dict.fromkeys(os.pathsep.join(paths).split(os.pathsep)))
    if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:  # a shell's job in the background; programs would inherit it
        signal.signal(signal.SIGINT, signal.default_int_handler)
    if config.option.slow or config.option.slow_slice is not None:
        os.environ[ALL_EXAMPLES] = "1"
    if getattr(config.option, "numprocesses", None):
        os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")


def parameters(item):
    """What an item was given, by name; equal plain values are one value."""
    plain = (str, bytes, int, float, type(None))
    return [(name, repr(x) if isinstance(x, plain) else id(x)) for name, x in sorted(item.callspec.params.items())]


def thin_out(items):
    """Of a test marked `covering`, so many items stay that each value of each parameter is in one of them (each pair of
    values, of `covering(2)`), each about as often as the others; the rest is slow."""
    products = {}
    for item in items:
        if item.get_closest_marker("covering") and not item.get_closest_marker("slow"):
            products.setdefault((item.path, item.originalname), []).append(item)
    for product in products.values():
        n = next(iter(product[0].get_closest_marker("covering").args), 1)
        left = [(item, set(combinations(parameters(item), n))) for item in product]
        wanted, times = set().union(*(own for _, own in left)), Counter()
        while wanted:
            best = max(left, key=lambda one: (len(one[1] & wanted), -sum(times[x] for x in one[1])))
            left.remove(best)
            wanted -= best[1]
            times.update(best[1])
        for item, _ in left:
            item.add_marker(pytest.mark.slow)


def tries_more(item):
    """Whether a test has more random examples among the slow ones (`some_examples`)."""
    return hasattr(item.module, "some_examples") and getattr(item.obj, "is_hypothesis_test", False)


def pytest_collection_modifyitems(config, items):
    thin_out(items)
    option, place = config.option, {name: i for i, name in enumerate(LONGEST)}
    slow = {item: i for i, item in enumerate(i for i in items if i.get_closest_marker("slow") or tries_more(i))}

    def is_wanted(item):
        if option.slow_slice is not None:
            return item in slow and slow[item] % N_SLICES == option.slow_slice % N_SLICES
        return item in slow if option.slow else not item.get_closest_marker("slow")

    config.hook.pytest_deselected(items=[item for item in items if not is_wanted(item)])
    items[:] = sorted(filter(is_wanted, items), key=lambda item: place.get(item.path.stem, len(place)))


@pytest.fixture(scope="session", autouse=True)
def _width_of_a_pipe():
    """What is written to no terminal is as wide on every machine and for every number of workers."""
    for name in ("COLUMNS", "LINES"):  # newer test runners set them
        os.environ.pop(name, None)


@pytest.fixture(scope="session", autouse=True)
def _no_word_of_compiling():
    """Which command of this process is the first to need a kernel depends on the order of the tests; what it says then
    is tested in processes of their own."""
    from mtpref import kernels

    if not kernels.available():
        yield
        return
    tell, kernels.when_compiling = kernels.when_compiling, lambda listener: None
    yield
    kernels.when_compiling = tell


@pytest.fixture(scope="session", autouse=True)
def _no_kernel_is_compiled_twice(request):
    """Where there are several workers, one compiles a kernel and the others load it from the folder."""
    from mtpref import kernels

    if not hasattr(request.config, "workerinput") or not kernels.available():
        yield
        return
    from mtpref.kernels.compiling.compile import Kernel

    compile_kernel = Kernel.compile

    def one_at_a_time(self):
        with (kernels.cache_folder() / f"{self.name}.lock").open("w") as file:
            end = time.monotonic() + PATIENCE_S
            while time.monotonic() < end:  # whoever has waited so long compiles it, too
                with suppress(BlockingIOError):
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                time.sleep(0.02)
            compile_kernel(self)

    Kernel.compile = one_at_a_time
    yield
    Kernel.compile = compile_kernel
