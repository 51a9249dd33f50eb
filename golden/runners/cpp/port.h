// What an engine fills in to be checked by golden_check: one function, run_case.
//
// Everything in here is plain data. Tensors are little-endian bytes in ggml's types with ne in ggml's order (ne[0] is
// the row length, the fastest index). JSON values are the parameters of a case. golden/README.md names every operation
// with its inputs, parameters and outputs; golden/runners/README.md shows how to begin.
#pragma once

#include <cstdint>
#include <cstring>
#include <map>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

namespace golden {

// Bad input: a damaged file, a missing parameter. what() is one line.
struct error : std::runtime_error {
    using std::runtime_error::runtime_error;
};

// ------------------------------------------------------------------------------------------------------------- JSON

// A JSON value. Numbers keep their text, so that integers of 64 bits stay exact.
struct json {
    enum kind_t { null, boolean, number, string, array, object };

    kind_t kind = null;
    std::string text;  // of a number or a string; "true" or "false" of a boolean
    std::vector<json> items;
    std::vector<std::pair<std::string, json>> members;  // in the order of the file

    static json of(int64_t n);
    static json of(const std::string &s);
    static json of(const std::vector<int64_t> &ids);

    const json *find(const std::string &key) const;      // nullptr where the key is absent
    const json &at(const std::string &key) const;        // throws golden::error where it is absent
    int64_t as_int() const;                              // an integer
    uint64_t as_uint() const;                            // an integer from 0 to 2^64 - 1
    double as_float() const;                             // a number, or a string in C99 hex notation ("0x1.8p-2")
    const std::string &as_text() const;                  // a string
    std::vector<int64_t> as_ints() const;                // an array of integers
    int64_t get_int(const std::string &key, int64_t fallback) const;
    std::string get_text(const std::string &key, const std::string &fallback) const;
};

json parse_json(const std::string &text);   // throws golden::error
std::string write_json(const json &value);  // on one line

// ---------------------------------------------------------------------------------------------------------- tensors

struct tensor {
    std::string type;         // ggml's name: F32, I32, F16, Q8_0, ...
    std::vector<int64_t> ne;  // ggml's order: ne[0] values a row
    std::vector<uint8_t> data;

    int64_t dim(size_t i) const { return i < ne.size() ? ne[i] : 1; }
    int64_t n_rows() const;
    int64_t n_values() const { return dim(0) * n_rows(); }
    std::vector<int32_t> as_i32() const;  // of an I32 tensor

    static tensor of(const std::vector<float> &values, std::vector<int64_t> ne);
    static tensor of(const std::vector<int32_t> &values, std::vector<int64_t> ne);
};

// Bytes of one row of ne0 values; throws golden::error for an unknown type or a row that is no whole number of blocks.
uint64_t row_bytes(const std::string &type, int64_t ne0);

// The checker's GGUF reader, for a port that has none of its own. kv holds numbers, strings, booleans and arrays.
struct gguf {
    std::map<std::string, json> kv;
    std::map<std::string, tensor> tensors;
};
gguf read_gguf(const std::string &path);  // throws golden::error

// ------------------------------------------------------------------------------------------------- a case, an answer

struct request {
    std::string suite, op, id;
    std::string numerics;  // "exact" (float32 activations) or "ggml" (activations quantised as ggml's CPU backend does)
    std::string model;     // the path of the case's model; empty where it has none
    json params;
    std::map<std::string, tensor> in;
    std::vector<std::string> want;  // the outputs that will be compared; others are ignored

    const tensor &input(const std::string &name) const;  // throws golden::error where it is absent
};

// Either a tensor (F32 or I32) or a JSON value.
struct output {
    bool is_tensor = false;
    tensor array;
    json value;
};

struct answer {
    std::map<std::string, output> out;
    std::string skip;  // why the case was not run; empty: it was

    void set(const std::string &name, const std::vector<float> &values, std::vector<int64_t> ne);
    void set(const std::string &name, const std::vector<int32_t> &values, std::vector<int64_t> ne);
    void set(const std::string &name, json value);
    static answer skipped(const std::string &why);
};

// The port. Return answer::skipped("no operation X") for what the engine has not; anything thrown counts as FAIL.
answer run_case(const request &ask);

}  // namespace golden
