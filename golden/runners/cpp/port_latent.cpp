// Attention through a latent row (multi-head latent attention), absorbed and as older files have it: S53 to S58 of
// docs/spec.md, and YaRN's angles for RoPE (S10).
#include <algorithm>

#include "example_port.h"

namespace port {

// ------------------------------------------------------------------------------------------------------------- RoPE

// S10. The pair at which a frequency turns `beta` times over the original context.
static double yarn_pair(const latent_config &cfg, double beta) {
    const double two_pi = 2 * 3.14159265358979323846;
    return double(cfg.n_rot) * std::log(double(cfg.yarn.n_ctx_orig) / (beta * two_pi)) / (2 * std::log(cfg.freq_base));
}

// S10. Angle per position of each pair: base^(-2i / n_rot), times freq_scale save the share that YaRN leaves.
static std::vector<double> frequencies(const latent_config &cfg) {
    const bool is_yarn = cfg.yarn.factor != 0;
    const double low = is_yarn ? std::max(0.0, std::floor(yarn_pair(cfg, 32))) : 0;
    const double high = is_yarn ? std::min(double(cfg.n_rot - 1), std::ceil(yarn_pair(cfg, 1))) : 0;
    std::vector<double> out;
    for (int64_t i = 0; i < cfg.n_rot / 2; i++) {
        const double ramp = (double(i) - low) / std::max(0.001, high - low);
        const double share = is_yarn ? 1 - std::min(1.0, std::max(0.0, ramp)) : 0;
        const double frequency = std::pow(cfg.freq_base, -2.0 * double(i) / double(cfg.n_rot));
        out.push_back(frequency * (double(cfg.freq_scale()) * (1 - share) + share));
    }
    return out;
}

// 1 / factor as a float32.
float latent_config::freq_scale() const { return yarn.factor == 0 ? 1.0f : 1.0f / float(yarn.factor); }

// S10. Of cosine and sine: a multiplier in the file stands for mscale and mscale_all_dim, which cancel.
double latent_config::magnitude() const {
    const bool is_one = yarn.factor == 0 || yarn.log_multiplier != 0;
    return is_one ? 1 : 1 - 0.1 * std::log(double(freq_scale()));
}

// S53. x: rows of one head, all heads of a token before the next token. Pairs (2 i, 2 i + 1); what is behind them passes.
rows rope_interleaved(const rows &x, const std::vector<int32_t> &pos, const std::vector<double> &frequencies,
                      double magnitude) {
    rows y = x;
    const int64_t n_heads = x.ne1 / int64_t(pos.size());
    for (int64_t r = 0; r < x.ne1; r++) {
        for (size_t i = 0; i < frequencies.size(); i++) {
            const double angle = double(pos[size_t(r / n_heads)]) * frequencies[i];
            const float c = float(magnitude * std::cos(angle)), s = float(magnitude * std::sin(angle));
            const float a = x.row(r)[2 * i], b = x.row(r)[2 * i + 1];
            y.row(r)[2 * i] = a * c - b * s;
            y.row(r)[2 * i + 1] = a * s + b * c;
        }
    }
    return y;
}

// S54. What queries are multiplied with; attention divides scores by the root of a row's width.
float latent_scale(int64_t n_key, int64_t n_row, double freq_scale, double magnitude, double log_multiplier) {
    const double sharp = magnitude * (1 - 0.1 * log_multiplier * std::log(freq_scale));
    return float(sharp * sharp * std::sqrt(double(n_row) / double(n_key)));
}

// ----------------------------------------------------------------------------------------------------------- layers

// S56. w: n_head matrices, one after the other; x: rows of one head, n_head a token.
rows head_products(const tensor &w, const rows &x, bool is_ggml) {
    const int64_t n_head = w.dim(2), n_out = w.dim(1);
    rows y(n_out, x.ne1);
    for (int64_t h = 0; h < n_head; h++) {
        rows own(x.ne0, x.ne1 / n_head);
        for (int64_t t = 0; t < own.ne1; t++) std::copy(x.row(t * n_head + h), x.row(t * n_head + h + 1), own.row(t));
        const rows made = step.mul_mat(some_rows(w, h * n_out, n_out), own, is_ggml);
        for (int64_t t = 0; t < own.ne1; t++) std::copy(made.row(t), made.row(t + 1), y.row(t * n_head + h));
    }
    return y;
}

namespace {

struct latent_rows {
    rows q_nope, q_pe;  // rows of one head, n_head a token
    rows c, k_pe;       // a row a token
};

// S55. Each head of q is [nope | rope]; the latent is normed, the turned part of the key is not.
latent_rows latent_input(const weights &w, const latent_config &cfg, const rows &x, const std::vector<int32_t> &pos,
                         bool is_ggml, const tap &see) {
    const auto project = [&](const char *name, const rows &in) { return step.mul_mat(matrix_of(w, name), in, is_ggml); };
    rows q;
    if (w.count("attn_q_a.weight")) {
        const rows low = step.rms_norm(project("attn_q_a.weight", x), vector_of(w, "attn_q_a_norm.weight"), cfg.eps);
        q = project("attn_q_b.weight", low);
    } else {
        q = project("attn_q.weight", x);
    }
    see("q", q);
    const rows both = project("attn_kv_a_mqa.weight", x), heads = q.in_rows_of(cfg.n_key);
    see("kv_cmpr_pe", both);
    const int64_t n_nope = cfg.n_key - cfg.n_rot;
    const std::vector<double> angles = frequencies(cfg);
    latent_rows out;
    out.c = step.rms_norm(both.columns(0, cfg.n_latent), vector_of(w, "attn_kv_a_norm.weight"), cfg.eps);
    see("kv_cmpr", out.c);
    out.k_pe = step.rope_interleaved(both.columns(cfg.n_latent, cfg.n_rot), pos, angles, cfg.magnitude());
    see("k_pe", out.k_pe);
    out.q_nope = heads.columns(0, n_nope);
    out.q_pe = step.rope_interleaved(heads.columns(n_nope, cfg.n_rot), pos, angles, cfg.magnitude());
    see("q_pe", out.q_pe);
    return out;
}

rows scaled(rows q, const latent_config &cfg) {
    const float scale =
        step.latent_scale(cfg.n_key, cfg.n_row(), double(cfg.freq_scale()), cfg.magnitude(), cfg.yarn.log_multiplier);
    for (float &x : q.x) x *= scale;
    return q;
}

void store(rows &cache, rows cells, const std::string &kv_type) {
    for (float &x : cells.x) x = rounded(kv_type, x);
    cache.append(cells);
}

// What the heads gathered, rows of one head, to the residual stream.
rows joined_heads(const weights &w, const latent_config &cfg, const rows &values, bool is_ggml, const tap &see) {
    const rows all = values.in_rows_of(cfg.n_head * cfg.n_value);
    see("kqv_out", all);
    const rows y = step.mul_mat(matrix_of(w, "attn_output.weight"), all, is_ggml);
    see("attn_output", y);
    return y;
}

// Rows with zeros behind them.
rows filled(const rows &x, int64_t width) { return x.ne0 == width ? x : beside(x, rows(width - x.ne0, x.ne1)); }

// S57. A cell is one row [c | k_pe] for all heads, and a value is its first n_latent values.
rows absorbed_layer(const weights &w, const latent_config &cfg, const rows &x, rows &cells, const std::string &kv_type,
                    const std::vector<int32_t> &pos, bool is_ggml, const tap &see) {
    const latent_rows in = latent_input(w, cfg, x, pos, is_ggml, see);
    const rows absorbed = step.head_products(matrix_of(w, "attn_k_b.weight"), in.q_nope, is_ggml);
    see("q_nope_absorbed_perm", absorbed);
    const rows q = beside(absorbed, in.q_pe), k = beside(in.c, in.k_pe);
    see("Qcur", q);
    see("Kcur", k);
    store(cells, k, kv_type);
    const rows queries = scaled(q, cfg).in_rows_of(cfg.n_head * cfg.n_row());
    const rows gathered = step.attention(queries, cells, cells, kv_type, cfg.n_head, 1).in_rows_of(cfg.n_row());
    const rows latents = gathered.columns(0, cfg.n_latent);
    return joined_heads(w, cfg, step.head_products(matrix_of(w, "attn_v_b.weight"), latents, is_ggml), is_ggml, see);
}

// S58. Every head's key and value are kept, those of the narrower kind filled up with zeros.
rows expanded_layer(const weights &w, const latent_config &cfg, const rows &x, rows &k_cache, rows &v_cache,
                    const std::string &kv_type, const std::vector<int32_t> &pos, bool is_ggml, const tap &see) {
    const latent_rows in = latent_input(w, cfg, x, pos, is_ggml, see);
    const int64_t n_nope = cfg.n_key - cfg.n_rot, width = cfg.n_row();
    const rows kv = step.mul_mat(matrix_of(w, "attn_kv_b.weight"), in.c, is_ggml);
    see("kv", kv);
    const rows heads = kv.in_rows_of(n_nope + cfg.n_value), v = heads.columns(n_nope, cfg.n_value);
    rows shared(cfg.n_rot, heads.ne1);
    for (int64_t r = 0; r < shared.ne1; r++)
        std::copy(in.k_pe.row(r / cfg.n_head), in.k_pe.row(r / cfg.n_head + 1), shared.row(r));
    const rows q = beside(in.q_nope, in.q_pe), k = beside(heads.columns(0, n_nope), shared);
    see("Qcur", q);
    see("Kcur", k);
    see("Vcur", v);
    store(k_cache, filled(k, width).in_rows_of(cfg.n_head * width), kv_type);
    store(v_cache, filled(v, width).in_rows_of(cfg.n_head * width), kv_type);
    const rows queries = filled(scaled(q, cfg), width).in_rows_of(cfg.n_head * width);
    const rows gathered = step.attention(queries, k_cache, v_cache, kv_type, cfg.n_head, cfg.n_head);
    return joined_heads(w, cfg, gathered.in_rows_of(width).columns(0, cfg.n_value), is_ggml, see);
}

}  // namespace

rows latent_layer(const weights &w, const latent_config &cfg, const rows &x, rows &k_cache, rows &v_cache,
                  const std::string &kv_type, const std::vector<int32_t> &pos, bool is_ggml, const tap &see) {
    if (cfg.is_absorbed) return absorbed_layer(w, cfg, x, k_cache, kv_type, pos, is_ggml, see);
    return expanded_layer(w, cfg, x, k_cache, v_cache, kv_type, pos, is_ggml, see);
}

}  // namespace port
