"""The C++ checker and the example port of golden/runners/cpp: built with g++, run over golden/, seeded with faults.

One build for all tests, in a temporary folder. Skipped, with the reason, where there is no g++.
"""

import hashlib
import json
import os
import resource
import shutil
import struct
import subprocess
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from tests.samples import one_in

ROOT = Path(__file__).parent.parent
GOLDEN = ROOT / "golden"
SOURCES = GOLDEN / "runners" / "cpp"
FLAGS = ["-O1", "-std=c++17", "-Wall", "-Wextra", "-Werror", "-ffp-contract=off"]
PORT = ["example_port", "port_quants", "port_ops", "port_experts", "port_latent", "port_sampling", "port_model",
        "port_loop", "seeded_faults"]  # fmt: skip
MEMORY = 256 << 20
# What the port has not, of what cases require.
LACKS = {"indexer", "hyper_connections", "windows", "attention_sinks", "compressed_rows", "clamped_experts", "limits",
         "head_gates", "rope_factors", "chained_heads", "unscaled_attention", "assistant", "parallel_block",
         "layer_norms", "logit_scale", "averaged_experts", "mamba2", "plain_experts", "channel_decay",
         "rope_sections"}  # fmt: skip
SUITES = (json.loads(path.read_text()) for path in sorted(GOLDEN.glob("L*/*.json")))
REQUIRES = {case["id"]: set(case["requires"]) for suite in SUITES for case in suite["cases"]}

# A fault of each family, and the levels to look at: enough to see it, quick to run.
SEEDED = {
    "W1-norm-shift-missing": "L4",
    "W2-norm-shift-doubled": "L4",
    "G1-concat-swapped": "L4",
    "G2-pre-norm-hidden": "L4",
    "G4-gate-silu": "L1",
    "G6-rope-interleaved": "L2",
    "G12-l2-eps": "L1",
    "G13-v-heads-grouped": "L2",
    "G13b-v-heads-tiled": "L1",
    "G16b-beta-alpha-halves": "L2",
    "E2-selection-unbiased": "L1",
    "E3-weights-unnormed": "L3",
    "E4-softmax-after-selection": "L2",
    "E7b-softmax-router": "L1",
    "E8-groups-by-best": "L2",
    "E9b-shared-ungated": "L2",
    "A1b-k-b-not-transposed": "L2",
    "A2b-rope-halves": "L1",
    "A2c-rope-inflated": "L2",
    "A3-sharpness-forgotten": "L2",
    "A3b-sharpness-once": "L2",
    "A3c-scale-of-row": "L2",
    "C1-chain-pre-norm": "L4",
    "C4-same-token-pairing": "L1",
    "K0-prompt-not-primed": "L4",
    "S2-no-rollback": "L5",
    "S3-conv-window-kept": "L5",
    "S3b-recurrent-state-kept": "L5",
    "V1-lax-accept": "L5",
    "V7-bonus-dropped": "L5",
    "V14-eog-passed": "L5",
    "V21-wrong-verify-row": "L5",
}


