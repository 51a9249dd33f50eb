"""The yardsticks themselves: hand-worked values, transformers' recorded values, and transformers live.

Every later comparison rests on tests/naive*.py, so these are checked against something that is not ours. The
live part needs torch and transformers (extra `oracle`) and is skipped with a reason without them.
"""

import math
from pathlib import Path

import gguf
import numpy as np
import pytest

from mtpref.architectures import ARCHITECTURES, state_to_gguf
from tests import naive
from tests.hf_cases import CASES, build
from tests.naive_loop import draft, greedy, speculate, verify
from tests.naive_model import load_gguf, mtp, trunk
from tests.random_weights import normal, random_weights, uniform

REFERENCE = Path(__file__).parent / "data" / "hf_reference.npz"


@pytest.fixture(scope="module")
def recorded():
    with np.load(REFERENCE) as file:
        return dict(file)


@pytest.fixture(scope="module")
def oracle_hf():
    pytest.importorskip("torch", reason="torch is not installed (extra: oracle)")
    pytest.importorskip(
        "transformers.models.qwen3_5", reason="transformers with Qwen3.5 is not installed (extra: oracle)"
    )
    from tests import oracle_hf

    return oracle_hf


# HAND-WORKED VALUES


def test_rms_norm_of_3_4_and_of_zero():
    y = naive.rms_norm([3.0, 4.0], [1.0, 2.0], 0.0)
    assert np.allclose(y, [3 / math.sqrt(12.5), 8 / math.sqrt(12.5)], rtol=1e-15)
    assert np.array_equal(naive.rms_norm([0.0, 0.0], [1.0, 2.0], 1e-6), [0.0, 0.0])


def test_l2_norm_puts_epsilon_inside_the_sum():
    assert np.allclose(naive.l2_norm([3e-3, 4e-3], 24e-6), [3 / 7, 4 / 7], rtol=1e-14)


def test_softplus_is_the_identity_above_20_and_exact_far_below():
    assert naive.softplus(20.5) == 20.5
    assert naive.softplus(20.0) > 20.0
    assert naive.softplus(-50.0) == pytest.approx(math.exp(-50.0), rel=1e-14)


def test_sigmoid_and_silu_survive_large_arguments():
    assert np.array_equal(naive.sigmoid([-1000.0, 0.0, 1000.0]), [0.0, 0.5, 1.0])
    assert np.array_equal(naive.silu([-1000.0, 1000.0]), [0.0, 1000.0])


def test_top10_renormalises_over_ten_and_prefers_the_lower_id_of_a_tie():
    logits = np.log(np.array([1.0, 2, 3, 4, 4, 5, 6, 7, 8, 9, 10, 50]))
    ids, p = naive.top10(logits)
    assert ids == [11, 10, 9, 8, 7, 6, 5, 3, 4, 2]
    assert p[0] == pytest.approx(50 / 106, rel=1e-14)
    assert sum(p) == pytest.approx(1.0, rel=1e-14)


def test_conv_window_meets_the_oldest_value_with_weight_0():
    raw, act, history = naive.conv_window([[10.0], [20.0]], [[1.0, 2.0, 3.0]], [[1000.0, 100.0, 10.0, 1.0]])
    assert np.array_equal(raw, [[1240.0], [2420.0]])
    assert np.allclose(act, naive.silu(raw))
    assert np.array_equal(history, [[3.0, 10.0, 20.0]])


def test_delta_rule_decays_then_writes_the_error_then_reads():
    key, state = np.array([[[1.0, 0.0]]]), np.array([[[2.0, 5.0], [4.0, 7.0]]])
    out, new = naive.gated_delta_rule(key, key, [[[9.0, 3.0]]], [[math.log(0.5)]], [[0.5]], state)
    assert np.allclose(new, [[[1 + 0.5 * 8, 2.5], [2 + 0.5 * 1, 3.5]]], rtol=1e-15)
    assert np.allclose(out, [[[5 / math.sqrt(2), 2.5 / math.sqrt(2)]]], rtol=1e-15)


