// golden_check: checks an engine against the golden vectors of mtpref. One file, C++17, no dependency.
//
//     g++ -O2 -std=c++17 -ffp-contract=off golden_check.cpp YOUR_PORT.cpp -o golden_check
//     ./golden_check [options] path/to/golden
//
// It verifies every file of the folder by its SHA-256, asks the port (port.h) for one case after the other, and
// compares by the rules of golden/README.md: bits for the class "exact", an NMSE limit of the manifest for the others.
// Exit status: 0 nothing failed, 1 a case failed, 2 the folder or the command line is not usable (one line on stderr).
//
// Parts, in this order: JSON, SHA-256, GGUF, the folder, the comparison, the report, main.
#include "port.h"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <set>

namespace golden {

namespace fs = std::filesystem;

// Limits that keep memory bounded whatever a file says. Every length is checked against what is left of the file
// before anything is allocated.
constexpr uint64_t MAX_JSON_BYTES = 32u << 20;
constexpr uint64_t MAX_GGUF_BYTES = 1u << 30;
constexpr size_t MAX_JSON_VALUES = 1u << 20;
constexpr int MAX_JSON_DEPTH = 64;
constexpr uint64_t MAX_TENSORS = 1u << 16;
constexpr uint64_t MAX_KEYS = 1u << 16;
constexpr size_t MAX_NAME = 200;

// Text of a file, made harmless for one line of a terminal.
static std::string printable(const std::string &text) {
    std::string out;
    for (char c : text.substr(0, MAX_NAME)) out += (c >= 32 && c < 127) ? c : '?';
    return out;
}

// ------------------------------------------------------------------------------------------------------------- JSON

json json::of(int64_t n) {
    json v;
    v.kind = number;
    v.text = std::to_string(n);
    return v;
}

json json::of(const std::string &s) {
    json v;
    v.kind = string;
    v.text = s;
    return v;
}

json json::of(const std::vector<int64_t> &ids) {
    json v;
    v.kind = array;
    for (int64_t id : ids) v.items.push_back(of(id));
    return v;
}

const json *json::find(const std::string &key) const {
    for (const auto &member : members)
        if (member.first == key) return &member.second;
    return nullptr;
}

const json &json::at(const std::string &key) const {
    const json *v = find(key);
    if (!v) throw error("key '" + printable(key) + "' is missing");
    return *v;
}

int64_t json::as_int() const {
    if (kind != number || text.find_first_of(".eE") != std::string::npos)
        throw error("expected an integer, found '" + printable(text) + "'");
    errno = 0;
    const long long n = std::strtoll(text.c_str(), nullptr, 10);
    if (errno) throw error("integer '" + printable(text) + "' is out of range");
    return n;
}

uint64_t json::as_uint() const {
    if (kind != number || text.find_first_of(".eE-") != std::string::npos)
        throw error("expected an integer from 0 on, found '" + printable(text) + "'");
    errno = 0;
    const unsigned long long n = std::strtoull(text.c_str(), nullptr, 10);
    if (errno) throw error("integer '" + printable(text) + "' is out of range");
    return n;
}

static bool is_hex_float(const json &v) {
    if (v.kind != json::string) return false;
    const size_t at = !v.text.empty() && v.text[0] == '-' ? 1 : 0;
    if (v.text.compare(at, 2, "0x") != 0) return false;
    char *end = nullptr;
    std::strtod(v.text.c_str(), &end);
    return *end == '\0';
}

double json::as_float() const {
    if (kind != number && !is_hex_float(*this)) throw error("expected a number, found '" + printable(text) + "'");
    return std::strtod(text.c_str(), nullptr);
}

const std::string &json::as_text() const {
    if (kind != string) throw error("expected a string");
    return text;
}

std::vector<int64_t> json::as_ints() const {
    if (kind != array) throw error("expected an array of integers");
    std::vector<int64_t> out;
    for (const json &item : items) out.push_back(item.as_int());
    return out;
}

int64_t json::get_int(const std::string &key, int64_t fallback) const {
    const json *v = find(key);
    return v ? v->as_int() : fallback;
}

std::string json::get_text(const std::string &key, const std::string &fallback) const {
    const json *v = find(key);
    return v ? v->as_text() : fallback;
}

namespace {

// Recursive descent over a text in memory; depth and number of values are limited.
class json_reader {
  public:
    explicit json_reader(const std::string &text) : s(text) {}

    json read() {
        json v = value(0);
        space();
        if (at != s.size()) bad("text behind the value");
        return v;
    }

  private:
    const std::string &s;
    size_t at = 0, n_values = 0;

    [[noreturn]] void bad(const std::string &what) const {
        throw error("no JSON: " + what + " at byte " + std::to_string(at));
    }

    void space() {
        while (at < s.size() && std::strchr(" \t\r\n", s[at]) && s[at]) at++;
    }

    char peek() const { return at < s.size() ? s[at] : '\0'; }

    void expect(const char *word) {
        const size_t n = std::strlen(word);
        if (s.compare(at, n, word) != 0) bad(std::string("expected ") + word);
        at += n;
    }

    json value(int depth) {
        if (depth > MAX_JSON_DEPTH) bad("nested too deeply");
        if (++n_values > MAX_JSON_VALUES) bad("too many values");
        space();
        json v;
        switch (peek()) {
            case '{': object(v, depth); return v;
            case '[': array(v, depth); return v;
            case '"': v.kind = json::string; v.text = string(); return v;
            case 't': expect("true"); v.kind = json::boolean; v.text = "true"; return v;
            case 'f': expect("false"); v.kind = json::boolean; v.text = "false"; return v;
            case 'n': expect("null"); return v;
            default: v.kind = json::number; v.text = number(); return v;
        }
    }

    void object(json &v, int depth) {
        v.kind = json::object;
        at++;
        space();
        if (peek() == '}') { at++; return; }
        for (;;) {
            space();
            if (peek() != '"') bad("expected a key");
            std::string key = string();
            space();
            expect(":");
            v.members.emplace_back(std::move(key), value(depth + 1));
            space();
            if (peek() == '}') { at++; return; }
            expect(",");
        }
    }

    void array(json &v, int depth) {
        v.kind = json::array;
        at++;
        space();
        if (peek() == ']') { at++; return; }
        for (;;) {
            v.items.push_back(value(depth + 1));
            space();
            if (peek() == ']') { at++; return; }
            expect(",");
        }
    }

    std::string number() {
        const size_t start = at;
        auto digits = [&] {
            if (peek() < '0' || peek() > '9') bad("expected a value");
            while (peek() >= '0' && peek() <= '9') at++;
        };
        if (peek() == '-') at++;
        digits();
        if (peek() == '.') { at++; digits(); }
        if (peek() == 'e' || peek() == 'E') {
            at++;
            if (peek() == '+' || peek() == '-') at++;
            digits();
        }
        return s.substr(start, at - start);
    }

