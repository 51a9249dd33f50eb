"""Evaluate `mtpref diagnose` with ports that differ from the reference in more than their fault.

    python tools/evaluate_diagnose.py dump -o results-dump.jsonl
    python tools/evaluate_diagnose.py log -o results-log.jsonl
    python tools/evaluate_diagnose.py log --every 8 --healthy 20 -o sample.jsonl
    python tools/evaluate_diagnose.py dump --models deepseek2 -o results-latent.jsonl
    python tools/evaluate_diagnose.py render results-*.jsonl --page docs/diagnosis.md

A port has other numerics, another KV type, perhaps a quantised file, and noise on its tensors; models and prompts are
not those that the thresholds were chosen on (the tiny model with one prompt, micro-60). One JSON line a case.
"""

import argparse
import json
import re
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent))

import make_micro
import make_random

from mtpref import kernels
from mtpref.base.errors import MtprefError
from mtpref.base.events import Drafted, Token, Verified
from mtpref.engine.decode import Decoder, Options, PolicyConfig
from mtpref.engine.model import Model, load
from mtpref.engine.recipe import make_recipe
from mtpref.faults import FAULTS, inject
from mtpref.faults.diagnose import PortRound, PortRun, PortTensors, diagnose_dump, diagnose_log
from mtpref.faults.diagnose.port_tensors import distance
from mtpref.front.api import tiny_path
from mtpref.look import dump

RANDOM = (
    "--type F32 --n-embd 128 --n-layer 4 --n-vocab 512 --n-ff 256 --n-head 4 --n-head-kv 2 --head-dim 32 --n-rot 16 "
    "--state-size 32 --n-k-head 2 --n-v-head 4 --seed 5"
)
PROMPTS = ("The fog lay over the harbour, and Nina", "Eva and Hugo built a snowman. It was")
VISIBLE = 30.0  # a fault is visible in a dump where it moves a tensor by so many times the noise's power
P_VISIBLE = 0.02


@dataclass(frozen=True)
class Setting:
    """One kind of port. model: what the reference loads; port: what the port loads."""

    name: str
    model: str
    port: str
    numerics: str
    kv_type: str
    noise: float = 0.0
    rows: int | None = None
    pattern: str = "."
    with_p: bool = True
    cooldown: int = 0
    use_kernels: bool = True
    n_max: int = 3


@dataclass(frozen=True)
class Ports:
    """The kinds of ports of some models: those with a fault, and (file, quantised file) of healthy ones. n_more: tokens
    more than usual of prompts, where an indexer must have a choice"""

    dumps: tuple[Setting, ...]
    logs: tuple[Setting, ...]
    pairs: tuple[tuple[str, str], ...]
    n_more: int = 0


DUMPS = (
    Setting("micro-30, exact, F32 KV, noise 1e-3", "micro-30-f32", "micro-30-f32", "exact", "F32", 1e-3),
    Setting("micro-90, port in Q8_0, noise 3e-3", "micro-90-f32", "micro-90-q8_0", "ggml", "F16", 3e-3),
    Setting("random weights, exact, BF16 KV, noise 1e-2", "random", "random", "exact", "BF16", 1e-2),
    Setting("tiny, head only, last 8 rows, noise 5e-3", "tiny", "tiny", "exact", "F32", 5e-3, 8, "^(mtp_|h_nextn)"),
)
LOGS = (
    Setting("micro-30, exact, F32 KV, with p", "micro-30-f32", "micro-30-f32", "exact", "F32"),
    Setting(
        "micro-90, port in Q8_0, ids only", "micro-90-f32", "micro-90-q8_0", "ggml", "F16", with_p=False, cooldown=1
    ),
    Setting("tiny, exact, F32 KV, with p", "tiny", "tiny", "exact", "F32"),
)