def test_delta_rule_gives_v_head_h_the_k_head_h_modulo_n_k_heads():
    k = np.array([[[1.0, 0.0], [0.0, 1.0]]])
    v = np.arange(1.0, 9.0).reshape(1, 4, 2)
    _, state = naive.gated_delta_rule(k, k, v, np.zeros((1, 4)), np.ones((1, 4)), np.zeros((4, 2, 2)))
    assert [int(np.argmax(state[h, 0])) for h in range(4)] == [0, 1, 0, 1]


def test_query_and_gate_alternate_head_by_head():
    q, gate = naive.split_q_gate(np.arange(8.0)[None], 2)
    assert np.array_equal(q, [[[0, 1], [4, 5]]])
    assert np.array_equal(gate, [[2, 3, 6, 7]])


def test_imrope_sections_interleave_and_leave_the_rest_unturned():
    assert "".join(naive.imrope_axis(i, [3, 3, 2, 0]) for i in range(8)) == "thwthwth"
    assert "".join(naive.imrope_axis(i, [6, 5, 5, 0]) for i in range(16)) == "thwthwthwthwthwt"
    assert "".join(naive.imrope_axis(i, [2, 2, 2, 2]) for i in range(8)) == "thwthwee"
    y = naive.rope_imrope_text(np.ones((1, 1, 16)), [3], 16, 100.0, [2, 2, 2, 2])
    assert np.array_equal(y[0, 0, [6, 7, 14, 15]], np.ones(4))
    assert not np.any(y[0, 0, [0, 1, 2, 3, 4, 5]] == 1.0)


def test_rope_pairs_i_with_i_plus_half_and_passes_the_rest():
    y = naive.rope_imrope_text(np.array([[[1.0, 0.0, 0.0, 0.0, 7.0]]]), [2], 4, 100.0, [1, 1, 0, 0])
    assert np.allclose(y, [[[math.cos(2), 0.0, math.sin(2), 0.0, 7.0]]], rtol=1e-15)


def test_attention_is_causal_over_the_cache_and_groups_heads():
    v = np.array([[[1.0], [10.0]], [[3.0], [30.0]], [[1e9], [1e9]]])
    out = naive.attention(np.zeros((2, 4, 1)), np.zeros((3, 2, 1)), v, 1)
    assert np.allclose(out[0], [2.0, 2.0, 20.0, 20.0], rtol=1e-15)
    assert np.all(out[1] > 1e8)


def test_nmse_is_relative_to_the_first_argument_and_keeps_nan():
    assert naive.nmse([1.0, 2.0], [1.0, 1.0]) == 0.2
    assert math.isnan(naive.nmse([1.0], [math.nan]))


# THE GENERATOR


def test_generator_values_are_pinned():
    # the recorded values hold for these very weights
    assert normal(1, "a", 3).tolist() == [-0.34077549919728106, 0.7275638837755507, 0.7898306028781407]
    assert uniform(1, "a", 2).tolist() == [0.3448573217310811, 0.7197595358958888]


def test_generator_streams_look_independent_and_normal():
    x, y = normal(1, "a", 20000), normal(1, "b", 20000)
    assert abs(np.mean(x)) < 0.03
    assert abs(np.std(x) - 1) < 0.02
    assert abs(np.mean(x * y)) < 0.03
    assert abs(np.mean(x[1:] * x[:-1])) < 0.03


def test_random_weights_are_float32_numbers_and_states_decay():
    case = CASES["plain"]
    weights = random_weights(case["seed"], case["hparams"])
    for name, w in weights.items():
        assert np.array_equal(w, w.astype(np.float32)), name
    assert all(np.all(w < 0) for name, w in weights.items() if name.endswith("ssm_a"))


def test_load_gguf_gives_float64_tensors_and_prefixless_keys(tmp_path):
    writer = gguf.GGUFWriter(tmp_path / "a.gguf", "qwen35")
    writer.add_block_count(5)
    writer.add_array("qwen35.rope.dimension_sections", [2, 1, 1, 0])
    x = normal(1, "x", 96).astype(np.float32).reshape(3, 32)
    writer.add_tensor("f32", x)
    q8_0 = gguf.quants.quantize(x, gguf.GGMLQuantizationType.Q8_0)
    writer.add_tensor("q8_0", q8_0, raw_dtype=gguf.GGMLQuantizationType.Q8_0)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    hparams, weights = load_gguf(str(tmp_path / "a.gguf"))
    assert hparams == {"block_count": 5, "rope.dimension_sections": [2, 1, 1, 0]}
    assert weights["f32"].dtype == np.float64
    assert np.array_equal(weights["f32"], x)
    assert weights["q8_0"].shape == (3, 32)
    assert 0 < naive.nmse(x, weights["q8_0"]) < 1e-4


