// Writes every named activation of one decode to a GGUF: dump MODEL OUT.gguf ID ID ...
#include "ggml-backend.h"
#include "gguf.h"
#include "llama.h"

#include <cstdlib>
#include <cstring>
#include <string>
#include <vector>

struct kept { std::string name; int64_t ne[4]; std::vector<float> x; };

static bool keep(ggml_tensor * t, bool ask, void * user) {
    const std::string name = t->name;
    // "x (view)", "node_7" and empty names are no activations of their own.
    const bool wanted = t->type == GGML_TYPE_F32 && !name.empty() && name.find(' ') == std::string::npos &&
                        name.compare(0, 5, "node_") != 0 && name.compare(0, 6, "cache_") != 0;
    if (ask || !wanted) return wanted;
    std::vector<uint8_t> raw(ggml_nbytes(t));
    ggml_backend_tensor_get(t, raw.data(), 0, raw.size());  // also from a GPU
    kept k{name, {t->ne[0], t->ne[1], t->ne[2], t->ne[3]}, {}};
    for (int64_t i3 = 0; i3 < t->ne[3]; i3++)
        for (int64_t i2 = 0; i2 < t->ne[2]; i2++)
            for (int64_t i1 = 0; i1 < t->ne[1]; i1++)
                for (int64_t i0 = 0; i0 < t->ne[0]; i0++) {  // by strides: some are views
                    float v;
                    memcpy(&v, &raw[i0 * t->nb[0] + i1 * t->nb[1] + i2 * t->nb[2] + i3 * t->nb[3]], sizeof v);
                    k.x.push_back(v);
                }
    auto & all = *(std::vector<kept> *) user;
    for (size_t i = 0; i < all.size(); i++)
        if (all[i].name == name) all.erase(all.begin() + i--);  // Kcur comes twice: the last one is after RoPE
    all.push_back(k);
    return true;
}

int main(int argc, char ** argv) {
    if (argc < 4) return 2;
    std::vector<kept> all;
    llama_model * model = llama_model_load_from_file(argv[1], llama_model_default_params());
    if (!model) return 2;
    llama_context_params cp = llama_context_default_params();
    cp.flash_attn_type = LLAMA_FLASH_ATTN_TYPE_DISABLED;
    cp.type_k = cp.type_v = GGML_TYPE_F32;
    cp.cb_eval = keep;
    cp.cb_eval_user_data = &all;
    llama_context * ctx = llama_init_from_model(model, cp);
    std::vector<llama_token> ids;
    for (int i = 3; i < argc; i++) ids.push_back(atoi(argv[i]));
    llama_batch batch = llama_batch_get_one(ids.data(), (int32_t) ids.size());
    if (!ctx || llama_decode(ctx, batch)) return 2;

    gguf_context * out = gguf_init_empty();
    ggml_context * meta = ggml_init({all.size() * ggml_tensor_overhead() + 1024, nullptr, /*no_alloc*/ true});
    for (kept & k : all) {
        if (k.x.empty()) continue;
        ggml_tensor * t = ggml_new_tensor(meta, GGML_TYPE_F32, 4, k.ne);
        ggml_set_name(t, k.name.c_str());
        t->data = k.x.data();
        gguf_add_tensor(out, t);
    }
    return gguf_write_to_file(out, argv[2], /*only_meta*/ false) ? 0 : 2;
}