    unsigned hex4() {
        unsigned code = 0;
        for (int i = 0; i < 4; i++, at++) {
            const char *digits = "0123456789abcdef";
            const char *d = peek() ? std::strchr(digits, peek() | 32) : nullptr;
            if (!d) bad("expected four hex digits");
            code = code * 16 + unsigned(d - digits);
        }
        return code;
    }

    static void add_utf8(std::string &out, unsigned code) {
        if (code < 0x80) { out += char(code); return; }
        if (code < 0x800) { out += char(0xC0 | code >> 6); out += char(0x80 | (code & 63)); return; }
        if (code < 0x10000) {
            out += char(0xE0 | code >> 12);
        } else {
            out += char(0xF0 | code >> 18);
            out += char(0x80 | (code >> 12 & 63));
        }
        out += char(0x80 | (code >> 6 & 63));
        out += char(0x80 | (code & 63));
    }

    std::string string() {
        std::string out;
        at++;
        for (;;) {
            if (at >= s.size()) bad("a string without end");
            const char c = s[at++];
            if (c == '"') return out;
            if ((unsigned char)c < 32) bad("a control character in a string");
            if (c != '\\') { out += c; continue; }
            const char e = peek();
            at++;
            const char *plain = "\"\\/bfnrt", *meaning = "\"\\/\b\f\n\r\t";
            const char *p = e ? std::strchr(plain, e) : nullptr;
            if (p) { out += meaning[p - plain]; continue; }
            if (e != 'u') bad("an unknown escape");
            unsigned code = hex4();
            if (code >= 0xD800 && code < 0xDC00 && s.compare(at, 2, "\\u") == 0) {
                at += 2;
                code = 0x10000 + ((code - 0xD800) << 10) + ((hex4() - 0xDC00) & 0x3FF);
            }
            add_utf8(out, code);
        }
    }
};

void write_text(std::string &out, const std::string &text) {
    out += '"';
    for (char c : text) {
        char escape[8];
        if (c == '"' || c == '\\') {
            out += '\\';
            out += c;
        } else if ((unsigned char)c < 32) {
            std::snprintf(escape, sizeof escape, "\\u%04x", c);
            out += escape;
        } else {
            out += c;
        }
    }
    out += '"';
}

void write_value(std::string &out, const json &v) {
    const char *comma = "";
    switch (v.kind) {
        case json::null: out += "null"; return;
        case json::boolean:
        case json::number: out += v.text; return;
        case json::string: write_text(out, v.text); return;
        case json::array:
            out += '[';
            for (const json &item : v.items) { out += comma; write_value(out, item); comma = ", "; }
            out += ']';
            return;
        case json::object:
            out += '{';
            for (const auto &member : v.members) {
                out += comma;
                write_text(out, member.first);
                out += ": ";
                write_value(out, member.second);
                comma = ", ";
            }
            out += '}';
            return;
    }
}

}  // namespace

json parse_json(const std::string &text) { return json_reader(text).read(); }

std::string write_json(const json &value) {
    std::string out;
    write_value(out, value);
    return out;
}

// ---------------------------------------------------------------------------------------------------------- SHA-256

namespace {

// FIPS 180-4. The constants are the first 32 bits of the fractions of the cube (K) and square (H) roots of primes; they
// are computed here from exact integers instead of being listed.
class sha256 {
  public:
    sha256() {
        int n = 0;
        for (uint32_t p = 2; n < 64; p++) {
            bool is_prime = true;
            for (uint32_t d = 2; d * d <= p; d++) is_prime = is_prime && p % d != 0;
            if (!is_prime) continue;
            if (n < 8) h[n] = root_fraction(p, 2);
            k[n++] = root_fraction(p, 3);
        }
    }

    void add(const uint8_t *data, size_t size) {
        n_bytes += size;
        while (size) {
            const size_t n = std::min(size, sizeof block - filled);
            std::memcpy(block + filled, data, n);
            filled += n, data += n, size -= n;
            if (filled == sizeof block) mix();
        }
    }

    std::string hex() {
        const uint64_t n_bits = n_bytes * 8;
        const uint8_t one = 0x80, zero = 0;
        add(&one, 1);
        while (filled != 56) add(&zero, 1);
        uint8_t length[8];
        for (int i = 0; i < 8; i++) length[i] = uint8_t(n_bits >> (56 - 8 * i));
        add(length, 8);
        std::string out;
        char word[9];
        for (uint32_t x : h) {
            std::snprintf(word, sizeof word, "%08x", x);
            out += word;
        }
        return out;
    }

  private:
    uint32_t h[8], k[64];
    uint8_t block[64];
    size_t filled = 0;
    uint64_t n_bytes = 0;

    static uint32_t rotate(uint32_t x, int n) { return x >> n | x << (32 - n); }

    // floor(frac(p^(1/degree)) * 2^32): the greatest r with r^degree <= p * 2^(32 degree), by bisection on bits. The
    // powers need up to 106 bits, so they are compared in halves of a long multiplication.
    static uint32_t root_fraction(uint32_t p, int degree) {
        uint64_t r = 0;
        for (int bit = 36; bit >= 0; bit--) {
            const uint64_t t = r | uint64_t(1) << bit;
            if (is_power_at_most(t, degree, p)) r = t;
        }
        return uint32_t(r);
    }

    static bool is_power_at_most(uint64_t t, int degree, uint32_t p) {
        uint32_t power[8] = {1}, digits[2] = {uint32_t(t), uint32_t(t >> 32)};
        for (int i = 0; i < degree; i++) {
            uint32_t product[8] = {0};
            for (int a = 0; a < 6; a++) {
                uint64_t carry = 0;
                for (int b = 0; b < 2; b++) {
                    carry += uint64_t(power[a]) * digits[b] + product[a + b];
                    product[a + b] = uint32_t(carry);
                    carry >>= 32;
                }
                product[a + 2] = uint32_t(product[a + 2] + carry);
            }
            std::memcpy(power, product, sizeof power);
        }
        uint32_t limit[8] = {0};
        limit[degree] = p;
        for (int i = 7; i >= 0; i--)
            if (power[i] != limit[i]) return power[i] < limit[i];
        return true;
    }

