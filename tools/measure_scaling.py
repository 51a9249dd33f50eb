"""Measures how time and memory grow with the context: decode and prefill, against what the arithmetic predicts.

    python tools/measure_scaling.py -m MODEL [--contexts 1024,4096,16384] [-t N] [--plot FILE]

One prompt is read in passes of 512 tokens up to the longest context. At each length some tokens are decoded, and the
layers are timed by kind: attention should grow linearly with the context, DeltaNet and everything else should not grow
at all. Memory per token is the growth of the state's arrays against n_layer_attention * 2 * n_head_kv * head_dim * 2
bytes (F16), and the resident memory of the process is told beside it.
"""

import argparse
import statistics
import sys
import time
from dataclasses import dataclass, field

import mtpref
from mtpref.engine.model import Model
from mtpref.front.cli.options import set_threads
from mtpref.spec.state import ModelState

N_BATCH, N_DECODED = 512, 5


@dataclass
class Point:
    """At one length of context: milliseconds of a decoded token, of which attention layers and DeltaNet layers; seconds
    of the prompt so far; bytes of state; resident bytes."""

    n: int
    token_ms: float
    attention_ms: float
    delta_ms: float
    prompt_s: float
    state_bytes: int
    resident: int


@dataclass
class _Clock:
    """Milliseconds between taps, by kind of layer."""

    kinds: list[str]
    spent: dict[str, float] = field(default_factory=dict)
    last: float = 0.0

    def tap(self, name: str, _: object) -> None:
        now = time.perf_counter()
        head, _, il = name.rpartition("-")
        if head == "attn_residual" and il.isdigit():
            kind = self.kinds[int(il)]
            self.spent[kind] = self.spent.get(kind, 0.0) + 1000 * (now - self.last)
        if head in ("attn_norm", "attn_residual"):
            self.last = now


def resident() -> int:
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * 4096


def live_bytes(state: ModelState) -> int:
    return sum(array.nbytes for _, array in state.live_arrays())


def bytes_per_token(model: Model) -> int:
    """What the arithmetic says: a key and a value of two bytes a number in every attention layer."""
    attention = [layer.cfg for layer in model.layers if "attention" in layer.kind.name]
    return sum(2 * cfg.n_head_kv * cfg.n_embd_head * 2 for cfg in attention)


def measure(model: Model, contexts: list[int]) -> list[Point]:
    state = model.new_state(max(contexts) + N_DECODED + 1)
    points, spent = [], 0.0
    for n in contexts:
        while state.n_past < n:
            ids = [(7919 * i + 11) % model.n_vocab for i in range(state.n_past, min(n, state.n_past + N_BATCH))]
            start = time.perf_counter()
            model.trunk(state, ids, n_logits=0)
            spent += time.perf_counter() - start
        saved, tokens, clocks = state.checkpoint(), [], []
        for _ in range(N_DECODED):
            clock = _Clock([layer.kind.name for layer in model.layers])
            start = time.perf_counter()
            model.trunk(state, [1], n_logits=1, tap=clock.tap)
            tokens.append(1000 * (time.perf_counter() - start))
            clocks.append(clock.spent)
        state.restore(saved)
        kinds = {kind: statistics.median(c[kind] for c in clocks) for kind in clocks[0]}
        attention = sum(ms for kind, ms in kinds.items() if "attention" in kind)
        delta = sum(ms for kind, ms in kinds.items() if "attention" not in kind)
        points.append(Point(n, statistics.median(tokens), attention, delta, spent, live_bytes(state), resident()))
        print(f"{n} tokens", file=sys.stderr, flush=True)
    return points


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("-m", "--model")
    parser.add_argument("--contexts", default="512,1024,1536")
    parser.add_argument("-t", "--threads", type=int)
    parser.add_argument("--plot")
    args = parser.parse_args()
    set_threads(args.threads)
    model = mtpref.load(args.model, mtp=False).core
    points = measure(model, sorted({int(n) for n in args.contexts.split(",")}))
    print("context  token ms  attention  DeltaNet  prompt s  prompt t/s  state MB  resident MB")
    for p in points:
        rate = p.n / p.prompt_s
        print(
            f"{p.n:7d} {p.token_ms:9.2f} {p.attention_ms:10.2f} {p.delta_ms:9.2f} {p.prompt_s:9.2f} {rate:11.1f} "
            f"{p.state_bytes / 1e6:9.2f} {p.resident / 1e6:12.0f}"
        )
    first, last = points[0], points[-1]
    per_token = (last.state_bytes - first.state_bytes) / max(1, last.n - first.n)
    print(f"state per token: {per_token:.0f} bytes, arithmetic says {bytes_per_token(model)}")
    if args.plot:
        _plot(points, args.plot)


def _plot(points: list[Point], path: str) -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.6), layout="constrained")
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2)
    n = [p.n for p in points]
    for name, values in (
        ("attention layers", [p.attention_ms for p in points]),
        ("DeltaNet layers", [p.delta_ms for p in points]),
    ):
        left.plot(n, values, marker="o", label=name)
    left.set(title="a decoded token", xlabel="tokens in the context", ylabel="ms", ylim=(0, None))
    left.legend()
    right.plot(n, [p.prompt_s for p in points], marker="o")
    right.set(title="reading the prompt", xlabel="tokens", ylabel="s", ylim=(0, None))
    metadata = {"Date": None} if path.endswith(".svg") else {"Software": None}
    figure.savefig(path, metadata=metadata)


if __name__ == "__main__":
    main()
