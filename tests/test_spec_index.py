"""docs/spec.md and the docstrings of the rules carry the same anchors, and what cites an anchor means its rule."""

import ast
import importlib
import inspect
import json
import re
from functools import cache
from pathlib import Path

import pytest

import mtpref.spec
from mtpref.engine.decode import rollback
from mtpref.golden.sources import reached
from mtpref.spec import policy, steps
from mtpref.spec.ops import (
    FINE,
    PARTS,
    compose,
    compose_compressed,
    compose_indexer,
    compose_kda,
    compose_latent,
    compose_moe,
    compose_ssm,
    compose_streams,
    compose_unscaled,
    compose_windowed,
    table,
)

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs" / "spec.md"
NUMERICS = (
    "arith", "compressed", "indexer", "kda", "latent", "layers", "moe", "mtp", "products", "projections", "quant",
    "sampling", "ssm", "streams", "unscaled", "windowed",
)  # fmt: skip
SPEC = [importlib.import_module(f"mtpref.spec.{name}") for name in NUMERICS]
COMPOSED = (
    compose,
    compose_moe,
    compose_latent,
    compose_indexer,
    compose_streams,
    compose_compressed,
    compose_windowed,
    compose_unscaled,
    compose_ssm,
    compose_kda,
)
MODULES = [*SPEC, *COMPOSED, policy, steps, rollback]  # every public function here is a rule
HEADING = re.compile(r"^## (S\d+) .+$", re.MULTILINE)
ANCHOR = re.compile(r"(S\d+)\. ")


def functions(modules=MODULES):
    """Public functions by name, each where it is defined. Of two with one name, the specification's own."""
    return {
        name: f
        for module in reversed(modules)
        for name, f in inspect.getmembers(module, inspect.isfunction)
        if f.__module__ == module.__name__ and not name.startswith("_") and name != "discard"
    }


def anchors():
    """Function name -> the anchor that its docstring starts with."""
    found = {name: ANCHOR.match(f.__doc__ or "") for name, f in functions().items()}
    return {name: match.group(1) if match else None for name, match in found.items()}


@cache
def anchored():
    """(module, name of a top-level definition) -> {name: anchor} of what in it carries one; kernels are twins."""
    found = {}
    for path in (ROOT / "mtpref").rglob("*.py"):
        parts = path.relative_to(ROOT).with_suffix("").parts
        if "kernels" in parts:
            continue
        for top in ast.parse(path.read_text()).body:
            if isinstance(top, ast.FunctionDef | ast.ClassDef):
                nodes = [n for n in ast.walk(top) if isinstance(n, ast.FunctionDef | ast.ClassDef)]
                docs = {n.name: ANCHOR.match(ast.get_docstring(n) or "") for n in nodes}
                found[".".join(parts), top.name] = {name: m.group(1) for name, m in docs.items() if m}
    return found


def rules():
    """Name -> anchor of every function, method or class of the package that carries one."""
    return {name: anchor for names in anchored().values() for name, anchor in names.items()}


def sections():
    """Anchor -> text of its section, in the order of the document."""
    text = DOCS.read_text(encoding="utf-8")
    starts = list(HEADING.finditer(text))
    ends = [m.start() for m in re.finditer(r"^## ", text, re.MULTILINE)] + [len(text)]
    return {m.group(1): text[m.end() : min(e for e in ends if e > m.start())] for m in starts}


FREE = (59,)  # numbers that no rule has


def test_every_public_function_has_an_anchor():
    assert len(functions()) > 40
    assert not [name for name, anchor in anchors().items() if anchor is None]


def test_anchors_of_code_and_document_are_the_same_and_rise():
    documented = [m.group(1) for m in HEADING.finditer(DOCS.read_text(encoding="utf-8"))]
    assert documented == [f"S{i}" for i in sorted({int(anchor[1:]) for anchor in documented})]
    assert set(documented) == set(rules().values())
    assert len(documented) == 122