    void mix() {
        uint32_t w[64], s[8];
        for (int i = 0; i < 16; i++)
            w[i] = uint32_t(block[4 * i]) << 24 | uint32_t(block[4 * i + 1]) << 16 | uint32_t(block[4 * i + 2]) << 8 |
                   block[4 * i + 3];
        for (int i = 16; i < 64; i++) {
            const uint32_t a = w[i - 15], b = w[i - 2];
            w[i] = w[i - 16] + w[i - 7] + (rotate(a, 7) ^ rotate(a, 18) ^ a >> 3) +
                   (rotate(b, 17) ^ rotate(b, 19) ^ b >> 10);
        }
        std::memcpy(s, h, sizeof s);
        for (int i = 0; i < 64; i++) {
            const uint32_t a = s[0], e = s[4];
            const uint32_t t1 = s[7] + (rotate(e, 6) ^ rotate(e, 11) ^ rotate(e, 25)) + ((e & s[5]) ^ (~e & s[6])) +
                                k[i] + w[i];
            const uint32_t t2 = (rotate(a, 2) ^ rotate(a, 13) ^ rotate(a, 22)) +
                                ((a & s[1]) ^ (a & s[2]) ^ (s[1] & s[2]));
            for (int j = 7; j > 0; j--) s[j] = s[j - 1];
            s[4] += t1;
            s[0] = t1 + t2;
        }
        for (int i = 0; i < 8; i++) h[i] += s[i];
        filled = 0;
    }
};

// The size of a regular file.
uint64_t file_size(const std::string &path) {
    std::error_code ec;
    if (!fs::is_regular_file(path, ec)) throw error(printable(path) + ": no such file");
    const uint64_t n = fs::file_size(path, ec);
    if (ec) throw error(printable(path) + ": cannot be read");
    return n;
}

std::string read_file(const std::string &path, uint64_t limit) {
    const uint64_t size = file_size(path);
    if (size > limit)
        throw error(printable(path) + ": " + std::to_string(size) + " bytes, expected at most " +
                    std::to_string(limit));
    std::ifstream file(path, std::ios::binary);
    std::string text(size, '\0');
    if (!file.read(text.data(), std::streamsize(size))) throw error(printable(path) + ": cannot be read");
    return text;
}

}  // namespace

// ------------------------------------------------------------------------------------------------------------- GGUF

namespace {

struct type_info {
    uint32_t id;
    const char *name;
    uint32_t block_values, block_bytes;
};

const type_info TYPES[] = {
    {0, "F32", 1, 4},        {1, "F16", 1, 2},       {2, "Q4_0", 32, 18},    {3, "Q4_1", 32, 20},
    {6, "Q5_0", 32, 22},     {7, "Q5_1", 32, 24},    {8, "Q8_0", 32, 34},    {9, "Q8_1", 32, 36},
    {10, "Q2_K", 256, 84},   {11, "Q3_K", 256, 110}, {12, "Q4_K", 256, 144}, {13, "Q5_K", 256, 176},
    {14, "Q6_K", 256, 210},  {16, "IQ2_XXS", 256, 66}, {17, "IQ2_XS", 256, 74}, {18, "IQ3_XXS", 256, 98},
    {19, "IQ1_S", 256, 50},  {20, "IQ4_NL", 32, 18}, {21, "IQ3_S", 256, 110}, {22, "IQ2_S", 256, 82},
    {23, "IQ4_XS", 256, 136}, {24, "I8", 1, 1},      {25, "I16", 1, 2},      {26, "I32", 1, 4},
    {27, "I64", 1, 8},       {28, "F64", 1, 8},      {29, "IQ1_M", 256, 56}, {30, "BF16", 1, 2},
    {34, "TQ1_0", 256, 54},  {35, "TQ2_0", 256, 66}, {39, "MXFP4", 32, 17},
};

const type_info *find_type(const std::string &name) {
    for (const type_info &t : TYPES)
        if (name == t.name) return &t;
    return nullptr;
}

// A cursor over the bytes of a file: nothing is read or allocated that the file does not hold.
class byte_reader {
  public:
    explicit byte_reader(const std::string &bytes) : s(bytes) {}

    template <typename T> T get() {
        need(sizeof(T));
        T x;
        std::memcpy(&x, s.data() + at, sizeof x);
        at += sizeof x;
        return x;
    }

    std::string text() {
        const uint64_t n = get<uint64_t>();
        need(n);
        std::string out = s.substr(at, n);
        at += n;
        return out;
    }

    void need(uint64_t n) const {
        if (n > s.size() - at) throw error("the file ends at byte " + std::to_string(s.size()) + ", within its header");
    }

    // Values of keys take more memory than their bytes, so that their number is limited too.
    void count(uint64_t n) {
        n_values += n;
        if (n_values > MAX_JSON_VALUES) throw error("too many values in its keys");
    }

    size_t at = 0;

