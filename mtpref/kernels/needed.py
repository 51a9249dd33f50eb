"""Which kernels a model will run, told from what its file says.

Owns the list for ahead.py. It is a forecast: a kernel that is missing here is compiled when it is called, one too many
is compiled for nothing. It imports no kernel, so that helpers start at once; tests/test_ahead.py compares it with runs.
"""

from collections.abc import Iterable

from mtpref.spec.products import ACTIVATION_TYPES, TILE_TYPES

# The slowest to compile, seconds first: helpers begin with them. Others take less than a second.
SLOWEST = (
    "layers.attend._attention_tiles",
    "fused.delta_mixer._delta_groups",
    "products.mul_mats.all_products",
    "products.panel_products.prepare_q8_0",
    "products.panel_products.prepare_q8_k",
    "layers.attend._attention_tasks",
)
PANEL_TYPES = ("Q8_0", "Q4_0", "Q4_K", "Q5_K", "Q6_K")
FLOAT_TYPES = ("F32", "F16", "BF16")

_ALWAYS = (
    *(
        "fused.delta_mixer._delta_groups",
        "layers.norms._rms_norm",
        "layers.norms._attn_gate",
        "layers.norms.swiglu_part",
        "layers.rotary._rope",
    ),
    *("layers.rotary._rope_table", "choices._argmax", "choices._top_candidates"),
)
_LOOPS = ("fused.delta_mixer._all_delta_groups", "layers.norms._all_rms_norm")


def needed_kernels(
    types: Iterable[str], kv_types: Iterable[str], *, wide: bool, repack: bool, n_threads: int
) -> list[str]:
    """Names of kernels ("module.function"), the slowest first.

    types     of the weight matrices
    kv_types  of the KV cells, trunk and head
    wide      `exact` numerics
    repack    whether weights get panels
    """
    serial, loops = set(_ALWAYS), set(_LOOPS)
    serial.add("layers.attend._attention_tasks" if wide else "layers.attend._attention_tiles")
    loops.add("layers.attend._all_attention_tasks" if wide else "layers.attend._all_attention_tiles")
    if set(kv_types) - {"F32"}:
        serial.add("quants.activations.round_to")
    for name in set(types):
        one = _exact(name) if wide else _in_panels(name) if repack and name in PANEL_TYPES else _in_place(name)
        serial.update(one[0])
        loops.update(one[1])
    if "fused.ffn._all_ffn" not in loops:
        loops.add("layers.norms._all_swiglu")
    found = serial | loops if n_threads > 1 else serial
    return sorted(found, key=lambda name: (SLOWEST.index(name) if name in SLOWEST else len(SLOWEST), name))


_Names = tuple[tuple[str, ...], tuple[str, ...]]  # kernels of one thread; parallel loops


# Of a layer in one call.
_WHOLE = ("products.mul_mats.all_products", "fused.ffn._all_ffn", "fused.delta_mixer._whole_layer")


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


def _is_tiled(name: str) -> bool:
    """A type that nobody knows counts as well: loading the file will say so."""
    return name in TILE_TYPES or name not in ACTIVATION_TYPES
