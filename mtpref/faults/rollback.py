"""Family S: recurrent state and roll back. These change the text."""

from collections.abc import Callable
from typing import Any

from mtpref.engine.recipe import Recipe
from mtpref.faults.cache import slide
from mtpref.faults.fault import Fault, Signature, steps
from mtpref.spec.state import ModelState

CONV, RECURRENT = "cache_r", "cache_s"
Step = Callable[..., None]


def _keeping(*names: str) -> Callable[[Recipe], Recipe]:
    """Both roll backs, with some recurrent arrays left as they were before them."""

    def keep(step: Step) -> Step:
        def rolled_back(state: ModelState, *args: Any) -> None:
            kept = [{name: layer.arrays[name] for name in names if name in layer.arrays} for layer in state.layers]
            step(state, *args)
            for layer, arrays in zip(state.layers, kept, strict=True):
                layer.arrays.update(arrays)

        return rolled_back

    return steps(lambda table: {"choose_plane": keep(table.choose_plane), "restore": keep(table.restore)})


def _from_plane(index: Callable[[int, int], int | None]) -> Callable[[Recipe], Recipe]:
    """Roll back to another plane than the right one: index(n_planes, n_drop), None for the right one."""

    def change(step: Step) -> Step:
        def choose_plane(state: ModelState, n_drop: int) -> None:
            planes = [layer.planes for layer in state.layers]
            step(state, n_drop)
            for layer, kept in zip(state.layers, planes, strict=True):
                for name, array in kept.items():
                    at = index(array.shape[0], n_drop)
                    if at is not None:
                        layer.arrays[name] = array[at].copy()

        return choose_plane

    return steps(lambda table: {"choose_plane": change(table.choose_plane)})


BOTH = ("steps.choose_plane", "steps.restore")
AFTER_REJECTION = Signature("", "of another text", split="the first round the same", text=False, distribution=False)

NO_ROLLBACK = Fault(
    id="S2-no-rollback",
    title="The recurrent state is not rolled back",
    mechanism="After a rejection the attention layers forget the rejected tokens; the DeltaNet layers, state and "
    "convolution alike, go on after them.",
    bug_type="MISSING_STEP",
    replaces=BOTH,
    predicted=AFTER_REJECTION,
    seen=(
        ("ik_llama.cpp #1639", "https://github.com/ikawrakow/ik_llama.cpp/issues/1639"),
        ("ik_llama.cpp #1669", "https://github.com/ikawrakow/ik_llama.cpp/pull/1669"),
    ),
    effect="corrupted output",
    needs=("rollback",),
    where=("recurrent state",),
    apply_recipe=_keeping(CONV, RECURRENT),
)

CONV_WINDOW_KEPT = Fault(
    id="S3-conv-window-kept",
    title="The conv window is not rolled back",
    mechanism="After a rejection the recurrent matrices go back, but the convolution still sees the rows of the "
    "rejected tokens.",
    bug_type="MISSING_STEP",
    replaces=BOTH,
    predicted=AFTER_REJECTION,
    seen=(("llama.cpp #28123", "https://github.com/ggml-org/llama.cpp/pull/28123"),),
    needs=("rollback",),
    where=("recurrent state",),
    apply_recipe=_keeping(CONV),
)

RECURRENT_STATE_KEPT = Fault(
    id="S3b-recurrent-state-kept",
    title="The recurrent matrices are not rolled back",
    mechanism="After a rejection the conv window goes back, but the recurrent matrices hold the rejected tokens.",
    bug_type="MISSING_STEP",
    replaces=BOTH,
    predicted=AFTER_REJECTION,
    seen=(("ik_llama.cpp #1639", "https://github.com/ikawrakow/ik_llama.cpp/issues/1639"),),
    needs=("rollback",),
    where=("recurrent state",),
    apply_recipe=_keeping(RECURRENT),
)

CHECKPOINT_AFTER = Fault(
    id="S4-checkpoint-after",
    title="The state is rolled back to one token too late",
    mechanism="A checkpoint holds the state after a token and is restored as the state before it: the first rejected "
    "token stays in the recurrent state.",
    bug_type="OFF_BY_ONE",
    replaces=("steps.choose_plane",),
    predicted=AFTER_REJECTION,
    seen=(("ik_llama.cpp #1754", "https://github.com/ikawrakow/ik_llama.cpp/issues/1754"),),
    needs=("snapshot",),
    where=("recurrent state",),
    apply_recipe=_from_plane(lambda n, n_drop: n - n_drop if n_drop else None),
)

FIRST_PLANE_READ = Fault(
    id="S5-first-plane-read",
    title="The first plane is taken, however many tokens were accepted",
    mechanism="The state of the last accepted token lies in a plane of its own; the reader takes the first one, the "
    "opening token's.",
    bug_type="STALE_STATE",
    replaces=("steps.choose_plane",),
    predicted=AFTER_REJECTION,
    seen=(
        ("vLLM #39273", "https://github.com/vllm-project/vllm/issues/39273"),
        ("vLLM #56531", "https://github.com/vllm-project/vllm/pull/56531"),
    ),
    effect="repetition loops",
    needs=("snapshot",),
    where=("recurrent state",),
    apply_recipe=_from_plane(lambda n, n_drop: 0 if n_drop else None),
)