  private:
    const std::string &s;
    uint64_t n_values = 0;
};

json float_value(double x) {
    char text[40];
    std::snprintf(text, sizeof text, "%a", x);
    json v;
    v.kind = json::number;
    v.text = text;
    return v;
}

json gguf_value(byte_reader &r, uint32_t type, int depth) {
    json v;
    switch (type) {
        case 0: return json::of(int64_t(r.get<uint8_t>()));
        case 1: return json::of(int64_t(r.get<int8_t>()));
        case 2: return json::of(int64_t(r.get<uint16_t>()));
        case 3: return json::of(int64_t(r.get<int16_t>()));
        case 4: return json::of(int64_t(r.get<uint32_t>()));
        case 5: return json::of(int64_t(r.get<int32_t>()));
        case 6: return float_value(r.get<float>());
        case 7:
            v.kind = json::boolean;
            v.text = r.get<uint8_t>() ? "true" : "false";
            return v;
        case 8: return json::of(r.text());
        case 10:
            v.kind = json::number;
            v.text = std::to_string(r.get<uint64_t>());
            return v;
        case 11: return json::of(r.get<int64_t>());
        case 12: return float_value(r.get<double>());
        case 9: break;
        default: throw error("a key of unknown type " + std::to_string(type));
    }
    if (depth > 2) throw error("arrays nested too deeply");
    const uint32_t item_type = r.get<uint32_t>();
    const uint64_t n = r.get<uint64_t>();
    r.need(n);  // every value takes a byte at least
    r.count(n);
    v.kind = json::array;
    for (uint64_t i = 0; i < n; i++) v.items.push_back(gguf_value(r, item_type, depth + 1));
    return v;
}

struct tensor_place {
    std::string name;
    tensor what;
    uint64_t offset, size;
};

tensor_place read_place(byte_reader &r, uint64_t file_bytes) {
    tensor_place p;
    p.name = r.text();
    const uint32_t n_dims = r.get<uint32_t>();
    if (n_dims < 1 || n_dims > 4)
        throw error("tensor " + printable(p.name) + ": " + std::to_string(n_dims) + " dimensions");
    uint64_t n_rows = 1;
    for (uint32_t i = 0; i < n_dims; i++) {
        const uint64_t n = r.get<uint64_t>();
        if (n < 1 || n > file_bytes * 8) throw error("tensor " + printable(p.name) + ": an impossible shape");
        p.what.ne.push_back(int64_t(n));
        if (i > 0 && n_rows > file_bytes * 8 / n) throw error("tensor " + printable(p.name) + ": an impossible shape");
        if (i > 0) n_rows *= n;
    }
    const uint32_t type = r.get<uint32_t>();
    for (const type_info &t : TYPES)
        if (t.id == type) p.what.type = t.name;
    if (p.what.type.empty()) throw error("tensor " + printable(p.name) + ": unknown type " + std::to_string(type));
    const uint64_t row = row_bytes(p.what.type, p.what.ne[0]);
    if (n_rows > file_bytes / row) throw error("tensor " + printable(p.name) + ": larger than its file");
    p.size = row * n_rows;
    p.offset = r.get<uint64_t>();
    return p;
}

gguf parse_gguf(const std::string &bytes) {
    byte_reader r(bytes);
    if (bytes.compare(0, 4, "GGUF") != 0) throw error("no GGUF file");
    r.at = 4;
    const uint32_t version = r.get<uint32_t>();
    if (version != 2 && version != 3) throw error("GGUF version " + std::to_string(version) + ", expected 2 or 3");
    const uint64_t n_tensors = r.get<uint64_t>(), n_keys = r.get<uint64_t>();
    if (n_tensors > MAX_TENSORS || n_keys > MAX_KEYS) throw error("an impossible number of tensors or keys");
    gguf out;
    for (uint64_t i = 0; i < n_keys; i++) {
        const std::string key = r.text();
        const uint32_t type = r.get<uint32_t>();
        out.kv[key] = gguf_value(r, type, 0);
    }
    std::vector<tensor_place> places;
    for (uint64_t i = 0; i < n_tensors; i++) places.push_back(read_place(r, bytes.size()));
    const auto alignment_key = out.kv.find("general.alignment");
    const uint64_t alignment = alignment_key == out.kv.end() ? 32 : alignment_key->second.as_uint();
    if (alignment < 1 || alignment > 1 << 20) throw error("an impossible alignment");
    const uint64_t data = (r.at + alignment - 1) / alignment * alignment;
    uint64_t total = 0;
    for (tensor_place &p : places) {
        if (data > bytes.size() || p.offset > bytes.size() - data || p.size > bytes.size() - data - p.offset)
            throw error("tensor " + printable(p.name) + ": its data lie outside the file");
        total += p.size;
        if (total > bytes.size()) throw error("tensors overlap");
        const auto *start = reinterpret_cast<const uint8_t *>(bytes.data()) + data + p.offset;
        p.what.data.assign(start, start + p.size);
        if (!out.tensors.emplace(p.name, std::move(p.what)).second)
            throw error("two tensors are named " + printable(p.name));
    }
    return out;
}

}  // namespace

uint64_t row_bytes(const std::string &type, int64_t ne0) {
    const type_info *t = find_type(type);
    if (!t) throw error("unknown tensor type " + printable(type));
    if (ne0 < 1 || ne0 % t->block_values)
        throw error("rows of " + std::to_string(ne0) + " values are no whole blocks of " + type);
    return uint64_t(ne0) / t->block_values * t->block_bytes;
}

gguf read_gguf(const std::string &path) {
    const std::string bytes = read_file(path, MAX_GGUF_BYTES);
    try {
        return parse_gguf(bytes);
    } catch (const error &e) {
        throw error(printable(path) + ": " + e.what());
    }
}

int64_t tensor::n_rows() const {
    int64_t n = 1;
    for (size_t i = 1; i < ne.size(); i++) n *= ne[i];
    return n;
}

template <typename T> static tensor tensor_of(const char *type, const std::vector<T> &values, std::vector<int64_t> ne) {
    tensor t;
    t.type = type;
    t.ne = std::move(ne);
    t.data.resize(values.size() * sizeof(T));
    if (!values.empty()) std::memcpy(t.data.data(), values.data(), t.data.size());
    if (t.n_values() != int64_t(values.size())) throw error("a tensor whose ne does not fit its values");
    return t;
}

tensor tensor::of(const std::vector<float> &values, std::vector<int64_t> ne) {
    return tensor_of("F32", values, std::move(ne));
}

tensor tensor::of(const std::vector<int32_t> &values, std::vector<int64_t> ne) {
    return tensor_of("I32", values, std::move(ne));
}

std::vector<int32_t> tensor::as_i32() const {
    if (type != "I32") throw error("a tensor of type " + type + ", expected I32");
    std::vector<int32_t> out(data.size() / 4);
    if (!out.empty()) std::memcpy(out.data(), data.data(), data.size());
    return out;
}

const tensor &request::input(const std::string &name) const {
    const auto found = in.find(name);
    if (found == in.end()) throw error("input '" + name + "' is missing");
    return found->second;
}

void answer::set(const std::string &name, const std::vector<float> &values, std::vector<int64_t> ne) {
    out[name] = {true, tensor::of(values, std::move(ne)), json()};
}

void answer::set(const std::string &name, const std::vector<int32_t> &values, std::vector<int64_t> ne) {
    out[name] = {true, tensor::of(values, std::move(ne)), json()};
}

void answer::set(const std::string &name, json value) { out[name] = {false, tensor(), std::move(value)}; }

answer answer::skipped(const std::string &why) {
    answer a;
    a.skip = why;
    return a;
}

#ifndef GOLDEN_CHECK_NO_MAIN  // filter_main.cpp takes only what stands above

// ------------------------------------------------------------------------------------------------------- the folder

namespace {

std::string file_sha256(const std::string &path) {
    std::ifstream file(path, std::ios::binary);
    if (!file) throw error(printable(path) + ": cannot be read");
    sha256 sha;
    std::vector<char> chunk(1 << 16);
    while (file.read(chunk.data(), std::streamsize(chunk.size())), file.gcount() > 0)
        sha.add(reinterpret_cast<const uint8_t *>(chunk.data()), size_t(file.gcount()));
    return sha.hex();
}

json read_json_file(const std::string &path) {
    const std::string text = read_file(path, MAX_JSON_BYTES);
    try {
        json v = parse_json(text);
        if (v.kind != json::object) throw error("expected an object");
        return v;
    } catch (const error &e) {
        throw error(printable(path) + ": " + e.what());
    }
}

const char *const FORMAT = "mtpref-golden-1";

struct options {
    std::string root = "golden", level, suite, id;
    std::map<std::string, std::string> models;  // name in the cases -> file
    bool is_json = false, is_quiet = false;
};

struct folder {
    std::string root;
    std::map<std::string, std::string> models;
    json manifest, flags;
    bool has_matrix = false;
    std::map<std::string, std::vector<std::string>> killers;  // case id -> faults that fail it

