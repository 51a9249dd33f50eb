"""Which kernels a model will run, told from what its file says.

Owns the list for ahead.py. It is a forecast: a kernel that is missing here is compiled when it is called, one too many
is compiled for nothing. It imports no kernel, so that helpers start at once; tests/test_ahead.py compares it with runs.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from mtpref.spec.products import ACTIVATION_TYPES, TILE_TYPES

# The slowest to compile, seconds first: helpers begin with them. Others take less than a second.
SLOWEST = (
    "layers.attend_cells.attend_cells",
    "layers.attend._attention_tiles",
    "fused.delta_mixer._delta_groups",
    "products.mul_mats.all_products",
    "products.panel_products.prepare_q8_0",
    "products.panel_products.prepare_q8_k",
    "layers.attend._attention_tasks",
    "fused.expert_parts.enter_part",
    "fused.expert_parts.route_part",
    "fused.expert_parts.leave_part",
    "fused.moe._moe",
)
PANEL_TYPES = ("Q8_0", "Q4_0", "Q4_K", "Q5_K", "Q6_K")
FLOAT_TYPES = ("F32", "F16", "BF16")

_ALWAYS = (
    *("layers.norms._rms_norm", "layers.rotary._rope_table"),
    *("choices._argmax", "choices._top_candidates"),
)
_LOOPS = ("layers.norms._all_rms_norm",)
# Of latent layers and of those with a window: cells that lie beside each other.
_CELLS = ("layers.attend_cells.attend_cells", "layers.rotary._rope_pairs")
_STREAMS = tuple(f"layers.streams.{name}" for name in ("_stream_weights", "_read_streams", "_write_streams"))
# Of an indexer: its keys are turned by neighbours or by halves, as the architecture has it.
_INDEXER = (*(f"layers.choose.{name}" for name in ("_index_scores", "_select_cells", "_selection_gap")),
            "layers.rotary._rope")  # fmt: skip
# Of gated DeltaNet layers, and of the gated attention that stands among them.
_DELTA = ("fused.delta_mixer._delta_groups", "layers.norms._attn_gate")
_DELTA_LOOPS = ("fused.delta_mixer._all_delta_groups",)


@dataclass(frozen=True)
class Needs:
    """What a file says of the kernels that it needs.

    types         of the matrices that are no experts' and no routers'
    expert_types  of the experts' matrices, the shared expert's among them
    router_types  of routers, and of the gate of a shared expert: products of their own
    has_delta     whether there are gated DeltaNet layers
    has_ffn       whether there are dense feed-forward networks
    head_types    of the matrices that latent attention has for each head: products within its one call
    has_attention whether there are layers of attention of another kind
    has_streams   whether there are several residual streams, with attention over a window, and clamped experts
    has_rows      whether there are compressed rows, and has_row_choice whether some of them are chosen
    has_indexer   whether an indexer chooses cells of latent rows
    """

    types: frozenset[str]
    expert_types: frozenset[str] = frozenset()
    router_types: frozenset[str] = frozenset()
    has_delta: bool = True
    has_ffn: bool = True
    head_types: frozenset[str] = frozenset()
    has_attention: bool = True
    has_streams: bool = False
    has_rows: bool = False
    has_row_choice: bool = False
    has_indexer: bool = False


def needs_of(tensors: Mapping[str, Any]) -> Needs:
    """Told from a file's tensors by name; a tensor has a type_name and a shape."""
    tables = "conv1d", "tid2eid"
    matrices = {n: t for n, t in tensors.items() if len(t.shape) in (2, 3) and not any(word in n for word in tables)}
    routers = {name: t for name, t in matrices.items() if "_gate_inp" in name}
    experts = {name: t for name, t in matrices.items() if "_exps." in name or "_shexp." in name}
    heads = {name: t for name, t in matrices.items() if name.endswith(("attn_k_b.weight", "attn_v_b.weight"))}
    return Needs(
        frozenset(t.type_name for name, t in matrices.items() if name not in experts | routers | heads),
        frozenset(t.type_name for name, t in experts.items() if name not in routers),
        frozenset(t.type_name for t in routers.values()),
        any(name.endswith("ssm_conv1d.weight") for name in tensors),
        any(name.endswith(".ffn_up.weight") for name in tensors),
        frozenset(t.type_name for t in heads.values()),
        not heads and not any(".hc_attn_fn." in name for name in tensors),
        *(
            any(f".{part}.weight" in name for name in tensors)
            for part in ("hc_attn_fn", "attn_compressor_kv", "indexer_compressor_kv", "indexer.attn_k")
        ),
    )


