// The example port's run_case: one small function an operation, from the names of the golden cases to plain calls.
// Another engine keeps this shape and puts its own calls in.
#include <algorithm>
#include <cstdlib>

#include "example_port.h"

namespace port {

steps step = {
    mul_mat,         rms_norm,   l2_norm,      rope,       conv_silu,
    delta_rule,      attention,  attn_gate,    mtp_concat, pair_hidden,
    [](const std::string &, std::vector<float> weight) { return weight; },
    [](const pass &out, const contract &c) -> const rows & { return c.hidden == "post" ? out.post : out.pre; },
    [](const pass &out, const contract &c) -> const rows & { return c.chain == "post" ? out.post : out.pre; },
    [](int64_t n_tokens, const contract &c) { return c.prime == "prompt" ? n_tokens : 0; },
    accept_greedy,   emitted,
    [](int64_t n_accepted, int64_t) { return n_accepted; },
    residual,        accept_residual, save,    restore,    choose_plane, trim_mtp,
    expert_probs,    expert_scores,   group_scores, limit_groups, expert_weights,
    shared_gate,     add_bias,        repeat_heads, split_beta_alpha,
    rope_interleaved, latent_scale,   head_products,
};

namespace {

using golden::answer;
using golden::json;
using golden::request;

// ------------------------------------------------------------------------------------------- inputs and parameters

rows in(const request &ask, const char *name) {
    const tensor &t = ask.input(name);
    if (!can_dequantize(t.type)) throw error("input of type " + t.type);
    return dequantize(t);
}

std::vector<float> in_vector(const request &ask, const char *name) { return in(ask, name).x; }
float eps_of(const request &ask) { return float(ask.params.at("eps").as_float()); }
bool is_ggml(const request &ask) { return ask.numerics == "ggml"; }

rope_params rope_of(const json &params) {
    const json *sections = params.find("sections");
    return {params.at("n_rot").as_int(), params.at("freq_base").as_float(),
            sections ? sections->as_ints() : std::vector<int64_t>()};
}

bool is_true(const json &params, const char *key) { return params.find(key) && params.at(key).text == "true"; }

std::set<int64_t> ids_of(const json &ids) {
    const std::vector<int64_t> list = ids.as_ints();
    return {list.begin(), list.end()};
}

void set(answer &out, const std::string &name, const rows &x) { out.set(name, x.x, {x.ne0, x.ne1}); }

rows joined(const std::vector<rows> &parts) {
    rows out;
    for (const rows &part : parts) out.append(part);
    return out;
}

answer just(const std::string &name, const rows &x) {
    answer out;
    set(out, name, x);
    return out;
}

// ------------------------------------------------------------------------------------------------------------ L0, L1

answer do_dequantize(const request &ask) { return just("x", in(ask, "q")); }

answer do_quantize(const request &ask) {
    const std::string type = ask.params.at("type").as_text();
    const rows x = in(ask, "x");
    answer out;
    if (type == "F16" || type == "BF16") {
        rows y = x;
        for (float &value : y.x) value = rounded(type, value);
        return just("y", y);
    }
    const int64_t n = x.ne0 * x.ne1;
    if (type == "Q8_0") {
        const q8_0_row q = quantize_q8_0(x.x.data(), n);
        out.set("codes", q.codes, {n});
        out.set("d", q.d, {n / 32});
        return out;
    }
    if (type == "Q8_1") {
        const q8_0_row q = quantize_q8_0(x.x.data(), n);
        out.set("codes", q.codes, {n});
        out.set("d", q.d, {n / 32});
        out.set("s", q.s, {n / 32});
        return out;
    }
    if (type != "Q8_K") return answer::skipped("no activation quantiser " + type);
    const q8_k_row q = quantize_q8_k(x.x.data(), n);
    out.set("codes", q.codes, {n});
    out.set("d", q.d, {n / 256});
    out.set("bsums", q.bsums, {n / 16});
    return out;
}

answer do_mul_mat(const request &ask) { return just("y", step.mul_mat(ask.input("w"), in(ask, "x"), is_ggml(ask))); }
answer do_rms_norm(const request &ask) {
    return just("y", step.rms_norm(in(ask, "x"), in_vector(ask, "weight"), eps_of(ask)));
}
answer do_l2_norm(const request &ask) { return just("y", step.l2_norm(in(ask, "x"), eps_of(ask))); }
answer do_rope(const request &ask) {
    return just("y", step.rope(in(ask, "x"), ask.input("pos").as_i32(), rope_of(ask.params)));
}
answer do_conv_silu(const request &ask) { return just("y", step.conv_silu(in(ask, "window"), in(ask, "weight"))); }

answer do_delta_gates(const request &ask) {
    rows g, beta;
    delta_gates(in(ask, "alpha"), in(ask, "beta"), in_vector(ask, "dt_bias"), in_vector(ask, "ssm_a"), g, beta);
    answer out;
    set(out, "g", g);
    set(out, "beta_sigmoid", beta);
    return out;
}

answer do_delta_rule(const request &ask) {
    const delta_states r = step.delta_rule(in(ask, "q"), in(ask, "k"), in(ask, "v"), in(ask, "g"), in(ask, "beta"),
                                           in(ask, "state"), ask.input("q").dim(1), ask.params.at("keep").as_int());
    answer out;
    set(out, "o", r.o);
    set(out, "states", joined(r.states));
    return out;
}

answer do_gated_norm(const request &ask) {
    return just("y", gated_norm(in(ask, "o"), in(ask, "z"), in_vector(ask, "weight"), eps_of(ask)));
}

answer do_split_q_gate(const request &ask) {
    rows q, gate;
    split_q_gate(in(ask, "q_full"), ask.params.at("n_head").as_int(), q, gate);
    answer out;
    set(out, "q", q);
    set(out, "gate", gate);
    return out;
}

// ne of q: D, n_head, T; of k and v: D, n_head_kv, cells.
answer do_attention(const request &ask) {
    const int64_t size = ask.input("q").dim(0), n_head = ask.input("q").dim(1), n_head_kv = ask.input("k").dim(1);
    const std::string kv_type = ask.params.at("kv_type").as_text();
    rows k = in(ask, "k").in_rows_of(size * n_head_kv), v = in(ask, "v").in_rows_of(size * n_head_kv);
    for (float &x : k.x) x = rounded(kv_type, x);
    for (float &x : v.x) x = rounded(kv_type, x);
    return just("o", step.attention(in(ask, "q").in_rows_of(size * n_head), k, v, kv_type, n_head, n_head_kv));
}

answer do_attn_gate(const request &ask) { return just("y", step.attn_gate(in(ask, "o"), in(ask, "gate"))); }
answer do_swiglu(const request &ask) { return just("y", swiglu(in(ask, "gate"), in(ask, "up"))); }
answer do_concat(const request &ask) { return just("y", step.mtp_concat(in(ask, "enorm"), in(ask, "hnorm"))); }
answer do_pair_hidden(const request &ask) {
    return just("rows", step.pair_hidden(in(ask, "hidden"), in_vector(ask, "pending")));
}

answer do_argmax(const request &ask) {
    const rows logits = in(ask, "logits");
    std::vector<int64_t> ids;
    for (int64_t t = 0; t < logits.ne1; t++) ids.push_back(argmax(logits.row(t), logits.ne0));
    answer out;
    out.set("ids", json::of(ids));
    return out;
}

answer ids_and_p(const std::vector<int64_t> &ids, const std::vector<double> &p) {
    answer out;
    out.set("ids", json::of(ids));
    out.set("p", std::vector<float>(p.begin(), p.end()), {int64_t(p.size())});
    return out;
}

answer do_top_candidates(const request &ask) {
    const rows logits = in(ask, "logits");
    const candidates best = top_candidates(logits.row(0), logits.ne0);
    return ids_and_p(best.ids, best.p);
}

// ----------------------------------------------------------------------------------------------------- L1: sampling

answer do_uniform(const request &ask) {
    json u;
    u.kind = json::array;
    for (const json &one : ask.params.at("draws").items) {
        const std::vector<int64_t> d = one.as_ints();
        const uint64_t seed = ask.params.at("seed").as_uint();
        char text[40];
        std::snprintf(text, sizeof text, "%.13a",
                      uniform(seed, uint32_t(d.at(0)), uint32_t(d.at(1)), uint32_t(d.at(2))));
        u.items.push_back(json::of(std::string(text)));
    }
    answer out;
    out.set("u", u);
    return out;
}

answer do_filtered(const request &ask) {
    filter_chain chain;
    for (const json &filter : ask.params.at("chain").items)
        chain.emplace_back(filter.items.at(0).as_text(), filter.items.at(1).as_float());
    const rows logits = in(ask, "logits");
    const distribution left = filtered(logits.row(0), logits.ne0, chain);
    return ids_and_p(left.ids, left.p);
}

// A row of probabilities as the ids that have any.
distribution distribution_of(const float *p, int64_t n) {
    distribution out;
    for (int64_t id = 0; id < n; id++)
        if (p[id] > 0) out.ids.push_back(id), out.p.push_back(double(p[id]));
    return out;
}

answer do_draw(const request &ask) {
    const rows p = in(ask, "p");
    const distribution dist = distribution_of(p.row(0), p.ne0);
    std::vector<int64_t> ids;
    for (const json &u : ask.params.at("u").items) ids.push_back(draw(dist, u.as_float()));
    answer out;
    out.set("ids", json::of(ids));
    return out;
}

// ------------------------------------------------------------------------------------------------------ L1: experts

std::vector<int64_t> in_ids(const request &ask, const char *name) {
    const std::vector<int32_t> ids = ask.input(name).as_i32();
    return {ids.begin(), ids.end()};
}

answer do_expert_probs(const request &ask) {
    return just("p", step.expert_probs(in(ask, "logits"), ask.params.at("gating").as_text()));
}
answer do_expert_scores(const request &ask) {
    return just("scores", step.expert_scores(in(ask, "p"), ask.in.count("bias") ? in_vector(ask, "bias")
                                                                                : std::vector<float>()));
}
answer do_group_scores(const request &ask) {
    return just("scores", step.group_scores(in(ask, "scores"), ask.params.at("n_group").as_int()));
}
answer do_limit_groups(const request &ask) {
    const int64_t n_group = ask.params.at("n_group").as_int();
    return just("scores", step.limit_groups(in(ask, "scores"), in_ids(ask, "groups"), n_group));
}
answer do_select_experts(const request &ask) {
    answer out;
    out.set("ids", json::of(select_experts(in(ask, "scores"), ask.params.at("n_used").as_int())));
    return out;
}
answer do_expert_weights(const request &ask) {
    return just("w", step.expert_weights(in(ask, "p"), in_ids(ask, "ids"), is_true(ask.params, "normalise"),
                                         float(ask.params.at("scale").as_float())));
}
answer do_sum_experts(const request &ask) { return just("y", sum_experts(in(ask, "results"), in(ask, "w"))); }
answer do_shared_gate(const request &ask) { return just("y", step.shared_gate(in(ask, "x"), in(ask, "logit"))); }
answer do_add_bias(const request &ask) { return just("y", step.add_bias(in(ask, "x"), in_vector(ask, "bias"))); }
answer do_repeat_heads(const request &ask) {
    return just("y", step.repeat_heads(in(ask, "x"), ask.input("x").dim(1), ask.params.at("n_head").as_int()));
}
answer do_split_beta_alpha(const request &ask) {
    rows beta, alpha;
    step.split_beta_alpha(in(ask, "ba"), ask.params.at("n_k_heads").as_int(), beta, alpha);
    answer out;
    set(out, "beta", beta);
    set(out, "alpha", alpha);
    return out;
}
answer do_split_qkvz(const request &ask) {
    rows qkv, z;
    split_qkvz(in(ask, "qkvz"), ask.params.at("n_k_heads").as_int(), ask.params.at("d_state").as_int(), qkv, z);
    answer out;
    set(out, "qkv", qkv);
    set(out, "z", z);
    return out;
}

// -------------------------------------------------------------------------------------------------- L1: latent rows

answer do_rope_interleaved(const request &ask) {
    const rope_params p = rope_of(ask.params);
    std::vector<double> frequencies;
    for (int64_t i = 0; i < p.n_rot / 2; i++)
        frequencies.push_back(std::pow(p.freq_base, -2.0 * double(i) / double(p.n_rot)));
    return just("y", step.rope_interleaved(in(ask, "x"), ask.input("pos").as_i32(), frequencies, 1));
}

answer do_latent_scale(const request &ask) {
    const auto number = [&](const char *name) { return ask.params.at(name).as_float(); };
    rows scale(1, 1);
    scale.x[0] = step.latent_scale(ask.params.at("n_key").as_int(), ask.params.at("n_row").as_int(),
                                   number("freq_scale"), number("magnitude"), number("log_multiplier"));
    return just("scale", scale);
}

answer do_head_products(const request &ask) {
    return just("y", step.head_products(ask.input("w"), in(ask, "x"), is_ggml(ask)));
}

// --------------------------------------------------------------------------------------------------------------- L2

// A tap that keeps what it sees; a name that comes again is extended along the tokens.
struct taken {
    std::map<std::string, rows> seen;
    tap keep() {
        return [this](const std::string &name, const rows &x) { seen[name].append(x); };
    }
    void give(answer &out) const {
        for (const auto &one : seen) set(out, one.first, one.second);
    }
};

answer do_delta_layer(const request &ask) {
    const delta_config cfg{ask.params.at("n_k_heads").as_int(), ask.params.at("n_v_heads").as_int(),
                           ask.params.at("d_state").as_int(), eps_of(ask), is_true(ask.params, "grouped")};
    taken all;
    const delta_result r = delta_layer(ask.in, cfg, in(ask, "x"), in(ask, "conv_states"), in(ask, "state_predelta"),
                                       ask.params.at("keep").as_int(), is_ggml(ask), all.keep());
    answer out;
    all.give(out);
    set(out, "conv", joined(r.conv));
    set(out, "states", joined(r.states));
    return out;
}

using attn_function = rows (*)(const weights &, const attn_config &, const rows &, rows &, rows &, const std::string &,
                               const std::vector<int32_t> &, bool, const tap &);

answer attended(const request &ask, attn_function layer) {
    const attn_config cfg{ask.params.at("n_head").as_int(), ask.params.at("n_head_kv").as_int(),
                          ask.params.at("n_embd_head").as_int(), eps_of(ask), rope_of(ask.params)};
    const std::string kv_type = ask.params.at("kv_type").as_text();
    const int64_t first = ask.params.at("first").as_int(), n_kv = cfg.n_head_kv * cfg.n_embd_head;
    const rows x = in(ask, "x");
    rows k, v;
    if (first > 0) {
        k = in(ask, "k_cache").in_rows_of(n_kv);
        v = in(ask, "v_cache").in_rows_of(n_kv);
        for (float &value : k.x) value = rounded(kv_type, value);
        for (float &value : v.x) value = rounded(kv_type, value);
    }
    std::vector<int32_t> pos;
    for (int64_t t = 0; t < x.ne1; t++) pos.push_back(int32_t(first + t));
    taken all;
    layer(ask.in, cfg, x, k, v, kv_type, pos, is_ggml(ask), all.keep());
    answer out;
    all.give(out);
    return out;
}

answer do_attn_layer(const request &ask) { return attended(ask, attn_layer); }
answer do_plain_attn_layer(const request &ask) { return attended(ask, plain_attn_layer); }

// Cells that a case gives, those of a token as one row of n_head times width.
rows cells_of(const request &ask, const char *name, int64_t n_head, int64_t width) {
    if (!ask.in.count(name)) return rows();
    const rows given = in(ask, name);
    rows cells(width, given.ne1);
    for (int64_t r = 0; r < given.ne1; r++) std::copy(given.row(r), given.row(r + 1), cells.row(r));
    for (float &x : cells.x) x = rounded(ask.params.at("kv_type").as_text(), x);
    return cells.in_rows_of(n_head * width);
}

answer latent_attended(const request &ask, bool is_absorbed) {
    const auto size = [&](const char *name) { return ask.params.at(name).as_int(); };
    latent_config cfg{size("n_head"), size("n_key"), size("n_value"), size("n_latent"), size("n_rot"), eps_of(ask),
                      ask.params.at("freq_base").as_float(), is_absorbed, {}};
    if (ask.params.find("factor"))
        cfg.yarn = {ask.params.at("factor").as_float(), size("n_ctx_orig"), ask.params.at("log_multiplier").as_float()};
    const int64_t n_head = is_absorbed ? 1 : cfg.n_head;
    rows k = cells_of(ask, is_absorbed ? "cells" : "k_cache", n_head, cfg.n_row());
    rows v = cells_of(ask, "v_cache", n_head, cfg.n_row());
    const rows x = in(ask, "x");
    std::vector<int32_t> pos;
    for (int64_t t = 0; t < x.ne1; t++) pos.push_back(int32_t(size("first") + t));
    taken all;
    latent_layer(ask.in, cfg, x, k, v, ask.params.at("kv_type").as_text(), pos, is_ggml(ask), all.keep());
    answer out;
    all.give(out);
    return out;
}

answer do_latent_attn_layer(const request &ask) { return latent_attended(ask, true); }
answer do_expanded_attn_layer(const request &ask) { return latent_attended(ask, false); }

answer do_ffn(const request &ask) {
    taken all;
    ffn(ask.in, in(ask, "x"), is_ggml(ask), all.keep());
    answer out;
    all.give(out);
    return out;
}

moe_config moe_of(const json &params) {
    moe_config cfg;
    cfg.gating = params.at("gating").as_text();
    cfg.n_used = params.at("n_used").as_int();
    cfg.n_group = params.get_int("n_group", 1);
    cfg.n_group_used = params.get_int("n_group_used", 1);
    cfg.normalise = is_true(params, "normalise");
    cfg.scale = float(params.at("scale").as_float());
    return cfg;
}

answer do_route(const request &ask) {
    taken all;
    const routing chosen = route(ask.in, moe_of(ask.params), in(ask, "x"), is_ggml(ask), all.keep());
    answer out;
    all.give(out);
    out.set("ids", json::of(chosen.ids));
    set(out, "w", chosen.w);
    return out;
}

answer do_moe_ffn(const request &ask) {
    taken all;
    routing chosen;
    moe_ffn(ask.in, moe_of(ask.params), in(ask, "x"), is_ggml(ask), chosen, all.keep());
    answer out;
    all.give(out);
    out.set("ids", json::of(chosen.ids));
    return out;
}

// ----------------------------------------------------------------------------------------------------------- L3, L4

const model &model_of(const request &ask) {
    static std::map<std::string, model> loaded;
    const std::string kv_type = ask.params.get_text("kv_type", "F32");
    const std::string rules = ask.params.get_text("contract", "llama.cpp");
    const std::string key = ask.model + " " + kv_type + " " + rules + " " + ask.numerics;
    if (!loaded.count(key)) loaded[key] = load_model(ask.model, kv_type, is_ggml(ask), rules);
    return loaded[key];
}

// Runs tokens in batches of the sizes given; the hidden rows that the head is fed with.
rows run_trunk(const model &m, sequence &seq, const std::vector<int32_t> &tokens, const json &batches, const tap &see) {
    rows hidden;
    size_t at = 0;
    for (int64_t n : batches.as_ints()) {
        if (n < 1 || at + size_t(n) > tokens.size()) throw error("batches that do not fit the tokens");
        const auto begin = tokens.begin() + int64_t(at);
        hidden.append(step.target_hidden(m.trunk(seq, {begin, begin + n}, 1, see), m.rules));
        at += size_t(n);
    }
    return hidden;
}

answer do_trunk(const request &ask) {
    const model &m = model_of(ask);
    sequence seq = m.new_sequence(0);
    taken all;
    run_trunk(m, seq, ask.input("tokens").as_i32(), ask.params.at("batches"), all.keep());
    answer out;
    all.give(out);
    return out;
}

answer do_mtp(const request &ask) {
    const model &m = model_of(ask);
    sequence seq = m.new_sequence(0);
    taken all;
    m.mtp(seq, ask.input("tokens").as_i32(), in(ask, "hidden"), ask.params.at("first_pos").as_int(), 0, all.keep());
    answer out;
    all.give(out);
    return out;
}

// The rows of chosen tokens, of which the first is number pos0 of the prompt.
rows rows_of_tokens(const rows &x, const std::vector<int64_t> &tokens, int64_t pos0, int64_t n_tokens) {
    const int64_t per_token = x.ne1 / n_tokens;
    rows out;
    for (int64_t token : tokens)
        if (token >= pos0 && token < pos0 + n_tokens)
            out.append(x.part((token - pos0) * per_token, (token - pos0 + 1) * per_token));
    return out;
}

// Trunk and head, batch by batch, over the same tokens; activations of the tokens that are asked for.
answer do_prompt(const request &ask) {
    const model &m = model_of(ask);
    const std::vector<int32_t> tokens = ask.input("tokens").as_i32();
    std::vector<int64_t> chosen;
    if (ask.params.find("rows")) chosen = ask.params.at("rows").as_ints();
    else for (size_t t = 0; t < tokens.size(); t++) chosen.push_back(int64_t(t));
    const std::set<std::string> want(ask.want.begin(), ask.want.end());
    std::map<std::string, rows> seen;
    int64_t pos0 = 0, n = 0;
    const tap see = [&](const std::string &name, const rows &x) {
        if (want.count(name)) seen[name].append(rows_of_tokens(x, chosen, pos0, n));
    };
    sequence seq = m.new_sequence(0);
    for (int64_t size : ask.params.at("batches").as_ints()) {
        pos0 = seq.n_past, n = size;
        const std::vector<int32_t> ids(tokens.begin() + pos0, tokens.begin() + pos0 + n);
        const pass out = m.trunk(seq, ids, 1, see);
        const rows &hidden = step.target_hidden(out, m.rules);
        const int64_t n_skip = std::max<int64_t>(0, m.rules.first_pos() - pos0);
        const rows paired = step.pair_hidden(hidden, seq.pending_h);
        seq.pending_h.assign(hidden.row(n - 1), hidden.row(n));
        if (n_skip >= n) continue;
        pos0 += n_skip, n -= n_skip;
        m.mtp(seq, {ids.begin() + n_skip, ids.end()}, paired.part(n_skip, paired.ne1), pos0, 0, see);
    }
    answer out;
    for (const auto &one : seen) set(out, one.first, one.second);
    return out;
}

// A draft of n tokens behind a prompt whose last token is decided but not yet run by the trunk.
answer do_mtp_chain(const request &ask) {
    const model &m = model_of(ask);
    sequence seq = m.new_sequence(0);
    const std::vector<int32_t> tokens = ask.input("tokens").as_i32(), prompt(tokens.begin(), tokens.end() - 1);
    const rows hidden = run_trunk(m, seq, prompt, ask.params.at("batches"), see_nothing);
    const int64_t first = m.rules.first_pos(), n_prompt = int64_t(prompt.size());
    if (step.prime_rows(n_prompt, m.rules) > 0 && n_prompt > first) {
        const rows paired = step.pair_hidden(hidden, seq.pending_h);
        m.mtp(seq, {prompt.begin() + first, prompt.end()}, paired.part(first, n_prompt), first, 0, see_nothing);
    }
    std::vector<int64_t> ids;
    rows p, chain, row = hidden.part(n_prompt - 1, n_prompt);
    int64_t token = tokens.back();
    for (int64_t pos = n_prompt; pos < n_prompt + ask.params.at("n").as_int(); pos++) {
        const pass head = m.mtp(seq, {int32_t(token)}, row, pos, ask.params.get_int("n_draft_vocab", 0), see_nothing);
        const candidates best = top_candidates(head.logits.row(0), head.logits.ne0);
        row = step.chain_hidden(head, m.rules);
        token = best.ids[0];
        ids.push_back(token);
        rows probabilities(int64_t(best.p.size()), 1);
        for (size_t i = 0; i < best.p.size(); i++) probabilities.x[i] = float(best.p[i]);
        p.append(probabilities);
        chain.append(row);
    }
    answer out;
    out.set("ids", json::of(ids));
    set(out, "p", p);
    set(out, "chain", chain);
    return out;
}

// --------------------------------------------------------------------------------------------------------------- L5

struct acceptance {
    int64_t n_accepted;
    std::vector<int64_t> emitted;
};

acceptance accept_case(const std::vector<int64_t> &draft, const std::vector<int64_t> &target,
                       const std::set<int64_t> &eog) {
    const int64_t n = step.accept(draft, target, eog);
    const bool is_ended = n > 0 && eog.count(draft[size_t(n) - 1]) > 0;
    return {n, step.emitted(draft, target, n, is_ended)};
}

answer give(const acceptance &a) {
    answer out;
    out.set("n_accepted", json::of(a.n_accepted));
    out.set("emitted", json::of(a.emitted));
    return out;
}

answer do_accept_greedy(const request &ask) {
    return give(accept_case(ask.params.at("draft").as_ints(), ask.params.at("target").as_ints(),
                            ids_of(ask.params.at("eog"))));
}

answer do_accept_match(const request &ask) {
    const std::vector<int64_t> draft = ask.params.at("draft").as_ints();
    const rows p = in(ask, "target_p");
    std::vector<int64_t> target;
    for (int64_t i = 0; i < p.ne1; i++)
        target.push_back(draw(distribution_of(p.row(i), p.ne0), ask.params.at("u").items.at(size_t(i)).as_float()));
    return give(accept_case(draft, target, ids_of(ask.params.at("eog"))));
}

answer do_accept_residual(const request &ask) {
    const std::vector<int64_t> draft = ask.params.at("draft").as_ints();
    const rows p = in(ask, "target_p");
    std::vector<int64_t> target;
    for (size_t i = 0; i < draft.size() && target.size() == i; i++) {
        const rows q = in(ask, "draft_p");
        const distribution t = distribution_of(p.row(int64_t(i)), p.ne0), d = distribution_of(q.row(int64_t(i)), q.ne0);
        const double u = ask.params.at("u_accept").items.at(i).as_float();
        if (step.accept_residual(t.prob(draft[i]), d.prob(draft[i]), u)) {
            target.push_back(draft[i]);
            continue;
        }
        target.push_back(draw(step.residual(t, d), ask.params.at("u_residual").items.at(i).as_float()));
        break;
    }
    const bool is_whole = target == draft;
    if (is_whole) target.push_back(draw(distribution_of(p.row(p.ne1 - 1), p.ne0), ask.params.at("u_bonus").as_float()));
    return give(accept_case(draft, target, ids_of(ask.params.at("eog"))));
}

policy_config policy_of(const json &params) {
    return {params.at("n_max").as_int(), params.get_int("n_min", 0), params.get_int("p_min", 0),
            params.get_int("cooldown", 0), params.get_int("cooldown_after", 1)};
}

struct policy_round {
    int64_t n_room;
    std::vector<int64_t> p;
    int64_t n_accepted;
};
struct policy_trace {
    std::vector<int64_t> limits, n_drafted, n_cooldown;
};

policy_trace policy_case(const policy_config &cfg, const std::vector<policy_round> &rounds) {
    policy_trace out;
    policy_state state;
    for (const policy_round &round : rounds) {
        const int64_t limit = draft_limit(cfg, state, round.n_room);
        int64_t taken = 0;
        while (taken < std::min(limit, int64_t(round.p.size())) && round.p[size_t(taken)] >= cfg.p_min) taken++;
        const int64_t n = proposed(cfg, taken, limit);
        state = after_round(cfg, state, n, std::min(n, round.n_accepted));
        out.limits.push_back(limit);
        out.n_drafted.push_back(n);
        out.n_cooldown.push_back(state.n_cooldown);
    }
    return out;
}

answer do_policy(const request &ask) {
    std::vector<policy_round> rounds;
    for (const json &round : ask.params.at("rounds").items)
        rounds.push_back({round.at("n_room").as_int(), round.at("p").as_ints(), round.at("n_accepted").as_int()});
    const policy_trace trace = policy_case(policy_of(ask.params), rounds);
    answer out;
    out.set("limits", json::of(trace.limits));
    out.set("n_drafted", json::of(trace.n_drafted));
    out.set("n_cooldown", json::of(trace.n_cooldown));
    return out;
}

// Small integers of one generated case: draw k of case i is splitmix64(seed, 64 i + k + 1) % n.
struct drawn {
    uint64_t seed, next;
    int64_t below(int64_t n) {
        uint64_t z = seed + ++next * 0x9E3779B97F4A7C15;
        z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9;
        z = (z ^ z >> 27) * 0x94D049BB133111EB;
        return int64_t((z ^ z >> 31) % uint64_t(n));
    }
};

// FNV-1a over 32-bit words; a list is preceded by its length.
struct fnv {
    uint64_t h = 0xCBF29CE484222325;
    void add(int64_t x) { h = (h ^ uint32_t(x)) * 0x100000001B3; }
    void add(const std::vector<int64_t> &list) {
        add(int64_t(list.size()));
        for (int64_t x : list) add(x);
    }
};

void accumulate_accept(drawn d, fnv &hash) {
    const int64_t n = d.below(5), eog = d.below(6);
    std::vector<int64_t> target, draft;
    for (int64_t i = 0; i <= n; i++) target.push_back(d.below(4));
    for (int64_t i = 0; i < n; i++) draft.push_back(d.below(4) > 0 ? target[size_t(i)] : d.below(4));
    const acceptance a = accept_case(draft, target, {eog});
    hash.add(a.n_accepted);
    hash.add(a.emitted);
}

void accumulate_policy(drawn d, fnv &hash) {
    const int64_t quarter = P_ONE / 4;
    policy_config cfg;
    cfg.n_max = d.below(5);
    cfg.n_min = d.below(cfg.n_max + 1);
    cfg.p_min = d.below(5) * quarter;
    cfg.cooldown = d.below(4);
    cfg.cooldown_after = 1 + d.below(3);
    std::vector<policy_round> rounds(6);
    for (policy_round &round : rounds) {
        round.n_room = d.below(6);
        for (int64_t i = 0; i < cfg.n_max; i++) round.p.push_back(d.below(5) * quarter);
        round.n_accepted = d.below(cfg.n_max + 1);
    }
    const policy_trace trace = policy_case(cfg, rounds);
    hash.add(trace.limits);
    hash.add(trace.n_drafted);
    hash.add(trace.n_cooldown);
}

answer do_accumulated(const request &ask) {
    const std::string machine = ask.params.at("machine").as_text();
    if (machine != "accept_greedy" && machine != "policy") return answer::skipped("no machine " + machine);
    const uint64_t seed = ask.params.at("seed").as_uint();
    const std::set<int64_t> after = ids_of(ask.params.at("after"));
    fnv hash;
    json hashes;
    hashes.kind = json::object;
    for (int64_t i = 0; i < *after.rbegin(); i++) {
        const drawn d{seed, uint64_t(64 * i)};
        if (machine == "policy") accumulate_policy(d, hash);
        else accumulate_accept(d, hash);
        if (!after.count(i + 1)) continue;
        char text[20];
        std::snprintf(text, sizeof text, "%016llx", (unsigned long long)hash.h);
        hashes.members.emplace_back(std::to_string(i + 1), json::of(std::string(text)));
    }
    answer out;
    out.set("hashes", hashes);
    return out;
}

// ----------------------------------------------------------------------------------------------------------- L5, L6

sampling sampling_of(const json &params) {
    sampling s;
    if (!params.find("temp")) return s;
    const double temp = params.at("temp").as_float();
    s.is_greedy = temp <= 0;
    s.is_residual = params.at("accept").as_text() == "residual";
    s.seed = params.at("seed").as_uint();
    s.chain = {{"top_k", double(params.at("top_k").as_int())}, {"top_p", params.at("top_p").as_float()},
               {"min_p", params.at("min_p").as_float()}, {"temperature", temp}};
    return s;
}

run_options options_of(const json &params) {
    run_options opt;
    opt.n_predict = params.at("n_predict").as_int();
    opt.n_batch = params.get_int("n_batch", 512);
    opt.n_ctx = params.get_int("n_ctx", 0);
    opt.rollback = params.get_text("rollback", "snapshot");
    opt.policy = policy_of(params);
    opt.sampler = sampling_of(params);
    return opt;
}

run_result run_model(const request &ask, const run_options &opt) {
    const model &m = model_of(ask);
    if (!ask.params.find("eog")) return run(m, ask.input("tokens").as_i32(), opt);
    model other = m;
    other.eog = ids_of(ask.params.at("eog"));
    return run(other, ask.input("tokens").as_i32(), opt);
}

// The bytes of the pieces, in hex.
std::string text_of(const model &m, const std::vector<int64_t> &ids) {
    std::string text;
    char hex[3];
    for (int64_t id : ids)
        for (unsigned char byte : size_t(id) < m.pieces.size() ? m.pieces[size_t(id)] : std::string()) {
            std::snprintf(hex, sizeof hex, "%02x", byte);
            text += hex;
        }
    return text;
}

answer give(const model &m, const run_result &r) {
    json drafts;
    drafts.kind = json::array;
    for (const std::vector<int64_t> &draft : r.drafts) drafts.items.push_back(json::of(draft));
    answer out;
    out.set("ids", json::of(r.ids));
    out.set("drafts", drafts);
    out.set("n_accepted", json::of(r.n_accepted));
    out.set("reason", json::of(r.reason));
    out.set("text", json::of(text_of(m, r.ids)));
    return out;
}

answer do_generate(const request &ask) { return give(model_of(ask), run_model(ask, options_of(ask.params))); }

answer do_rounds(const request &ask) {
    run_options opt = options_of(ask.params);
    opt.has_given_drafts = true;
    for (const json &draft : ask.params.at("drafts").items) opt.given_drafts.push_back(draft.as_ints());
    const run_result r = run_model(ask, opt);
    answer out = give(model_of(ask), r);
    for (size_t il = 0; il < r.seq.layers.size(); il++) {
        const layer_state &layer = r.seq.layers[il];
        if (layer.state.x.empty()) continue;
        set(out, "cache_r_l" + std::to_string(il), layer.conv);
        set(out, "cache_s_l" + std::to_string(il), layer.state);
    }
    out.set("pending_h", r.seq.pending_h, {int64_t(r.seq.pending_h.size())});
    out.set("n_past", json::of(r.seq.n_past));
    out.set("n_mtp", json::of(r.seq.n_mtp));
    return out;
}

answer do_head_cells(const request &ask) {
    const run_result r = run_model(ask, options_of(ask.params));
    answer out;
    out.set("ids", json::of(r.ids));
    out.set("n_mtp", json::of(r.seq.n_mtp));
    set(out, "k", r.seq.mtp.k.part(0, r.seq.n_mtp));
    if (!r.seq.mtp.v.x.empty()) set(out, "v", r.seq.mtp.v.part(0, r.seq.n_mtp));
    return out;
}

const std::map<std::string, answer (*)(const request &)> OPERATIONS = {
    {"dequantize", do_dequantize},
    {"quantize", do_quantize},
    {"mul_mat", do_mul_mat},
    {"rms_norm", do_rms_norm},
    {"l2_norm", do_l2_norm},
    {"rope", do_rope},
    {"conv_silu", do_conv_silu},
    {"delta_gates", do_delta_gates},
    {"delta_rule", do_delta_rule},
    {"gated_norm", do_gated_norm},
    {"split_q_gate", do_split_q_gate},
    {"attention", do_attention},
    {"attn_gate", do_attn_gate},
    {"swiglu", do_swiglu},
    {"concat", do_concat},
    {"pair_hidden", do_pair_hidden},
    {"argmax", do_argmax},
    {"top_candidates", do_top_candidates},
    {"uniform", do_uniform},
    {"filtered", do_filtered},
    {"draw", do_draw},
    {"delta_layer", do_delta_layer},
    {"attn_layer", do_attn_layer},
    {"ffn", do_ffn},
    {"expert_probs", do_expert_probs},
    {"expert_scores", do_expert_scores},
    {"group_scores", do_group_scores},
    {"limit_groups", do_limit_groups},
    {"select_experts", do_select_experts},
    {"expert_weights", do_expert_weights},
    {"sum_experts", do_sum_experts},
    {"shared_gate", do_shared_gate},
    {"add_bias", do_add_bias},
    {"repeat_heads", do_repeat_heads},
    {"split_beta_alpha", do_split_beta_alpha},
    {"split_qkvz", do_split_qkvz},
    {"plain_attn_layer", do_plain_attn_layer},
    {"rope_interleaved", do_rope_interleaved},
    {"latent_scale", do_latent_scale},
    {"head_products", do_head_products},
    {"latent_attn_layer", do_latent_attn_layer},
    {"expanded_attn_layer", do_expanded_attn_layer},
    {"route", do_route},
    {"moe_ffn", do_moe_ffn},
    {"trunk", do_trunk},
    {"prompt", do_prompt},
    {"mtp", do_mtp},
    {"mtp_chain", do_mtp_chain},
    {"accept_greedy", do_accept_greedy},
    {"accept_match", do_accept_match},
    {"accept_residual", do_accept_residual},
    {"policy", do_policy},
    {"accumulated", do_accumulated},
    {"generate", do_generate},
    {"rounds", do_rounds},
    {"head_cells", do_head_cells},
};

}  // namespace

}  // namespace port

// SEEDED_FAULT=ID in the environment makes the port wrong in one place, to see what the checker says.
golden::answer golden::run_case(const request &ask) {
    static bool is_seeded = false;
    const char *fault = std::getenv("SEEDED_FAULT");
    if (fault && *fault && !is_seeded) {
        port::seed_fault(fault);
        is_seeded = true;
    }
    const auto found = port::OPERATIONS.find(ask.op);
    if (found == port::OPERATIONS.end()) return answer::skipped("no operation " + ask.op);
    for (const auto &input : ask.in)
        if (input.second.type != "I32" && !port::can_dequantize(input.second.type))
            return answer::skipped("no weights of type " + input.second.type);
    try {
        return found->second(ask);
    } catch (const port::unsupported &why) {
        return answer::skipped(why.what());
    }
}