    explicit folder(const options &opt) : root(opt.root), models(opt.models) {  // throws golden::error
        manifest = read_json_file(root + "/manifest.json");
        const std::string format = manifest.get_text("format", "");
        if (format != FORMAT)
            throw error(printable(root) + "/manifest.json: format '" + printable(format) + "', expected " + FORMAT);
        for (const json &file : manifest.at("files").items) verify(file);
        for (const auto &model : models) verify_model(model.first, model.second);
        std::error_code ec;
        if (fs::is_regular_file(root + "/flags.json", ec)) flags = read_json_file(root + "/flags.json").at("flags");
        has_matrix = fs::is_regular_file(root + "/kill_matrix.json", ec);
        if (!has_matrix) return;
        for (const auto &fault : read_json_file(root + "/kill_matrix.json").members)
            for (const json &id : fault.second.at("killed_by").items)
                killers[id.as_text()].push_back(printable(fault.first));
    }

    // The faults that fail a case, as measured (kill_matrix.json); without that file those of its own flags.
    std::vector<std::string> faults_shown_by(const std::string &id, const std::vector<std::string> &own) const {
        if (!has_matrix) return own;
        const auto found = killers.find(id);
        return found == killers.end() ? std::vector<std::string>() : found->second;
    }

    // The full path of a file inside the folder.
    std::string path_of(const std::string &relative) const {
        const fs::path p(relative);
        bool is_inside = !relative.empty() && !p.is_absolute();
        for (const fs::path &part : p) is_inside = is_inside && part != "..";
        if (!is_inside) throw error("manifest.json: '" + printable(relative) + "' is outside the folder");
        return root + "/" + relative;
    }

    void verify(const json &file) const {
        const std::string relative = file.at("path").as_text(), path = path_of(relative);
        const uint64_t size = file_size(path), wanted = file.at("bytes").as_uint();
        if (size != wanted)
            throw error(printable(path) + ": " + std::to_string(size) + " bytes, expected " + std::to_string(wanted) +
                        " as in manifest.json; fetch the folder again");
        const std::string sha = file_sha256(path), &expected = file.at("sha256").as_text();
        if (sha != expected)
            throw error(printable(path) + ": SHA-256 " + sha.substr(0, 16) + "..., expected " +
                        printable(expected).substr(0, 16) + "... as in manifest.json; fetch the folder again");
    }

    // A model from elsewhere is known by a hash over its tensors, sorted by name: name, type and shape (row-major, as
    // [2, 64]), each with a NUL behind it, and the bytes. Files too large to be held in memory are taken as they are.
    void verify_model(const std::string &name, const std::string &path) const {
        const json *wanted = manifest.find("models") ? manifest.at("models").find(name) : nullptr;
        if (name == "given" && manifest.find("model")) wanted = manifest.at("model").find("tensors_sha256");
        if (!wanted || file_size(path) > MAX_GGUF_BYTES) return;
        sha256 sha;
        const auto add = [&](const std::string &text) {
            sha.add(reinterpret_cast<const uint8_t *>(text.c_str()), text.size() + 1);
        };
        const gguf file = read_gguf(path);
        for (const auto &one : file.tensors) {
            std::vector<int64_t> shape = one.second.ne;
            std::reverse(shape.begin(), shape.end());
            add(one.first);
            add(one.second.type);
            add(write_json(json::of(shape)));
            sha.add(one.second.data.data(), one.second.data.size());
        }
        if (sha.hex() != wanted->as_text())
            throw error(printable(path) + ": not the model '" + printable(name) + "' of these vectors, its tensors "
                        "differ");
    }

    // Only files that were verified are read.
    std::string verified(const std::string &relative) const {
        if (!is_verified(relative)) throw error(printable(relative) + ": not in manifest.json");
        return path_of(relative);
    }

    bool is_verified(const std::string &relative) const {
        for (const json &file : manifest.at("files").items)
            if (file.at("path").as_text() == relative) return true;
        return false;
    }