LATENT, YARN, FUSED, OLD = (f"micro-deepseek2-{name}f32" for name in ("", "yarn-", "fused-", "old-"))
STEP, MIMO, HY_CHAIN = (f"micro-{name}-f32" for name in ("step35", "mimo2", "hy_v3-chain"))
STEP_Q8, MIMO_Q8 = "micro-step35-q8_0", "micro-mimo2-q8_0"
LATENT_Q8, OLD_Q8 = "micro-deepseek2-q8_0", "micro-deepseek2-old-q8_0"
INDEXED, INDEXED_YARN, INDEXED_Q8 = (f"micro-deepseek32-{name}" for name in ("f32", "yarn-f32", "q8_0"))
SHARING, SHARING_YARN = "micro-glm-dsa-f32", "micro-glm-dsa-yarn-f32"
STREAMS, STREAMS_OWN, STREAMS_Q8 = (f"micro-deepseek4-{name}" for name in ("f32", "own-f32", "q8_0"))
GEMMA, GEMMA_MOE, GEMMA_Q8, GEMMA_MOE_Q8 = (f"micro-gemma4-{name}" for name in ("f32", "moe-f32", "q8_0", "moe-q8_0"))
GEMMA_EDGE, GEMMA_APART = "micro-gemma4-edge-30-f32", "micro-gemma4-apart-90-f32"
(COHERE, COHERE_Q8), (NEMOTRON, NEMOTRON_Q8) = (
    tuple(f"micro-{arch}-{kind}" for kind in ("f32", "q8_0")) for arch in ("cohere2moe", "nemotron_h_moe")
)
PORTS = {
    "usual": Ports(
        DUMPS,
        LOGS,
        (("micro-30-f32", "micro-30-q8_0"), ("micro-90-f32", "micro-90-q8_0"), ("random", "random"), ("tiny", "tiny")),
    ),
    "deepseek2": Ports(
        (
            Setting("deepseek2, exact, F32 KV, noise 1e-3", LATENT, LATENT, "exact", "F32", 1e-3),
            Setting("deepseek2 with YaRN, BF16 KV, noise 3e-3", YARN, YARN, "exact", "BF16", 3e-3),
            Setting("deepseek2, port in Q8_0, noise 1e-3", LATENT, LATENT_Q8, "ggml", "F16", 1e-3),
            Setting("an older file, exact, F32 KV, noise 1e-3", OLD, OLD, "exact", "F32", 1e-3),
        ),
        (
            Setting("deepseek2, exact, F32 KV, with p", LATENT, LATENT, "exact", "F32"),
            Setting("deepseek2 with YaRN, exact, F32 KV, with p", YARN, YARN, "exact", "F32"),
            Setting("deepseek2, port in Q8_0, ids only", LATENT, LATENT_Q8, "ggml", "F16", with_p=False),
        ),
        ((LATENT, LATENT_Q8), (YARN, YARN), (FUSED, FUSED), (OLD, OLD_Q8)),
    ),
    "indexer": Ports(
        (
            Setting("deepseek32, exact, F32 KV, noise 1e-3", INDEXED, INDEXED, "exact", "F32", 1e-3),
            Setting("glm-dsa, BF16 KV, noise 3e-3", SHARING, SHARING, "exact", "BF16", 3e-3),
            Setting("deepseek32, port in Q8_0, noise 1e-3", INDEXED, INDEXED_Q8, "ggml", "F16", 1e-3),
        ),
        (
            Setting("glm-dsa, exact, F32 KV, with p", SHARING, SHARING, "exact", "F32"),
            Setting("deepseek32, port in Q8_0, ids only", INDEXED, INDEXED_Q8, "ggml", "F16", with_p=False),
        ),
        ((INDEXED, INDEXED_Q8), (INDEXED_YARN, INDEXED_YARN), (SHARING, SHARING), (SHARING_YARN, SHARING_YARN)),
        n_more=24,
    ),
    "streams": Ports(
        (
            Setting("deepseek4, exact, F32 KV, noise 1e-3", STREAMS, STREAMS, "exact", "F32", 1e-3),
            Setting("deepseek4, BF16 KV, noise 3e-3", STREAMS_OWN, STREAMS_OWN, "exact", "BF16", 3e-3),
            Setting("deepseek4, port in Q8_0, noise 1e-3", STREAMS, STREAMS_Q8, "ggml", "F16", 1e-3),
        ),
        (Setting("deepseek4, exact, F32 KV, with p", STREAMS_OWN, STREAMS_OWN, "exact", "F32"),),
        ((STREAMS, STREAMS_Q8), (STREAMS_OWN, STREAMS_OWN)),
        n_more=24,
    ),
    # Several heads: four tokens are asked for where there are three.
    "chains": Ports(
        (
            Setting("mimo2, exact, F32 KV, noise 1e-3", MIMO, MIMO, "exact", "F32", 1e-3),
            Setting("step35, BF16 KV, noise 3e-3", STEP, STEP, "exact", "BF16", 3e-3),
            Setting("step35, port in Q8_0, noise 1e-3", STEP, STEP_Q8, "ggml", "F16", 1e-3),
        ),
        (
            Setting("mimo2, exact, F32 KV, with p", MIMO, MIMO, "exact", "F32", n_max=4),
            Setting("step35, exact, F32 KV, with p", STEP, STEP, "exact", "F32", n_max=4),
            Setting("hy_v3 with three heads, exact, F32 KV, with p", HY_CHAIN, HY_CHAIN, "exact", "F32", n_max=4),
            Setting("step35, port in Q8_0, ids only", STEP, STEP_Q8, "ggml", "F16", with_p=False, n_max=4),
        ),
        ((MIMO, MIMO_Q8), (STEP, STEP_Q8), (HY_CHAIN, HY_CHAIN)),
    ),
    # A target and its assistant, a file each, both in the port's type.
    "assistants": Ports(
        (
            Setting("gemma4, exact, F32 KV, noise 1e-3", GEMMA, GEMMA, "exact", "F32", 1e-3),
            Setting("gemma4 with shared cells, BF16 KV, noise 3e-3", GEMMA_EDGE, GEMMA_EDGE, "exact", "BF16", 3e-3),
            Setting("gemma4, port in Q8_0, noise 1e-3", GEMMA, GEMMA_Q8, "ggml", "F16", 1e-3),
        ),
        (
            Setting("gemma4, exact, F32 KV, with p", GEMMA, GEMMA, "exact", "F32", n_max=4),
            Setting("gemma4 with shared cells, exact, F32 KV, with p", GEMMA_EDGE, GEMMA_EDGE, "exact", "F32", n_max=4),
            Setting("gemma4, port in Q8_0, ids only", GEMMA, GEMMA_Q8, "ggml", "F16", with_p=False, n_max=4),
        ),
        ((GEMMA, GEMMA_Q8), (GEMMA_EDGE, GEMMA_EDGE), (GEMMA_MOE, GEMMA_MOE_Q8), (GEMMA_APART, GEMMA_APART)),
    ),
    "single": Ports(
        (
            Setting("cohere2moe, exact, F32 KV, noise 1e-3", COHERE, COHERE, "exact", "F32", 1e-3),
            Setting("nemotron_h_moe, BF16 KV, noise 1e-3", NEMOTRON, NEMOTRON, "exact", "BF16", 1e-3),
        ),
        (Setting("nemotron_h_moe, exact, F32 KV, with p", NEMOTRON, NEMOTRON, "exact", "F32"),),
        ((COHERE, COHERE_Q8), (NEMOTRON, NEMOTRON_Q8)),
    ),
    # Healthy ports alone: what a fault does to them is in tests/test_diagnose_moe.py.
    "experts": Ports(
        (), (), tuple((f"micro-{a}-f32", f"micro-{a}-q8_0") for a in ("qwen35moe", "qwen3next", "glm4moe", "hy_v3"))
    ),
}