def test_anchors_of_a_module_rise():
    for module in MODULES:
        lines = {
            f.__code__.co_firstlineno: anchors()[n] for n, f in functions().items() if f.__module__ == module.__name__
        }
        numbers = [int(lines[line][1:]) for line in sorted(lines)]
        assert numbers == sorted(numbers), module.__name__


def test_every_function_is_named_in_its_section():
    text = sections()
    missing = [name for name, anchor in rules().items() if f"`{name}" not in text[anchor]]
    assert not missing


def test_no_section_names_a_function_of_another_without_need():
    """A function stands first in its own section: the name in backquotes is not in an earlier section."""
    text, order = sections(), list(sections())
    for name, anchor in anchors().items():
        earlier = [a for a in order[: order.index(anchor)] if f"`{name}`" in text[a]]
        assert not earlier, (name, earlier)


def test_public_functions_are_exported_from_the_package():
    inner = {"mul_mat_f32", "mul_mat_f16", "mul_mat_bf16", "mul_mat_legacy", "mul_mat_k", "mul_mat_tiles"}
    assert set(functions(SPEC)) - inner <= set(mtpref.spec.__all__)


def test_tables_name_the_anchor_of_each_entry():
    """The comments of the two tables point at the right rule."""
    for owner, names in ((table.Ops, [*FINE, *PARTS]), (steps.Steps, steps.Steps.__dataclass_fields__)):
        source = inspect.getsource(owner)
        for name in names:
            line = re.search(rf"^    {name}: .*  # (S\d+)", source, re.MULTILINE)
            assert line, name
            function = {"mul_mat": "mul_mat_exact", "target_distribution": "filtered"}.get(name, name)
            assert line.group(1) == anchors()[function], name


@pytest.mark.parametrize("name", PARTS)
def test_a_composition_lists_its_rules_in_the_order_in_which_it_calls_them(name):
    function = next(getattr(m, name) for m in COMPOSED if hasattr(m, name))
    calls = [n for n in ast.walk(ast.parse(inspect.getsource(function))) if isinstance(n, ast.Call)]
    entries = [(n.lineno, n.col_offset, n.func.attr) for n in calls if re.fullmatch(r"ops\.\w+", ast.unparse(n.func))]
    entries = [one for one in entries if one[2] != "replaced"]
    called = [anchors()["mul_mat_exact" if entry == "mul_mat" else entry] for _, _, entry in sorted(entries)]
    listed = re.findall(r"S\d+", function.__doc__.split("\n\n")[0])[1:]
    assert without_repeats(listed) == without_repeats(called)


def without_repeats(items):
    return [item for i, item in enumerate(items) if i == 0 or item != items[i - 1]]


# ---------------------------------------------------------------------------------------- citations