    // The file of a case's model: one of the folder, or one that --model gave. Empty where there is none.
    std::string model_of(const std::string &name) const {
        const auto given = models.find(name);
        if (given != models.end()) return given->second;
        return is_verified(name) ? path_of(name) : "";
    }
};

// ---------------------------------------------------------------------------------------------------- the comparison

struct wrong_output {
    std::string name, reason;
    double nmse = -1;  // -1: bits, ids or shapes were compared
};

struct case_result {
    std::string verdict = "PASS", skip;
    std::vector<wrong_output> wrong;
    double worst_nmse = -1;  // of the outputs that pass
};

template <typename... Args> std::string formatted(const char *pattern, Args... args) {
    char text[400];
    std::snprintf(text, sizeof text, pattern, args...);
    return text;
}

// Values of an F32, I8 or I32 tensor as float64, which holds them all exactly.
std::vector<double> values_of(const tensor &t) {
    std::vector<double> out(static_cast<size_t>(t.n_values()));
    for (size_t i = 0; i < out.size(); i++) {
        float f;
        int32_t n;
        if (t.type == "F32") {
            std::memcpy(&f, &t.data[4 * i], 4);
            out[i] = f;
        } else if (t.type == "I32") {
            std::memcpy(&n, &t.data[4 * i], 4);
            out[i] = n;
        } else if (t.type == "I8") {
            out[i] = int8_t(t.data[i]);
        } else {
            throw error("an output of type " + t.type + ", expected F32, I32 or I8");
        }
    }
    return out;
}

// "element 37 (2, 7 of ne 5, 8)": the flat index, and the index along each dimension.
std::string place(const tensor &t, size_t i) {
    std::string index, size;
    size_t rest = i;
    for (int64_t n : t.ne) {
        index += (index.empty() ? "" : ", ") + std::to_string(rest % size_t(n));
        size += (size.empty() ? "" : ", ") + std::to_string(n);
        rest /= size_t(n);
    }
    const std::string text = "element " + std::to_string(i);
    return t.ne.size() < 2 ? text : text + " (" + index + " of ne " + size + ")";
}

// The same bits, where any NaN equals any NaN. Zeros of two signs differ.
bool is_same(double a, double b) {
    return std::isnan(a) ? std::isnan(b) : a == b && std::signbit(a) == std::signbit(b);
}

// sum((a - b)^2) / sum(a^2), infinite where b is not finite; sums in extended or compensated precision are not needed:
// the limits are many orders above float64's rounding.
double nmse_of(const std::vector<double> &a, const std::vector<double> &b) {
    double noise = 0, power = 0;
    for (size_t i = 0; i < a.size(); i++) {
        if (!std::isfinite(b[i])) return INFINITY;
        noise += (a[i] - b[i]) * (a[i] - b[i]);
        power += a[i] * a[i];
    }
    return power > 0 ? noise / power : noise == 0 ? 0.0 : INFINITY;
}

// The NMSE limit of a class, 0 for "exact"; negative for a class that the manifest does not have.
double limit_of(const folder &dir, const std::string &tolerance) {
    const json *rule = dir.manifest.at("classes").find(tolerance);
    if (!rule) return -1;
    const json *nmse = rule->find("nmse");
    return nmse ? nmse->as_float() : 0;
}

// Why a tensor cannot be within the limit of the one that a digest stands for; empty where it may be. With
// r = sqrt(limit) * norm: norm, abs_max and the values shown may differ by r, the sum by r * sqrt(n).
std::string digest_difference(const json &wanted, const tensor &given, double limit) {
    sha256 sha;
    sha.add(given.data.data(), given.data.size());
    if (sha.hex() == wanted.at("sha256").as_text()) return "";
    if (limit == 0) return "other bytes than the digest's";
    const std::vector<double> x = values_of(given);
    if (x.size() != wanted.at("n").as_uint())
        return std::to_string(x.size()) + " values, expected " + wanted.at("n").text;
    double sum = 0, square = 0, abs_max = 0;
    for (double v : x) {
        if (!std::isfinite(v)) return "not finite";
        sum += v, square += v * v, abs_max = std::max(abs_max, std::fabs(v));
    }
    const double reach = std::sqrt(limit) * wanted.at("norm").as_float();
    const std::pair<const char *, std::pair<double, double>> numbers[] = {
        {"norm", {std::sqrt(square), reach}}, {"abs_max", {abs_max, reach}},
        {"sum", {sum, reach * std::sqrt(double(x.size()))}}};
    for (const auto &one : numbers) {
        const double found = one.second.first, allowed = one.second.second, expected = wanted.at(one.first).as_float();
        if (!(std::fabs(found - expected) <= allowed))
            return formatted("%s %.6g, expected %.6g within %.1e", one.first, found, expected, allowed);
    }
    for (const char *end : {"first", "last"}) {
        const std::vector<json> &shown = wanted.at(end).items;
        if (shown.size() > x.size()) return "fewer values than the digest shows";
        const size_t from = end[0] == 'f' ? 0 : x.size() - shown.size();
        for (size_t i = 0; i < shown.size(); i++)
            if (!(std::fabs(x[from + i] - shown[i].as_float()) <= reach))
                return formatted("element %zu is %.6g, expected %.6g within %.1e", from + i, x[from + i],
                                 shown[i].as_float(), reach);
    }
    return "";
}

void judge_tensor(const tensor &wanted, double limit, const std::string &name, const output &given,
                  case_result &result) {
    if (given.array.n_values() != wanted.n_values()) {
        result.wrong.push_back({name, formatted("%lld values, expected %lld", (long long)given.array.n_values(),
                                                (long long)wanted.n_values())});
        return;
    }
    const std::vector<double> a = values_of(wanted), b = values_of(given.array);
    if (limit == 0) {
        size_t n_different = 0, first = 0;
        for (size_t i = a.size(); i-- > 0;)
            if (!is_same(a[i], b[i])) n_different++, first = i;
        if (n_different)
            result.wrong.push_back({name, place(wanted, first) +
                                              formatted(" is %.9g, expected %.9g; %zu of %zu differ", b[first],
                                                        a[first], n_different, a.size())});
        return;
    }
    const double nmse = nmse_of(a, b);
    if (nmse <= limit) {
        result.worst_nmse = std::max(result.worst_nmse, nmse);
        return;
    }
    size_t worst = 0;
    for (size_t i = 0; i < a.size(); i++) {
        if (!std::isfinite(b[i])) { worst = i; break; }
        if (std::fabs(a[i] - b[i]) > std::fabs(a[worst] - b[worst])) worst = i;
    }
    result.wrong.push_back({name,
                            formatted("NMSE %.2e, at most %.0e; worst ", nmse, limit) + place(wanted, worst) +
                                formatted(" is %.9g, expected %.9g", b[worst], a[worst]),
                            nmse});
}

bool is_same_value(const json &a, const json &b) {
    if (is_hex_float(a) && is_hex_float(b)) return is_same(a.as_float(), b.as_float());
    if (a.kind != b.kind || a.items.size() != b.items.size() || a.members.size() != b.members.size()) return false;
    if (a.kind == json::number && a.text != b.text) return a.as_float() == b.as_float();
    if (a.text != b.text) return false;
    for (size_t i = 0; i < a.items.size(); i++)
        if (!is_same_value(a.items[i], b.items[i])) return false;
    for (const auto &member : a.members) {
        const json *other = b.find(member.first);
        if (!other || !is_same_value(member.second, *other)) return false;
    }
    return true;
}

std::string shortened(const json &v) {
    const std::string text = write_json(v);
    return printable(text.size() <= 60 ? text : text.substr(0, 57) + "...");
}

void judge_value(const json &expected, const std::string &name, const output &given, case_result &result) {
    const json &wanted = expected.at("value");
    json found = given.value;
    if (given.is_tensor) {  // ids given as a tensor are as good
        std::vector<int64_t> ids;
        for (double x : values_of(given.array)) ids.push_back(int64_t(x));
        found = json::of(ids);
    }
    if (is_same_value(wanted, found)) return;
    if (wanted.kind != json::array || found.kind != json::array || wanted.items.size() != found.items.size()) {
        result.wrong.push_back({name, shortened(found) + ", expected " + shortened(wanted)});
        return;
    }
    const json *either = expected.find("either");
    for (size_t i = 0; i < wanted.items.size(); i++) {
        bool is_right = is_same_value(wanted.items[i], found.items[i]);
        const json *ids = either ? either->find(std::to_string(i)) : nullptr;
        if (ids)
            for (const json &id : ids->items) is_right = is_right || is_same_value(id, found.items[i]);
        if (is_right) continue;
        result.wrong.push_back({name, "[" + std::to_string(i) + "] is " + shortened(found.items[i]) + ", expected " +
                                          shortened(wanted.items[i])});
        return;
    }
}

const tensor &named(const gguf &file, const std::string &name) {
    const auto found = file.tensors.find(name);
    if (found == file.tensors.end()) throw error("tensor " + printable(name) + " is missing; fetch the folder again");
    return found->second;
}

// One output, by its class: a tensor, the digest of one, or a JSON value.
void judge(const folder &dir, const json &expected, const std::string &name, const output &given, const gguf &file,
           case_result &result) {
    const double limit = limit_of(dir, expected.at("class").as_text());
    const json *tensor_name = expected.find("tensor"), *digest = expected.find("digest");
    if (!tensor_name && !digest) {
        judge_value(expected, name, given, result);
    } else if (!given.is_tensor) {
        result.wrong.push_back({name, "a JSON value, expected a tensor"});
    } else if (tensor_name) {
        judge_tensor(named(file, tensor_name->as_text()), limit, name, given, result);
    } else {
        const std::string reason = digest_difference(*digest, given.array, limit);
        if (!reason.empty()) result.wrong.push_back({name, reason});
    }
}

case_result skipped(const std::string &why) {
    case_result result;
    result.verdict = "SKIP";
    result.skip = printable(why);
    return result;
}

case_result check_case(const folder &dir, const json &suite, const json &one, const gguf &file) {
    request ask;
    ask.suite = suite.at("suite").as_text();
    ask.op = suite.at("op").as_text();
    ask.id = one.at("id").as_text();
    ask.numerics = one.at("numerics").as_text();
    ask.params = one.at("params");
    const std::string model = ask.params.get_text("model", "");
    ask.model = model.empty() ? "" : dir.model_of(model);
    if (ask.model.empty() && !model.empty())
        return skipped("model " + model + " is not in the folder; give it with --model " + model + "=FILE");
    for (const auto &input : one.at("in").members) ask.in[input.first] = named(file, input.second.as_text());
    for (const auto &expected : one.at("out").members) {
        const std::string &tolerance = expected.second.at("class").as_text();
        if (limit_of(dir, tolerance) < 0) return skipped("class " + tolerance + " is unknown");
        ask.want.push_back(expected.first);
    }
    case_result result;
    answer given;
    try {
        given = run_case(ask);
    } catch (const std::exception &e) {
        result.verdict = "FAIL";
        result.wrong.push_back({"(port)", "it threw: " + printable(e.what())});
        return result;
    }
    if (!given.skip.empty()) return skipped(given.skip);
    for (const auto &expected : one.at("out").members) {
        const auto found = given.out.find(expected.first);
        if (found == given.out.end()) result.wrong.push_back({expected.first, "missing in the answer"});
        else judge(dir, expected.second, expected.first, found->second, file, result);
    }
    if (!result.wrong.empty()) result.verdict = "FAIL";
    return result;
}

// -------------------------------------------------------------------------------------------------------- the report

struct tally {
    int n_pass = 0, n_fail = 0, n_skip = 0;
    void count(const std::string &verdict) {
        (verdict == "PASS" ? n_pass : verdict == "FAIL" ? n_fail : n_skip)++;
    }
};

struct outcome {
    std::string level;
    std::vector<std::string> flags;
    bool is_failed;
};

struct skip_tally {
    int n = 0;
    std::set<std::string> needs;  // what the cases say that they require
};

// How the cases that carry one flag ended.
struct flag_tally {
    int n_carried = 0, n_failed = 0;
};

class report {
  public:
    report(const folder &dir, const options &opt) : dir(dir), opt(opt) {}

