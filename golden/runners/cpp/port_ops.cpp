// The operations that layers are made of, and three layers: S8 to S22 of docs/spec.md.
#include <algorithm>
#include <numeric>

#include "example_port.h"

namespace port {

// ------------------------------------------------------------------------------------------------------------- rows

rows rows::in_rows_of(int64_t n) const {
    rows out = *this;
    out.ne0 = n;
    out.ne1 = ne0 * ne1 / n;
    return out;
}

rows rows::part(int64_t first, int64_t last) const {
    rows out(ne0, last - first);
    std::copy(row(first), row(last), out.x.begin());
    return out;
}

rows rows::columns(int64_t first, int64_t n) const {
    rows out(n, ne1);
    for (int64_t t = 0; t < ne1; t++) std::copy(row(t) + first, row(t) + first + n, out.row(t));
    return out;
}

void rows::append(const rows &more) {
    ne0 = more.ne0;
    ne1 += more.ne1;
    x.insert(x.end(), more.x.begin(), more.x.end());
}

rows rows_of(const tensor &t) {
    if (t.type != "F32") throw error("a tensor of type " + t.type + ", expected F32");
    return dequantize(t);
}

const tensor &matrix_of(const weights &w, const std::string &name) {
    const auto found = w.find(name);
    if (found == w.end()) throw error("tensor " + name + " is missing");
    return found->second;
}

std::vector<float> vector_of(const weights &w, const std::string &name) { return rows_of(matrix_of(w, name)).x; }

static double dot(const float *a, const float *b, int64_t n) {
    double sum = 0;
    for (int64_t i = 0; i < n; i++) sum += double(a[i]) * double(b[i]);
    return sum;
}

static float sigmoid(float x) { return float(1 / (1 + std::exp(-double(x)))); }
static float silu(float x) { return float(double(x) / (1 + std::exp(-double(x)))); }
static float softplus(float x) { return x > 20 ? x : float(std::log1p(std::exp(double(x)))); }

// ------------------------------------------------------------------------------------------------------------ norms

// S8. x / sqrt(mean(x^2) + eps) * weight, over each row.
rows rms_norm(const rows &x, const std::vector<float> &weight, float eps) {
    const int64_t n = int64_t(weight.size());
    rows y = x.in_rows_of(n);
    for (int64_t t = 0; t < y.ne1; t++) {
        float *row = y.row(t);
        const float scale = float(1 / std::sqrt(dot(row, row, n) / double(n) + double(eps)));
        for (int64_t i = 0; i < n; i++) row[i] = row[i] * scale * weight[size_t(i)];
    }
    return y.in_rows_of(x.ne0);
}

// S9. x / sqrt(sum(x^2) + eps): eps is inside the root and is not multiplied by n.
rows l2_norm(const rows &x, float eps) {
    rows y = x;
    for (int64_t t = 0; t < y.ne1; t++) {
        const float scale = float(1 / std::sqrt(dot(y.row(t), y.row(t), y.ne0) + double(eps)));
        for (int64_t i = 0; i < y.ne0; i++) y.row(t)[i] *= scale;
    }
    return y;
}

// ------------------------------------------------------------------------------------------------------------- RoPE

// S10. Whether a pair turns with the text position: interleaved sections, of which text fills the first three axes.
static bool has_position(int64_t pair, const std::vector<int64_t> &sections) {
    if (sections.empty()) return true;
    const int64_t total = std::max<int64_t>(1, std::accumulate(sections.begin(), sections.end(), int64_t(0)));
    const int64_t s = pair % total;
    return s < 3 * sections.at(size_t(s % 3));
}

// S10. x: rows of one head, all heads of a token before the next token. Pairs (i, i + n_rot/2); what is behind n_rot
// passes through.
rows rope(const rows &x, const std::vector<int32_t> &pos, const rope_params &p) {
    rows y = x;
    const int64_t half = p.n_rot / 2, n_heads = x.ne1 / int64_t(pos.size());
    for (int64_t r = 0; r < x.ne1; r++) {
        for (int64_t i = 0; i < half; i++) {
            const double exponent = -2.0 * double(i) / double(p.n_rot);
            const double frequency = has_position(i, p.sections) ? std::pow(p.freq_base, exponent) : 0.0;
            const double angle = double(pos[size_t(r / n_heads)]) * frequency;
            const float c = float(std::cos(angle)), s = float(std::sin(angle));
            const float a = x.row(r)[i], b = x.row(r)[i + half];
            y.row(r)[i] = a * c - b * s;
            y.row(r)[i + half] = a * s + b * c;
        }
    }
    return y;
}

// --------------------------------------------------------------------------------------------------------- DeltaNet

// S11. window: (C, d_conv - 1 + T) raw rows, oldest first; weight: (d_conv, C). Causal, depthwise, then silu.
rows conv_silu(const rows &window, const rows &weight) {
    const int64_t d_conv = weight.ne0, n_tokens = window.ne1 - (d_conv - 1);
    rows y(window.ne0, n_tokens);
    for (int64_t t = 0; t < n_tokens; t++) {
        for (int64_t c = 0; c < y.ne0; c++) {
            double sum = 0;
            for (int64_t j = 0; j < d_conv; j++) sum += double(window.row(t + j)[c]) * double(weight.row(c)[j]);
            y.row(t)[c] = silu(float(sum));
        }
    }
    return y;
}

// S12. g = softplus(alpha + dt_bias) * ssm_a, a natural logarithm below 0; beta' = sigmoid(beta).
void delta_gates(const rows &alpha, const rows &beta, const std::vector<float> &dt_bias,
                 const std::vector<float> &ssm_a, rows &g, rows &beta_sigmoid) {
    g = alpha;
    beta_sigmoid = beta;
    for (size_t i = 0; i < g.x.size(); i++) {
        const size_t h = i % dt_bias.size();
        g.x[i] = softplus(alpha.x[i] + dt_bias[h]) * ssm_a[h];
        beta_sigmoid.x[i] = sigmoid(beta.x[i]);
    }
}

// S13. One token: M = exp(g) M; d_j = (v_j - M_j . k) beta; M_j += d_j k; o_j = M_j . q / sqrt(S).
static void delta_step(const float *q, const float *k, const float *v, float g, float beta, int64_t size, float *m,
                       float *o) {
    const float decay = float(std::exp(double(g))), scale = float(1 / std::sqrt(double(size)));
    for (int64_t j = 0; j < size; j++) {
        float *row = m + j * size;
        for (int64_t i = 0; i < size; i++) row[i] *= decay;
        const float d = (v[j] - float(dot(row, k, size))) * beta;
        for (int64_t i = 0; i < size; i++) row[i] += d * k[i];
        o[j] = float(dot(row, q, size)) * scale;
    }
}

// S13. q, k: rows of S, H_k a token; v: rows of S, H_v a token; state: row h * S + j is M_j of v-head h. v-head h reads
// q- and k-head h % H_k.
delta_states delta_rule(const rows &q, const rows &k, const rows &v, const rows &g, const rows &beta, rows state,
                        int64_t n_k_heads, int64_t keep) {
    const int64_t size = v.ne0, n_v_heads = g.ne0, n_tokens = g.ne1;
    delta_states out;
    out.o = rows(size * n_v_heads, n_tokens);
    for (int64_t t = 0; t < n_tokens; t++) {
        for (int64_t h = 0; h < n_v_heads; h++) {
            const int64_t kh = t * n_k_heads + h % n_k_heads;
            delta_step(q.row(kh), k.row(kh), v.row(t * n_v_heads + h), g.row(t)[h], beta.row(t)[h], size,
                       state.row(h * size), out.o.row(t) + h * size);
        }
        if (t >= n_tokens - keep) out.states.push_back(state);
    }
    return out;
}

// S14. rms_norm of each head, times silu(z).
rows gated_norm(const rows &o, const rows &z, const std::vector<float> &weight, float eps) {
    rows y = step.rms_norm(o, weight, eps);
    for (size_t i = 0; i < y.x.size(); i++) y.x[i] *= silu(z.x[i]);
    return y;
}

// -------------------------------------------------------------------------------------------------------- attention

// S15. The block of each head is [query | gate].
void split_q_gate(const rows &q_full, int64_t n_head, rows &q, rows &gate) {
    const int64_t size = q_full.ne0 / (2 * n_head);
    const rows blocks = q_full.in_rows_of(2 * size);
    q = blocks.columns(0, size).in_rows_of(size * n_head);
    gate = blocks.columns(size, size).in_rows_of(size * n_head);
}

// S16. Causal attention of the last T cells. q: (D * n_head, T); k, v: (D * n_head_kv, cells), as stored.
rows attention(const rows &q, const rows &k, const rows &v, const std::string &kv_type, int64_t n_head,
               int64_t n_head_kv) {
    const int64_t size = q.ne0 / n_head, first = k.ne1 - q.ne1;
    const float scale = float(1 / std::sqrt(double(size)));
    rows out(q.ne0, q.ne1);
    for (int64_t t = 0; t < q.ne1; t++) {
        for (int64_t h = 0; h < n_head; h++) {
            const int64_t kv = h / (n_head / n_head_kv) * size, n_cells = first + t + 1;
            std::vector<float> query(q.row(t) + h * size, q.row(t) + (h + 1) * size);
            for (float &x : query) x = rounded(kv_type, x);  // the query meets the cells in their type
            std::vector<double> e(static_cast<size_t>(n_cells));
            for (int64_t j = 0; j < n_cells; j++)
                e[size_t(j)] = double(float(dot(query.data(), k.row(j) + kv, size)) * scale);
            const double best = *std::max_element(e.begin(), e.end());
            double total = 0;
            for (double &x : e) total += x = std::exp(x - best);
            for (int64_t i = 0; i < size; i++) {
                double sum = 0;
                for (int64_t j = 0; j < n_cells; j++) sum += e[size_t(j)] * double(v.row(j)[kv + i]);
                out.row(t)[h * size + i] = float(sum / total);
            }
        }
    }
    return out;
}

// S17. o * sigmoid(gate): sigmoid, not silu, and before the output projection.
rows attn_gate(const rows &o, const rows &gate) {
    rows y = o;
    for (size_t i = 0; i < y.x.size(); i++) y.x[i] *= sigmoid(gate.x[i]);
    return y;
}

// S18. silu(gate) * up.
rows swiglu(const rows &gate, const rows &up) {
    rows y = up;
    for (size_t i = 0; i < y.x.size(); i++) y.x[i] *= silu(gate.x[i]);
    return y;
}

// -------------------------------------------------------------------------------------------------- the MTP's input

// S19. [normalised embedding ; normalised hidden], the embedding first.
rows mtp_concat(const rows &enorm, const rows &hnorm) {
    rows y(enorm.ne0 + hnorm.ne0, enorm.ne1);
    for (int64_t t = 0; t < y.ne1; t++) {
        std::copy(enorm.row(t), enorm.row(t) + enorm.ne0, y.row(t));
        std::copy(hnorm.row(t), hnorm.row(t) + hnorm.ne0, y.row(t) + enorm.ne0);
    }
    return y;
}

// S20. Position p takes the hidden row of p - 1: the batch's rows shifted down by one behind the pending row.
rows pair_hidden(const rows &hidden, const std::vector<float> &pending) {
    rows y(hidden.ne0, 1);
    y.x = pending;
    y.append(hidden.part(0, hidden.ne1 - 1));
    return y;
}

// ---------------------------------------------------------------------------------------------------------- choices

// S21. The greatest logit, the lowest id among equals; a NaN never wins.
int64_t argmax(const float *logits, int64_t n) {
    int64_t best = -1;
    for (int64_t i = 0; i < n; i++)
        if (!std::isnan(logits[i]) && (best < 0 || logits[i] > logits[best])) best = i;
    return std::max<int64_t>(best, 0);
}

// S22. The ten greatest logits, ties by lower id; probabilities over these ten only.
candidates top_candidates(const float *logits, int64_t n) {
    std::vector<float> clean(logits, logits + n);
    for (float &x : clean)
        if (std::isnan(x)) x = -INFINITY;
    candidates out;
    out.ids.resize(size_t(n));
    std::iota(out.ids.begin(), out.ids.end(), 0);
    std::stable_sort(out.ids.begin(), out.ids.end(),
                     [&](int64_t a, int64_t b) { return clean[size_t(a)] > clean[size_t(b)]; });
    out.ids.resize(size_t(std::min<int64_t>(10, n)));
    double total = 0;
    for (int64_t id : out.ids) {
        out.p.push_back(std::exp(double(clean[size_t(id)]) - double(clean[size_t(out.ids[0])])));
        total += out.p.back();
    }
    for (double &p : out.p) p /= total;
    return out;
}

// ----------------------------------------------------------------------------------------------------------- layers

// S51, S6, S11, S9, S50, S12, S13, S14, S6. conv: the raw rows before the batch; state as in delta_rule.
delta_result delta_layer(const weights &w, const delta_config &cfg, const rows &x, const rows &conv, const rows &state,
                         int64_t keep, bool is_ggml, const tap &see) {
    const int64_t n_k = cfg.n_k_heads * cfg.d_state, n_v = cfg.n_v_heads * cfg.d_state;

    const auto project = [&](const char *name) { return step.mul_mat(matrix_of(w, name), x, is_ggml); };
    rows qkv, z, beta, alpha;
    if (w.count("ssm_in.weight")) {
        split_qkvz(project("ssm_in.weight"), cfg.n_k_heads, cfg.d_state, qkv, z);
    } else {
        qkv = project("attn_qkv.weight");
        z = project("attn_gate.weight");
    }
    if (w.count("ssm_ba.weight")) {
        step.split_beta_alpha(project("ssm_ba.weight"), cfg.n_k_heads, beta, alpha);
    } else {
        beta = project("ssm_beta.weight");
        alpha = project("ssm_alpha.weight");
    }
    see("linear_attn_qkv_mixed", qkv);
    see("z", z);

    see("conv_states", conv);
    rows window = conv;
    window.append(qkv);
    const rows mixed = step.conv_silu(window, rows_of(matrix_of(w, "ssm_conv1d.weight")));
    see("conv_output_silu", mixed);

    rows q = step.l2_norm(mixed.columns(0, n_k).in_rows_of(cfg.d_state), cfg.eps);
    rows k = step.l2_norm(mixed.columns(n_k, n_k).in_rows_of(cfg.d_state), cfg.eps);
    const rows v = mixed.columns(2 * n_k, n_v).in_rows_of(cfg.d_state);
    see("q_conv_predelta", q);
    see("k_conv_predelta", k);
    see("v_conv_predelta", v);
    int64_t n_k_heads = cfg.n_k_heads;
    if (cfg.is_grouped) {
        q = step.repeat_heads(q, n_k_heads, cfg.n_v_heads);
        k = step.repeat_heads(k, n_k_heads, cfg.n_v_heads);
        n_k_heads = cfg.n_v_heads;
    }

    rows g, beta_sigmoid;
    delta_gates(alpha, beta, vector_of(w, "ssm_dt.bias"), vector_of(w, "ssm_a"), g, beta_sigmoid);
    see("gate", g);
    see("beta_sigmoid", beta_sigmoid);
    see("state_predelta", state);
    delta_states recurrent = step.delta_rule(q, k, v, g, beta_sigmoid, state, n_k_heads, keep);
    see("attn_output", recurrent.o);
    see("new_state", recurrent.states.back());

    const rows normed = gated_norm(recurrent.o, z, vector_of(w, "ssm_norm.weight"), cfg.eps);
    see("final_output", normed);
    delta_result out;
    out.y = step.mul_mat(matrix_of(w, "ssm_out.weight"), normed, is_ggml);
    see("linear_attn_out", out.y);
    for (int64_t end = window.ne1 - keep + 1; end <= window.ne1; end++)
        out.conv.push_back(window.part(end - conv.ne1, end));
    out.states = std::move(recurrent.states);
    return out;
}

// S6, S15, S8, S10, S15, S16, S17, S6.
rows attn_layer(const weights &w, const attn_config &cfg, const rows &x, rows &k_cache, rows &v_cache,
                const std::string &kv_type, const std::vector<int32_t> &pos, bool is_ggml, const tap &see) {
    const int64_t size = cfg.n_embd_head;
    const rows q_full = step.mul_mat(matrix_of(w, "attn_q.weight"), x, is_ggml);
    rows k = step.mul_mat(matrix_of(w, "attn_k.weight"), x, is_ggml);
    rows v = step.mul_mat(matrix_of(w, "attn_v.weight"), x, is_ggml);
    see("Qcur_full", q_full);
    see("Vcur", v);

    rows q, gate;
    split_q_gate(q_full, cfg.n_head, q, gate);
    q = step.rms_norm(q, vector_of(w, "attn_q_norm.weight"), cfg.eps);
    k = step.rms_norm(k, vector_of(w, "attn_k_norm.weight"), cfg.eps);
    see("Qcur_normed", q);
    see("Kcur_normed", k);
    see("gate_reshaped", gate);
    q = step.rope(q.in_rows_of(size), pos, cfg.rope).in_rows_of(q.ne0);
    k = step.rope(k.in_rows_of(size), pos, cfg.rope).in_rows_of(k.ne0);
    see("Qcur", q);
    see("Kcur", k);

    for (float &value : k.x) value = rounded(kv_type, value);
    for (float &value : v.x) value = rounded(kv_type, value);
    k_cache.append(k);
    v_cache.append(v);
    const rows out = step.attention(q, k_cache, v_cache, kv_type, cfg.n_head, cfg.n_head_kv);
    see("attn_pregate", out);

    const rows gated = step.attn_gate(out, gate);
    see("attn_gated", gated);
    const rows y = step.mul_mat(matrix_of(w, "attn_output.weight"), gated, is_ggml);
    see("attn_output", y);
    return y;
}

// S6, S18, S6.
rows ffn(const weights &w, const rows &x, bool is_ggml, const tap &see) {
    const rows gate = step.mul_mat(matrix_of(w, "ffn_gate.weight"), x, is_ggml);
    const rows up = step.mul_mat(matrix_of(w, "ffn_up.weight"), x, is_ggml);
    see("ffn_gate", gate);
    see("ffn_up", up);
    const rows hidden = swiglu(gate, up);
    see("ffn_swiglu", hidden);
    const rows y = step.mul_mat(matrix_of(w, "ffn_down.weight"), hidden, is_ggml);
    see("ffn_out", y);
    return y;
}

}  // namespace port