class Models:
    """Files made in a folder, models loaded once."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._loaded: dict[tuple[str, str, str, bool], Model] = {}

    def get(self, name: str, numerics: str = "ggml", kv_type: str = "F16", use_kernels: bool = True) -> Model:
        key = (name, numerics, kv_type, use_kernels)
        if key not in self._loaded:
            recipe = make_recipe(numerics, use_kernels=use_kernels)
            own = self._path(make_micro.assistant_of(name)) if name in make_micro.STANDARD_GEMMA else None
            self._loaded[key] = load(self._path(name), recipe, kv_type=kv_type, kv_type_draft=kv_type, model_draft=own)
        return self._loaded[key]

    def _path(self, name: str) -> Path:
        path = self.folder / f"{name}.gguf"
        if name == "tiny":
            return tiny_path()
        if not path.exists() and name == "random":
            make_random.main([*RANDOM.split(), "-o", str(path)])
        elif not path.exists():
            make_micro.make_standard(name, path)
        return path


def prompt_of(model: Model, name: str, seed: int, n_more: int = 0) -> list[int]:
    if name == "tiny":
        return list(model.vocab.encode(PROMPTS[seed % len(PROMPTS)]))
    rng = np.random.default_rng(1000 + seed)
    return [int(i) for i in rng.integers(1, min(model.n_vocab, 256), 12 + seed % 9 + n_more)]


def port_tensors(model: Model, ids: list[int], setting: Setting, seed: int) -> PortTensors:
    """A dump of the port: noise is relative to each value."""
    rng = np.random.default_rng(seed)
    tensors = {}
    for name, array in dump.record(model, ids, setting.pattern).tensors.items():
        noisy = (array * (1 + setting.noise * rng.standard_normal(array.shape))).astype(np.float32)
        is_by_token = noisy.ndim > 0 and noisy.shape[0] >= len(ids) - 1
        tensors[name] = noisy[-setting.rows :] if setting.rows and is_by_token else noisy
    return PortTensors("port", ids, tensors)


def port_run(model: Model, ids: list[int], setting: Setting, n_predict: int) -> PortRun:
    """A log of the port, greedy, with drafts of up to setting.n_max tokens."""
    policy = PolicyConfig(n_max=setting.n_max, cooldown=setting.cooldown)
    decoder = Decoder(model, model.new_state(512), Options(n_predict=n_predict, policy=policy))
    rounds: list[PortRound] = []
    drafted: Drafted | None = None
    n_accepted = 0
    emitted: list[int] = []

    def close() -> None:
        if drafted is not None:
            p = tuple(s.p[0] for s in drafted.steps[: len(drafted.ids)]) if setting.with_p else None
            rounds.append(PortRound(tuple(drafted.ids), n_accepted, tuple(emitted), drafted.id_last, p))

    for event in decoder.run(ids):
        if isinstance(event, Drafted):
            close()
            drafted, emitted = event, []
        elif isinstance(event, Verified):
            n_accepted = event.n_accepted
        elif isinstance(event, Token):
            emitted.append(event.id)
    close()
    known = {"n_max": setting.n_max, "cooldown": setting.cooldown, "cooldown_after": 1}
    return PortRun("port", tuple(ids), tuple(rounds), False, known)


# -------------------------------------------------------------------------------------------- cases


def is_visible_in_dump(fault: PortTensors, healthy: PortTensors, noise: float) -> bool:
    limit = VISIBLE * max(noise * noise, 1e-9)
    found = [distance(array, healthy.tensors[name]) for name, array in fault.tensors.items() if name in healthy.tensors]
    return any(d is None or d > limit for d in found)


def is_visible_in_log(a: PortRun, b: PortRun) -> bool:
    if [(r.draft, r.n_accepted, r.emitted) for r in a.rounds] != [(r.draft, r.n_accepted, r.emitted) for r in b.rounds]:
        return True
    pairs = zip((p for r in a.rounds for p in r.p or ()), (p for r in b.rounds for p in r.p or ()), strict=False)
    return any(abs(x - y) > P_VISIBLE for x, y in pairs)


def fault_cases(
    kind: str, models: Models, every: int = 1, ports: Ports = PORTS["usual"], faults: Sequence[str] = ()
) -> Iterator[dict[str, Any]]:
    """Every fault in every kind of port, or one pair in `every`. faults: their ids, none: all"""
    for n, setting in enumerate(ports.dumps if kind == "dump" else ports.logs):
        reference = models.get(setting.model)
        port = models.get(setting.port, setting.numerics, setting.kv_type)
        ids = prompt_of(reference, setting.model, n, ports.n_more)
        quiet = replace(setting, noise=0.0)
        healthy = port_tensors(port, ids, quiet, 0) if kind == "dump" else port_run(port, ids, setting, 40)
        for i, fault in enumerate([FAULTS[id] for id in faults] or FAULTS.values()):
            if fault.is_look_alike or (i + n) % every:
                continue
            try:
                broken = inject(port, fault)
                if kind == "dump":
                    if not is_visible_in_dump(port_tensors(broken, ids, quiet, 0), healthy, setting.noise):  # type: ignore[arg-type]
                        continue
                    report = diagnose_dump(reference, port_tensors(broken, ids, setting, n))
                else:
                    run = port_run(broken, ids, setting, 40)
                    if not is_visible_in_log(run, healthy):  # type: ignore[arg-type]
                        continue
                    report = diagnose_log(reference, [run])
            except (MtprefError, ValueError, IndexError) as error:
                print(f"{fault.id}: {error}", file=sys.stderr)
                continue
            yield {"kind": kind, "setting": setting.name, "true": fault.id, "verdict": report.verdict,
                   "top": [cause.ids for cause in report.causes[:3]]}  # fmt: skip


def healthy_cases(kind: str, models: Models, n_cases: int, ports: Ports = PORTS["usual"]) -> Iterator[dict[str, Any]]:
    """Healthy ports of every mixture: model, numerics, KV type, quantisation, noise, rows, prompt, spec or kernels."""
    rng = np.random.default_rng(7 if kind == "dump" else 8)
    for i in range(n_cases):
        name, quantised = ports.pairs[i % len(ports.pairs)]
        numerics, kv_type = str(rng.choice(["ggml", "exact"])), str(rng.choice(["F16", "F32", "BF16"]))
        file = quantised if rng.random() < 0.4 else name
        noise = float(10 ** rng.uniform(-3, -2))
        rows = 4 if rng.random() < 0.25 else None
        pattern = "^mtp_" if rng.random() < 0.25 else "."
        use_kernels = bool(name == "tiny" or rng.random() < 0.9)
        setting = Setting("healthy", name, file, numerics, kv_type, noise, rows, pattern, bool(rng.random() < 0.6))
        reference, port = models.get(name), models.get(file, numerics, kv_type, use_kernels)
        ids = prompt_of(reference, name, 50 + i, ports.n_more)
        if kind == "dump":
            report = diagnose_dump(reference, port_tensors(port, ids, setting, i))
        else:
            report = diagnose_log(reference, [port_run(port, ids, setting, 24)])
        yield {"kind": kind, "setting": f"{file}, {numerics}, {kv_type} KV", "true": "healthy",
               "verdict": report.verdict, "top": [cause.ids for cause in report.causes[:3]]}  # fmt: skip


# ------------------------------------------------------------------------------------------- results


def is_right(case: dict[str, Any], n: int) -> bool:
    if case["true"] == "healthy":
        return bool(case["verdict"] == "healthy")
    return any(case["true"] in ids for ids in case["top"][:n]) and (n > 1 or case["verdict"] == "found")


def family_of(case: dict[str, Any]) -> str:
    """The family of what was said: that of the true fault where its class holds it."""
    if case["verdict"] != "found":
        return str(case["verdict"])
    ids = case["top"][0]
    if case["true"] in ids:
        return str(case["true"][0])
    return next((i[0] for i in ids if re.match(r"[A-Z]\d", i)), "contract")


def render(cases: list[dict[str, Any]]) -> str:
    """Rates, confusion by family and every miss, as Markdown."""
    lines = []
    for kind, title in (("dump", "Tensors (`--dump`)"), ("log", "Runs (`--log`)")):
        mine = [c for c in cases if c["kind"] == kind and c["true"] != "healthy"]
        if not mine:
            continue
        lines += [f"### {title}", "", "| port | cases | top-1 | top-3 |", "|---|---|---|---|"]
        for setting in [*dict.fromkeys(c["setting"] for c in mine), None]:
            own = [c for c in mine if setting in (None, c["setting"])]
            first, third = (sum(is_right(c, n) for c in own) for n in (1, 3))
            name = setting or "all"
            lines.append(f"| {name} | {len(own)} | {100 * first / len(own):.0f} % | {100 * third / len(own):.0f} % |")
        lines += ["", *_confusion(mine), "", *_misses(mine), ""]
    healthy = [c for c in cases if c["true"] == "healthy"]
    if healthy:
        verdicts = Counter((c["kind"], c["verdict"]) for c in healthy)
        told = ", ".join(f"{n} {kind}s {verdict}" for (kind, verdict), n in sorted(verdicts.items()))
        n_blamed = sum(c["verdict"] == "found" for c in healthy)
        lines += [
            "### Healthy ports",
            "",
            f"{len(healthy)} healthy ports ({told}): a fault was blamed in {n_blamed}.",
            "",
        ]
    return "\n".join(lines)


def _confusion(cases: list[dict[str, Any]]) -> list[str]:
    said = Counter((c["true"][0], family_of(c)) for c in cases)
    rows = sorted({a for a, _ in said})
    columns = sorted({b for _, b in said}, key=lambda b: (len(b) > 1, b))
    lines = ["| fault of family | " + " | ".join(columns) + " |", "|---" * (len(columns) + 1) + "|"]
    return lines + [f"| {a} | " + " | ".join(str(said[a, b] or "") for b in columns) + " |" for a in rows]


def _misses(cases: list[dict[str, Any]]) -> list[str]:
    missed = [c for c in cases if not is_right(c, 1)]
    if not missed:
        return ["No fault was missed."]
    lines = ["Not first:", ""]
    for c in missed:
        place = "top-3" if is_right(c, 3) else "not in the top-3"
        lines.append(f"* {c['true']} ({c['setting']}): {c['verdict']}, {', '.join(c['top'][0][:3])} first; {place}")
    return lines


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Evaluate mtpref diagnose.")
    parser.add_argument("what", choices=("dump", "log", "render"))
    parser.add_argument("files", nargs="*", type=Path, help="results to render")
    parser.add_argument("--healthy", type=int, default=150, help="healthy ports (default 150)")
    parser.add_argument("--every", type=int, default=1, help="of the ports with a fault one in so many (default 1)")
    parser.add_argument(
        "--faults", nargs="*", choices=FAULTS, default=(), metavar="ID", help="these alone (default: all)"
    )
    parser.add_argument("--models", choices=tuple(PORTS), default="usual", help="models of the ports (default usual)")
    parser.add_argument("-o", "--output", type=Path, help="results, one JSON a line")
    parser.add_argument("--page", type=Path, help="page with a block of results to rewrite")
    args = parser.parse_args(argv)
    if args.what == "render":
        cases = [json.loads(line) for path in args.files for line in path.read_text().splitlines()]
        block = f"<!-- results -->\n{render(cases)}<!-- end of results -->"
        if args.page is None:
            print(block)
        else:
            text = args.page.read_text(encoding="utf-8")
            args.page.write_text(
                re.sub(r"<!-- results -->.*?<!-- end of results -->", lambda _: block, text, flags=re.S)
            )
        return 0
    kernels.set_threads(1)
    np.seterr(all="ignore")
    with tempfile.TemporaryDirectory() as folder, args.output.open("w", encoding="utf-8") as out:
        models, ports = Models(Path(folder)), PORTS[args.models]
        for source in (
            fault_cases(args.what, models, args.every, ports, args.faults),
            healthy_cases(args.what, models, args.healthy, ports),
        ):
            for case in source:
                out.write(json.dumps(case) + "\n")
                out.flush()
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