def needed_kernels(needs: Needs, kv_types: Iterable[str], *, wide: bool, repack: bool, n_threads: int) -> list[str]:
    """Names of kernels ("module.function"), the slowest first.

    kv_types  of the KV cells, trunk and head
    wide      `exact` numerics
    repack    whether weights get panels
    """
    serial, loops = set(_ALWAYS), set(_LOOPS)
    if needs.has_delta:
        serial.update(_DELTA)
        loops.update(_DELTA_LOOPS)
    for one in (_attention(needs, kv_types, wide, repack), _streams(needs, kv_types, wide, repack),
                _indexer(needs, wide)):  # fmt: skip
        serial.update(one[0])
        loops.update(one[1])
    for name in needs.types:
        one = _of_matrix(name, wide, repack)
        serial.update(one[0])
        loops.update(one[1])
    if not needs.has_delta:
        loops.discard("fused.delta_mixer._whole_layer")
    if needs.has_ffn or (not needs.has_streams and any(map(_is_tiled, needs.expert_types))):
        serial.add("layers.norms.swiglu_part")
    if needs.expert_types and (needs.has_streams or not any(map(_is_tiled, needs.expert_types))):
        serial.add("layers.norms.limited_part")
    if not needs.has_ffn:
        loops.discard("fused.ffn._all_ffn")
    elif "fused.ffn._all_ffn" not in loops:
        loops.add("layers.norms._all_swiglu")
    for name in needs.router_types:
        one = _of_matrix(name, wide, repack)
        serial.update(one[0])
        loops.update({*one[1]} - {*_OF_LAYERS})
    for one in _experts(needs.expert_types, wide, repack):
        serial.update(one[0])
        loops.update(one[1])
    found = serial | loops if n_threads > 1 else serial
    return sorted(found, key=lambda name: (SLOWEST.index(name) if name in SLOWEST else len(SLOWEST), name))


_Names = tuple[tuple[str, ...], tuple[str, ...]]  # kernels of one thread; parallel loops


def _attention(needs: Needs, kv_types: Iterable[str], wide: bool, repack: bool) -> _Names:
    """Of attention: latent attention multiplies cached rows as a matrix of their type."""
    if needs.has_streams:
        return (), ()
    is_fused = bool(needs.head_types) and not wide and not any(map(_is_tiled, needs.head_types))
    if is_fused and not needs.has_attention:
        serial = {"fused.latent.latent_tasks", *_CELLS}
        for name in needs.head_types:
            serial.update(_of_stacks(name, wide, repack))
        for name in kv_types:
            serial.update(_of_stacks(name, wide, repack))
        return tuple(serial), ("fused.latent.all_latent_tasks",)
    others = ["quants.activations.round_to"] if set(kv_types) - {"F32"} else []
    others.append("layers.rotary._rope" if needs.has_attention else "layers.rotary._rope_pairs")
    products = [name for kind in needs.head_types for name in _of_matrix(kind, wide, repack)[0]]
    kind = "tasks" if wide else "tiles"
    return (f"layers.attend._attention_{kind}", *others, *products), (f"layers.attend._all_attention_{kind}",)


def _streams(needs: Needs, kv_types: Iterable[str], wide: bool, repack: bool) -> _Names:
    """Of residual streams, and of the attention that such models have: `exact` numerics compose that."""
    if not needs.has_streams:
        return (), ()
    serial, loops = {*_STREAMS, "layers.rotary._rope_pairs"}, set()
    if needs.has_rows:
        serial.add("layers.compressed._compress_rows")
    if needs.has_row_choice:
        serial.add("layers.choose.choose_rows")
        loops.add("fused.window.all_choose_rows")
    if not wide:
        serial.update({"fused.window.window_tasks", *_CELLS})
        loops.add("fused.window.all_window_tasks")
        for name in kv_types:
            serial.update(_of_stacks(name, wide, repack))
    return tuple(serial), tuple(loops)


