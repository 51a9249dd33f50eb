// The example port: a small MTP speculative decoder in plain C++, written to be read beside docs/spec.md (S1, S2, ...).
//
//     port_quants.cpp    S5, S6: weight types, activation quantisers, the matrix product
//     port_ops.cpp       S8 to S22: norms, RoPE, DeltaNet, attention, MTP input, choices; two whole layers and the FFN
//     port_experts.cpp   S41 to S51: router, experts, attention without a gate, projections laid out by heads
//     port_latent.cpp    S53 to S58: attention through a latent row
//     port_sampling.cpp  S25 to S29
//     port_model.cpp     a GGUF file as a model: trunk, MTP block, the state of a sequence
//     port_loop.cpp      draft, verify, accept, roll back, catch up
//     example_port.cpp   run_case: the names of the golden cases
//     seeded_faults.cpp  deliberate mistakes, to see the checker find them
//
// Arithmetic is float32 with sums in float64; nothing is fast. Every step that a fault can replace is called through
// the table `step`.
#pragma once

#include <algorithm>
#include <cmath>
#include <functional>
#include <memory>
#include <set>

#include "port.h"

namespace port {

using golden::error;
using golden::tensor;

// What this port has not: a reason to skip a case.
struct unsupported : std::runtime_error {
    using std::runtime_error::runtime_error;
};

// ne1 rows of ne0 values, row after row. A tensor of three dimensions is seen as rows of its first one.
struct rows {
    int64_t ne0 = 0, ne1 = 0;
    std::vector<float> x;

    rows() = default;
    rows(int64_t ne0, int64_t ne1) : ne0(ne0), ne1(ne1), x(static_cast<size_t>(ne0 * ne1)) {}

    float *row(int64_t i) { return x.data() + i * ne0; }
    const float *row(int64_t i) const { return x.data() + i * ne0; }
    rows in_rows_of(int64_t n) const;             // the same values in rows of n
    rows part(int64_t first, int64_t last) const;  // rows first .. last - 1
    rows columns(int64_t first, int64_t n) const;  // values first .. first + n - 1 of every row
    void append(const rows &more);                 // more rows behind
};

// ---------------------------------------------------------------------------------------------- quants (S5, S6, S7)

float f16_to_f32(uint16_t bits);
uint16_t f32_to_f16(float x);  // ties to even
float bf16_to_f32(uint16_t bits);
uint16_t f32_to_bf16(float x);
float rounded(const std::string &type, float x);  // to F32, F16 or BF16, and back

struct q8_0_row {
    std::vector<int32_t> codes;
    std::vector<float> d, s;  // a scale for 32 codes, and (sum of the codes) * d
};
struct q8_k_row {
    std::vector<int32_t> codes, bsums;  // a sum for 16 codes
    std::vector<float> d;               // a scale for 256 codes
};
q8_0_row quantize_q8_0(const float *x, int64_t n);
q8_k_row quantize_q8_k(const float *x, int64_t n);

bool can_dequantize(const std::string &type);
rows dequantize(const tensor &w);  // all rows as float32
rows get_rows(const tensor &w, const std::vector<int32_t> &ids);

// --------------------------------------------------------------------------------------------------- operations

struct delta_states {
    rows o;                       // (S * H_v, T)
    std::vector<rows> states;     // after each of the last `keep` tokens, rows of one value: (S, S * H_v)
};
struct candidates {
    std::vector<int64_t> ids;
    std::vector<double> p;
};
struct rope_params {
    int64_t n_rot = 0;
    double freq_base = 10000;
    std::vector<int64_t> sections;  // none: every pair turns
};
// What is left of a vocabulary after the filters: rising ids and their probabilities.
struct distribution {
    std::vector<int64_t> ids;
    std::vector<double> p;
    double prob(int64_t id) const;
};
using filter_chain = std::vector<std::pair<std::string, double>>;

// Called with llama.cpp's cb() names as a layer goes on.
using tap = std::function<void(const std::string &name, const rows &x)>;
using weights = std::map<std::string, tensor>;  // GGUF name without "blk.N."

struct delta_config {
    int64_t n_k_heads = 0, n_v_heads = 0, d_state = 0;
    float eps = 0;
    bool is_grouped = false;  // S50
};
struct attn_config {
    int64_t n_head = 0, n_head_kv = 0, n_embd_head = 0;
    float eps = 0;
    rope_params rope;
};
// Attention through a latent row. n_key: n_nope + n_rot, of a head before absorption.
struct yarn_params {
    double factor = 0;  // 0: no YaRN
    int64_t n_ctx_orig = 0;
    double log_multiplier = 0;  // the model's mscale_all_dim
};
struct latent_config {
    int64_t n_head = 0, n_key = 0, n_value = 0, n_latent = 0, n_rot = 0;
    float eps = 0;
    double freq_base = 10000;
    bool is_absorbed = true;  // one cached row for all heads; else every head's key and value
    yarn_params yarn;

