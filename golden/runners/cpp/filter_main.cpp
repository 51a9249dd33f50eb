// golden_filter: the port behind the filter protocol of golden/README.md, one JSON object a line on stdin and stdout.
//
//     g++ -O2 -std=c++17 -ffp-contract=off filter_main.cpp YOUR_PORT.cpp -o golden_filter
//     mtpref golden check path/to/golden --cmd ./golden_filter
//
// The checker's JSON reader serves here too; only base64 is new.
#define GOLDEN_CHECK_NO_MAIN
#include "golden_check.cpp"

#include <iostream>

namespace golden {

namespace {

const char *const BASE64 = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";

std::string encoded(const std::vector<uint8_t> &data) {
    std::string out;
    for (size_t i = 0; i < data.size(); i += 3) {
        uint32_t word = 0;
        for (size_t j = 0; j < 3; j++) word = word << 8 | (i + j < data.size() ? data[i + j] : 0);
        for (size_t j = 0; j < 4; j++) out += i + j > data.size() ? '=' : BASE64[word >> (18 - 6 * j) & 63];
    }
    return out;
}

std::vector<uint8_t> decoded(const std::string &text) {
    std::vector<uint8_t> out;
    uint32_t word = 0;
    int n_bits = 0;
    for (char c : text) {
        if (c == '=') break;
        const char *at = c ? std::strchr(BASE64, c) : nullptr;
        if (!at) throw error("data is no base64");
        word = word << 6 | uint32_t(at - BASE64);
        n_bits += 6;
        if (n_bits < 8) continue;
        n_bits -= 8;
        out.push_back(uint8_t(word >> n_bits));
    }
    return out;
}

tensor read_tensor(const json &entry) {
    tensor t;
    t.type = entry.at("type").as_text();
    t.ne = entry.at("shape").as_ints();
    std::reverse(t.ne.begin(), t.ne.end());  // shapes are row-major, ne begins with the fastest index
    t.data = decoded(entry.at("data").as_text());
    uint64_t bytes = row_bytes(t.type, t.dim(0));
    for (size_t i = 1; i < t.ne.size(); i++) {
        if (t.ne[i] < 1 || bytes > MAX_GGUF_BYTES / uint64_t(t.ne[i])) throw error("an impossible shape");
        bytes *= uint64_t(t.ne[i]);
    }
    if (bytes != t.data.size())
        throw error("a tensor of " + std::to_string(t.data.size()) + " bytes, expected " + std::to_string(bytes));
    return t;
}

void add(json &object, const std::string &key, json value) {
    object.kind = json::object;
    object.members.emplace_back(key, std::move(value));
}

json written(const output &out) {
    json entry;
    if (!out.is_tensor) {
        add(entry, "value", out.value);
        return entry;
    }
    std::vector<int64_t> shape = out.array.ne;
    std::reverse(shape.begin(), shape.end());
    add(entry, "type", json::of(out.array.type));
    add(entry, "shape", json::of(shape));
    add(entry, "data", json::of(encoded(out.array.data)));
    return entry;
}

// The model of a case is a file of the folder; a port started with other models finds them itself.
std::string model_path(const json &asked) {
    const std::string name = asked.at("params").get_text("model", "");
    return name.empty() ? "" : asked.at("root").as_text() + "/" + name;
}

void answer_request(const json &asked, json &reply) {
    if (asked.at("format").as_text() != "mtpref-golden-case-1") throw error("unknown format of a request");
    request ask;
    ask.suite = asked.at("suite").as_text();
    ask.op = asked.at("op").as_text();
    ask.id = asked.at("id").as_text();
    ask.numerics = asked.at("numerics").as_text();
    ask.params = asked.at("params");
    ask.model = model_path(asked);
    for (const auto &input : asked.at("in").members) ask.in[input.first] = read_tensor(input.second);
    if (asked.find("want"))
        for (const json &name : asked.at("want").items) ask.want.push_back(name.as_text());
    std::error_code ec;
    const bool has_model = ask.model.empty() || fs::is_regular_file(ask.model, ec);
    const answer given = has_model ? run_case(ask) : answer::skipped("its model is not in the folder");
    if (!given.skip.empty()) {
        add(reply, "skip", json::of(given.skip));
        return;
    }
    const std::set<std::string> want(ask.want.begin(), ask.want.end());
    json out;
    out.kind = json::object;
    for (const auto &one : given.out)
        if (want.empty() || want.count(one.first)) add(out, one.first, written(one.second));
    add(reply, "out", out);
}

std::string answer_line(const std::string &line) {
    json reply;
    try {
        const json asked = parse_json(line);
        add(reply, "id", asked.at("id"));
        answer_request(asked, reply);
    } catch (const std::exception &e) {
        add(reply, "error", json::of(printable(e.what())));
    }
    return write_json(reply);
}

}  // namespace

}  // namespace golden

int main() {
    std::ios::sync_with_stdio(false);
    for (std::string line; std::getline(std::cin, line);)
        if (!line.empty()) std::cout << golden::answer_line(line) << std::endl;
    return 0;
}