def _quarter(step: Step) -> Step:
    def rolled_back(state: ModelState, *args: Any) -> None:
        before = [dict(layer.arrays) for layer in state.layers]
        step(state, *args)
        for layer, old in zip(state.layers, before, strict=True):
            for name in (CONV, RECURRENT):
                if name in old and layer.arrays[name] is not old[name]:
                    n, stale = layer.arrays[name].size // 4, old[name].copy()
                    stale.reshape(-1)[:n] = layer.arrays[name].reshape(-1)[:n]
                    layer.arrays[name] = stale

    return rolled_back


QUARTER_COPIED = Fault(
    id="S6-quarter-copied",
    title="Only a quarter of the state is rolled back",
    mechanism="The copy is given a number of elements where it wants bytes: the first quarter of each array is "
    "restored, the rest stays.",
    bug_type="MISSING_STEP",
    replaces=BOTH,
    predicted=AFTER_REJECTION,
    seen=(("llama.cpp #20700", "https://github.com/ggml-org/llama.cpp/pull/20700"),),
    needs=("rollback",),
    where=("recurrent state",),
    apply_recipe=steps(
        lambda table: {"choose_plane": _quarter(table.choose_plane), "restore": _quarter(table.restore)}
    ),
)


def _early(by: int) -> Callable[[Recipe], Recipe]:
    return _from_plane(lambda n, n_drop: max(n - 1 - n_drop - by, 0) if n_drop else None)


CHECKPOINT_ONE_EARLY = Fault(
    id="S8-checkpoint-one-early",
    title="The state of one token before is taken for the right one",
    mechanism="A checkpoint is looked up by the nearest position, not the exact one: the last accepted token is not in "
    "the recurrent state (where one was accepted).",
    bug_type="OFF_BY_ONE",
    replaces=("steps.choose_plane",),
    predicted=AFTER_REJECTION,
    seen=(
        ("llama.cpp-tq3 #48", "https://github.com/turbo-tan/llama.cpp-tq3/pull/48"),
        ("am17an/llama.cpp #15", "https://github.com/am17an/llama.cpp/pull/15"),
    ),
    needs=("snapshot",),
    where=("recurrent state",),
    apply_recipe=_early(1),
)

CHECKPOINT_TWO_EARLY = Fault(
    id="S8b-checkpoint-two-early",
    title="The state of two tokens before is taken for the right one",
    mechanism="As one token before; the last two accepted tokens are not in the recurrent state (where two were).",
    bug_type="OFF_BY_ONE",
    replaces=("steps.choose_plane",),
    predicted=AFTER_REJECTION,
    seen=(("am17an/llama.cpp #15", "https://github.com/am17an/llama.cpp/pull/15"),),
    needs=("snapshot",),
    where=("recurrent state",),
    apply_recipe=_early(2),
)


def _cells_kept(step: Step) -> Step:
    def rolled_back(state: ModelState, *args: Any) -> None:
        n_past, poison = state.n_past, state.poison
        state.poison = False
        step(state, *args)
        state.n_past, state.poison = n_past, poison

    return rolled_back


KV_NOT_TRIMMED = Fault(
    id="S17-kv-not-trimmed",
    title="The trunk's attention keeps the rejected tokens' cells",
    mechanism="Removing cells fails and nobody looks at the result: recurrent state goes back, attention still sees "
    "rejected tokens, and positions run on after them.",
    bug_type="MISSING_STEP",
    replaces=(*BOTH, "steps.place_mtp"),
    predicted=AFTER_REJECTION,
    seen=(("kronk #788", "https://github.com/ardanlabs/kronk/pull/788"),),
    needs=("rollback",),
    apply_recipe=steps(lambda table: {
        "choose_plane": _cells_kept(table.choose_plane), "restore": _cells_kept(table.restore), "place_mtp": slide,
    }),
)  # fmt: skip

KEPT_ON_FULL_ACCEPT = Fault(
    id="S18-kept-on-full-accept",
    title="After a full acceptance the state is the one after the first token",
    mechanism="Nothing is rejected, so nothing is chosen, and the state that the graph left is the first plane: the "
    "accepted tokens are not in it.",
    bug_type="STALE_STATE",
    replaces=("steps.choose_plane",),
    predicted=Signature("", "of another text", split="the first round the same", text=False, distribution=False),
    seen=(("ik_llama.cpp #1754", "https://github.com/ikawrakow/ik_llama.cpp/issues/1754"),),
    needs=("snapshot",),
    where=("recurrent state",),
    apply_recipe=_from_plane(lambda n, n_drop: None if n_drop else 0),
)