@pytest.fixture(scope="session")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with golden_check and golden_filter."""
    compiler = shutil.which(os.environ.get("CXX", "g++"))
    if compiler is None:
        pytest.skip("no g++ (or $CXX): the C++ runner is not built")
    folder = tmp_path_factory.mktemp("runner")

    def compiled(name: str) -> str:
        target = folder / f"{name}.o"
        command = [compiler, *FLAGS, "-c", str(SOURCES / f"{name}.cpp"), "-o", str(target)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr
        return str(target)

    with ThreadPoolExecutor(2) as pool:
        check, filter_main, *port = pool.map(compiled, ["golden_check", "filter_main", *PORT])
    for name, main in (("golden_check", check), ("golden_filter", filter_main)):
        subprocess.run([compiler, main, *port, "-o", str(folder / name)], check=True, timeout=60)
    return folder


def run_check(built: Path, *args: str, fault: str = "") -> subprocess.CompletedProcess[str]:
    def limited() -> None:
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))

    env = {**os.environ, "SEEDED_FAULT": fault}
    command = [str(built / "golden_check"), *args]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, env=env, preexec_fn=limited)


def checked(built: Path, *args: str, fault: str = "") -> dict[str, Any]:
    done = run_check(built, *args, "--json", str(GOLDEN), fault=fault)
    assert done.returncode in (0, 1), done.stderr
    result: dict[str, Any] = json.loads(done.stdout)
    assert (done.returncode == 1) == (result["counts"]["FAIL"] > 0)
    return result


# ------------------------------------------------------------------------------------------------------------ passes


def test_the_example_port_fails_no_case_and_skips_only_what_it_has_not(built: Path) -> None:
    cases = checked(built)["cases"]
    assert [case for case in cases if case["verdict"] == "FAIL"] == []
    skipped = [case for case in cases if case["verdict"] == "SKIP"]
    for case in skipped:
        is_lacking = case["skip"].startswith(("no operation ", "no architecture ")) and LACKS & REQUIRES[case["id"]]
        assert is_lacking or case["skip"].startswith("model "), case
    assert {case["level"] for case in cases if case["verdict"] == "PASS"} == {"L0", "L1", "L2", "L3", "L4", "L5", "L6"}


def test_text_names_every_case_with_counts_by_level(built: Path) -> None:
    text = run_check(built, "--level", "L1", "--suite", "rms_norm", str(GOLDEN)).stdout
    lines = text.splitlines()
    n_cases = len(json.loads((GOLDEN / "L1-operations" / "rms_norm.json").read_text())["cases"])
    assert sum(line.startswith("PASS  L1  rms_norm/") for line in lines) == n_cases
    assert lines[-1].split() == ["all", str(n_cases), "0", "0"]


def test_one_case_can_be_chosen(built: Path) -> None:
    assert [case["id"] for case in checked(built, "--case", "concat/basic")["cases"]] == ["concat/basic"]


def test_a_model_that_is_not_in_the_folder_is_given_by_name_and_known_by_its_tensors(built: Path) -> None:
    tiny = ROOT / "mtpref" / "data" / "tiny.gguf"
    chosen = ["--case", "tiny/tiny_n1"]
    assert checked(built, *chosen, "--model", f"tiny={tiny}")["counts"] == {"PASS": 1, "FAIL": 0, "SKIP": 0}
    assert checked(built, *chosen)["counts"]["SKIP"] == 1
    micro = GOLDEN / "models" / "micro-60-f32.gguf"
    done = run_check(built, *chosen, "--model", f"tiny={micro}", str(GOLDEN))
    assert done.returncode == 2
    assert "not the model 'tiny' of these vectors" in done.stderr


# ------------------------------------------------------------------------------------------------------------ faults


# All cases pass in the port as it is: what one fault in three shows is that they can fail.
@pytest.mark.parametrize("fault", one_in(3, SEEDED))
def test_a_seeded_fault_fails_a_case_that_shows_it(built: Path, fault: str) -> None:
    failed = [c for c in checked(built, "--level", SEEDED[fault], fault=fault)["cases"] if c["verdict"] == "FAIL"]
    assert any(fault in case["flags"] for case in failed), [case["id"] for case in failed]


def test_levels_below_a_fault_pass(built: Path) -> None:
    for level in ("L1", "L2", "L3", "L4"):
        assert checked(built, "--level", level, fault="S3-conv-window-kept")["counts"]["FAIL"] == 0


def test_a_failure_shows_the_worst_element_the_flags_and_what_they_mean(built: Path, tmp_path: Path) -> None:
    copy = copied(tmp_path, ["L1-operations/concat"])
    fault = {"title": "The halves are swapped", "mechanism": "eh_proj is given [hidden ; embedding].", "links": []}
    (copy / "flags.json").write_text(json.dumps({"flags": {"G1-concat-swapped": fault}}))
    done = run_check(built, str(copy), fault="G1-concat-swapped")
    assert done.returncode == 1
    assert "FAIL  L1  concat/basic  [G1-concat-swapped" in done.stdout
    assert "first wrong: y: element 0 (0, 0 of ne 32, 2) is " in done.stdout
    assert "G1-concat-swapped: The halves are swapped. eh_proj is given [hidden ; embedding]." in done.stdout
    assert "first failing level: L1" in done.stdout
    assert "suspect: G1-concat-swapped" in done.stdout


def test_an_unknown_seeded_fault_fails_with_the_list(built: Path) -> None:
    done = run_check(built, "--suite", "concat", str(GOLDEN), fault="G99-nothing")
    assert done.returncode == 1
    assert "'G99-nothing' is unknown, expected one of W1-" in done.stdout


# ------------------------------------------------------------------------------------------------------------ filter


def test_the_filter_answers_the_python_checker(built: Path) -> None:
    from mtpref.golden import Folder, check_folder
    from mtpref.golden.filter import Filter

    folder = Folder(GOLDEN)
    with Filter([str(built / "golden_filter")], GOLDEN) as port:
        results = [r for level in ("L0", "L1", "L4", "L5") for r in check_folder(folder, port, level=level)]
    assert [(r.case.id, r.wrong) for r in results if r.verdict == "FAIL"] == []
    assert len(results) > 100


def test_the_filter_answers_bad_requests_with_an_error(built: Path) -> None:
    head = {"format": "mtpref-golden-case-1", "id": "a/b"}
    logits = {"type": "F32", "shape": [1 << 60, 9], "data": ""}
    asked = head | {
        "suite": "a",
        "op": "argmax",
        "numerics": "exact",
        "params": {},
        "root": "/",
        "in": {"logits": logits},
    }
    lines = ["{", "[1]", json.dumps(head), json.dumps(asked)]
    done = subprocess.run(
        [built / "golden_filter"], input="\n".join(lines) + "\n", capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0
    replies = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(replies) == len(lines)
    assert all("error" in reply for reply in replies)


# ----------------------------------------------------------------------------------------------------------- damage


def copied(target: Path, stems: list[str]) -> Path:
    """A folder with some suites of golden/ and a manifest that fits them."""
    manifest = json.loads((GOLDEN / "manifest.json").read_text())
    suites = [s for s in manifest["suites"] if s["path"].removesuffix(".json") in stems]
    files = [f for f in manifest["files"] if f["path"].rpartition(".")[0] in stems]
    for file in files:
        (target / file["path"]).parent.mkdir(exist_ok=True)
        shutil.copy(GOLDEN / file["path"], target / file["path"])
    (target / "manifest.json").write_text(json.dumps({**manifest, "suites": suites, "files": files}))
    return target


def rehashed(folder: Path) -> None:
    """Let the manifest agree with whatever the files hold now."""
    manifest = json.loads((folder / "manifest.json").read_text())
    for file in manifest["files"]:
        data = (folder / file["path"]).read_bytes()
        file |= {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    (folder / "manifest.json").write_text(json.dumps(manifest))


def edit_manifest(change: Callable[[dict[str, Any]], object]) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        manifest = json.loads((folder / "manifest.json").read_text())
        change(manifest)
        (folder / "manifest.json").write_text(json.dumps(manifest))

    return damage


def edit_gguf(change: Callable[[bytes], bytes]) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        path = folder / "L1-operations" / "concat.gguf"
        path.write_bytes(change(path.read_bytes()))
        rehashed(folder)

    return damage


def edit_suite(change: Callable[[str], str]) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        path = folder / "L1-operations" / "concat.json"
        path.write_text(change(path.read_text()))
        rehashed(folder)

    return damage


def huge_manifest(folder: Path) -> None:
    with (folder / "manifest.json").open("r+b") as file:
        file.truncate(1 << 40)


def flipped(folder: Path) -> None:
    path = folder / "L1-operations" / "concat.gguf"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


def at(data: bytes, where: int, value: bytes) -> bytes:
    return data[:where] + value + data[where + len(value) :]


def first_tensor(data: bytes) -> int:
    """Where the first tensor's number of dimensions lies."""
    name = b"basic/enorm"
    return data.index(name) + len(name)