# What a line that cites an anchor, or one beside it, must speak of, beside the names of the rule's functions.
SUBJECTS = {
    "S1": "fma|multiply-add",
    "S2": "dot|sum|lane|tree",
    "S3": "exp64|log|sincos|elementary|exponential|arithmetic",
    "S4": "exp|sigmoid|silu|softplus|arithmetic",
    "S5": "quant|round|float16|type|activation",
    "S6": "product|matri|mul_?mat|ffn|attn_|ssm_|eh_proj",
    "S7": "embd|embed|matri|product",
    "S8": "norm",
    "S9": "l2|norm",
    "S10": "rope|rotary|angle|pair|scal",
    "S11": "conv|DeltaNet|window",
    "S12": "gate|softplus|sigmoid",
    "S13": "delta|state|planes",
    "S14": "norm|DeltaNet",
    "S15": "gate|half|query|cell|kv",
    "S16": "attention|cell",
    "S17": "gate|sigmoid",
    "S18": "swiglu|silu|ffn",
    "S19": "concat|hidden|joins",
    "S20": "pair|position|shifted",
    "S21": "argmax|greedy|greatest",
    "S22": "candidate|ten|probab|proposes",
    "S23": "accept|count",
    "S24": "pending|row|n_accepted|catch up",
    "S25": "uniform|sampling|draw",
    "S26": "end-of-generation|ignore",
    "S27": "filter|distribution",
    "S28": "draw",
    "S29": "residual|accept|rejection|sampling",
    "S30": "layer|block|order|mixer",
    "S31": "head|mtp",
    "S32": "hidden|pending",
    "S33": "catch|head|kept|stay",
    "S34": "chain|draft",
    "S35": "length|limit|gate|draft",
    "S36": "cooldown|silent|silence",
    "S37": "adaptive|expected|heuristic|policy",
    "S38": "roll|checkpoint|rejected",
    "S39": "token|target|judge",
    "S40": "emit|text|token",
    "S41": "router|probab|expert",
    "S42": "score|bias|expert",
    "S43": "group|expert",
    "S44": "cho|gap|group|expert",
    "S45": "weight|expert",
    "S46": "sum|order|expert|added",
    "S47": "shared|gate",
    "S48": "expert|network|order",
    "S49": "bias",
    "S50": "head|group",
    "S51": "fused|projection|S51",
    "S52": "replay|correction|run again|loop",
    "S53": "rope|interleaved|pair|turn|latent",
    "S54": "scale|sharp|latent",
    "S55": "latent|quer",
    "S56": "head|matri",
    "S57": "absorbed|latent|row",
    "S58": "latent|older|expanded",
    "S60": "norm|indexer",
    "S61": "rotation|indexer",
    "S62": "score|indexer",
    "S63": "cho|cell|indexer",
    "S64": "cell|cho|sparse",
    "S65": "indexer|cho",
    "S66": "cho|layer",
    "S70": "stream|weight|pre|sinkhorn",
    "S71": "sinkhorn|comb|row",
    "S72": "stream|read|part",
    "S73": "stream|writ|sub-layer",
    "S74": "turn|rope|row|attention",
    "S75": "compress|block|row",
    "S76": "window|block|row|see|compress",
    "S77": "index|best|row|score|compress",
    "S78": "sink|attention|softmax",
    "S79": "clamp",
    "S80": "token|table|expert|hash",
    "S81": "stream",
    "S82": "stream|read|connect",
    "S83": "stream|head",
    "S84": "stream|input",
    "S85": "quer|row|attention",
    "S86": "block|compress|row",
    "S87": "index|row|chosen",
    "S88": "window|row",
    "S89": "group|turn|kept",
    "S90": "layer|window|compress|attention",
    "S91": "token|rout|expert",
    "S92": "expert|clamp",
    "S93": "stream|part",
    "S94": "frequenc|factor|rope_freqs",
    "S95": "sink|cell|attention",
    "S96": "limit|clamp",
    "S97": "gate|scale",
    "S98": "layer|attention|window|cell",
    "S99": "chain|head",
    "S100": "attention|scale",
    "S101": "gelu|activation|network",
    "S102": "cap|logit|tanh",
    "S103": "embedding|root",
    "S104": "layer|attention|cell",
    "S105": "input|layer",
    "S106": "expert|dense|network",
    "S107": "block|norm|stream",
    "S108": "assistant|projection",
    "S109": "assistant|target|cell",
    "S113": "held|hold|late",
    "S117": "norm",
    "S118": "logit|scale",
    "S119": "block|parallel|side",
    "S120": "turn|layer|NoPE",
    "S121": "relu|gate|activation",
    "S122": "conv|bias",
    "S123": "scan|state|step",
    "S124": "norm|gate|group",
    "S125": "Mamba|layer|ssm",
    "S126": "block|part",
    "S127": "norm",
    "S128": "decay|gate",
    "S129": "delta|channel|state",
    "S130": "gate|norm",
    "S131": "layer|Kimi|delta",
    "S132": "section|pair|halves|turn",
}
FAULT_PAGES = {"docs/faults.md", "golden/kill-matrix.md", "tools/write_faults.py"}  # S1, S2, .. are faults there
CITED = re.compile(r"(?<![\w'-])(?<!fault )S([1-9]\d{0,2})(?![\w-])")  # 'S4' is NumPy's type
# Only looked at for whether it exists: an anchor in a series, or at the head of the rule itself, or of its twin.
SERIES = re.compile(r"S\d+(?:,\s+S\d+){2,}|S\d+(?:,\s+S\d+)* to\s+S\d+|\(\"S\d+\"(?:, \"S\d+\")*,?\)")
HEAD = re.compile(r'(?:"""|// |^## |^ *# )S\d+(?:(?:,| and) S\d+)*', re.MULTILINE)