    void add(const std::string &level, const json &one, const case_result &r) {
        const std::string id = printable(one.at("id").as_text());
        std::vector<std::string> flags, needs;
        for (const json &flag : one.at("flags").items) flags.push_back(printable(flag.as_text()));
        if (one.find("requires"))
            for (const json &need : one.at("requires").items) needs.push_back(printable(need.as_text()));
        levels[level].count(r.verdict);
        total.count(r.verdict);
        if (r.verdict == "SKIP") {
            skip_tally &s = skips[r.skip];
            s.n++;
            s.needs.insert(needs.begin(), needs.end());
        }
        if (r.verdict == "FAIL" && first_failed_level.empty()) first_failed_level = level;
        if (r.verdict != "SKIP") {
            const std::vector<std::string> shown = dir.faults_shown_by(id, flags);
            outcomes.push_back({level, shown, r.verdict == "FAIL"});
            for (const std::string &flag : shown) {
                by_flag[flag].n_carried++;
                by_flag[flag].n_failed += r.verdict == "FAIL";
            }
        }
        if (opt.is_json) {
            records += (records.empty() ? "" : ", ") + record(level, id, flags, r);
            return;
        }
        if (r.verdict == "FAIL" || !opt.is_quiet) print(level, id, flags, r);
    }

    // Returns the exit status.
    int finish() {
        if (total.n_pass + total.n_fail + total.n_skip == 0) throw error("no case matches --level, --suite and --case");
        if (opt.is_json)
            std::printf("{\"schema\": \"mtpref-golden-check-1\", "
                        "\"counts\": {\"PASS\": %d, \"FAIL\": %d, \"SKIP\": %d}, "
                        "\"suspects\": [%s], \"cases\": [%s]}\n",
                        total.n_pass, total.n_fail, total.n_skip, suspect_list().c_str(), records.c_str());
        else
            print_summary();
        return total.n_fail ? 1 : 0;
    }

  private:
    const folder &dir;
    const options &opt;
    std::map<std::string, tally> levels;
    std::map<std::string, skip_tally> skips;
    std::map<std::string, flag_tally> by_flag;
    std::vector<outcome> outcomes;
    std::set<std::string> described;
    tally total;
    std::string records, first_failed_level;

    static std::string joined(const std::vector<std::string> &names) {
        std::string out;
        for (const std::string &name : names) out += (out.empty() ? "" : ", ") + name;
        return out;
    }

    static std::string quoted(const std::string &text) { return write_json(json::of(text)); }

    std::string record(const std::string &level, const std::string &id, const std::vector<std::string> &flags,
                       const case_result &r) const {
        std::string text = "{\"id\": " + quoted(id) + ", \"level\": " + quoted(level) + ", \"verdict\": " +
                           quoted(r.verdict) + ", \"flags\": [";
        for (size_t i = 0; i < flags.size(); i++) text += (i ? ", " : "") + quoted(flags[i]);
        text += "], \"wrong\": [";
        for (size_t i = 0; i < r.wrong.size(); i++) {
            const wrong_output &w = r.wrong[i];
            text += (i ? ", " : "") + std::string("{\"output\": ") + quoted(w.name) + ", \"reason\": " +
                    quoted(w.reason) + "}";
        }
        text += "]";
        if (!r.skip.empty()) text += ", \"skip\": " + quoted(r.skip);
        return text + "}";
    }

    // Title and mechanism of a fault, once a run. flags.json may be absent, and an id may be absent in it.
    void describe(const std::string &flag) {
        const json *fault = dir.flags.find(flag);
        if (!fault || !described.insert(flag).second) return;
        std::printf("        %s: %s. %s\n", flag.c_str(), printable_all(fault->get_text("title", "")).c_str(),
                    printable_all(fault->get_text("mechanism", "")).c_str());
    }

    static std::string printable_all(const std::string &text) {
        std::string out;
        for (size_t at = 0; at < text.size() && at < 2000; at += MAX_NAME) out += printable(text.substr(at));
        return out;
    }

    void print(const std::string &level, const std::string &id, const std::vector<std::string> &flags,
               const case_result &r) {
        std::printf("%s  %s  %s  [%s]", r.verdict.c_str(), level.c_str(), id.c_str(), joined(flags).c_str());
        if (r.verdict == "SKIP") std::printf("  %s", r.skip.c_str());
        if (r.verdict == "PASS" && r.worst_nmse >= 0) std::printf("  NMSE %.1e", r.worst_nmse);
        std::printf("\n");
        if (r.verdict != "FAIL") return;
        std::printf("      first wrong: %s: %s\n", r.wrong[0].name.c_str(), r.wrong[0].reason.c_str());
        if (r.wrong.size() > 1) {
            std::vector<std::string> names;
            for (size_t i = 1; i < r.wrong.size() && i < 6; i++) names.push_back(r.wrong[i].name);
            std::printf("      then: %s%s\n", joined(names).c_str(), r.wrong.size() > 6 ? ", ..." : "");
        }
        for (const std::string &flag : flags) describe(flag);
        std::fflush(stdout);
    }

