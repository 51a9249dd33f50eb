"""Record what transformers' Gemma 4 and its assistants compute of small models: tests/data/hf_gemma.npz.

    python tools/record_hf_gemma.py

Needs torch and transformers 5.24. Weights are made of their names (tests/hf_gemma_cases.py) and not stored. Of a
target: logits and normed rows of IDS. Of its assistant: logits and rows of N_DRAFT steps after the first N_SHORT ids
and after all, as transformers' candidate generator drives it: a constant position, that of the last token, over the
keys and values of those before it.
"""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from tests.hf_gemma_cases import CONFIGS, FIRST, IDS, N_DRAFT, N_SHORT, assistant_of, values  # noqa: E402

OUT = ROOT / "tests" / "data" / "hf_gemma.npz"


def filled(model: Any, seed: str) -> dict[str, list[int]]:
    """Give every parameter the value of its name; returns names and shapes."""
    import torch

    state = {name: x for name, x in model.state_dict().items() if name != "lm_head.weight"}
    with torch.no_grad():
        for name, x in state.items():
            x.copy_(torch.from_numpy(values(seed + name, tuple(x.shape))))
    return {name: list(x.shape) for name, x in state.items()}


def drafted(target: Any, assistant: Any, row: Any, cells: Any, n_past: int) -> list[tuple[Any, Any]]:
    """(logits, row) of each step after the token FIRST."""
    import torch

    token, steps = torch.tensor([[FIRST]]), []
    for _ in range(N_DRAFT):
        both = torch.cat([target.get_input_embeddings()(token), row], dim=-1)
        step = assistant(inputs_embeds=both, position_ids=torch.tensor([[n_past]]), shared_kv_states=cells)
        steps.append((step.logits[0, 0].numpy(), step.last_hidden_state[0, 0].numpy()))
        token, row = step.logits[:, -1:].argmax(-1), step.last_hidden_state
    return steps


def main() -> int:
    """Write the file."""
    import torch
    from transformers import Gemma4AssistantConfig, Gemma4AssistantForCausalLM, Gemma4ForCausalLM, Gemma4TextConfig

    made: dict[str, Any] = {}
    for name, config in CONFIGS.items():
        target = Gemma4ForCausalLM._from_config(Gemma4TextConfig(**config), attn_implementation="eager").eval().float()
        own = Gemma4TextConfig(**assistant_of(config))
        pair = Gemma4AssistantConfig(text_config=own, backbone_hidden_size=config["hidden_size"])
        assistant = Gemma4AssistantForCausalLM._from_config(pair, attn_implementation="eager").eval().float()
        shapes = {"target": filled(target, name), "assistant": filled(assistant, f"{name} assistant ")}
        for key, ids in (("short", IDS[:N_SHORT]), ("long", IDS)):
            with torch.no_grad():
                out = target(
                    torch.tensor([ids]), output_hidden_states=True, return_shared_kv_states=True, use_cache=False
                )
                rows = out.hidden_states[-1]
                steps = drafted(target, assistant, rows[:, -1:], out.shared_kv_states, len(ids))
            made |= {f"{name}.{key}.logits": np.stack([a for a, _ in steps]),
                     f"{name}.{key}.rows": np.stack([b for _, b in steps])}  # fmt: skip
        made |= {f"{name}.logits": out.logits[0].numpy(), f"{name}.rows": rows[0].numpy()}
        made[f"{name}.shapes"] = np.array(json.dumps(shapes))
        print(name, [int(a.argmax()) for a, _ in steps], file=sys.stderr)
    np.savez_compressed(OUT, **made)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
