// Sampling: S25 to S29 of docs/spec.md. Sums run by rising id, in float64.
#include <algorithm>
#include <numeric>

#include "example_port.h"

namespace port {

// S25. Philox4x32-10 of (pos, round_pos, stream, 0) under the seed, as a multiple of 2^-53 in [0, 1).
double uniform(uint64_t seed, uint32_t stream, uint32_t pos, uint32_t round_pos) {
    uint32_t c[4] = {pos, round_pos, stream, 0}, k[2] = {uint32_t(seed), uint32_t(seed >> 32)};
    for (int round = 0; round < 10; round++) {
        const uint64_t p0 = uint64_t(0xD2511F53) * c[0], p1 = uint64_t(0xCD9E8D57) * c[2];
        const uint32_t next[4] = {uint32_t(p1 >> 32) ^ c[1] ^ k[0], uint32_t(p1), uint32_t(p0 >> 32) ^ c[3] ^ k[1],
                                  uint32_t(p0)};
        std::copy(next, next + 4, c);
        k[0] += 0x9E3779B9, k[1] += 0xBB67AE85;
    }
    return std::ldexp(double(uint64_t(c[0] >> 5) << 26 | c[1] >> 6), -53);
}

double distribution::prob(int64_t id) const {
    const auto at = std::lower_bound(ids.begin(), ids.end(), id);
    return at != ids.end() && *at == id ? p[size_t(at - ids.begin())] : 0.0;
}

namespace {

struct filtering {
    std::vector<int64_t> ids;  // rising
    std::vector<double> logits;

    double best() const { return *std::max_element(logits.begin(), logits.end()); }

    // Indices from the greatest logit down, ties by lower id.
    std::vector<size_t> ranked() const {
        std::vector<size_t> order(ids.size());
        std::iota(order.begin(), order.end(), size_t(0));
        std::stable_sort(order.begin(), order.end(), [&](size_t a, size_t b) { return logits[a] > logits[b]; });
        return order;
    }

    void keep(std::vector<size_t> which) {
        std::sort(which.begin(), which.end());
        filtering out;
        for (size_t i : which) out.ids.push_back(ids[i]), out.logits.push_back(logits[i]);
        *this = std::move(out);
    }

    std::vector<double> softmax() const {
        std::vector<double> p;
        const double greatest = best();
        double total = 0;
        for (double l : logits) total += (p.push_back(std::exp(l - greatest)), p.back());
        for (double &x : p) x /= total;
        return p;
    }
};

void keep_top_k(filtering &f, double k) {
    if (k <= 0 || k >= double(f.ids.size())) return;
    std::vector<size_t> order = f.ranked();
    order.resize(size_t(k));
    f.keep(order);
}

// The fewest most probable ids whose probabilities reach `share`.
void keep_top_p(filtering &f, double share) {
    if (share >= 1) return;
    const std::vector<double> p = f.softmax();
    std::vector<size_t> kept;
    double reached = 0;
    for (size_t i : f.ranked()) {
        kept.push_back(i);
        reached += p[i];
        if (reached >= share) break;
    }
    f.keep(kept);
}

void keep_min_p(filtering &f, double share) {
    if (share <= 0) return;
    const double least = f.best() + std::log(std::max(share, 0x1p-1022));
    std::vector<size_t> kept;
    for (size_t i = 0; i < f.ids.size(); i++)
        if (f.logits[i] >= least) kept.push_back(i);
    f.keep(kept);
}

}  // namespace

// S27. The filters in their order, then a softmax. NaN counts as -infinity, and -infinity has probability 0; ids at
// +infinity share everything; a row of nothing else gives id 0.
distribution filtered(const float *logits, int64_t n, const filter_chain &chain) {
    filtering f;
    bool is_infinite = false;
    for (int64_t i = 0; i < n; i++) {
        if (std::isnan(logits[i]) || logits[i] == -INFINITY) continue;
        f.ids.push_back(i);
        f.logits.push_back(double(logits[i]));
        is_infinite = is_infinite || logits[i] == INFINITY;
    }
    if (f.ids.empty()) return {{0}, {1.0}};
    if (is_infinite) {
        std::vector<size_t> kept;
        for (size_t i = 0; i < f.ids.size(); i++)
            if (f.logits[i] == INFINITY) kept.push_back(i);
        f.keep(kept);
        std::fill(f.logits.begin(), f.logits.end(), 0.0);
    }
    for (const auto &filter : chain) {
        if (filter.first == "top_k") keep_top_k(f, filter.second);
        else if (filter.first == "top_p") keep_top_p(f, filter.second);
        else if (filter.first == "min_p") keep_min_p(f, filter.second);
        else if (filter.first == "temperature") {
            const double best = f.best();
            for (double &l : f.logits) l = (l - best) / filter.second;
        } else {
            throw error("filter " + filter.first + " is unknown");
        }
    }
    return {f.ids, f.softmax()};
}

// S28. The first id whose running sum exceeds u; rounding may leave the whole sum at or below u: then the last id that
// has any probability.
int64_t draw(const distribution &dist, double u) {
    double sum = 0;
    int64_t last = dist.ids.front();
    for (size_t i = 0; i < dist.ids.size(); i++) {
        sum += dist.p[i];
        if (sum > u) return dist.ids[i];
        if (dist.p[i] > 0) last = dist.ids[i];
    }
    return last;
}

// S29. Accepted with probability min(1, p / q); the comparison is strict, so p = 0 is never accepted.
bool accept_residual(double p, double q, double u) { return u * q < p; }

// S29. max(p - q, 0), normalised; the target itself where nothing is left.
distribution residual(const distribution &target, const distribution &draft) {
    distribution out;
    double total = 0;
    for (size_t i = 0; i < target.ids.size(); i++) {
        const double rest = target.p[i] - draft.prob(target.ids[i]);
        if (rest <= 0) continue;
        out.ids.push_back(target.ids[i]);
        out.p.push_back(rest);
        total += rest;
    }
    if (total <= 0) return target;
    for (double &p : out.p) p /= total;
    return out;
}

}  // namespace port