    int64_t n_row() const { return is_absorbed ? n_latent + n_rot : std::max(n_key, n_value); }
    float freq_scale() const;
    double magnitude() const;
};
struct moe_config {
    std::string gating = "softmax";  // or sigmoid
    int64_t n_used = 0, n_group = 1, n_group_used = 1;
    bool normalise = true;
    float scale = 0;  // 0: none
};
// What a router chose: ids of token after token, the best first; w: a row of weights a token.
struct routing {
    std::vector<int64_t> ids;
    rows w;
};
struct delta_result {
    rows y;
    std::vector<rows> conv, states;  // after each of the last `keep` tokens
};

delta_result delta_layer(const weights &w, const delta_config &cfg, const rows &x, const rows &conv, const rows &state,
                         int64_t keep, bool is_ggml, const tap &see);
// k_cache and v_cache hold the cells before the batch; those of the batch are appended.
rows attn_layer(const weights &w, const attn_config &cfg, const rows &x, rows &k_cache, rows &v_cache,
                const std::string &kv_type, const std::vector<int32_t> &pos, bool is_ggml, const tap &see);
rows ffn(const weights &w, const rows &x, bool is_ggml, const tap &see);
rows plain_attn_layer(const weights &w, const attn_config &cfg, const rows &x, rows &k_cache, rows &v_cache,
                      const std::string &kv_type, const std::vector<int32_t> &pos, bool is_ggml, const tap &see);
routing route(const weights &w, const moe_config &cfg, const rows &x, bool is_ggml, const tap &see);
rows moe_ffn(const weights &w, const moe_config &cfg, const rows &x, bool is_ggml, routing &chosen, const tap &see);
// k_cache holds rows of one cell for all heads, and v_cache nothing, where cfg.is_absorbed.
rows latent_layer(const weights &w, const latent_config &cfg, const rows &x, rows &k_cache, rows &v_cache,
                  const std::string &kv_type, const std::vector<int32_t> &pos, bool is_ggml, const tap &see);
tensor some_rows(const tensor &w, int64_t first, int64_t n);  // rows first .. first + n - 1 as a matrix
void split_attn_qkv(weights &w, const attn_config &cfg);  // fused projections of plain attention as three
rows beside(const rows &a, const rows &b);                // the rows of a beside those of b

double uniform(uint64_t seed, uint32_t stream, uint32_t pos, uint32_t round_pos);
enum { STREAM_TARGET, STREAM_DRAFT, STREAM_ACCEPT, STREAM_RESIDUAL };
constexpr int64_t P_ONE = int64_t(1) << 32;  // the policy compares probabilities as integers in units of 2^-32

// ------------------------------------------------------------------------------------------------------- the policy

struct policy_config {
    int64_t n_max = 0, n_min = 0, p_min = 0, cooldown = 0, cooldown_after = 1;
};
struct policy_state {
    int64_t n_misses = 0, n_cooldown = 0;
};
int64_t draft_limit(const policy_config &cfg, const policy_state &state, int64_t n_room);
int64_t proposed(const policy_config &cfg, int64_t n_drafted, int64_t limit);
policy_state after_round(const policy_config &cfg, policy_state state, int64_t n_drafted, int64_t n_accepted);

// -------------------------------------------------------------------------------------------------------- the model

// How an engine feeds its MTP head (docs/spec.md#the-contract); the fields that the golden cases use.
struct contract {
    std::string hidden = "post", chain = "post", concat = "eh", first = "zero_hidden", prime = "prompt";
    int64_t pos_offset = 0;
    int64_t first_pos() const { return first == "zero_hidden" ? 0 : 1; }
};
contract parse_contract(const std::string &text);

struct layer_state {
    rows conv, state;                              // DeltaNet: raw rows before the next token; (S, S * H_v)
    std::vector<rows> conv_planes, state_planes;   // after each of the last tokens of the last batch
    rows k, v;                                     // attention: a row a cell; through a latent row: k alone
};
struct sequence {
    std::vector<layer_state> layers;
    layer_state mtp;
    int64_t n_past = 0, n_mtp = 0, mtp_start = 0, n_ctx = 0;
    std::vector<float> pending_h;  // the trunk's hidden row of position n_past - 1
};

struct pass {
    rows logits, pre, post;  // hidden rows before and after the final norm (or the head norm)
};

struct model {
    int64_t n_embd = 0, n_layer = 0, n_ctx_train = 0;
    float eps = 0;
    std::string kv_type = "F32";
    bool is_ggml = false;
    contract rules;
    delta_config delta;
    attn_config attn;
    latent_config latent;
    moe_config moe;
    std::vector<bool> is_recurrent;
    std::vector<weights> blocks;  // the trunk's, then that of the MTP head
    weights global;               // token_embd.weight, output_norm.weight, output.weight
    std::set<int64_t> eog;
    std::vector<std::string> pieces;  // the bytes of each token