def _indexer(needs: Needs, wide: bool) -> _Names:
    """Keys of an indexer are multiplied as a matrix of F32."""
    if not needs.has_indexer:
        return (), ()
    products, loops = _of_matrix("F32", wide, False)
    return (*_INDEXER, *products), tuple(name for name in loops if name not in _OF_LAYERS)


# Of a layer in one call.
_OF_LAYERS = ("fused.ffn._all_ffn", "fused.delta_mixer._whole_layer")
_WHOLE = ("products.mul_mats.all_products", *_OF_LAYERS)


def _of_matrix(name: str, wide: bool, repack: bool) -> _Names:
    if wide:
        return _exact(name)
    return _in_panels(name) if repack and name in PANEL_TYPES else _in_place(name)


def _in_panels(name: str) -> _Names:
    prepare = (
        "products.panel_products.prepare_q8_k"
        if ACTIVATION_TYPES[name] == "Q8_K"
        else "products.panel_products.prepare_q8_0"
    )
    serial = (
        "products.panels._make_panels",
        "products.mul_mats._products",
        prepare,
        f"products.panel_products.rows_{name.lower()}",
    )
    return serial, ("products.panels._make_all_panels", *_WHOLE)


def _floats(name: str) -> tuple[str, ...]:
    return (
        "products.mul_mats._products",
        f"products.float_rows.prepare_{name.lower()}",
        f"products.float_rows.rows_{name.lower()}",
    )


def _in_place(name: str) -> _Names:
    if name in FLOAT_TYPES:
        return _floats(name), _WHOLE
    if _is_tiled(name):  # a tile of rows is dequantised and goes through the F32 kernel
        return _floats("F32"), ("products.mul_mats.all_products",)
    if ACTIVATION_TYPES[name] == "Q8_K":
        family = "k_32" if name in ("Q4_K", "Q5_K") else "k_16"
        return (f"products.rows.rows_{family}", "quants.activations.quantize_q8_k"), ("products.matmul._all_rows_k",)
    family = "q8_0" if name == "Q8_0" else "legacy"
    return (f"products.rows.rows_{family}", "quants.activations.quantize_q8_1"), (
        f"products.matmul._all_rows_{family}",
    )


def _exact(name: str) -> _Names:
    family = "float" if name in FLOAT_TYPES or _is_tiled(name) else "blocks"
    return (f"products.rows.rows_{family}",), ("products.matmul._all_rows_exact",)


_EXPERTS = (
    "fused.moe._moe",
    *(f"fused.expert_parts.{name}_part" for name in ("route", "enter", "prepare", "leave")),
)


def _experts(types: frozenset[str], wide: bool, repack: bool) -> Iterable[_Names]:
    """Of the experts' networks: where a type is dequantised a tile at a time, they are made of products."""
    if any(map(_is_tiled, types)):
        for name in types:
            yield _of_matrix(name, wide, repack)
        yield (), ("layers.norms._all_swiglu",)
    elif types:
        yield _EXPERTS, ("fused.moe.all_parts",)
        for name in types:
            yield (_of_stacks(name, wide, repack), ())
            if not wide and repack and name in PANEL_TYPES:
                yield ("products.panels._make_panels",), ("products.panels._make_all_panels",)


def _of_stacks(name: str, wide: bool, repack: bool) -> tuple[str, ...]:
    """What brings activations to a type, and what multiplies its rows, within a call that has all of a layer."""
    if wide:
        family = name.lower() if name in FLOAT_TYPES else "k" if ACTIVATION_TYPES[name] == "Q8_K" else "legacy"
        return "products.in_place.prepare_exact", f"products.in_place.exact_rows_{family}"
    if name in FLOAT_TYPES or (repack and name in PANEL_TYPES):
        serial = _floats(name) if name in FLOAT_TYPES else _in_panels(name)[0]
        return tuple(one for one in serial if one.startswith(("products.float_rows", "products.panel_products")))
    if ACTIVATION_TYPES[name] == "Q8_K":
        family = "k_32" if name in ("Q4_K", "Q5_K") else "k_16"
        return "products.in_place.prepare_codes_k", f"products.in_place.rows_of_{family}"
    return "products.in_place.prepare_codes_8_1", f"products.in_place.rows_of_{'q8_0' if name == 'Q8_0' else 'legacy'}"


def _is_tiled(name: str) -> bool:
    """A type that nobody knows counts as well: loading the file will say so."""
    return name in TILE_TYPES or name not in ACTIVATION_TYPES
