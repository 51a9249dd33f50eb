/* Asks llama.cpp's library about a vocabulary. Used by tools/record_vocab.py, which compiles it.

   vocab_probe MODEL.gguf < QUESTIONS

   The first lines of the answer: "info" (BOS, EOS, whether each is added, then every id that ends generation), then
   one line an id with its piece without and with special=true, each as hexadecimal after "=".
   Each line of QUESTIONS is "PARSE_SPECIAL HEX": a text. Its answer is one line: the ids (BOS and EOS as the file
   says), then what detokenizing them gives for remove_special, unparse_special = 00, 01, 10, 11. */

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "llama.h"

enum { MAX_BYTES = 1 << 20 };

static void no_log(enum ggml_log_level level, const char * text, void * data) {
    (void) data;
    if (level == GGML_LOG_LEVEL_ERROR) {
        fputs(text, stderr);
    }
}

static void print_hex(const char * bytes, int n) {
    printf(" =");
    for (int i = 0; i < n; i++) {
        printf("%02x", (unsigned char) bytes[i]);
    }
}

static int value_of(char digit) {
    return digit <= '9' ? digit - '0' : digit - 'a' + 10;
}

static int fail(const char * why) {
    fprintf(stderr, "vocab_probe: %s\n", why);
    return 1;
}

int main(int argc, char ** argv) {
    static char line[2 * MAX_BYTES + 8], text[MAX_BYTES], out[4 * MAX_BYTES];
    static llama_token ids[MAX_BYTES];
    if (argc != 2) {
        return fail("expected one argument, a GGUF");
    }
    llama_log_set(no_log, NULL);
    struct llama_model_params params = llama_model_default_params();
    params.vocab_only = true;
    struct llama_model * model = llama_model_load_from_file(argv[1], params);
    if (!model) {
        return fail("llama.cpp does not load the file");
    }
    const struct llama_vocab * vocab = llama_model_get_vocab(model);
    const int n_vocab = llama_vocab_n_tokens(vocab);

    printf("info %d %d %d %d", llama_vocab_bos(vocab), llama_vocab_eos(vocab), llama_vocab_get_add_bos(vocab),
           llama_vocab_get_add_eos(vocab));
    for (int id = 0; id < n_vocab; id++) {
        if (llama_vocab_is_eog(vocab, id)) {
            printf(" %d", id);
        }
    }
    printf("\n");
    for (int id = 0; id < n_vocab; id++) {
        for (int special = 0; special < 2; special++) {
            const int n = llama_token_to_piece(vocab, id, out, sizeof(out), 0, special);
            print_hex(out, n);
        }
        printf("\n");
    }

    while (fgets(line, sizeof(line), stdin)) {
        int n_text = 0;
        for (const char * p = line + 2; p[0] > ' ' && p[1] > ' '; p += 2) {
            text[n_text++] = (char) (value_of(p[0]) * 16 + value_of(p[1]));
        }
        const int n = llama_tokenize(vocab, text, n_text, ids, MAX_BYTES, true, line[0] == '1');
        if (n < 0) {
            return fail("too many tokens");
        }
        for (int i = 0; i < n; i++) {
            printf("%d ", ids[i]);
        }
        for (int mode = 0; mode < 4; mode++) {
            const int n_out = llama_detokenize(vocab, ids, n, out, sizeof(out), mode >> 1, mode & 1);
            if (n_out < 0) {
                return fail("too long a text");
            }
            print_hex(out, n_out);
        }
        printf("\n");
    }
    llama_model_free(model);
    return 0;
}