    sequence new_sequence(int64_t n_ctx) const;
    pass trunk(sequence &seq, const std::vector<int32_t> &ids, int64_t keep, const tap &see) const;
    pass mtp(sequence &seq, const std::vector<int32_t> &ids, const rows &hidden, int64_t first_pos,
             int64_t n_draft_vocab, const tap &see) const;

  private:
    rows block(const weights &w, bool recurrent, rows x, layer_state &state, const std::vector<int32_t> &pos,
               int64_t keep, const tap &see) const;
    const tensor &head() const;
};
model load_model(const std::string &path, const std::string &kv_type, bool is_ggml, const std::string &contract_text);
void see_nothing(const std::string &name, const rows &x);

// --------------------------------------------------------------------------------------------------------- the loop

struct checkpoint {
    int64_t n_past = 0, n_mtp = 0, mtp_start = 0;
    std::vector<rows> conv, state;
    std::vector<float> pending_h;
};

struct sampling {
    bool is_greedy = true, is_residual = false;
    filter_chain chain;
    uint64_t seed = 0;
};
struct run_options {
    int64_t n_predict = 0, n_batch = 512, n_ctx = 0;
    std::string rollback = "snapshot";  // or replay, two-phase
    policy_config policy;
    sampling sampler;
    bool has_given_drafts = false;
    std::vector<std::vector<int64_t>> given_drafts;  // one a round; else the head drafts
};
struct run_result {
    sequence seq;
    std::vector<int64_t> ids, n_accepted;
    std::vector<std::vector<int64_t>> drafts;
    std::string reason;
};
run_result run(const model &m, const std::vector<int32_t> &prompt, const run_options &opt);

// -------------------------------------------------------------------------------------- the table of replaceable steps

struct steps {
    rows (*mul_mat)(const tensor &w, const rows &x, bool is_ggml);                                         // S6
    rows (*rms_norm)(const rows &x, const std::vector<float> &weight, float eps);                          // S8
    rows (*l2_norm)(const rows &x, float eps);                                                             // S9
    rows (*rope)(const rows &x, const std::vector<int32_t> &pos, const rope_params &p);                    // S10
    rows (*conv_silu)(const rows &window, const rows &weight);                                             // S11
    delta_states (*delta_rule)(const rows &q, const rows &k, const rows &v, const rows &g, const rows &beta,
                               rows state, int64_t n_k_heads, int64_t keep);                               // S13
    rows (*attention)(const rows &q, const rows &k, const rows &v, const std::string &kv_type, int64_t n_head,
                      int64_t n_head_kv);                                                                  // S16
    rows (*attn_gate)(const rows &o, const rows &gate);                                                    // S17
    rows (*mtp_concat)(const rows &enorm, const rows &hnorm);                                              // S19
    rows (*pair_hidden)(const rows &hidden, const std::vector<float> &pending);                            // S20
    std::vector<float> (*norm_weight)(const std::string &name, std::vector<float> weight);  // as it is loaded
    const rows &(*target_hidden)(const pass &out, const contract &c);  // the trunk's rows that the head sees
    const rows &(*chain_hidden)(const pass &out, const contract &c);   // the head's rows that the next draft sees
    int64_t (*prime_rows)(int64_t n_tokens, const contract &c);        // prompt tokens that go through the head
    int64_t (*accept)(const std::vector<int64_t> &draft, const std::vector<int64_t> &target,
                      const std::set<int64_t> &eog);                                                       // S23
    std::vector<int64_t> (*emitted)(const std::vector<int64_t> &draft, const std::vector<int64_t> &target,
                                    int64_t n_accepted, bool is_ended);  // accepted ids and the target's own
    int64_t (*pending_row)(int64_t n_accepted, int64_t n_rows);                                            // S24
    distribution (*residual)(const distribution &target, const distribution &draft);                       // S29
    bool (*accept_residual)(double p, double q, double u);                                                 // S29
    checkpoint (*save)(const sequence &seq);                          // before a batch that may be rejected
    void (*restore)(sequence &seq, const checkpoint &saved);
    void (*choose_plane)(sequence &seq, int64_t n_drop);              // forget the last n_drop tokens
    void (*trim_mtp)(sequence &seq, int64_t pos);                     // cut the head's cells from pos on
    rows (*expert_probs)(const rows &logits, const std::string &gating);                                   // S41
    rows (*expert_scores)(const rows &p, const std::vector<float> &bias);                                  // S42
    rows (*group_scores)(const rows &scores, int64_t n_group);                                             // S43
    rows (*limit_groups)(const rows &scores, const std::vector<int64_t> &groups, int64_t n_group);         // S43
    rows (*expert_weights)(const rows &p, const std::vector<int64_t> &ids, bool normalise, float scale);   // S45
    rows (*shared_gate)(const rows &y, const rows &logit);                                                 // S47
    rows (*add_bias)(const rows &y, const std::vector<float> &bias);                                       // S49
    rows (*repeat_heads)(const rows &x, int64_t n_k_heads, int64_t n_head);                                // S50
    void (*split_beta_alpha)(const rows &ba, int64_t n_k_heads, rows &beta, rows &alpha);                  // S51
    rows (*rope_interleaved)(const rows &x, const std::vector<int32_t> &pos, const std::vector<double> &frequencies,
                             double magnitude);                                                            // S53
    float (*latent_scale)(int64_t n_key, int64_t n_row, double freq_scale, double magnitude,
                          double log_multiplier);                                                          // S54
    rows (*head_products)(const tensor &w, const rows &x, bool is_ggml);                                   // S56
};
extern steps step;

// The rules themselves, as the table holds them at first.
rows mul_mat(const tensor &w, const rows &x, bool is_ggml);
rows rms_norm(const rows &x, const std::vector<float> &weight, float eps);
rows l2_norm(const rows &x, float eps);
rows rope(const rows &x, const std::vector<int32_t> &pos, const rope_params &p);
rows conv_silu(const rows &window, const rows &weight);
void delta_gates(const rows &alpha, const rows &beta, const std::vector<float> &dt_bias,
                 const std::vector<float> &ssm_a, rows &g, rows &beta_sigmoid);                           // S12
delta_states delta_rule(const rows &q, const rows &k, const rows &v, const rows &g, const rows &beta, rows state,
                        int64_t n_k_heads, int64_t keep);
rows gated_norm(const rows &o, const rows &z, const std::vector<float> &weight, float eps);               // S14
void split_q_gate(const rows &q_full, int64_t n_head, rows &q, rows &gate);                               // S15
rows attention(const rows &q, const rows &k, const rows &v, const std::string &kv_type, int64_t n_head,
               int64_t n_head_kv);
rows attn_gate(const rows &o, const rows &gate);
rows swiglu(const rows &gate, const rows &up);                                                            // S18
rows mtp_concat(const rows &enorm, const rows &hnorm);
rows pair_hidden(const rows &hidden, const std::vector<float> &pending);
rows expert_probs(const rows &logits, const std::string &gating);
rows expert_scores(const rows &p, const std::vector<float> &bias);
rows group_scores(const rows &scores, int64_t n_group);
rows limit_groups(const rows &scores, const std::vector<int64_t> &groups, int64_t n_group);
std::vector<int64_t> select_experts(const rows &scores, int64_t n_used);                                  // S44
rows expert_weights(const rows &p, const std::vector<int64_t> &ids, bool normalise, float scale);
rows sum_experts(const rows &results, const rows &w);                                                     // S46
rows shared_gate(const rows &y, const rows &logit);
rows add_bias(const rows &y, const std::vector<float> &bias);
rows repeat_heads(const rows &x, int64_t n_k_heads, int64_t n_head);
void split_beta_alpha(const rows &ba, int64_t n_k_heads, rows &beta, rows &alpha);
void split_qkvz(const rows &x, int64_t n_k_heads, int64_t size, rows &qkv, rows &z);                      // S51
rows rope_interleaved(const rows &x, const std::vector<int32_t> &pos, const std::vector<double> &frequencies,
                      double magnitude);
float latent_scale(int64_t n_key, int64_t n_row, double freq_scale, double magnitude, double log_multiplier);
rows head_products(const tensor &w, const rows &x, bool is_ggml);
int64_t argmax(const float *logits, int64_t n);                                                           // S21
candidates top_candidates(const float *logits, int64_t n);                                                // S22
distribution filtered(const float *logits, int64_t n, const filter_chain &chain);                         // S27
int64_t draw(const distribution &dist, double u);                                                         // S28
distribution residual(const distribution &target, const distribution &draft);
bool accept_residual(double p, double q, double u);
int64_t accept_greedy(const std::vector<int64_t> &draft, const std::vector<int64_t> &target,
                      const std::set<int64_t> &eog);
std::vector<int64_t> emitted(const std::vector<int64_t> &draft, const std::vector<int64_t> &target, int64_t n_accepted,
                             bool is_ended);
checkpoint save(const sequence &seq);
void restore(sequence &seq, const checkpoint &saved);
void choose_plane(sequence &seq, int64_t n_drop);
void trim_mtp(sequence &seq, int64_t pos);

// Puts the fault of that id (docs/faults.md) into the table; throws golden::error for an id that is not here.
void seed_fault(const std::string &id);

std::vector<float> vector_of(const weights &w, const std::string &name);  // an F32 tensor as values
const tensor &matrix_of(const weights &w, const std::string &name);
rows rows_of(const tensor &t);  // an F32 tensor as rows

}  // namespace port
