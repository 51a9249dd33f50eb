"""Record what llama.cpp's converter makes of small checkpoints of architectures with experts: hashes of its files.

    python tools/record_converted.py --llama-cpp PATH/TO/llama.cpp

Needs torch and transformers. Its pre-tokenizer is told by a hash of ids that no toy vocabulary has, so that is given to
it. Writes tests/data/converted_moe.json; with --chains, of architectures with a chain of heads,
tests/data/converted_chains.json; with --tiny, of the embedded tiny model, tests/data/converted.json; with --gemma, of
Gemma 4 and its assistants, tests/data/converted_gemma.json; with
--native, of folders in the number formats that their makers ship,
tests/data/converted_native.json: tensors and keys one by one, since it has an order and types of its own there.
"""

import argparse
import hashlib
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from mtpref.files.gguf import open_gguf  # noqa: E402
from tests import chain_folder, gemma_folder, hf_folder, native_folder  # noqa: E402
from tests.moe_folder import ARCHS as NAMED_ALIKE  # noqa: E402
from tests.moe_folder import TOKENIZERS, folder  # noqa: E402

ARCHS = (*NAMED_ALIKE, "nemotron_h_moe", "bailingmoe3")

OUT = ROOT / "tests" / "data" / "converted_moe.json"
OUT_TINY = ROOT / "tests" / "data" / "converted.json"
OUT_CHAINS = ROOT / "tests" / "data" / "converted_chains.json"
OUT_GEMMA = ROOT / "tests" / "data" / "converted_gemma.json"
OUT_NATIVE = ROOT / "tests" / "data" / "converted_native.json"
TYPES = (("BF16", "q8_0"), ("F16", "f16"), ("F32", "f32"))
MODES = {"both": [], "mtp": ["--mtp"], "trunk": ["--no-mtp"]}
HAVE_FUSED = ("qwen35moe", "qwen3next")  # whose experts the converter takes all in one tensor, too
THEIRS = """
import runpy, sys
tree, pre = sys.argv.pop(1), sys.argv.pop(1)
sys.path[:0] = [tree + "/gguf-py", tree]
import conversion.base
conversion.base.TextModel.get_vocab_base_pre = lambda self, tokenizer: pre
import json, pathlib
if "--plain-config" in sys.argv:  # as it is in the folder: transformers' own class renames fields that it reads
    sys.argv.remove("--plain-config")
    conversion.base.ModelBase.load_hparams = staticmethod(
        lambda folder, is_mistral_format: json.loads((pathlib.Path(folder) / "config.json").read_text())
    )
from conversion.base import ModelBase, ModelType
from conversion.command_r import Cohere2MoeModel
from conversion.deepseek import DeepseekV2Model, DeepseekV32Model
from conversion.glm import Glm4MoeLiteModel


class WithHead(Glm4MoeLiteModel):  # DeepSeek-V3's head, which its own class drops, kept as GLM-4.7-Flash's is
    model_arch = Glm4MoeLiteModel.model_arch
    set_vocab = DeepseekV2Model.set_vocab


ModelBase._model_classes[ModelType.TEXT]["DeepseekV3ForCausalLM"] = WithHead
# Its filter knows --mtp and --no-mtp, and its command line refuses them.
Cohere2MoeModel.supports_mtp_export = True
# Its own asks transformers for add_bos_token, which transformers 5 says of no tokenizer.json; then it does the same.
DeepseekV32Model.set_vocab = DeepseekV2Model._set_vocab_gpt2
sys.argv[0] = tree + "/convert_hf_to_gguf.py"
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def cases(archs: tuple[str, ...] = ARCHS) -> Iterator[tuple[str, str, bool, str, str, str]]:
    """(name, architecture, whether experts are in one tensor, type of the checkpoint, --outtype, mode)"""
    for arch in archs:
        for fused in (False, True) if arch in HAVE_FUSED else (False,):
            for dtype, outtype in TYPES if not fused else TYPES[:1]:
                for mode in MODES:
                    form = "fused" if fused else "apart"
                    yield f"{arch} {form} {dtype} {outtype} {mode}", arch, fused, dtype, outtype, mode


def theirs(tree: str, checkpoint: Path, target: Path, arch: str, outtype: str, mode: str) -> None:
    """Run the converter. Errors: RuntimeError with the end of what it says"""
    command = [checkpoint, "--outfile", target, "--outtype", outtype, *MODES[mode]]
    line = [sys.executable, "-c", THEIRS, tree, TOKENIZERS[arch][2], *map(str, command)]
    done = subprocess.run(line, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(done.stderr[-3000:])


def record_chains(tree: str) -> dict[str, str]:
    """The hash of each case's file, of architectures with a chain of heads."""
    out = {}
    with tempfile.TemporaryDirectory() as name:
        for arch in chain_folder.CONFIGS:
            for dtype, outtype in TYPES:
                checkpoint = chain_folder.folder(
                    Path(name) / f"{arch}-{dtype}" / "Tiny-5M", arch, dtype=dtype, n_files=2
                )
                for mode, flags in MODES.items():
                    target = Path(name) / "out.gguf"
                    command = [checkpoint, "--outfile", target, "--outtype", outtype, "--plain-config", *flags]
                    line = [sys.executable, "-c", THEIRS, tree, chain_folder.PRE, *map(str, command)]
                    done = subprocess.run(line, capture_output=True, text=True)
                    if done.returncode:
                        raise RuntimeError(done.stderr[-3000:])
                    case = f"{arch} {dtype} {outtype} {mode}"
                    out[case] = hashlib.sha256(target.read_bytes()).hexdigest()
                    print(case, out[case][:16], flush=True)
    return out