# TRANSFORMERS, RECORDED


@pytest.mark.parametrize("case", CASES)
def test_trunk_equals_the_recorded_values_in_every_layer(recorded, case):
    weights, hparams, _, tokens = build(case)
    assert recorded[f"{case}.tokens"].tolist() == tokens
    assert_recorded(recorded, f"{case}.", trunk(weights, hparams, tokens).tensors, 2 * hparams["block_count"])


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("contract", ["training", "llama_cpp"])
def test_mtp_equals_the_recorded_values(recorded, case, contract):
    weights, hparams, _, tokens = build(case)
    h = trunk(weights, hparams, tokens).h_post
    if contract == "training":
        out = mtp(weights, hparams, tokens[1:], h[:-1], list(range(len(tokens) - 1)))
    else:
        shifted = np.concatenate([np.zeros((1, h.shape[1])), h[:-1]])
        out = mtp(weights, hparams, tokens, shifted, list(range(len(tokens))))
    assert_recorded(recorded, f"{case}.mtp_{contract}.", out.tensors, 4)


def assert_recorded(recorded, prefix, tensors, n_least):
    """Every recorded tensor under the prefix: the kept rows, and the sum of squares over all rows."""
    rows = recorded[prefix + "rows"]
    names = [key[len(prefix + "power.") :] for key in recorded if key.startswith(prefix + "power.")]
    assert len(names) >= n_least
    for name in names:
        assert naive.nmse(recorded[prefix + name], tensors[name][rows]) < 1e-20, name
        assert float(np.sum(tensors[name] ** 2)) == pytest.approx(recorded[prefix + "power." + name], rel=1e-10)


# TRANSFORMERS, LIVE


@pytest.mark.oracle
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize(
    ("dtype", "delta_rule", "cached", "limit"),
    [
        ("float64", "chunk", False, 1e-20),
        ("float64", "recurrent", False, 1e-20),
        ("float64", "recurrent", True, 1e-20),
        ("float32", "recurrent", False, 1e-10),
        # the chunked form takes differences of summed log decays: about 1e-10 in float32 when gates are large
        ("float32", "chunk", False, 1e-9),
    ],
)
def test_naive_equals_transformers(oracle_hf, case, dtype, delta_rule, cached, limit):
    weights, hparams, flags, tokens = build(case)
    oracle = oracle_hf.Oracle(weights, hparams, flags, dtype, delta_rule)
    ours = trunk(weights, hparams, tokens)
    _, h, theirs = oracle.trunk(tokens, cached)
    assert len(theirs) == 5 * oracle.n_layer + 2
    worst = {name: naive.nmse(x, ours.tensors[name]) for name, x in theirs.items()}
    positions = list(range(len(tokens) - 1))
    logits, _, theirs = oracle.mtp(tokens[1:], h[:-1], positions)
    ours_mtp = mtp(weights, hparams, tokens[1:], ours.h_post[:-1], positions)
    worst.update({name: naive.nmse(x, ours_mtp.tensors[name]) for name, x in theirs.items()})
    worst["mtp logits"] = naive.nmse(logits, ours_mtp.logits)
    print(f"{case} {dtype} {delta_rule}: worst NMSE {max(worst.values()):.1e}")
    assert not {name: x for name, x in worst.items() if not x < limit}


