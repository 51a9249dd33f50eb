"""Measure what every fault does to the embedded tiny model, and write docs/faults.json. What that model cannot have is
measured on one of golden/models that can, or on one that tools/make_micro.py makes.

    python tools/measure_faults.py [ID ...]

Everything is counted and every draw is named by its seed, so the file is the same on every machine. Prompts are none of
the model's training text. Takes minutes; with ids, only those are measured again. Then: python tools/write_faults.py
"""

import json
import sys
import tempfile
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

import fault_distance
import make_micro
from golden.moe_models import GOLDEN, MODELS, path_of
from golden.moe_models import prompt as prompt_of
from tiny.text import held_out_stories

import mtpref
from mtpref.base.events import Drafted, Event, Token, Verified
from mtpref.engine.decode import Decoder, Options, PolicyConfig, SamplingConfig
from mtpref.engine.model import Model
from mtpref.faults import FAULTS, Fault, inject, is_possible
from mtpref.look.dump import record
from mtpref.measure.story import PROMPTS
from mtpref.spec.rope_scaling import RopeOverrides

TARGET = Path(__file__).parent.parent / "docs" / "faults.json"
SCHEMA = "mtpref-fault-measurements-1"
N_MAX, N_PREDICT = 4, 40
SIZES = (400, 400, 700, 700)
TEXTS = (*PROMPTS[:6], *(told[:size] for told, size in zip(held_out_stories(len(SIZES)), SIZES, strict=True)))
BINS = (0, 64, 192)  # rounds that open at these positions or after
N_SEEDS = 4000
TV_PROMPT = "Once upon a time there was"  # its first two tokens are open, and the head names the first


@dataclass(frozen=True)
class Setup:
    """The options under which a fault does something: those of its `needs`, else the same for all.

    stand_in  the model that is measured in place of the embedded one, "" for that one
    """

    needs: tuple[str, ...]
    stand_in: str = ""

    @property
    def numerics(self) -> str:
        return "exact" if {"wide kv", "wide numerics"} & set(self.needs) else "ggml"

    @property
    def is_sampled(self) -> bool:
        return bool({"sampling", "residual"} & set(self.needs))

    @property
    def rope(self) -> RopeOverrides | None:
        return RopeOverrides(scaling_type="linear", freq_scale=0.5) if "scaled rope" in self.needs else None

    def sampling(self, seed: int = 1) -> SamplingConfig:
        accept = "residual" if "residual" in self.needs else "match"
        return SamplingConfig(temp=1.0, top_k=40, top_p=0.9, min_p=0.0, seed=seed, accept=accept)

    def policy(self, n_max: int = N_MAX) -> PolicyConfig:
        p_min = 0.5 if "n_min" in self.needs else 0.1 if "p_min" in self.needs else 0.0
        n_min = min(2, n_max) if "n_min" in self.needs else 0
        return PolicyConfig(n_max=n_max, n_min=n_min, p_min=p_min, cooldown=int("cooldown" in self.needs))

    def options(self) -> Options:
        sampling = self.sampling() if self.is_sampled else SamplingConfig()
        n_batch = 32 if "batches" in self.needs else 512
        return Options(n_predict=N_PREDICT, policy=self.policy(), n_batch=n_batch, sampling=sampling)

    def words(self) -> list[str]:
        """What differs from the common setup, as options of the command line."""
        words = {"cooldown": "--spec-cooldown 1", "batches": "--batch-size 32", "p_min": "--spec-draft-p-min 0.1",
                 "n_min": "--spec-draft-n-min 2 --spec-draft-p-min 0.5", "scaled rope": "--rope-scaling linear "
                 "--rope-freq-scale 0.5", "wide kv": "--numerics exact", "wide numerics": "--numerics exact",
                 "sampling": "--temp 1", "residual": "--temp 1 --spec-accept residual"}  # fmt: skip
        model = [STAND_INS[self.stand_in]] if self.stand_in else []
        return model + [words[need] for need in self.needs if need in words]

    def prompts(self, model: Model) -> list[list[int]]:
        """The texts as ids; the small models' vocabulary has no text, so theirs are drawn."""
        if self.stand_in:
            return [prompt_of(f"measure_faults/{i}", 12 + 24 * (i >= len(TEXTS) - 2)) for i in range(len(TEXTS))]
        return [list(model.vocab.encode(text)) for text in TEXTS]