def citing_files():
    code = ("mtpref/**/*.py", "tools/**/*.py", "golden/runners/**/*.[ch]pp")
    pages = ("docs/**/*.md", "golden/**/*.md", "*.md")
    paths = sorted(p for pattern in (*code, *pages) for p in ROOT.glob(pattern))
    return [p for p in paths if "faults" not in p.parent.name and p.relative_to(ROOT).as_posix() not in FAULT_PAGES]


@cache
def subject(anchor):
    return "|".join([SUBJECTS[anchor], *(name for name, own in rules().items() if own == anchor)])


def wrong_citations(text):
    """(anchor, its line and those beside it) of the citations that mean another rule, or none."""
    spans = [range(*m.span()) for pattern in (SERIES, HEAD) for m in pattern.finditer(text)]
    lines = text.splitlines()
    for match in CITED.finditer(text):
        anchor, at = match.group(0), text[: match.start()].count("\n")
        around = " ".join(lines[max(0, at - 1) : at + 2])
        is_head = any(match.start() in span for span in spans)
        if anchor not in SUBJECTS or not (is_head or re.search(subject(anchor), around, re.IGNORECASE)):
            yield anchor, around


@pytest.mark.parametrize("path", citing_files(), ids=lambda path: path.relative_to(ROOT).as_posix())
def test_every_anchor_that_is_cited_exists_and_is_the_one_that_is_meant(path):
    found = list(wrong_citations(path.read_text(encoding="utf-8")))
    assert not (found if path != DOCS else [anchor for anchor, _ in found if anchor not in SUBJECTS])


def test_a_wrong_citation_is_found():
    """S21 for pairing, where mtpref/engine/model/walk.py has S20."""
    assert set(SUBJECTS) == set(sections())
    text = (ROOT / "mtpref/engine/model/walk.py").read_text()
    assert "is paired with (S20)" in text
    assert [anchor for anchor, _ in wrong_citations(text.replace("(S20)", "(S21)"))] == ["S21"]
    assert [anchor for anchor, _ in wrong_citations("as S59 has it, and S6 to S69")] == ["S59", "S69"]


def test_a_kernel_carries_the_anchor_of_its_twin():
    n_twins = 0
    for path in (ROOT / "mtpref/kernels").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            found = ANCHOR.match(ast.get_docstring(node) or "") if isinstance(node, ast.FunctionDef) else None
            if found and anchors().get(node.name):
                n_twins += 1
                assert found.group(1) == anchors()[node.name], node.name
    assert n_twins > 15


# What a suite is about and its answer does by itself: golden/models.py walks the head without the loop.
OWN = {"dequantize": {"S5"}, "policy": {"S22"}, "mtp": {"S20", "S22", "S99"}, "mtp_chain": {"S24", "S33", "S34"}}


def test_a_suite_cites_rules_that_its_operation_reaches():
    for path in sorted((ROOT / "golden").glob("L*/*.json")):
        suite = json.loads(path.read_text())
        found = {a for d in reached(suite["op"]) for a in anchored().get((d.module, d.name), {}).values()}
        assert set(suite["spec"]) <= found | OWN.get(suite["op"], set()), suite["suite"]
    policy_suite = json.loads((ROOT / "golden" / "L5-loop" / "policy.json").read_text())
    assert {"S35", "S36"} <= set(policy_suite["spec"])


def test_document_is_plain_ascii():
    assert DOCS.read_text(encoding="utf-8").isascii()
