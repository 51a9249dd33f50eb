// A GGUF file with an MTP head as a model (qwen35, qwen35moe, qwen3next, glm4moe, hy_v3, deepseek2): what it reads of the file, the trunk, the head's block.
#include <algorithm>
#include <cstdio>

#include "example_port.h"

namespace port {

void see_nothing(const std::string &, const rows &) {}

// ---------------------------------------------------------------------------------------------------------- loading

contract parse_contract(const std::string &text) {
    contract c;
    if (text == "training") {
        c.first = "none";
        c.pos_offset = -1;
    } else if (text != "llama.cpp") {
        throw error("contract " + text + " is not supported");
    }
    return c;
}

// The keys of a file, all of which begin with its architecture's name.
struct keys {
    const golden::gguf &file;
    std::string arch;

    const golden::json *find(const std::string &key) const {
        const auto found = file.kv.find(arch + "." + key);
        return found == file.kv.end() ? nullptr : &found->second;
    }
    const golden::json &at(const std::string &key) const {
        if (!find(key)) throw error("key " + arch + "." + key + " is missing");
        return *find(key);
    }
    int64_t integer(const std::string &key) const { return at(key).as_int(); }
    int64_t integer(const std::string &key, int64_t fallback) const { return find(key) ? integer(key) : fallback; }
    double number(const std::string &key) const { return at(key).as_float(); }
    bool is_true(const std::string &key) const { return find(key) && find(key)->text == "true"; }
};

const char *const ARCHS[] = {"qwen35", "qwen35moe", "qwen3next", "glm4moe", "hy_v3", "deepseek2"};

static bool has_delta(const std::string &arch) { return arch.compare(0, 4, "qwen") == 0; }

// The qwen graphs take a softmax and renormalise, whatever the keys say; the others do what the keys say.
static moe_config read_moe(const keys &key) {
    moe_config cfg;
    cfg.n_used = key.integer("expert_used_count");
    cfg.n_group = key.integer("expert_group_count", 1);
    cfg.n_group_used = key.integer("expert_group_used_count", 1);
    if (has_delta(key.arch)) return cfg;
    const int64_t unsaid = key.arch == "deepseek2" ? 1 : 2;
    cfg.gating = key.integer("expert_gating_func", unsaid) == 1 ? "softmax" : "sigmoid";
    cfg.normalise = key.is_true("expert_weights_norm");
    cfg.scale = key.find("expert_weights_scale") ? float(key.number("expert_weights_scale")) : 0.0f;
    return cfg;
}

// A file without the widths of the absorbed form is an older one, which keeps every head's key and value.
static latent_config read_latent(const keys &key, const model &m) {
    latent_config cfg;
    cfg.is_absorbed = key.find("attention.key_length_mla") && key.find("attention.value_length_mla");
    const std::string suffix = cfg.is_absorbed ? "_mla" : "";
    cfg.n_head = m.attn.n_head;
    cfg.n_key = key.integer("attention.key_length" + suffix);
    cfg.n_value = key.integer("attention.value_length" + suffix);
    cfg.n_latent = key.integer("attention.kv_lora_rank");
    cfg.n_rot = m.attn.rope.n_rot;
    cfg.freq_base = m.attn.rope.freq_base;
    cfg.eps = m.eps;
    if (!key.find("rope.scaling.type") || key.at("rope.scaling.type").as_text() == "none") return cfg;
    if (key.at("rope.scaling.type").as_text() != "yarn") throw error("rope scaling other than yarn is not supported");
    cfg.yarn.factor = key.number("rope.scaling.factor");
    cfg.yarn.n_ctx_orig = key.integer("rope.scaling.original_context_length", m.n_ctx_train);
    if (key.find("rope.scaling.yarn_log_multiplier"))  // a tenth of it
        cfg.yarn.log_multiplier = double(float(key.number("rope.scaling.yarn_log_multiplier")) / 0.1f);
    return cfg;
}

static void read_shape(const keys &key, model &m) {
    m.n_embd = key.integer("embedding_length");
    m.n_ctx_train = key.integer("context_length");
    m.n_layer = key.integer("block_count") - key.integer("nextn_predict_layers", 0);
    m.eps = float(key.number("attention.layer_norm_rms_epsilon"));
    m.attn.n_head = key.integer("attention.head_count");
    m.attn.n_head_kv = key.integer("attention.head_count_kv");
    m.attn.n_embd_head = key.integer("attention.key_length");
    m.attn.eps = m.eps;
    m.attn.rope.n_rot = key.integer("rope.dimension_count");
    m.attn.rope.freq_base = key.number("rope.freq_base");
    if (const golden::json *sections = key.find("rope.dimension_sections")) m.attn.rope.sections = sections->as_ints();
    if (key.find("expert_count")) m.moe = read_moe(key);
    if (key.arch == "deepseek2") m.latent = read_latent(key, m);
    if (!has_delta(key.arch)) return;
    m.delta.n_k_heads = key.integer("ssm.group_count");
    m.delta.n_v_heads = key.integer("ssm.time_step_rank");
    m.delta.d_state = key.integer("ssm.state_size");
    m.delta.eps = m.eps;
    m.delta.is_grouped = key.arch == "qwen3next";
}

// Tensors by block, without "blk.N."; norm weights pass through the table of steps.
static void read_tensors(golden::gguf &file, model &m) {
    m.blocks.resize(size_t(m.n_layer) + 1);
    for (auto &entry : file.tensors) {
        const std::string &name = entry.first;
        tensor &t = entry.second;
        if (name.size() > 11 && name.compare(name.size() - 11, 11, "norm.weight") == 0)
            t = tensor::of(step.norm_weight(name, rows_of(t).x), t.ne);
        if (name.compare(0, 4, "blk.") != 0) {
            m.global[name] = std::move(t);
            continue;
        }
        const size_t dot = name.find('.', 4);
        const size_t il = size_t(std::strtoul(name.c_str() + 4, nullptr, 10));
        if (dot == std::string::npos || il >= m.blocks.size()) throw error("tensor " + name + " has no place");
        m.blocks[il][name.substr(dot + 1)] = std::move(t);
    }
    for (weights &w : m.blocks) {
        const bool is_recurrent = w.count("ssm_a") > 0;
        if (int64_t(m.is_recurrent.size()) < m.n_layer) m.is_recurrent.push_back(is_recurrent);
        if (!is_recurrent && w.count("attn_qkv.weight")) split_attn_qkv(w, m.attn);
    }
}

// Byte-level BPE writes a byte that is no printable character of Latin-1 as U+0100 and up, in the order of the bytes.
static std::string bytes_of_bpe(const std::string &text) {
    std::string hidden, out;
    for (int byte = 0; byte < 256; byte++)
        if (byte < 33 || (byte > 126 && byte < 161) || byte == 173) hidden += char(byte);
    for (size_t i = 0; i < text.size(); i++) {
        unsigned code = (unsigned char)text[i];
        if (code >= 0xC0 && i + 1 < text.size()) code = (code & 31) << 6 | ((unsigned char)text[++i] & 63);
        out += code < 256 ? char(code) : code - 256 < hidden.size() ? hidden[code - 256] : '?';
    }
    return out;
}

// What each token adds to the text. Control tokens (type 3) add nothing, added ones (4) are plain text; llama.cpp's
// tokenizer `test` writes ids in hexadecimal.
static void read_pieces(const golden::gguf &file, model &m) {
    const auto tokens = file.kv.find("tokenizer.ggml.tokens"), kind = file.kv.find("tokenizer.ggml.model");
    const auto types = file.kv.find("tokenizer.ggml.token_type");
    if (tokens == file.kv.end() || kind == file.kv.end()) return;
    for (size_t id = 0; id < tokens->second.items.size(); id++) {
        char hex[20];
        std::snprintf(hex, sizeof hex, "%zx", id);
        const std::string &text = tokens->second.items[id].as_text();
        const int64_t type = types == file.kv.end() ? 1 : types->second.items.at(id).as_int();
        if (type == 3) m.pieces.push_back("");
        else if (kind->second.as_text() == "test") m.pieces.push_back(hex);
        else m.pieces.push_back(type == 4 ? text : bytes_of_bpe(text));
    }
}

model load_model(const std::string &path, const std::string &kv_type, bool is_ggml, const std::string &contract_text) {
    golden::gguf file = golden::read_gguf(path);
    const auto arch = file.kv.find("general.architecture");
    const auto is_known = [&](const std::string &name) {
        return std::find(std::begin(ARCHS), std::end(ARCHS), name) != std::end(ARCHS);
    };
    if (arch == file.kv.end()) throw error(path + ": no general.architecture");
    if (!is_known(arch->second.as_text())) throw unsupported("no architecture " + arch->second.as_text());
    model m;
    m.kv_type = kv_type;
    m.is_ggml = is_ggml;
    m.rules = parse_contract(contract_text);
    read_shape(keys{file, arch->second.as_text()}, m);
    const auto eos = file.kv.find("tokenizer.ggml.eos_token_id");
    if (eos != file.kv.end()) m.eog.insert(eos->second.as_int());
    read_pieces(file, m);
    read_tensors(file, m);
    return m;
}

sequence model::new_sequence(int64_t n_ctx) const {
    sequence seq;
    seq.n_ctx = n_ctx > 0 ? n_ctx : n_ctx_train;
    seq.pending_h.assign(size_t(n_embd), 0.0f);
    const int64_t n_v = delta.n_v_heads * delta.d_state, n_channels = 2 * delta.n_k_heads * delta.d_state + n_v;
    for (int64_t il = 0; il < n_layer; il++) {
        layer_state state;
        if (is_recurrent[size_t(il)]) {
            const int64_t d_conv = matrix_of(blocks[size_t(il)], "ssm_conv1d.weight").dim(0);
            state.conv = rows(n_channels, d_conv - 1);
            state.state = rows(delta.d_state, n_v);
        }
        seq.layers.push_back(std::move(state));
    }
    return seq;
}

// ---------------------------------------------------------------------------------------------------------- running

static rows sum(rows a, const rows &b) {
    for (size_t i = 0; i < a.x.size(); i++) a.x[i] += b.x[i];
    return a;
}

// x += mixer(norm(x)); x += ffn(norm(x)).
rows model::block(const weights &w, bool recurrent, rows x, layer_state &state, const std::vector<int32_t> &pos,
                  int64_t keep, const tap &see) const {
    const rows h = step.rms_norm(x, vector_of(w, "attn_norm.weight"), eps);
    see("attn_norm", h);
    if (recurrent) {
        delta_result r = delta_layer(w, delta, h, state.conv, state.state, keep, is_ggml, see);
        state.conv = r.conv.back();
        state.state = r.states.back();
        state.conv_planes = std::move(r.conv);
        state.state_planes = std::move(r.states);
        x = sum(std::move(x), r.y);
    } else if (w.count("attn_kv_a_mqa.weight")) {
        x = sum(std::move(x), latent_layer(w, latent, h, state.k, state.v, kv_type, pos, is_ggml, see));
    } else {
        const bool is_gated = matrix_of(w, "attn_q.weight").dim(1) == 2 * attn.n_head * attn.n_embd_head;
        const auto layer = is_gated ? attn_layer : plain_attn_layer;
        x = sum(std::move(x), layer(w, attn, h, state.k, state.v, kv_type, pos, is_ggml, see));
    }
    see("attn_residual", x);
    const char *norm = w.count("ffn_norm.weight") ? "ffn_norm.weight" : "post_attention_norm.weight";
    const rows after = step.rms_norm(x, vector_of(w, norm), eps);
    see("attn_post_norm", after);
    routing chosen;
    const bool is_moe = w.count("ffn_gate_inp.weight") > 0;
    x = sum(std::move(x), is_moe ? moe_ffn(w, moe, after, is_ggml, chosen, see) : ffn(w, after, is_ggml, see));
    see("post_ffn", x);
    see("l_out", x);
    return x;
}

static std::vector<int32_t> positions(int64_t first, size_t n) {
    std::vector<int32_t> pos;
    for (size_t i = 0; i < n; i++) pos.push_back(int32_t(first + int64_t(i)));
    return pos;
}

const tensor &model::head() const {
    const auto found = global.find("output.weight");
    return found == global.end() ? matrix_of(global, "token_embd.weight") : found->second;
}

// T tokens through the trunk; recurrent state is kept after each of the last `keep` of them.
pass model::trunk(sequence &seq, const std::vector<int32_t> &ids, int64_t keep, const tap &see) const {
    if (seq.n_past + int64_t(ids.size()) > seq.n_ctx) throw error("the context is full");
    const std::vector<int32_t> pos = positions(seq.n_past, ids.size());
    rows x = get_rows(matrix_of(global, "token_embd.weight"), ids);
    see("model.input_embed", x);
    for (size_t il = 0; il < seq.layers.size(); il++) {
        const tap see_layer = [&](const std::string &name, const rows &r) { see(name + "-" + std::to_string(il), r); };
        x = block(blocks[il], is_recurrent[il], std::move(x), seq.layers[il], pos,
                  std::min(keep, int64_t(ids.size())), see_layer);
    }
    seq.n_past += int64_t(ids.size());
    pass out;
    out.post = step.rms_norm(x, vector_of(global, "output_norm.weight"), eps);
    out.pre = std::move(x);
    see("h_nextn", out.post);
    see("result_norm", out.post);
    out.logits = step.mul_mat(head(), out.post, is_ggml);
    see("result_output", out.logits);
    return out;
}

// The name of a tensor of the head's block: "mtp_" in front, and two names of llama.cpp's own.
static std::string mtp_name(const std::string &name, int64_t il) {
    const std::string own = name == "attn_output" ? "attn_out" : name == "gate_reshaped" ? "gate" : name;
    return "mtp_" + own + "-" + std::to_string(il);
}

static tensor first_rows(const tensor &w, int64_t n) {
    if (n <= 0 || n >= w.n_rows()) return w;
    tensor part = w;
    part.ne = {w.dim(0), n};
    part.data.resize(size_t(uint64_t(n) * golden::row_bytes(w.type, w.dim(0))));
    return part;
}

// T pairs (token x_p, hidden row of p - 1) through the head at positions first_pos, first_pos + 1, ...
pass model::mtp(sequence &seq, const std::vector<int32_t> &ids, const rows &hidden, int64_t first_pos,
                int64_t n_draft_vocab, const tap &see) const {
    const weights &w = blocks[size_t(n_layer)];
    const tap see_block = [&](const std::string &name, const rows &r) { see(mtp_name(name, n_layer), r); };
    if (seq.n_mtp == 0) seq.mtp_start = first_pos;
    if (first_pos != seq.mtp_start + seq.n_mtp) throw error("the head's cells would have a hole");

    const auto own = w.find("nextn.embed_tokens.weight");
    const rows embd = get_rows(own == w.end() ? matrix_of(global, "token_embd.weight") : own->second, ids);
    see_block("tok_embd", embd);
    const rows hnorm = step.rms_norm(hidden, vector_of(w, "nextn.hnorm.weight"), eps);
    const rows enorm = step.rms_norm(embd, vector_of(w, "nextn.enorm.weight"), eps);
    see_block("hnorm", hnorm);
    see_block("enorm", enorm);
    const rows joined = step.mtp_concat(enorm, hnorm);
    see_block("concat", joined);
    rows x = step.mul_mat(matrix_of(w, "nextn.eh_proj.weight"), joined, is_ggml);
    see_block("eh_proj", x);

    x = block(w, false, std::move(x), seq.mtp, positions(first_pos + rules.pos_offset, ids.size()), 1, see_block);
    seq.n_mtp += int64_t(ids.size());

    pass out;
    const bool has_norm = w.count("nextn.shared_head_norm.weight") > 0;
    const bool has_head = w.count("nextn.shared_head_head.weight") > 0;
    out.post = step.rms_norm(
        x, has_norm ? vector_of(w, "nextn.shared_head_norm.weight") : vector_of(global, "output_norm.weight"), eps);
    out.pre = std::move(x);
    see("mtp_h_nextn", out.post);
    see("mtp_shared_head_norm", out.post);
    const tensor &all = has_head ? w.at("nextn.shared_head_head.weight") : head();
    out.logits = step.mul_mat(first_rows(all, n_draft_vocab), out.post, is_ggml);
    see("mtp_result_output", out.logits);
    return out;
}

}  // namespace port