def huge_shape(data: bytes) -> bytes:
    return at(data, first_tensor(data) + 4, struct.pack("<Q", 1 << 62))


def huge_rows(data: bytes) -> bytes:
    return at(data, first_tensor(data) + 12, struct.pack("<Q", 1 << 40))


DAMAGE: dict[str, Callable[[Path], None]] = {
    "no manifest": lambda folder: (folder / "manifest.json").unlink(),
    "manifest is no JSON": lambda folder: (folder / "manifest.json").write_text('{"format": ') and None,
    "manifest is a list": lambda folder: (folder / "manifest.json").write_text("[]") and None,
    "nested too deeply": lambda folder: (folder / "manifest.json").write_text("[" * 1000000) and None,
    "too many values": lambda folder: (folder / "manifest.json").write_text("[" + "0," * 4000000 + "0]") and None,
    "a manifest of a terabyte": huge_manifest,
    "another format": edit_manifest(lambda m: m.update(format="mtpref-golden-9")),
    "no files": edit_manifest(lambda m: m.pop("files")),
    "a path outside": edit_manifest(lambda m: m["files"][0].update(path="../../etc/passwd")),
    "an absolute path": edit_manifest(lambda m: m["files"][0].update(path="/etc/passwd")),
    "a folder as a file": edit_manifest(lambda m: m["files"][0].update(path="L1-operations")),
    "a size as text": edit_manifest(lambda m: m["files"][0].update(bytes="many")),
    "a suite that is no file": edit_manifest(lambda m: m["suites"][0].update(path="L1-operations/none.json")),
    "a flipped bit": flipped,
    "tensors cut off": edit_gguf(lambda data: data[:-8]),
    "header cut off": edit_gguf(lambda data: data[:70]),
    "no GGUF": edit_gguf(lambda data: b"GGML" + data[4:]),
    "2**60 tensors": edit_gguf(lambda data: at(data, 8, struct.pack("<Q", 1 << 60))),
    "2**60 keys": edit_gguf(lambda data: at(data, 16, struct.pack("<Q", 1 << 60))),
    "a key of 2**63 bytes": edit_gguf(lambda data: at(data, 24, struct.pack("<Q", 1 << 63))),
    "a shape of 2**62": edit_gguf(huge_shape),
    "2**40 rows": edit_gguf(huge_rows),
    "90 dimensions": edit_gguf(lambda data: at(data, first_tensor(data), struct.pack("<I", 90))),
    "an empty suite": edit_suite(lambda text: "{}"),
    "a suite without a tensor": edit_suite(lambda text: text.replace("basic/enorm", "basic/other")),
    "a suite in bytes that are no text": edit_suite(lambda text: text[:40] + "\x01" + text[40:]),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_a_damaged_folder_ends_in_one_line_and_status_2(built: Path, tmp_path: Path, name: str) -> None:
    folder = copied(tmp_path, ["L1-operations/concat"])
    DAMAGE[name](folder)
    done = run_check(built, str(folder))
    assert done.returncode == 2, done.stdout
    assert done.stdout == ""
    assert done.stderr.startswith("golden_check: "), done.stderr
    assert done.stderr.count("\n") == 1, done.stderr


@pytest.mark.parametrize(
    "args", [["--level"], ["--nothing"], ["a", "b"], ["--level", "L9", str(GOLDEN)], ["--model", "x", str(GOLDEN)]]
)
def test_a_command_line_that_cannot_be_used_ends_in_one_line_and_status_2(built: Path, args: list[str]) -> None:
    done = run_check(built, *args)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert done.stdout == ""


def test_an_unknown_class_is_a_reason_to_skip(built: Path, tmp_path: Path) -> None:
    folder = copied(tmp_path, ["L1-operations/concat"])
    edit_suite(
        lambda text: text.replace('"class": "exact"', '"class": "later"').replace('"class":"exact"', '"class":"later"')
    )(folder)
    done = run_check(built, str(folder))
    assert done.returncode == 0
    assert "skipped 1: class later is unknown" in done.stdout
    assert "nothing was checked" in done.stdout


# ----------------------------------------------------------------------------------------------------------- digests


def with_digest(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """The expected tensor of swiglu/basic as a digest in place of its values."""
    from mtpref.golden import Folder
    from mtpref.golden.digest import digest_of

    [suite] = Folder(GOLDEN).suites(name="swiglu")
    values = Folder(GOLDEN).tensors(suite)["basic/out.y"].values()
    path = folder / "L1-operations" / "swiglu.json"
    data = json.loads(path.read_text())
    digest = digest_of(values)
    change(digest)
    expected = data["cases"][0]["out"]["y"]
    del expected["tensor"]
    expected["digest"] = digest
    path.write_text(json.dumps(data))
    rehashed(folder)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda d: d, ""),
        (lambda d: d.update(sha256="0" * 64), ""),
        (lambda d: d.update(sha256="0" * 64, norm=(9.0).hex()), "norm"),
        (lambda d: d.update(sha256="0" * 64, first=[(9.0).hex()]), "element 0 is"),
        (lambda d: d.update(sha256="0" * 64, n=3), "expected 3"),
    ],
)
def test_digests_stand_for_tensors(
    built: Path, tmp_path: Path, change: Callable[[dict[str, Any]], object], reason: str
) -> None:
    folder = copied(tmp_path, ["L1-operations/swiglu"])
    with_digest(folder, change)
    done = run_check(built, "--case", "swiglu/basic", str(folder))
    assert done.returncode == (1 if reason else 0), done.stdout + done.stderr
    assert reason in done.stdout