# Models that stand in for the embedded one, each with the words by which it is named.
SOFTMAX = "hy_v3, softmax"
STAND_INS = {arch: f"-m golden/{path_of(arch)}" for arch in MODELS}
STAND_INS[SOFTMAX] = f"{STAND_INS['hy_v3']} (with expert_gating_func 1)"
# Those that are made for it: the trunk's file, and the head's where it has one of its own.
MADE = {
    "deepseek32": ("micro-deepseek32-f32",),
    "glm-dsa": ("micro-glm-dsa-f32",),
    "deepseek4": ("micro-deepseek4-trunk-f32", "micro-deepseek4-head-f32"),
    "hy_v3, three heads": ("micro-hy_v3-chain-f32",),
    "mimo2": ("micro-mimo2-f32",),
    "step35": ("micro-step35-f32",),
    "gemma4": ("micro-gemma4-f32", "micro-gemma4-assistant-f32"),
    "cohere2moe": ("micro-cohere2moe-f32",),
    "nemotron_h_moe": ("micro-nemotron_h_moe-f32",),
}
STAND_INS |= {arch: " ".join(f"{flag} {name}.gguf" for flag, name in zip(("-m", "-md"), names, strict=False))
              for arch, names in MADE.items()}  # fmt: skip
_FOLDER = tempfile.TemporaryDirectory(prefix="mtpref-faults-")
# What needs no options: every run has it.
USUAL = ("mtp", "snapshot", "rollback", "eog", "more drafts than heads")


def setup_of(fault: Fault) -> Setup:
    """The same object for faults that need the same options, so that the healthy run is made once."""
    needs = tuple(need for need in fault.needs if need not in USUAL)
    for name in ("", *STAND_INS):
        if is_possible(fault, model_of(Setup(needs, name), None)):
            return Setup(needs, name)
    raise ValueError(f"{fault.id}: none of the models can have it")


@cache
def healthy(numerics: str, rope: RopeOverrides | None, stand_in: str = "") -> Model:
    if not stand_in:
        return mtpref.load(numerics=numerics, rope=rope).core
    if stand_in in MADE:
        trunk, *head = (_made(name) for name in MADE[stand_in])
        return mtpref.load(trunk, numerics=numerics, rope=rope, model_draft=head[0] if head else None).core
    model = mtpref.load(GOLDEN / path_of(stand_in.partition(",")[0]), numerics=numerics, rope=rope).core
    return with_softmax(model) if stand_in == SOFTMAX else model


def _made(name: str) -> Path:
    path = Path(_FOLDER.name) / f"{name}.gguf"
    if not path.exists():
        make_micro.make_standard(name, path)
    return path


def with_softmax(model: Model) -> Model:
    """The model with a softmax in its routers, as its key would have it."""

    def changed(layer: Any) -> Any:
        cfg = layer.ffn_cfg
        return replace(layer, ffn_cfg=replace(cfg, gating="softmax")) if hasattr(cfg, "gating") else layer

    heads = tuple(replace(head, layer=changed(head.layer)) for head in model.heads)
    return replace(model, layers=tuple(map(changed, model.layers)), heads=heads)


def model_of(setup: Setup, fault: Fault | None) -> Model:
    model = healthy(setup.numerics, setup.rope, setup.stand_in)
    return model if fault is None else inject(model, fault)


# ------------------------------------------------------------------------------------------------- acceptance


@dataclass
class Counts:
    """First draft tokens (accepted, drafted) by what the round before did, and by position; texts by prompt."""

    by_before: defaultdict[str, list[int]] = field(default_factory=lambda: defaultdict(lambda: [0, 0]))
    by_pos: defaultdict[str, list[int]] = field(default_factory=lambda: defaultdict(lambda: [0, 0]))
    accepted: Counter[int] = field(default_factory=Counter)
    reached: Counter[int] = field(default_factory=Counter)
    n_rounds: int = 0
    n_draft_rounds: int = 0
    n_drafted: int = 0
    texts: list[list[int]] = field(default_factory=list)
    margins: list[list[float]] = field(default_factory=list)  # of each token of a text

    def see(self, events: Iterator[Event]) -> None:
        before, text, margins = "first", [], []
        for event in events:
            if isinstance(event, Token):
                text.append(event.id)
            elif isinstance(event, Drafted):
                self.n_rounds += 1
            elif isinstance(event, Verified):
                margins += event.margins
                if event.draft_ids:
                    self._round(event, before)
                    before = "full" if event.n_accepted == len(event.draft_ids) else "partial"
        self.texts.append(text)
        self.margins.append(margins)

    def _round(self, event: Verified, before: str) -> None:
        n, n_accepted = len(event.draft_ids), event.n_accepted
        bin = next(str(low) for low in reversed(BINS) if event.pos0 >= low)
        for table, key in ((self.by_before, before), (self.by_pos, bin)):
            table[key][0] += n_accepted > 0
            table[key][1] += 1
        self.n_draft_rounds += 1
        self.n_drafted += n
        self.accepted.update(range(n_accepted))
        self.reached.update(range(min(n, n_accepted + 1)))

    def to_json(self) -> dict[str, Any]:
        n = range(N_MAX)
        n_accepted = sum(self.accepted.values())
        return {
            "rounds": self.n_rounds,
            "drafted": self.n_drafted,
            "accepted": n_accepted,
            "a": [_rate(self.accepted[i], self.n_draft_rounds) for i in n],
            "a_conditional": [_rate(self.accepted[i], self.reached[i]) for i in n],
            "a1_after": {key: _rate(*self.by_before[key]) for key in ("first", "full", "partial")},
            "a1_from_pos": {str(low): _rate(*self.by_pos[str(low)]) for low in BINS},
        }