def record_gemma(tree: str) -> dict[str, str]:
    """The hash of each case's file, of Gemma 4 and its assistants: the converter as it stands, nothing patched."""
    out = {}
    with tempfile.TemporaryDirectory() as name:
        for shape in gemma_folder.NAMES:
            for dtype, outtype in TYPES:
                checkpoint = gemma_folder.folder(
                    Path(name) / f"{shape}-{dtype}" / "Tiny-5M", shape, dtype=dtype, n_files=2
                )
                target = Path(name) / "out.gguf"
                line = [sys.executable, f"{tree}/convert_hf_to_gguf.py", checkpoint, "--outfile", target]
                done = subprocess.run([*map(str, line), "--outtype", outtype], capture_output=True, text=True)
                if done.returncode or "Failed to load model config" in done.stderr:
                    raise RuntimeError(done.stderr[-3000:])
                case = f"{shape} {dtype} {outtype}"
                out[case] = hashlib.sha256(target.read_bytes()).hexdigest()
                print(case, out[case][:16], flush=True)
    return out


# DeepSeek-V4's head is written by --mtp alone. --plain-config: as for the chains.
NATIVE = {
    "deepseek4 mtp": ["--mtp"], "deepseek4 trunk": [], "deepseek2 both": [], "mimo2 both": ["--plain-config"],
}  # fmt: skip


def digests(path: Path) -> dict[str, dict[str, list[object]]]:
    """tensors: name -> type, shape, hash of its bytes; keys: key -> type, hash of its value."""
    with open_gguf(path) as file:
        tensors: dict[str, list[object]] = {
            name: [t.type_name, list(t.shape), hashlib.sha256(file.data(t).tobytes()).hexdigest()[:16]]
            for name, t in sorted(file.tensors.items())
        }
        keys: dict[str, list[object]] = {}
        for key in sorted(file.kv):
            value = file.kv[key]
            text = repr(value if isinstance(value, str | int | float | bool) else list(value))
            keys[key] = [str(file.kv.kind(key)), hashlib.sha256(text.encode()).hexdigest()[:16]]
    return {"tensors": tensors, "keys": keys}