    // How well a fault explains the failures: cases that failed and show it, of all that failed or show it. 1 where
    // exactly the cases that show it failed; counted over all levels, and over the first level that failed.
    double score(const std::string &flag) const {
        double sum = 0;
        for (bool is_first_level : {false, true}) {
            int n_both = 0, n_either = 0;
            for (const outcome &o : outcomes) {
                if (is_first_level && o.level != first_failed_level) continue;
                const bool shows = std::find(o.flags.begin(), o.flags.end(), flag) != o.flags.end();
                n_both += shows && o.is_failed;
                n_either += shows || o.is_failed;
            }
            if (n_either) sum += double(n_both) / n_either;
        }
        return sum;
    }

    // Ids of faults that would show in the cases that failed, the likeliest first. Flags that are no fault's id (basic,
    // drift, edge.*) begin with a small letter.
    std::vector<std::string> suspects() const {
        std::vector<std::pair<double, std::string>> scored;
        for (const auto &flag : by_flag)
            if (flag.second.n_failed > 0 && std::isupper((unsigned char)flag.first[0]))
                scored.emplace_back(-score(flag.first), flag.first);
        std::sort(scored.begin(), scored.end());
        std::vector<std::string> out;
        for (size_t i = 0; i < scored.size() && i < 5; i++) out.push_back(scored[i].second);
        return out;
    }

    std::string suspect_list() const {
        std::string out;
        for (const std::string &flag : suspects()) out += (out.empty() ? "" : ", ") + quoted(flag);
        return out;
    }

    void print_summary() {
        std::printf("\nlevel   pass   fail   skip\n");
        for (const auto &level : levels)
            std::printf("%-5s %6d %6d %6d\n", level.first.c_str(), level.second.n_pass, level.second.n_fail,
                        level.second.n_skip);
        std::printf("all   %6d %6d %6d\n", total.n_pass, total.n_fail, total.n_skip);
        for (const auto &skip : skips) {
            const std::string needs = joined({skip.second.needs.begin(), skip.second.needs.end()});
            std::printf("skipped %d: %s%s\n", skip.second.n, skip.first.c_str(),
                        needs.empty() ? "" : (" (requires " + needs + ")").c_str());
        }
        if (!total.n_pass && !total.n_fail) std::printf("nothing was checked: the port skipped every case\n");
        if (total.n_fail) print_suspects();
    }

    void print_suspects() {
        std::printf("first failing level: %s; look there first, later levels are made of it\n",
                    first_failed_level.c_str());
        for (const std::string &flag : suspects()) {
            const flag_tally &t = by_flag.at(flag);
            const json *fault = dir.flags.find(flag);
            std::printf("suspect: %s (%d of the %d cases that show it failed)%s\n", flag.c_str(), t.n_failed,
                        t.n_carried, fault ? (": " + printable(fault->get_text("title", ""))).c_str() : "");
        }
    }
};

int check_folder(const options &opt) {
    const folder dir(opt);
    report out(dir, opt);
    for (const json &record : dir.manifest.at("suites").items) {
        const std::string &level = record.at("level").as_text(), &path = record.at("path").as_text();
        if (!opt.level.empty() && level != opt.level) continue;
        if (!opt.suite.empty() && record.at("suite").as_text() != opt.suite) continue;
        if (!opt.id.empty() && opt.id.compare(0, opt.id.find('/'), record.at("suite").as_text()) != 0) continue;
        try {
            const json suite = read_json_file(dir.verified(path));
            gguf file;
            if (suite.find("tensors")) {
                const std::string folder_of_suite = path.substr(0, path.find_last_of('/') + 1);
                file = read_gguf(dir.verified(folder_of_suite + suite.at("tensors").as_text()));
            }
            for (const json &one : suite.at("cases").items)
                if (opt.id.empty() || one.at("id").as_text() == opt.id)
                    out.add(printable(level), one, check_case(dir, suite, one, file));
        } catch (const error &e) {
            throw error(printable(path) + ": " + e.what());
        }
    }
    return out.finish();
}

const char *const USAGE =
    "usage: golden_check [--level L0..L6] [--suite NAME] [--case SUITE/NAME] [--model NAME=FILE] [--quiet] [--json]\n"
    "                    [DIR]\n"
    "Checks the port that it is linked with against the golden vectors in DIR (default: golden).\n"
    "  --model  the file of a model that cases name and the folder does not hold (given, tiny, ...); may come again\n"
    "  --quiet  only cases that fail, and the counts (default: every case)\n"
    "  --json   one JSON object on stdout (default: text)\n"
    "Exit status: 0 nothing failed, 1 a case failed, 2 DIR or the command line is not usable.\n";

options parse_options(int argc, char **argv) {
    options opt;
    bool has_root = false;
    for (int i = 1; i < argc; i++) {
        const std::string arg = argv[i];
        if (arg == "--model") {
            const std::string pair = i + 1 < argc ? argv[++i] : "";
            const size_t equals = pair.find('=');
            if (equals == std::string::npos || equals == 0) throw error("--model: expected NAME=FILE");
            opt.models[pair.substr(0, equals)] = pair.substr(equals + 1);
            continue;
        }
        std::string *value = arg == "--level" ? &opt.level : arg == "--suite" ? &opt.suite : arg == "--case" ? &opt.id
                                                                                                            : nullptr;
        if (value) {
            if (i + 1 >= argc) throw error(arg + ": expected a value");
            *value = argv[++i];
        } else if (arg == "--json") {
            opt.is_json = true;
        } else if (arg == "--quiet") {
            opt.is_quiet = true;
        } else if (arg.size() > 1 && arg[0] == '-') {
            throw error("option " + printable(arg) + " is unknown; try --help");
        } else if (has_root) {
            throw error("one folder at a time; try --help");
        } else {
            opt.root = arg;
            has_root = true;
        }
    }
    return opt;
}


}  // namespace

#endif

}  // namespace golden

#ifndef GOLDEN_CHECK_NO_MAIN
int main(int argc, char **argv) {
    for (int i = 1; i < argc; i++)
        if (!std::strcmp(argv[i], "--help") || !std::strcmp(argv[i], "-h")) return std::fputs(golden::USAGE, stdout), 0;
    try {
        return golden::check_folder(golden::parse_options(argc, argv));
    } catch (const std::exception &e) {
        std::fflush(stdout);
        std::fprintf(stderr, "golden_check: %s\n", e.what());
        return 2;
    }
}
#endif
