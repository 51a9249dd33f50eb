// Deliberate mistakes of the example port, one replaced step each, under the ids of mtpref's fault catalogue. They show
// what golden_check says of a port that is wrong in a known way:
//
//     SEEDED_FAULT=G1-concat-swapped ./golden_check ../..
#include <algorithm>

#include "example_port.h"

namespace port {

namespace {

// ---------------------------------------------------------------------------------------------------- W: weights

bool is_of_head(const std::string &name) {  // the micro models have five blocks, the last one is the head's
    return name.find(".nextn.") != std::string::npos || name.compare(0, 6, "blk.4.") == 0;
}

std::vector<float> shifted(std::vector<float> weight, float by) {
    for (float &x : weight) x += by;
    return weight;
}

std::vector<float> norm_shift_missing(const std::string &name, std::vector<float> weight) {
    return is_of_head(name) ? shifted(std::move(weight), -1) : weight;
}

std::vector<float> norm_shift_doubled(const std::string &name, std::vector<float> weight) {
    return is_of_head(name) ? shifted(std::move(weight), 1) : weight;
}

// ------------------------------------------------------------------------------------------------------ G: graph

rows concat_swapped(const rows &enorm, const rows &hnorm) { return mtp_concat(hnorm, enorm); }

const rows &pre_norm(const pass &out, const contract &) { return out.pre; }

rows gate_silu(const rows &o, const rows &gate) {
    rows y = attn_gate(o, gate);
    for (size_t i = 0; i < y.x.size(); i++) y.x[i] *= gate.x[i];
    return y;
}

rows gate_skipped(const rows &o, const rows &) { return o; }

rows no_rope(const rows &x, const std::vector<int32_t> &, const rope_params &) { return x; }

// Pairs (2 i, 2 i + 1): the rule of rope between two permutations of the dimensions.
rows rope_interleaved(const rows &x, const std::vector<int32_t> &pos, const rope_params &p) {
    rows split = x;
    const int64_t half = p.n_rot / 2;
    for (int64_t r = 0; r < x.ne1; r++)
        for (int64_t i = 0; i < half; i++) {
            split.row(r)[i] = x.row(r)[2 * i];
            split.row(r)[i + half] = x.row(r)[2 * i + 1];
        }
    const rows turned = rope(split, pos, p);
    rows y = turned;
    for (int64_t r = 0; r < x.ne1; r++)
        for (int64_t i = 0; i < half; i++) {
            y.row(r)[2 * i] = turned.row(r)[i];
            y.row(r)[2 * i + 1] = turned.row(r)[i + half];
        }
    return y;
}

rows rope_all_dims(const rows &x, const std::vector<int32_t> &pos, const rope_params &p) {
    rope_params all = p;
    all.n_rot = x.ne0;
    return rope(x, pos, all);
}

// x / max(norm, eps): the epsilon is no longer inside the root.
rows l2_eps(const rows &x, float eps) {
    rows y = x;
    for (int64_t t = 0; t < y.ne1; t++) {
        double sum = 0;
        for (int64_t i = 0; i < y.ne0; i++) sum += double(y.row(t)[i]) * double(y.row(t)[i]);
        const float scale = float(1 / std::max(std::sqrt(sum), double(eps)));
        for (int64_t i = 0; i < y.ne0; i++) y.row(t)[i] *= scale;
    }
    return y;
}

// v-head h reads k-head h / (H_v / H_k): each q- and k-head is repeated for its group, so that h % H_v finds it.
delta_states v_heads_grouped(const rows &q, const rows &k, const rows &v, const rows &g, const rows &beta, rows state,
                             int64_t n_k_heads, int64_t keep) {
    const int64_t n_v_heads = g.ne0, group = n_v_heads / n_k_heads;
    rows q_all(q.ne0, g.ne1 * n_v_heads), k_all(k.ne0, g.ne1 * n_v_heads);
    for (int64_t t = 0; t < g.ne1; t++)
        for (int64_t h = 0; h < n_v_heads; h++) {
            const int64_t from = t * n_k_heads + h / group, to = t * n_v_heads + h;
            std::copy(q.row(from), q.row(from) + q.ne0, q_all.row(to));
            std::copy(k.row(from), k.row(from) + k.ne0, k_all.row(to));
        }
    return delta_rule(q_all, k_all, v, g, beta, std::move(state), n_v_heads, keep);
}

// --------------------------------------------------------------------------------------- C, K: hand-over and cache

rows same_token_pairing(const rows &hidden, const std::vector<float> &) { return hidden; }

int64_t last_verify_row(int64_t, int64_t n_rows) { return n_rows - 1; }

int64_t not_primed(int64_t, const contract &) { return 0; }

// ---------------------------------------------------------------------------------------------------- S: roll back

struct kept {
    std::vector<rows> conv, state;
    explicit kept(const sequence &seq) {
        for (const layer_state &layer : seq.layers) conv.push_back(layer.conv), state.push_back(layer.state);
    }
    void put_back(sequence &seq, bool with_conv, bool with_state) const {
        for (size_t il = 0; il < seq.layers.size(); il++) {
            if (with_conv) seq.layers[il].conv = conv[il];
            if (with_state) seq.layers[il].state = state[il];
        }
    }
};

template <bool with_conv, bool with_state> void plane_kept(sequence &seq, int64_t n_drop) {
    const kept before(seq);
    choose_plane(seq, n_drop);
    before.put_back(seq, with_conv, with_state);
}

template <bool with_conv, bool with_state> void restore_kept(sequence &seq, const checkpoint &saved) {
    const kept before(seq);
    restore(seq, saved);
    before.put_back(seq, with_conv, with_state);
}

// The plane of the first token of the batch, whatever was accepted.
void first_plane_read(sequence &seq, int64_t n_drop) {
    std::vector<layer_state> before = seq.layers;
    choose_plane(seq, n_drop);
    for (size_t il = 0; il < before.size(); il++) {
        if (before[il].conv_planes.empty()) continue;
        seq.layers[il].conv = before[il].conv_planes.front();
        seq.layers[il].state = before[il].state_planes.front();
    }
}

// ------------------------------------------------------------------------------------------------------ V: verify

// One token more than the target agrees with is accepted.
int64_t lax_accept(const std::vector<int64_t> &draft, const std::vector<int64_t> &target,
                   const std::set<int64_t> &eog) {
    const int64_t n = accept_greedy(draft, target, eog);
    const bool is_ended = n > 0 && eog.count(draft[size_t(n) - 1]) > 0;
    return is_ended || n + 1 >= int64_t(target.size()) ? n : std::min(n + 1, int64_t(draft.size()));
}

// Each drafted token is compared with the target's choice one row further on.
int64_t wrong_verify_row(const std::vector<int64_t> &draft, const std::vector<int64_t> &target,
                         const std::set<int64_t> &eog) {
    const std::vector<int64_t> next(target.begin() + (target.empty() ? 0 : 1), target.end());
    return accept_greedy(draft, next, eog);
}

int64_t eog_passed(const std::vector<int64_t> &draft, const std::vector<int64_t> &target, const std::set<int64_t> &) {
    return accept_greedy(draft, target, {});
}

std::vector<int64_t> bonus_dropped(const std::vector<int64_t> &draft, const std::vector<int64_t> &target,
                                   int64_t n_accepted, bool is_ended) {
    const bool is_whole = !draft.empty() && n_accepted == int64_t(draft.size());
    return emitted(draft, target, n_accepted, is_ended || is_whole);
}

distribution no_residual(const distribution &target, const distribution &) { return target; }

bool zero_probability_accepted(double p, double q, double u) { return u * q <= p; }

// ----------------------------------------------------------------------------------------------------- E: experts

rows other_gating(const rows &logits, const std::string &gating) {
    return expert_probs(logits, gating == "softmax" ? "sigmoid" : "softmax");
}

rows scores_unbiased(const rows &p, const std::vector<float> &) { return p; }

rows weights_unnormed(const rows &p, const std::vector<int64_t> &ids, bool, float scale) {
    return expert_weights(p, ids, false, scale);
}

rows weights_renormed(const rows &p, const std::vector<int64_t> &ids, bool, float scale) {
    return expert_weights(p, ids, true, scale);
}

rows scale_forgotten(const rows &p, const std::vector<int64_t> &ids, bool normalise, float) {
    return expert_weights(p, ids, normalise, 0);
}

rows groups_by_best(const rows &scores, int64_t n_group) {
    const rows groups = scores.in_rows_of(scores.ne0 / n_group);
    rows best(n_group, scores.ne1);
    for (int64_t g = 0; g < groups.ne1; g++) best.x[size_t(g)] = *std::max_element(groups.row(g), groups.row(g + 1));
    return best;
}

rows shared_ungated(const rows &y, const rows &) { return y; }

rows shared_gated_twice(const rows &y, const rows &logit) { return shared_gate(shared_gate(y, logit), logit); }

rows heads_tiled(const rows &x, int64_t n_k_heads, int64_t n_head) {
    rows out(x.ne0, x.ne1 / n_k_heads * n_head);
    for (int64_t r = 0; r < out.ne1; r++) {
        const int64_t from = r / n_head * n_k_heads + r % n_head % n_k_heads;
        std::copy(x.row(from), x.row(from) + x.ne0, out.row(r));
    }
    return out;
}

void beta_alpha_swapped(const rows &ba, int64_t n_k_heads, rows &beta, rows &alpha) {
    split_beta_alpha(ba, n_k_heads, alpha, beta);
}

void beta_alpha_halves(const rows &ba, int64_t, rows &beta, rows &alpha) {
    beta = ba.columns(0, ba.ne0 / 2);
    alpha = ba.columns(ba.ne0 / 2, ba.ne0 / 2);
}

// ------------------------------------------------------------------------------- A: attention through a latent row

// Pairs (i, i + n_rot / 2).
rows rope_halves(const rows &x, const std::vector<int32_t> &pos, const std::vector<double> &frequencies,
                 double magnitude) {
    const int64_t half = int64_t(frequencies.size());
    rows paired = x;
    for (int64_t r = 0; r < x.ne1; r++)
        for (int64_t i = 0; i < half; i++) {
            paired.row(r)[2 * i] = x.row(r)[i];
            paired.row(r)[2 * i + 1] = x.row(r)[i + half];
        }
    const rows turned = rope_interleaved(paired, pos, frequencies, magnitude);
    rows y = turned;
    for (int64_t r = 0; r < x.ne1; r++)
        for (int64_t i = 0; i < half; i++) {
            y.row(r)[i] = turned.row(r)[2 * i];
            y.row(r)[i + half] = turned.row(r)[2 * i + 1];
        }
    return y;
}

rows rope_inflated(const rows &x, const std::vector<int32_t> &pos, const std::vector<double> &frequencies, double) {
    return rope_interleaved(x, pos, frequencies, 1 + 0.1 * std::log(4.0));  // of the cases' factor
}

float sharpness_forgotten(int64_t n_key, int64_t n_row, double, double, double) {
    return latent_scale(n_key, n_row, 1, 1, 0);
}

float sharpness_once(int64_t n_key, int64_t n_row, double freq_scale, double magnitude, double log_multiplier) {
    const float plain = latent_scale(n_key, n_row, 1, 1, 0);
    return std::sqrt(latent_scale(n_key, n_row, freq_scale, magnitude, log_multiplier) * plain);
}

float scale_of_row(int64_t, int64_t n_row, double freq_scale, double magnitude, double log_multiplier) {
    return latent_scale(n_row, n_row, freq_scale, magnitude, log_multiplier);
}

// The values of each head's matrix as they were before it was transposed.
rows k_b_not_transposed(const tensor &w, const rows &x, bool is_ggml) {
    if (w.type != "F32" || w.dim(1) < w.dim(0)) return head_products(w, x, is_ggml);  // attn_v_b is flat in the cases
    tensor wrong = w;
    const rows right = dequantize(w);
    std::vector<float> values(right.x.size());
    const size_t n_in = size_t(w.dim(0)), n_out = size_t(w.dim(1)), size = n_in * n_out;
    for (size_t i = 0; i < values.size(); i++)
        values[i / size * size + i % n_in * n_out + i / n_in % n_out] = right.x[i];
    return head_products(tensor::of(values, w.ne), x, is_ggml);
}

struct fault {
    const char *id;
    void (*apply)();
};

const fault FAULTS[] = {
    {"W1-norm-shift-missing", [] { step.norm_weight = norm_shift_missing; }},
    {"W2-norm-shift-doubled", [] { step.norm_weight = norm_shift_doubled; }},
    {"G1-concat-swapped", [] { step.mtp_concat = concat_swapped; }},
    {"G2-pre-norm-hidden", [] { step.target_hidden = pre_norm; }},
    {"G4-gate-silu", [] { step.attn_gate = gate_silu; }},
    {"G5b-no-rope", [] { step.rope = no_rope; }},
    {"G6-rope-interleaved", [] { step.rope = rope_interleaved; }},
    {"G6b-rope-all-dims", [] { step.rope = rope_all_dims; }},
    {"G12-l2-eps", [] { step.l2_norm = l2_eps; }},
    {"G13-v-heads-grouped", [] { step.delta_rule = v_heads_grouped; }},
    {"G14-gate-skipped", [] { step.attn_gate = gate_skipped; }},
    {"G13b-v-heads-tiled", [] { step.repeat_heads = heads_tiled; }},
    {"G16-beta-alpha-swapped", [] { step.split_beta_alpha = beta_alpha_swapped; }},
    {"G16b-beta-alpha-halves", [] { step.split_beta_alpha = beta_alpha_halves; }},
    {"E2-selection-unbiased", [] { step.expert_scores = scores_unbiased; }},
    {"E3-weights-unnormed", [] { step.expert_weights = weights_unnormed; }},
    {"E4-softmax-after-selection", [] { step.expert_weights = weights_renormed; }},
    {"E5-scale-forgotten", [] { step.expert_weights = scale_forgotten; }},
    {"E7-sigmoid-router", [] { step.expert_probs = other_gating; }},
    {"E7b-softmax-router", [] { step.expert_probs = other_gating; }},
    {"E8-groups-by-best", [] { step.group_scores = groups_by_best; }},
    {"E9b-shared-ungated", [] { step.shared_gate = shared_ungated; }},
    {"E9c-shared-gated-twice", [] { step.shared_gate = shared_gated_twice; }},
    {"A1b-k-b-not-transposed", [] { step.head_products = k_b_not_transposed; }},
    {"A2b-rope-halves", [] { step.rope_interleaved = rope_halves; }},
    {"A2c-rope-inflated", [] { step.rope_interleaved = rope_inflated; }},
    {"A3-sharpness-forgotten", [] { step.latent_scale = sharpness_forgotten; }},
    {"A3b-sharpness-once", [] { step.latent_scale = sharpness_once; }},
    {"A3c-scale-of-row", [] { step.latent_scale = scale_of_row; }},
    {"C1-chain-pre-norm", [] { step.chain_hidden = pre_norm; }},
    {"C3-last-verify-row", [] { step.pending_row = last_verify_row; }},
    {"C4-same-token-pairing", [] { step.pair_hidden = same_token_pairing; }},
    {"K0-prompt-not-primed", [] { step.prime_rows = not_primed; }},
    {"S2-no-rollback", [] { step.choose_plane = plane_kept<true, true>; step.restore = restore_kept<true, true>; }},
    {"S3-conv-window-kept",
     [] { step.choose_plane = plane_kept<true, false>; step.restore = restore_kept<true, false>; }},
    {"S3b-recurrent-state-kept",
     [] { step.choose_plane = plane_kept<false, true>; step.restore = restore_kept<false, true>; }},
    {"S5-first-plane-read", [] { step.choose_plane = first_plane_read; }},
    {"V1-lax-accept", [] { step.accept = lax_accept; }},
    {"V5-no-residual", [] { step.residual = no_residual; }},
    {"V7-bonus-dropped", [] { step.emitted = bonus_dropped; }},
    {"V9-zero-probability-accepted", [] { step.accept_residual = zero_probability_accepted; }},
    {"V14-eog-passed", [] { step.accept = eog_passed; }},
    {"V21-wrong-verify-row", [] { step.accept = wrong_verify_row; }},
};

}  // namespace

void seed_fault(const std::string &id) {
    std::string known;
    for (const fault &f : FAULTS) {
        if (id == f.id) {
            f.apply();
            return;
        }
        known += std::string(known.empty() ? "" : ", ") + f.id;
    }
    throw error("SEEDED_FAULT: '" + id + "' is unknown, expected one of " + known);
}

}  // namespace port