@pytest.mark.oracle
@pytest.mark.parametrize("case", CASES)
def test_package_conversion_undoes_the_conversion_of_the_oracle(oracle_hf, case):
    weights, hparams, flags, _ = build(case)
    oracle = oracle_hf.Oracle(weights, hparams, flags)
    n_layer = oracle.n_layer
    state = {name: x.numpy() for name, x in oracle.model.state_dict().items()}
    block = {f"mtp.layers.0.{name}": x.numpy() for name, x in oracle.mtp_layer.state_dict().items()}
    values = {"n_layer": n_layer, "n_k_head": hparams["ssm.group_count"]}
    values |= {"n_v_head": hparams["ssm.time_step_rank"], "d_state": hparams["ssm.state_size"]}
    converted = state_to_gguf(ARCHITECTURES["qwen35"], {**state, **block}, values)
    nextn = {name for name in weights if ".nextn." in name}
    assert set(converted) - {"output.weight"} == set(weights) - nextn - {"output.weight"}
    for name in set(weights) - nextn:
        assert np.allclose(converted[name], weights[name], rtol=2e-7, atol=0), name


@pytest.mark.oracle
@pytest.mark.parametrize("scale", [1e-4, 1e-3, 1.0, 1e3])
def test_delta_rule_equals_transformers_from_a_given_state(oracle_hf, scale):
    torch, hf = oracle_hf.torch, oracle_hf.hf
    n, n_k, n_v, size = 7, 2, 6, 4
    q, k = (scale * normal(5, x, n * n_k * size).reshape(n, n_k, size) for x in "qk")
    v, state = normal(5, "v", n * n_v * size).reshape(n, n_v, size), normal(5, "s", 96).reshape(6, 4, 4)
    g, beta = -uniform(5, "g", n * n_v).reshape(n, n_v), uniform(5, "beta", n * n_v).reshape(n, n_v)
    tiled = [t * n_k + g_head for g_head in range(n_k) for t in range(n_v // n_k)]
    args = [torch.from_numpy(x[None].copy()) for x in (q, k, v[:, tiled], g[:, tiled], beta[:, tiled])]
    start = torch.from_numpy(state[tiled].transpose(0, 2, 1)[None].copy())
    with oracle_hf.precision(torch.float64):
        theirs, end = hf.torch_recurrent_gated_delta_rule(*args, start, True, use_qk_l2norm_in_kernel=True)
    out, last = naive.gated_delta_rule(naive.l2_norm(q, 1e-6), naive.l2_norm(k, 1e-6), v, g, beta, state)
    assert naive.nmse(theirs[0].numpy(), out[:, tiled]) < 1e-28
    assert naive.nmse(end[0].numpy().transpose(0, 2, 1), last[tiled]) < 1e-28


@pytest.mark.oracle
def test_conv_window_equals_transformers_cached_convolution(oracle_hf):
    torch, hf = oracle_hf.torch, oracle_hf.hf
    x, history, w = normal(6, "x", 10).reshape(2, 5), normal(6, "h", 15).reshape(5, 3), normal(6, "w", 20)
    state = torch.from_numpy(history[None].copy())
    weight = torch.from_numpy(w.reshape(5, 4))
    with torch.no_grad():
        out = hf.causal_conv1d_update(torch.from_numpy(x.T[None].copy()), state, weight, None, "silu")
    _, act, last = naive.conv_window(x, history, w.reshape(5, 4))
    assert naive.nmse(out[0].numpy().T, act) < 1e-28
    assert np.array_equal(state[0].numpy(), last)


@pytest.mark.oracle
@pytest.mark.parametrize("position", [0, 1, 4095, 262143])
def test_rope_equals_transformers_at_far_positions(oracle_hf, position):
    torch, hf = oracle_hf.torch, oracle_hf.hf
    case = CASES["large_gates"]["hparams"]
    config = oracle_hf.text_config(case, [False], 97, True)
    x = normal(7, "x", 64).reshape(1, 2, 32)
    with oracle_hf.precision(torch.float64):
        rotary = hf.Qwen3_5TextRotaryEmbedding(config)
        cos, sin = rotary(torch.zeros(1, dtype=torch.float64), torch.tensor([[[position]]]))
        q = torch.from_numpy(x.transpose(1, 0, 2)[None].copy())
        theirs = hf.apply_rotary_pos_emb(q, q, cos, sin)[0][0].numpy().transpose(1, 0, 2)
    n_rot, base = case["rope.dimension_count"], case["rope.freq_base"]
    ours = naive.rope_imrope_text(x, [position], n_rot, base, case["rope.dimension_sections"])
    # an angle of 2.6e5 radians carries 1e-11 of absolute error in float64
    assert naive.nmse(theirs, ours) < 1e-20


# THE LOOP


def test_speculation_equals_greedy_and_sees_every_kind_of_round():
    weights, hparams, _, tokens = build("agreeing_head")
    text, rounds = speculate(weights, hparams, tokens[:4], 24, 3)
    assert text == greedy(weights, hparams, tokens[:4], 24)
    assert {r.n_accepted for r in rounds} == {0, 1, 2, 3}


def test_chain_feeds_the_block_its_own_post_norm_hidden():
    weights, hparams, _, tokens = build("agreeing_head")
    drafted, steps = draft(weights, hparams, tokens[:5], 2)
    h = trunk(weights, hparams, tokens[:4]).h_post
    rows = np.concatenate([np.zeros((1, h.shape[1])), h])
    first = mtp(weights, hparams, tokens[:5], rows, list(range(5)))
    assert drafted[0] == naive.argmax(first.logits[-1]) == steps[0].ids[0]
    rows = np.concatenate([rows, first.h_nextn[-1:]])
    second = mtp(weights, hparams, [*tokens[:5], drafted[0]], rows, list(range(6)))
    assert (steps[1].ids, steps[1].p) == naive.top10(second.logits[-1])


def test_training_contract_lacks_only_cell_0():
    weights, hparams, _, tokens = build("agreeing_head")
    _, with_cell = draft(weights, hparams, tokens[:5], 1)
    _, without = draft(weights, hparams, tokens[:5], 1, contract="training")
    h = trunk(weights, hparams, tokens[:4]).h_post
    out = mtp(weights, hparams, tokens[1:5], h, [0, 1, 2, 3])
    assert (without[0].ids, without[0].p) == naive.top10(out.logits[-1])
    shifted = mtp(weights, hparams, tokens[1:5], h, [100, 101, 102, 103])
    assert naive.nmse(out.logits, shifted.logits) < 1e-20
    assert with_cell[0].p != without[0].p


def test_one_token_prompt_drafts_from_the_zero_hidden_or_not_at_all():
    weights, hparams, _, tokens = build("agreeing_head")
    drafted, steps = draft(weights, hparams, tokens[:1], 1)
    out = mtp(weights, hparams, tokens[:1], np.zeros((1, 48)), [0])
    assert drafted == [naive.argmax(out.logits[0])] == [steps[0].ids[0]]
    assert draft(weights, hparams, tokens[:1], 3, contract="training") == ([], [])


def test_p_min_ends_a_draft_and_n_min_drops_it():
    weights, hparams, _, tokens = build("agreeing_head")
    full, steps = draft(weights, hparams, tokens[:9], 3)
    p = [step.p[0] for step in steps]
    weakest = p.index(min(p))
    assert weakest > 0
    above = math.nextafter(p[weakest], 1.0)
    cut, seen = draft(weights, hparams, tokens[:9], 3, p_min=above)
    assert cut == full[:weakest]
    assert [step.taken for step in seen] == [True] * weakest + [False]
    assert draft(weights, hparams, tokens[:9], 3, p_min=p[weakest])[0] == full
    assert draft(weights, hparams, tokens[:9], 3, weakest, above)[0] == full[:weakest]
    assert draft(weights, hparams, tokens[:9], 3, weakest + 1, above)[0] == []


def test_trimmed_vocabulary_names_only_the_first_ids():
    weights, hparams, _, tokens = build("agreeing_head")
    drafted, steps = draft(weights, hparams, tokens[:5], 3, n_vocab=12)
    assert len(drafted) == 3
    assert all(max(step.ids) < 12 for step in steps)


def test_verify_stops_inside_a_draft_at_end_of_generation_but_not_at_its_last_token():
    weights, hparams, _, tokens = build("agreeing_head")
    right = greedy(weights, hparams, tokens[:4], 3)
    assert verify(weights, hparams, tokens[:4], right[:2]) == right
    assert verify(weights, hparams, tokens[:4], right[:2], eog={right[0]}) == right[:1]
    assert verify(weights, hparams, tokens[:4], right[:2], eog={right[1]}) == right
    text, _ = speculate(weights, hparams, tokens[:4], 9, 2, eog={right[1]})
    assert text == right[:2]
