"""Record what llama.cpp's converter writes of a tokenizer that is a tiktoken file: a hash of each key.

    python tools/record_tiktoken.py --llama-cpp PATH/TO/llama.cpp

Needs torch, transformers and tiktoken. The converter asks the checkpoint's own code for ranks and special tokens; here
a class that has these two stands for it. The name of the pre-tokenizer, which the converter tells by a hash of ids, is
given to it. Writes tests/data/converted_tiktoken.json.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from tests.test_tiktoken import RECORDED, digest, keys_of, make_folder  # noqa: E402

THEIRS = """
import runpy, sys
tree = sys.argv.pop(1)
sys.path[:0] = [tree + "/gguf-py", tree]
import conversion.base
conversion.base.TextModel.get_vocab_base_pre = lambda self, tokenizer: "kimi-k2"
import transformers
from tiktoken.load import load_tiktoken_bpe


class Own:
    def __init__(self, folder):
        import json, types
        ranks = load_tiktoken_bpe(str(folder / "tiktoken.model"))
        self.model = types.SimpleNamespace(_mergeable_ranks=ranks)
        added = json.loads((folder / "tokenizer_config.json").read_text())["added_tokens_decoder"]
        named = {int(i): entry["content"] for i, entry in added.items()}
        ids = range(len(ranks), len(ranks) + 256 + 2)
        self.special_tokens = {named.get(i, f"<|reserved_token_{i}|>"): i for i in ids}


def own(folder, trust_remote_code=False, **others):
    if not trust_remote_code:
        raise ValueError("its code is not run")
    return Own(folder)


transformers.AutoTokenizer.from_pretrained = own
sys.argv[0] = tree + "/convert_hf_to_gguf.py"
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="record a tokenizer's keys by llama.cpp's converter")
    parser.add_argument("--llama-cpp", required=True, help="its tree")
    args = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as name:
        folder, target = make_folder(Path(name) / "kimi"), Path(name) / "out.gguf"
        line = [sys.executable, "-c", THEIRS, args.llama_cpp, str(folder), "--outfile", str(target), "--outtype", "f32"]
        done = subprocess.run(line, capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(done.stderr[-3000:])
        found = {"keys": digest(keys_of(target))}
    RECORDED.write_text(json.dumps(found, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
