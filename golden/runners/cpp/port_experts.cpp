// Experts and what comes with them: the router, experts' networks, attention without a gate, projections that are laid
// out head by head: S41 to S51 of docs/spec.md.
#include <algorithm>
#include <numeric>

#include "example_port.h"

namespace port {

static float sigmoid(float x) { return float(1 / (1 + std::exp(-double(x)))); }

// ----------------------------------------------------------------------------------------------------------- router

static float sqrt_softplus(float x) {
    return float(std::sqrt(std::max(double(x), 0.0) + std::log1p(std::exp(-std::fabs(double(x))))));
}

// S41. A softmax over all experts, or of each a sigmoid or the square root of softplus.
rows expert_probs(const rows &logits, const std::string &gating) {
    rows p = logits;
    for (int64_t t = 0; t < p.ne1; t++) {
        float *row = p.row(t);
        if (gating == "sigmoid") {
            for (int64_t e = 0; e < p.ne0; e++) row[e] = sigmoid(row[e]);
            continue;
        }
        if (gating == "sqrt_softplus") {
            for (int64_t e = 0; e < p.ne0; e++) row[e] = sqrt_softplus(row[e]);
            continue;
        }
        const double best = *std::max_element(row, row + p.ne0);
        std::vector<double> exps;
        for (int64_t e = 0; e < p.ne0; e++) exps.push_back(std::exp(double(row[e]) - best));
        const double total = std::accumulate(exps.begin(), exps.end(), 0.0);
        for (int64_t e = 0; e < p.ne0; e++) row[e] = float(exps[size_t(e)] / total);
    }
    return p;
}

// S42. The bias serves the choice alone. An empty bias: the model has none.
rows expert_scores(const rows &p, const std::vector<float> &bias) {
    rows scores = p;
    for (size_t i = 0; i < bias.size() * size_t(p.ne1); i++) scores.x[i] += bias[i % bias.size()];
    return scores;
}

// S43. The sum of the two best of each group of neighbours.
rows group_scores(const rows &scores, int64_t n_group) {
    rows out = scores.in_rows_of(scores.ne0 / n_group);
    rows sums(n_group, scores.ne1);
    for (int64_t g = 0; g < out.ne1; g++) {
        std::sort(out.row(g), out.row(g) + out.ne0, std::greater<float>());
        sums.x[size_t(g)] = out.row(g)[0] + out.row(g)[1];
    }
    return sums;
}

// S43. Every score outside of the groups that were chosen at -infinity. groups: those of token after token.
rows limit_groups(const rows &scores, const std::vector<int64_t> &groups, int64_t n_group) {
    rows out = scores;
    const int64_t size = scores.ne0 / n_group, n_used = int64_t(groups.size()) / scores.ne1;
    for (int64_t t = 0; t < scores.ne1; t++) {
        const auto first = groups.begin() + t * n_used;
        for (int64_t e = 0; e < scores.ne0; e++)
            if (std::find(first, first + n_used, e / size) == first + n_used) out.row(t)[e] = -INFINITY;
    }
    return out;
}

// S44. The greatest scores, the best first, the lower id among equals; token after token.
std::vector<int64_t> select_experts(const rows &scores, int64_t n_used) {
    std::vector<int64_t> chosen;
    for (int64_t t = 0; t < scores.ne1; t++) {
        const float *row = scores.row(t);
        std::vector<int64_t> ids(static_cast<size_t>(scores.ne0));
        std::iota(ids.begin(), ids.end(), 0);
        std::stable_sort(ids.begin(), ids.end(), [&](int64_t a, int64_t b) { return row[a] > row[b]; });
        chosen.insert(chosen.end(), ids.begin(), ids.begin() + std::min(n_used, scores.ne0));
    }
    return chosen;
}

// S45. p of each chosen expert, divided by their sum (at least 2^-14) where that is asked for, then scaled.
rows expert_weights(const rows &p, const std::vector<int64_t> &ids, bool normalise, float scale) {
    rows w(int64_t(ids.size()) / p.ne1, p.ne1);
    for (int64_t t = 0; t < p.ne1; t++) {
        double total = 0;
        for (int64_t i = 0; i < w.ne0; i++) total += w.row(t)[i] = p.row(t)[ids[size_t(t * w.ne0 + i)]];
        const float divisor = normalise ? std::max(float(total), 6.103515625e-5f) : 1.0f;
        for (int64_t i = 0; i < w.ne0; i++) w.row(t)[i] = w.row(t)[i] / divisor * (scale == 0.0f ? 1.0f : scale);
    }
    return w;
}

// ---------------------------------------------------------------------------------------------------------- experts

// S46. results: n_used rows a token, in the order of the choice. Times their weights, added up in that order.
rows sum_experts(const rows &results, const rows &w) {
    rows y(results.ne0, w.ne1);
    for (int64_t r = 0; r < results.ne1; r++)
        for (int64_t i = 0; i < y.ne0; i++) y.row(r / w.ne0)[i] += results.row(r)[i] * w.x[size_t(r)];
    return y;
}

// S47. One logit a token.
rows shared_gate(const rows &y, const rows &logit) {
    rows out = y;
    for (int64_t t = 0; t < y.ne1; t++)
        for (int64_t i = 0; i < y.ne0; i++) out.row(t)[i] *= sigmoid(logit.x[size_t(t)]);
    return out;
}

static const tensor *find(const weights &w, const std::string &name) {
    const auto found = w.find(name);
    return found == w.end() ? nullptr : &found->second;
}

// Rows first .. first + n - 1 of a tensor, as a matrix.
tensor some_rows(const tensor &w, int64_t first, int64_t n) {
    const uint64_t bytes = golden::row_bytes(w.type, w.dim(0));
    tensor part;
    part.type = w.type;
    part.ne = {w.dim(0), n};
    const auto begin = w.data.begin() + int64_t(uint64_t(first) * bytes);
    part.data.assign(begin, begin + int64_t(uint64_t(n) * bytes));
    return part;
}

// The rows that expert e has in a stack (ne: n_in, n_out, n_expert), or a part of them.
static tensor expert_of(const tensor &stack, int64_t e, int64_t first, int64_t n) {
    return some_rows(stack, e * stack.dim(1) + first, n);
}

// S48. The router of some rows.
routing route(const weights &w, const moe_config &cfg, const rows &x, bool is_ggml, const tap &see) {
    const rows logits = step.mul_mat(matrix_of(w, "ffn_gate_inp.weight"), x, is_ggml);
    see("ffn_moe_logits", logits);
    const rows p = step.expert_probs(logits, cfg.gating);
    see("ffn_moe_probs", p);
    const tensor *bias = find(w, "exp_probs_b.bias");
    if (!bias) bias = find(w, "exp_probs_b");
    rows scores = step.expert_scores(p, bias ? rows_of(*bias).x : std::vector<float>());
    if (cfg.n_group > 1) {
        const std::vector<int64_t> groups = select_experts(step.group_scores(scores, cfg.n_group), cfg.n_group_used);
        scores = step.limit_groups(scores, groups, cfg.n_group);
    }
    routing out;
    out.ids = select_experts(scores, cfg.n_used);
    out.w = step.expert_weights(p, out.ids, cfg.normalise, cfg.scale);
    see("ffn_moe_weights", out.w);
    return out;
}

// S48. Gate and up of an expert may lie in one stack, the gate's rows first.
static rows one_expert(const weights &w, int64_t e, const rows &x, bool is_ggml) {
    const tensor *both = find(w, "ffn_gate_up_exps.weight");
    const tensor &down = matrix_of(w, "ffn_down_exps.weight");
    const tensor &gates = both ? *both : matrix_of(w, "ffn_gate_exps.weight");
    const tensor &ups = both ? *both : matrix_of(w, "ffn_up_exps.weight");
    const int64_t n_ff = down.dim(0);
    const rows gate = step.mul_mat(expert_of(gates, e, 0, n_ff), x, is_ggml);
    const rows up = step.mul_mat(expert_of(ups, e, both ? n_ff : 0, n_ff), x, is_ggml);
    return step.mul_mat(expert_of(down, e, 0, down.dim(1)), swiglu(gate, up), is_ggml);
}

static rows shared_expert(const weights &w, const rows &x, bool is_ggml, const tap &see) {
    const rows gate = step.mul_mat(matrix_of(w, "ffn_gate_shexp.weight"), x, is_ggml);
    const rows up = step.mul_mat(matrix_of(w, "ffn_up_shexp.weight"), x, is_ggml);
    const rows y = step.mul_mat(matrix_of(w, "ffn_down_shexp.weight"), swiglu(gate, up), is_ggml);
    see("ffn_shexp", y);
    const tensor *inp = find(w, "ffn_gate_inp_shexp.weight");
    if (!inp) return y;
    return step.shared_gate(y, step.mul_mat(some_rows(*inp, 0, 1), x, is_ggml));
}

// S48. Experts token by token in the order of the choice, then the shared expert.
rows moe_ffn(const weights &w, const moe_config &cfg, const rows &x, bool is_ggml, routing &chosen, const tap &see) {
    chosen = route(w, cfg, x, is_ggml, see);
    rows results;
    for (size_t i = 0; i < chosen.ids.size(); i++) {
        const int64_t t = int64_t(i) / chosen.w.ne0;
        results.append(one_expert(w, chosen.ids[i], x.part(t, t + 1), is_ggml));
    }
    rows y = sum_experts(results, chosen.w);
    see("ffn_moe_out", y);
    if (w.count("ffn_up_shexp.weight")) {
        const rows shared = shared_expert(w, x, is_ggml, see);
        for (size_t i = 0; i < y.x.size(); i++) y.x[i] += shared.x[i];
    }
    see("ffn_out", y);
    return y;
}

// ------------------------------------------------------------------------------------------------------ projections

// S49.
rows add_bias(const rows &y, const std::vector<float> &bias) {
    rows out = y;
    for (size_t i = 0; i < out.x.size(); i++) out.x[i] += bias[i % bias.size()];
    return out;
}

// S50. x: rows of one head, H_k a token. Head h of n_head is head h / (n_head / H_k).
rows repeat_heads(const rows &x, int64_t n_k_heads, int64_t n_head) {
    rows out(x.ne0, x.ne1 / n_k_heads * n_head);
    for (int64_t r = 0; r < out.ne1; r++) {
        const int64_t from = r / n_head * n_k_heads + r % n_head / (n_head / n_k_heads);
        std::copy(x.row(from), x.row(from) + x.ne0, out.row(r));
    }
    return out;
}

// S51. For each key head its r betas, then its r alphas.
void split_beta_alpha(const rows &ba, int64_t n_k_heads, rows &beta, rows &alpha) {
    const int64_t r = ba.ne0 / 2 / n_k_heads;
    const rows groups = ba.in_rows_of(2 * r);
    beta = groups.columns(0, r).in_rows_of(ba.ne0 / 2);
    alpha = groups.columns(r, r).in_rows_of(ba.ne0 / 2);
}

// S51. For each key head [q S | k S | v r S | z r S]. Out: all q, all k, all v; and z.
void split_qkvz(const rows &x, int64_t n_k_heads, int64_t size, rows &qkv, rows &z) {
    const rows groups = x.in_rows_of(x.ne0 / n_k_heads);
    const int64_t wide = (groups.ne0 - 2 * size) / 2, at[] = {0, size, 2 * size, 2 * size + wide};
    const int64_t width[] = {size, size, wide, wide};
    qkv = rows(0, x.ne1);
    for (int part = 0; part < 4; part++) {
        const rows own = groups.columns(at[part], width[part]).in_rows_of(width[part] * n_k_heads);
        if (part == 3) z = own;
        else qkv = beside(qkv, own);
    }
}

// The rows of a beside those of b.
rows beside(const rows &a, const rows &b) {
    rows y(a.ne0 + b.ne0, b.ne1);
    for (int64_t t = 0; t < y.ne1; t++) {
        std::copy(a.row(t), a.row(t) + a.ne0, y.row(t));
        std::copy(b.row(t), b.row(t) + b.ne0, y.row(t) + a.ne0);
    }
    return y;
}

// attn_qkv of attention without a gate as three projections: rows q, then k, then v.
void split_attn_qkv(weights &w, const attn_config &cfg) {
    const int64_t n_q = cfg.n_head * cfg.n_embd_head, n_kv = cfg.n_head_kv * cfg.n_embd_head;
    const int64_t first[] = {0, n_q, n_q + n_kv}, n[] = {n_q, n_kv, n_kv};
    for (int part = 0; part < 3; part++) {
        const std::string name = std::string("attn_") + "qkv"[part];
        if (const tensor *fused = find(w, "attn_qkv.weight"))
            w[name + ".weight"] = some_rows(*fused, first[part], n[part]);
        if (const tensor *fused = find(w, "attn_qkv.bias")) {
            const std::vector<float> all = rows_of(*fused).x;
            const std::vector<float> own(all.begin() + first[part], all.begin() + first[part] + n[part]);
            w[name + ".bias"] = tensor::of(own, {n[part]});
        }
    }
    w.erase("attn_qkv.weight");
    w.erase("attn_qkv.bias");
}

// S6, S49, S8, S10, S15, S16, S6: biases and norms where their weights are there.
rows plain_attn_layer(const weights &w, const attn_config &cfg, const rows &x, rows &k_cache, rows &v_cache,
                      const std::string &kv_type, const std::vector<int32_t> &pos, bool is_ggml, const tap &see) {
    rows part[3];
    for (int i = 0; i < 3; i++) {
        const std::string name = std::string("attn_") + "qkv"[i];
        part[i] = step.mul_mat(matrix_of(w, name + ".weight"), x, is_ggml);
        if (w.count(name + ".bias")) part[i] = step.add_bias(part[i], vector_of(w, name + ".bias"));
    }
    rows &q = part[0], &k = part[1], &v = part[2];
    see("Vcur", v);
    if (w.count("attn_q_norm.weight")) q = step.rms_norm(q, vector_of(w, "attn_q_norm.weight"), cfg.eps);
    if (w.count("attn_k_norm.weight")) k = step.rms_norm(k, vector_of(w, "attn_k_norm.weight"), cfg.eps);
    see("Qcur_normed", q);
    see("Kcur_normed", k);
    q = step.rope(q.in_rows_of(cfg.n_embd_head), pos, cfg.rope).in_rows_of(q.ne0);
    k = step.rope(k.in_rows_of(cfg.n_embd_head), pos, cfg.rope).in_rows_of(k.ne0);
    see("Qcur", q);
    see("Kcur", k);
    for (float &value : k.x) value = rounded(kv_type, value);
    for (float &value : v.x) value = rounded(kv_type, value);
    k_cache.append(k);
    v_cache.append(v);
    const rows out = step.attention(q, k_cache, v_cache, kv_type, cfg.n_head, cfg.n_head_kv);
    see("kqv_out", out);
    const rows y = step.mul_mat(matrix_of(w, "attn_output.weight"), out, is_ggml);
    see("attn_output", y);
    return y;
}

}  // namespace port