def record_native(tree: str) -> dict[str, dict[str, dict[str, list[object]]]]:
    """What its files of each case of NATIVE hold, of --outtype bf16."""
    out = {}
    with tempfile.TemporaryDirectory() as name:
        for case, flags in NATIVE.items():
            arch, target = case.split()[0], Path(name) / "out.gguf"
            checkpoint = native_folder.folder(Path(name) / case / "Tiny-5M", arch)
            command = [checkpoint, "--outfile", target, "--outtype", "bf16", *flags]
            line = [sys.executable, "-c", THEIRS, tree, native_folder.PRE[arch], *map(str, command)]
            done = subprocess.run(line, capture_output=True, text=True)
            if done.returncode:
                raise RuntimeError(done.stderr[-3000:])
            out[case] = digests(target)
            print(case, len(out[case]["tensors"]), flush=True)
    return out


def record(tree: str, archs: tuple[str, ...] = ARCHS, keep: Path | None = None) -> dict[str, str]:
    """The hash of each case's file."""
    out = {}
    with tempfile.TemporaryDirectory() as name:
        for case, arch, fused, dtype, outtype, mode in cases(archs):
            where = (keep or Path(name)) / f"{arch}-{fused}-{dtype}"
            checkpoint = where / "Tiny-5M"
            if not checkpoint.exists():
                folder(checkpoint, arch, fused=fused, dtype=dtype, n_files=2)
            target = where / f"{mode}.gguf"
            theirs(tree, checkpoint, target, arch, outtype, mode)
            out[case] = hashlib.sha256(target.read_bytes()).hexdigest()
            print(case, out[case][:16], flush=True)
    return out


def record_tiny(tree: str) -> dict[str, str]:
    """The checkpoint of the tiny model in three types, whole, its head alone and its trunk alone."""
    out = {}
    state = hf_folder.read_state()
    for dtype, outtype in TYPES:
        for mode in MODES:
            with tempfile.TemporaryDirectory() as scratch:
                folder = hf_folder.write_checkpoint(Path(scratch) / "Tiny-5M", *state, dtype=dtype, n_files=2)
                target = Path(scratch) / "theirs.gguf"
                theirs(tree, folder, target, "qwen35moe", outtype, mode)  # whose pre-tokenizer it has
                out[f"{dtype} {outtype} {mode}"] = hashlib.sha256(target.read_bytes()).hexdigest()
    return out


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="record the files of llama.cpp's converter")
    parser.add_argument("--llama-cpp", required=True, help="its tree")
    parser.add_argument("--arch", action="append", choices=ARCHS, help="only these (default: all)")
    parser.add_argument("--keep", type=Path, help="folder to leave checkpoints and files in")
    parser.add_argument("--chains", action="store_true", help="those with a chain of heads alone")
    parser.add_argument("--gemma", action="store_true", help="Gemma 4 and its assistants alone")
    parser.add_argument("--native", action="store_true", help="those in their makers' number formats alone")
    parser.add_argument("--tiny", action="store_true", help="the embedded tiny model alone")
    args = parser.parse_args(argv)
    if args.tiny:
        OUT_TINY.write_text(json.dumps(record_tiny(args.llama_cpp), indent=1) + "\n")
        return 0
    if args.native:
        OUT_NATIVE.write_text(json.dumps(record_native(args.llama_cpp), separators=(",", ":")) + "\n")
        return 0
    if args.gemma:
        OUT_GEMMA.write_text(json.dumps(record_gemma(args.llama_cpp), indent=1) + "\n")
        return 0
    if args.chains:
        OUT_CHAINS.write_text(json.dumps(record_chains(args.llama_cpp), indent=1) + "\n")
        return 0
    old = json.loads(OUT.read_text()) if OUT.exists() else {}
    made = record(args.llama_cpp, tuple(args.arch or ARCHS), args.keep)
    OUT.write_text(json.dumps(dict(sorted((old | made).items())), indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