def _rate(n: int, of: int) -> float | None:
    return round(n / of, 3) if of else None


def run(model: Model, setup: Setup) -> Counts:
    counts = Counts()
    for ids in setup.prompts(model):
        counts.see(Decoder(model, model.new_state(), setup.options()).run(ids))
    return counts


@cache
def healthy_run(setup: Setup) -> Counts:
    return run(model_of(setup, None), setup)


def text_of(counts: Counts, clean: Counts, *, is_look_alike: bool) -> dict[str, Any]:
    """How many texts begin as the healthy ones do, and the first token of any that is another. For look-alikes, whose
    texts may part at a near tie alone: the greatest margin of the healthy run at such a token."""
    first = [
        next((i for i, (a, b) in enumerate(zip(x, y, strict=False)) if a != b), None)
        for x, y in zip(counts.texts, clean.texts, strict=True)
    ]
    differing = [i for i in first if i is not None]
    out = {"same": first.count(None), "of": len(first), "differs_at": min(differing, default=None)}
    margins = [clean.margins[k][i] for k, i in enumerate(first) if i is not None]
    return out | ({"margin": round(max(margins, default=0.0), 3)} if is_look_alike else {})


# ---------------------------------------------------------------------------------------------- first tensor


@cache
def dump(setup: Setup, id: str | None) -> dict[str, bytes]:
    model = model_of(setup, FAULTS[id] if id else None)
    ids = (
        setup.prompts(model)[-1 if setup.stand_in in MADE else 0] if setup.stand_in else model.vocab.encode(PROMPTS[3])
    )
    tensors = record(model, ids, ".").tensors
    return {name: array.tobytes() for name, array in tensors.items()}


def first_tensor(setup: Setup, fault: Fault) -> str | None:
    clean, faulty = dump(setup, None), dump(setup, fault.id)
    return next((name for name in clean if clean[name] != faulty.get(name)), None)


# ---------------------------------------------------------------------------------------------- distribution


def needs_distance(fault: Fault) -> bool:
    return fault.family == "V" and ("sampling" in fault.needs or "residual" in fault.needs)


def distance(setup: Setup, fault: Fault | None) -> dict[str, Any]:
    model = model_of(setup, None)
    return fault_distance.measure(model, fault, TV_PROMPT, setup.policy(1), setup.sampling(), N_SEEDS)


@cache
def healthy_distance(setup: Setup) -> dict[str, Any]:
    return distance(setup, None)


# ---------------------------------------------------------------------------------------------------- the file


def measure(fault: Fault) -> dict[str, Any]:
    """What one fault does."""
    setup = setup_of(fault)
    counts = run(model_of(setup, fault), setup)
    out = {"options": setup.words()} | counts.to_json()
    out["text"] = text_of(counts, healthy_run(setup), is_look_alike=fault.is_look_alike)
    out["first_tensor"] = first_tensor(setup, fault)
    out["distance"] = distance(setup, fault) if needs_distance(fault) else None
    return out


def healthy_key(setup: Setup) -> str:
    return " ".join(setup.words())


def measure_healthy(fault: Fault) -> dict[str, Any]:
    """The run without a fault, under the options that the fault needs."""
    setup = setup_of(fault)
    out = healthy_run(setup).to_json()
    out["distance"] = healthy_distance(setup) if needs_distance(fault) else None
    return out


def main() -> int:
    asked = sys.argv[1:] or list(FAULTS)
    data = json.loads(TARGET.read_text()) if sys.argv[1:] else {"healthy": {}, "faults": {}}
    for id in asked:
        fault, key = FAULTS[id], healthy_key(setup_of(FAULTS[id]))
        clean = measure_healthy(fault)
        known = data["healthy"].get(key)
        data["healthy"][key] = clean if known is None or clean["distance"] else known
        data["faults"][id] = measure(fault)
        print(f"{id}: a {data['faults'][id]['a']}, text {data['faults'][id]['text']}", flush=True)
    order = [id for id in FAULTS if id in data["faults"]]
    record = {
        "schema": SCHEMA, "n_max": N_MAX, "n_predict": N_PREDICT, "prompts": len(TEXTS),
        "seeds": N_SEEDS, "healthy": dict(sorted(data["healthy"].items())),
        "faults": {id: data["faults"][id] for id in order},
    }  # fmt: skip
    TARGET.write_text(json.dumps(record, indent=1) + "\n", encoding="ascii")
    return 0


if __name__ == "__main__":
    sys.exit(main())
