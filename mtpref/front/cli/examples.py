"""What stands under `examples:` in each --help. The tests parse every line and run it on stand-ins.

Owns the lines: command -> (arguments after the command's name, ...).
"""

EXAMPLES: dict[str, tuple[str, ...]] = {
    "generate": (
        '-p "Ruby wanted a drum." -n 64',
        "-m model.gguf -f notes.md --spec-draft-n-max 2 --color",
        '-m model.gguf --chat -p "Tell me a story."',
        "-m model.gguf -cnv",
        '-p "A letter came for" --trace run.jsonl',
    ),
    "trace show": ("run.jsonl", "run.jsonl --rounds 3-9 -m model.gguf", "run.jsonl --text"),
    "trace html": ("run.jsonl -o run.html", "run.jsonl other.jsonl -o two.html"),
    "inspect": ("model.gguf",),
    "check": ("model.gguf", "--fast model.gguf", "model-q4_0.gguf --against model.gguf"),
    "fetch": (
        "hf:org/model-GGUF:Q8_0",
        "https://host/model.gguf --head -o mtp-model.gguf",
        "https://host/checkpoint/ --head -o head",
    ),
    "extract": ("model.gguf -o mtp-model.gguf",),
    "strip": ("model.gguf -o trunk.gguf",),
    "graft": (
        "trunk.gguf model.gguf -o whole.gguf",
        "--as-shard trunk-00001-of-00014.gguf mtp-model.gguf -o DIR",
        "--hf QUANTISED_DIR ORIGINAL_DIR -o DIR",
    ),
    "convert": ("HF_DIR -o model-bf16.gguf", "HF_DIR --mtp --outtype q8_0 -o mtp-head.gguf"),
    "quantize": ("model.gguf model-q8_0.gguf Q8_0", "model.gguf model-q4_0.gguf Q4_0 --tensor ffn_down=Q8_0"),
    "imatrix": ("-m model.gguf -f notes.md -o imatrix.gguf",),
    "dump": (
        "-p \"A letter came for\" --tensors '^(l_out|mtp_)' -o reference.gguf",
        '-p "A letter came for" -o - > all.gguf',
    ),
    "compare": ("reference.gguf port.gguf --limit 0.01", "reference.gguf port.gguf --html report.html"),
    "compare-log": ("llama.log -m model.gguf", "llama.log -m model.gguf --json"),
    "golden list": ("golden",),
    "golden check": ("golden --level L5", 'golden --level L1 --cmd "mtpref golden port golden"'),
    "golden gen": ('-m model.gguf -p "A letter came for" -n 8 --digest -o my-goldens',),
    "golden derive": ("tiny-q4_0 -o tiny-q4_0.gguf",),
    "golden port": ("golden",),
    "golden export": ("golden --format npz --level L1 -o vectors",),
    "probe": ("-m model.gguf -f notes.md", "-m model.gguf -f notes.md --contracts --positions 200"),
    "plan": ("-m model.gguf -f notes.md", "-m model.gguf -f notes.md --all --trims full,256"),
    "bench": ("-m model.gguf", "-p 64 -n 16 -r 2 --parts decode,mtp"),
    "warmup": ("-m model.gguf",),
    "draft-vocab": ("-m model.gguf -f notes.md -n 512 -o ids.txt",),
    "diagnose": (
        "--dump port.gguf -m model.gguf",
        "--log llama.log -m model.gguf",
    ),
    "faults": ("", "rope", "G1"),
    "story": ("-m model.gguf -n 24",),
    "selftest": ("--quick", "-m model.gguf"),
    "learn": ("", "1", "3 --no-pager", "11 --answer 1=W6"),
    "docs": ("", "spec", "keeping-the-head"),
    "completion": ("bash > mtpref.bash", "zsh > _mtpref", "fish > mtpref.fish"),
}


def epilog(command: str) -> str:
    """The examples of a command (`generate`, `trace show`) as the end of its help; of `trace`, its actions' first."""
    own = {command: EXAMPLES[command]} if command in EXAMPLES else {
        action: words[:1] for action, words in EXAMPLES.items() if action.startswith(f"{command} ")
    }  # fmt: skip
    return "examples:\n" + "\n".join(f"  mtpref {name} {words}".rstrip() for name in own for words in own[name])
