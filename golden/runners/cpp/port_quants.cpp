// Weight types, activation quantisers and the matrix product: S5, S6, S7 of docs/spec.md.
//
// Compile without contraction of products and sums (-ffp-contract=off): decoded weights must have the exact bits.
#include <algorithm>

#include "example_port.h"

namespace port {

// ------------------------------------------------------------------------------------------------- 16-bit floats

static uint32_t bits_of(float x) {
    uint32_t u;
    std::memcpy(&u, &x, 4);
    return u;
}

static float float_of(uint32_t u) {
    float x;
    std::memcpy(&x, &u, 4);
    return x;
}

float f16_to_f32(uint16_t bits) {
    const uint32_t sign = uint32_t(bits & 0x8000) << 16, exponent = bits >> 10 & 31, mantissa = bits & 1023;
    if (exponent == 31) return float_of(sign | 0x7F800000 | mantissa << 13);
    const float magnitude = exponent == 0 ? std::ldexp(float(mantissa), -24)
                                          : std::ldexp(float(mantissa | 1024), int(exponent) - 25);
    return sign ? -magnitude : magnitude;
}

uint16_t f32_to_f16(float x) {
    const uint32_t u = bits_of(x), sign = u >> 16 & 0x8000, magnitude = u & 0x7FFFFFFF;
    if (magnitude > 0x7F800000) return uint16_t(sign | 0x7E00 | (magnitude >> 13 & 1023));  // NaN
    if (magnitude >= 0x477FF000) return uint16_t(sign | 0x7C00);                            // from 65520 up
    if (magnitude < 0x38800000) {  // below 2^-14: a multiple of 2^-24; nearbyint rounds ties to even
        return uint16_t(sign | uint32_t(std::nearbyint(std::ldexp(float_of(magnitude), 24))));
    }
    const uint32_t rounded = magnitude + 0xFFF + (magnitude >> 13 & 1);
    return uint16_t(sign | (rounded - 0x38000000) >> 13);
}

float bf16_to_f32(uint16_t bits) { return float_of(uint32_t(bits) << 16); }

uint16_t f32_to_bf16(float x) {
    const uint32_t u = bits_of(x);
    if ((u & 0x7FFFFFFF) > 0x7F800000) return uint16_t(u >> 16 | 64);  // NaN, made quiet
    return uint16_t((u + 0x7FFF + (u >> 16 & 1)) >> 16);
}

float rounded(const std::string &type, float x) {
    if (type == "F16") return f16_to_f32(f32_to_f16(x));
    if (type == "BF16") return bf16_to_f32(f32_to_bf16(x));
    return x;
}

// ------------------------------------------------------------------------------------------ activation quantisers

q8_0_row quantize_q8_0(const float *x, int64_t n) {
    q8_0_row out;
    for (int64_t b = 0; b < n; b += 32) {
        float amax = 0;
        for (int i = 0; i < 32; i++) amax = std::max(amax, std::fabs(x[b + i]));
        const float d = amax / 127, inverse = d != 0 ? 1 / d : 0;
        int32_t sum = 0;
        for (int i = 0; i < 32; i++) {
            const float scaled = x[b + i] * inverse;
            const int32_t code = std::isfinite(scaled) ? int32_t(std::round(scaled)) : 0;  // halves away from zero
            out.codes.push_back(code);
            sum += code;
        }
        out.d.push_back(rounded("F16", d));  // the codes are made with the scale that is not yet rounded
        out.s.push_back(rounded("F16", float(sum) * d));
    }
    return out;
}

q8_k_row quantize_q8_k(const float *x, int64_t n) {
    q8_k_row out;
    for (int64_t b = 0; b < n; b += 256) {
        float m = 0;  // the element of the greatest magnitude, the first one, with its sign
        for (int i = 0; i < 256; i++)
            if (std::fabs(x[b + i]) > std::fabs(m)) m = x[b + i];
        const float inverse = m != 0 ? -127 / m : 0;
        for (int i = 0; i < 256; i++)
            out.codes.push_back(std::min(127, int32_t(std::nearbyint(inverse * x[b + i]))));  // halves to even
        out.d.push_back(inverse != 0 ? 1 / inverse : 0);
    }
    for (size_t i = 0; i < out.codes.size(); i += 16) {
        int32_t sum = 0;
        for (int j = 0; j < 16; j++) sum += out.codes[i + size_t(j)];
        out.bsums.push_back(sum);
    }
    return out;
}

// ------------------------------------------------------------------------------------------------- weight blocks

namespace {

float half_at(const uint8_t *p) { return f16_to_f32(uint16_t(p[0] | p[1] << 8)); }

// A block as integers: y = d * scale * code - dmin * minimum, the sub-blocks being of size / n_sub codes.
struct block {
    float d = 0, dmin = 0;
    bool has_min = false;
    int n_sub = 1;
    int32_t scale[16] = {1}, minimum[16] = {0};
    int32_t code[256] = {0};
};

// Q4_0, Q4_1, Q5_0, Q5_1, Q8_0. The minimum of the types that end in _1 is added; here -dmin is that number.
void unpack_legacy(const std::string &type, const uint8_t *p, block &b) {
    b.d = half_at(p);
    if (type == "Q8_0") {
        for (int i = 0; i < 32; i++) b.code[i] = int8_t(p[2 + i]);
        return;
    }
    b.has_min = type[3] == '1';
    const bool is_five = type[1] == '5';
    if (b.has_min) b.dmin = -half_at(p + 2), b.minimum[0] = 1;
    const uint8_t *high = p + (b.has_min ? 4 : 2), *low = high + (is_five ? 4 : 0);
    for (int i = 0; i < 32; i++) {
        b.code[i] = i < 16 ? low[i] & 15 : low[i - 16] >> 4;
        if (is_five) b.code[i] |= (high[i / 8] >> (i % 8) & 1) << 4;
        if (!b.has_min) b.code[i] -= is_five ? 16 : 8;
    }
}

// Two bits of element i: 128 h + 32 g + j is bits 2 g, 2 g + 1 of byte 32 h + j.
int two_bits(const uint8_t *p, int i) { return p[i / 128 * 32 + i % 32] >> (i % 128 / 32 * 2) & 3; }
// Four bits of element i: byte 32 g + j holds 64 g + j, and 64 g + 32 + j in its high half.
int four_bits(const uint8_t *p, int i) { return p[i / 64 * 32 + i % 32] >> (i % 64 / 32 * 4) & 15; }
// One bit of element i: 32 g + j is bit g of byte j.
int one_bit(const uint8_t *p, int i) { return p[i % 32] >> (i / 32) & 1; }

// The 6-bit scales and minima of Q4_K and Q5_K, from 12 bytes.
void unpack_k4_scales(const uint8_t *s, block &b) {
    b.n_sub = 8;
    b.has_min = true;
    for (int j = 0; j < 8; j++) {
        b.scale[j] = j < 4 ? s[j] & 63 : (s[j + 4] & 15) | s[j - 4] >> 6 << 4;
        b.minimum[j] = j < 4 ? s[j + 4] & 63 : s[j + 4] >> 4 | s[j] >> 6 << 4;
    }
}

void unpack_q2_k(const uint8_t *p, block &b) {
    b.d = half_at(p + 80), b.dmin = half_at(p + 82);
    b.has_min = true, b.n_sub = 16;
    for (int j = 0; j < 16; j++) b.scale[j] = p[j] & 15, b.minimum[j] = p[j] >> 4;
    for (int i = 0; i < 256; i++) b.code[i] = two_bits(p + 16, i);
}

void unpack_q3_k(const uint8_t *p, block &b) {
    const uint8_t *s = p + 96;
    b.d = half_at(p + 108);
    b.n_sub = 16;
    for (int j = 0; j < 16; j++) {
        const int low = j < 8 ? s[j] & 15 : s[j - 8] >> 4, high = s[8 + j % 4] >> (j / 4 * 2) & 3;
        b.scale[j] = (low | high << 4) - 32;
    }
    for (int i = 0; i < 256; i++) b.code[i] = (two_bits(p + 32, i) | one_bit(p, i) << 2) - 4;
}

void unpack_q4_k(const uint8_t *p, block &b) {
    b.d = half_at(p), b.dmin = half_at(p + 2);
    unpack_k4_scales(p + 4, b);
    for (int i = 0; i < 256; i++) b.code[i] = four_bits(p + 16, i);
}

void unpack_q5_k(const uint8_t *p, block &b) {
    b.d = half_at(p), b.dmin = half_at(p + 2);
    unpack_k4_scales(p + 4, b);
    for (int i = 0; i < 256; i++) b.code[i] = four_bits(p + 48, i) | one_bit(p + 16, i) << 4;
}

// Q6_K: the lower four bits of 128 h + 32 g + j are in byte 64 h + 32 (g % 2) + j, in its high half for g of 2 and 3.
void unpack_q6_k(const uint8_t *p, block &b) {
    b.d = half_at(p + 208);
    b.n_sub = 16;
    for (int j = 0; j < 16; j++) b.scale[j] = int8_t(p[192 + j]);
    for (int i = 0; i < 256; i++) {
        const int h = i / 128, g = i % 128 / 32, j = i % 32;
        const int low = p[64 * h + 32 * (g % 2) + j] >> (g / 2 * 4) & 15;
        b.code[i] = (low | two_bits(p + 128, i) << 4) - 32;
    }
}

// IQ4_NL and IQ4_XS: a code is one of these 16 values, packed in halves as Q4_0.
const int8_t IQ4_VALUES[16] = {-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113};

void unpack_iq4_nl(const uint8_t *p, block &b) {
    b.d = half_at(p);
    for (int i = 0; i < 32; i++) b.code[i] = IQ4_VALUES[p[2 + i % 16] >> (i / 16 * 4) & 15];
}

// d, the upper two bits of eight scales, their lower four, then 16 bytes for each 32 codes.
void unpack_iq4_xs(const uint8_t *p, block &b) {
    b.d = half_at(p);
    b.n_sub = 8;
    for (int j = 0; j < 8; j++) {
        const int low = p[4 + j / 2] >> (j % 2 * 4) & 15, high = (p[2] | p[3] << 8) >> (2 * j) & 3;
        b.scale[j] = (low | high << 4) - 32;
    }
    for (int i = 0; i < 256; i++) b.code[i] = IQ4_VALUES[p[8 + i / 32 * 16 + i % 16] >> (i % 32 / 16 * 4) & 15];
}

// Blocks of 32 values, which meet Q8_0 or Q8_1 activations; all others have 256 and meet Q8_K.
bool is_small(const std::string &type) {
    return type == "IQ4_NL" || type == "Q8_0" || type == "Q4_0" || type == "Q4_1" || type == "Q5_0" || type == "Q5_1";
}

block unpack(const std::string &type, const uint8_t *p) {
    block b;
    if (type == "IQ4_NL") unpack_iq4_nl(p, b);
    else if (type == "IQ4_XS") unpack_iq4_xs(p, b);
    else if (is_small(type)) unpack_legacy(type, p, b);
    else if (type == "Q2_K") unpack_q2_k(p, b);
    else if (type == "Q3_K") unpack_q3_k(p, b);
    else if (type == "Q4_K") unpack_q4_k(p, b);
    else if (type == "Q5_K") unpack_q5_k(p, b);
    else if (type == "Q6_K") unpack_q6_k(p, b);
    else throw error("weights of type " + type + " are not supported");
    return b;
}

int block_values(const std::string &type) { return is_small(type) ? 32 : 256; }

bool is_plain(const std::string &type) { return type == "F32" || type == "F16" || type == "BF16"; }

void dequantize_row(const std::string &type, const uint8_t *p, int64_t n, float *y) {
    if (type == "F32") {
        std::memcpy(y, p, size_t(n) * 4);
        return;
    }
    if (is_plain(type)) {
        for (int64_t i = 0; i < n; i++) {
            const uint16_t bits = uint16_t(p[2 * i] | p[2 * i + 1] << 8);
            y[i] = type == "F16" ? f16_to_f32(bits) : bf16_to_f32(bits);
        }
        return;
    }
    const int size = block_values(type);
    for (int64_t at = 0; at < n; at += size, p += golden::row_bytes(type, size)) {
        const block b = unpack(type, p);
        for (int i = 0; i < size; i++) {
            const int j = i / (size / b.n_sub);
            const float scaled = (b.d * float(b.scale[j])) * float(b.code[i]);
            y[at + i] = b.has_min ? scaled - b.dmin * float(b.minimum[j]) : scaled;
        }
    }
}

}  // namespace

bool can_dequantize(const std::string &type) {
    return is_plain(type) || is_small(type) || type == "IQ4_XS" ||
           (type.size() == 4 && type.compare(2, 2, "_K") == 0 && type[0] == 'Q' && type[1] >= '2' && type[1] <= '6');
}

rows dequantize(const tensor &w) {
    rows y(w.dim(0), w.n_rows());
    const uint64_t bytes = golden::row_bytes(w.type, w.dim(0));
    for (int64_t r = 0; r < y.ne1; r++) dequantize_row(w.type, w.data.data() + uint64_t(r) * bytes, y.ne0, y.row(r));
    return y;
}

rows get_rows(const tensor &w, const std::vector<int32_t> &ids) {
    rows y(w.dim(0), int64_t(ids.size()));
    const uint64_t bytes = golden::row_bytes(w.type, w.dim(0));
    for (int64_t t = 0; t < y.ne1; t++) {
        const int32_t id = ids[size_t(t)];
        if (id < 0 || id >= w.n_rows()) throw error("token id " + std::to_string(id) + " is not in the vocabulary");
        dequantize_row(w.type, w.data.data() + uint64_t(id) * bytes, y.ne0, y.row(t));
    }
    return y;
}

// ---------------------------------------------------------------------------------------------- the matrix product

namespace {

double dot(const float *a, const float *b, int64_t n) {
    double sum = 0;
    for (int64_t i = 0; i < n; i++) sum += double(a[i]) * double(b[i]);
    return sum;
}

// One row of quantised weights with one quantised activation: integer sums in each block, scaled and added up.
double dot_small(const std::string &type, const uint8_t *p, const q8_0_row &x) {
    double sum = 0;
    for (size_t k = 0; k < x.d.size(); k++, p += golden::row_bytes(type, 32)) {
        const block b = unpack(type, p);
        int32_t integer = 0;
        for (size_t i = 0; i < 32; i++) integer += b.code[i] * x.codes[32 * k + i];
        sum += double(b.d) * double(x.d[k]) * integer;
        if (b.has_min) sum -= double(b.dmin) * double(x.s[k]);
    }
    return sum;
}

double dot_k(const std::string &type, const uint8_t *p, const q8_k_row &x) {
    double sum = 0;
    for (size_t k = 0; k < x.d.size(); k++, p += golden::row_bytes(type, 256)) {
        const block b = unpack(type, p);
        const size_t sub = size_t(256 / b.n_sub);
        int32_t integer = 0, minima = 0;
        for (size_t i = 0; i < 256; i++) integer += b.scale[i / sub] * b.code[i] * x.codes[256 * k + i];
        for (size_t i = 0; i < 16; i++) minima += b.minimum[16 * i / sub] * x.bsums[16 * k + i];
        sum += double(x.d[k]) * (double(b.d) * integer - double(b.dmin) * minima);
    }
    return sum;
}

}  // namespace

// y (n_out, T) = W x. `ggml` numerics bring the activation to the type that ggml pairs with the weight's.
rows mul_mat(const tensor &w, const rows &x, bool is_ggml) {
    if (w.dim(0) != x.ne0) throw error("mul_mat: rows of different lengths");
    rows y(w.n_rows(), x.ne1);
    if (!is_ggml || is_plain(w.type)) {
        const rows matrix = dequantize(w);
        rows in = x;
        if (is_ggml)
            for (float &value : in.x) value = rounded(w.type, value);
        for (int64_t t = 0; t < x.ne1; t++)
            for (int64_t r = 0; r < y.ne0; r++) y.row(t)[r] = float(dot(matrix.row(r), in.row(t), x.ne0));
        return y;
    }
    const uint64_t bytes = golden::row_bytes(w.type, x.ne0);
    for (int64_t t = 0; t < x.ne1; t++) {
        const q8_0_row x32 = is_small(w.type) ? quantize_q8_0(x.row(t), x.ne0) : q8_0_row();
        const q8_k_row x256 = is_small(w.type) ? q8_k_row() : quantize_q8_k(x.row(t), x.ne0);
        for (int64_t r = 0; r < y.ne0; r++) {
            const uint8_t *p = w.data.data() + uint64_t(r) * bytes;
            y.row(t)[r] = float(is_small(w.type) ? dot_small(w.type, p, x32) : dot_k(w.type, p, x256));
        }
    }
    return y;
}

}  // namespace port
