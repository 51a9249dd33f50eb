// The draft/verify loop: draft, verify, accept, roll back, catch up. Three ways to roll back give the same tokens.
#include <algorithm>

#include "example_port.h"

namespace port {

// ----------------------------------------------------------------------------------------------------------- policy

// The longest draft of a round: n_max, cut to what is useful, 0 while cooling down.
int64_t draft_limit(const policy_config &cfg, const policy_state &state, int64_t n_room) {
    return state.n_cooldown ? 0 : std::max<int64_t>(0, std::min(cfg.n_max, n_room));
}

// All drafted tokens, or none where p_min left fewer than n_min; a limit below n_min does not count against the draft.
int64_t proposed(const policy_config &cfg, int64_t n_drafted, int64_t limit) {
    return n_drafted >= std::min(cfg.n_min, limit) ? n_drafted : 0;
}

// Only rounds that proposed something count as misses.
policy_state after_round(const policy_config &cfg, policy_state state, int64_t n_drafted, int64_t n_accepted) {
    if (n_drafted == 0) {
        state.n_cooldown = std::max<int64_t>(0, state.n_cooldown - 1);
        return state;
    }
    if (n_accepted > 0) return {};
    const int64_t n_misses = state.n_misses + 1;
    if (cfg.cooldown > 0 && n_misses >= cfg.cooldown_after) return {0, cfg.cooldown};
    return {n_misses, 0};
}

// ------------------------------------------------------------------------------------------------------- acceptance

// S23. The longest prefix on which draft and target agree; an accepted end-of-generation token ends it.
int64_t accept_greedy(const std::vector<int64_t> &draft, const std::vector<int64_t> &target,
                      const std::set<int64_t> &eog) {
    size_t n = 0;
    while (n < draft.size() && n < target.size() && draft[n] == target[n])
        if (eog.count(draft[n++])) break;
    return int64_t(n);
}

// The accepted tokens and, unless the text ended among them, the target's own: the correction or the bonus token.
std::vector<int64_t> emitted(const std::vector<int64_t> &draft, const std::vector<int64_t> &target, int64_t n_accepted,
                             bool is_ended) {
    std::vector<int64_t> out(draft.begin(), draft.begin() + n_accepted);
    if (!is_ended) out.push_back(target.at(size_t(n_accepted)));
    return out;
}

// -------------------------------------------------------------------------------------------------------- roll back

static void cut(rows &cells, int64_t n) {
    cells.ne1 = std::min(cells.ne1, n);
    cells.x.resize(size_t(cells.ne0 * cells.ne1));
}

static void cut_trunk(sequence &seq, int64_t n_past) {
    seq.n_past = n_past;
    for (layer_state &layer : seq.layers) cut(layer.k, n_past), cut(layer.v, n_past);
}

checkpoint save(const sequence &seq) {
    checkpoint saved{seq.n_past, seq.n_mtp, seq.mtp_start, {}, {}, seq.pending_h};
    for (const layer_state &layer : seq.layers) {
        saved.conv.push_back(layer.conv);
        saved.state.push_back(layer.state);
    }
    return saved;
}

void restore(sequence &seq, const checkpoint &saved) {
    for (size_t il = 0; il < seq.layers.size(); il++) {
        seq.layers[il].conv = saved.conv[il];
        seq.layers[il].state = saved.state[il];
    }
    cut_trunk(seq, saved.n_past);
    step.trim_mtp(seq, saved.mtp_start + saved.n_mtp);
    seq.pending_h = saved.pending_h;
}

// Forget the last n_drop tokens of the last batch: cut cells, take the planes of the token before them.
void choose_plane(sequence &seq, int64_t n_drop) {
    for (layer_state &layer : seq.layers) {
        const int64_t at = int64_t(layer.conv_planes.size()) - 1 - n_drop;
        if (layer.state.x.empty()) continue;
        if (at < 0) throw error("the last batch kept fewer planes than are rolled back");
        layer.conv = layer.conv_planes[size_t(at)];
        layer.state = layer.state_planes[size_t(at)];
    }
    cut_trunk(seq, seq.n_past - n_drop);
}

void trim_mtp(sequence &seq, int64_t pos) {
    seq.n_mtp = std::min(seq.n_mtp, std::max<int64_t>(0, pos - seq.mtp_start));
    if (seq.n_mtp == 0) seq.mtp_start = 0;
    cut(seq.mtp.k, seq.n_mtp);
    cut(seq.mtp.v, seq.n_mtp);
}

// --------------------------------------------------------------------------------------------------------- drafting

namespace {

struct drafted {
    std::vector<int64_t> ids;
    std::vector<distribution> dists;  // what each id was drawn from; empty where the best candidate was taken
};

double uniform_of(const run_options &opt, uint32_t stream, int64_t pos, int64_t round_pos) {
    return uniform(opt.sampler.seed, stream, uint32_t(pos), uint32_t(round_pos));
}

// The chain: step 0 takes (id_last, pending hidden), step i the head's own token and hidden row. The gate sees the
// best candidate's probability, never a drawn token. The head's cells of the draft are cut again.
drafted draft_with_head(const model &m, sequence &seq, int64_t id_last, int64_t limit, const run_options &opt) {
    drafted out;
    const int64_t pos0 = seq.n_past;
    if (limit <= 0 || pos0 < m.rules.first_pos()) return out;
    int64_t token = id_last;
    rows hidden(m.n_embd, 1);
    hidden.x = seq.pending_h;
    for (int64_t pos = pos0; pos < pos0 + limit; pos++) {
        const pass head = m.mtp(seq, {int32_t(token)}, hidden, pos, 0, see_nothing);
        const float *logits = head.logits.row(0);
        const candidates best = top_candidates(logits, head.logits.ne0);
        const int64_t p = int64_t(best.p[0] * double(P_ONE)), n = int64_t(out.ids.size());
        const bool is_drawn = !opt.sampler.is_greedy && opt.sampler.is_residual;
        const bool is_taken = p >= opt.policy.p_min || (is_drawn && n > 0 && n < opt.policy.n_min);
        if (!is_taken) break;
        token = best.ids[0];
        if (is_drawn) {
            out.dists.push_back(filtered(logits, head.logits.ne0, opt.sampler.chain));
            token = draw(out.dists.back(), uniform_of(opt, STREAM_DRAFT, pos + 1, pos0));
        }
        out.ids.push_back(token);
        hidden = step.chain_hidden(head, m.rules);
    }
    step.trim_mtp(seq, pos0);
    return out;
}

// -------------------------------------------------------------------------------------------------------- verifying

// One draft before the target. Every draw is keyed by position, so rows may be shown at once or one by one.
class judge {
  public:
    judge(const drafted &d, const run_options &opt, const std::set<int64_t> &eog, int64_t pos0)
        : draft(d), opt(opt), eog(eog), pos0(pos0) {}

    void see(const rows &logits) {
        for (int64_t t = 0; t < logits.ne1; t++) target.push_back(token(logits.row(t), logits.ne0));
    }

    int64_t n_accepted() const {
        const size_t n = std::min(draft.ids.size(), target.size());
        return step.accept({draft.ids.begin(), draft.ids.begin() + int64_t(n)}, target, eog);
    }

    std::vector<int64_t> target;

  private:
    const drafted &draft;
    const run_options &opt;
    const std::set<int64_t> &eog;
    const int64_t pos0;

    int64_t token(const float *logits, int64_t n) const {
        if (opt.sampler.is_greedy) return argmax(logits, n);
        const size_t i = target.size();
        const int64_t pos = pos0 + 1 + int64_t(i);
        const bool is_residual = opt.sampler.is_residual && !draft.ids.empty();
        const distribution p = filtered(logits, n, opt.sampler.chain);
        if (!is_residual) return draw(p, uniform_of(opt, STREAM_TARGET, pos, 0));
        if (i >= draft.ids.size()) return draw(p, uniform_of(opt, STREAM_TARGET, pos, pos0));
        const int64_t id = draft.ids[i];
        const distribution q = draft.dists.empty() ? distribution{{id}, {1.0}} : draft.dists[i];
        if (step.accept_residual(p.prob(id), q.prob(id), uniform_of(opt, STREAM_ACCEPT, pos, pos0))) return id;
        return draw(step.residual(p, q), uniform_of(opt, STREAM_RESIDUAL, pos, pos0));
    }
};

// The trunk's rows of the opening token and the verified ones, as the contract wants them, and how many draft tokens
// were accepted. Afterwards the sequence holds the opening token and the accepted ones.
struct verdict {
    rows hidden;
    int64_t n_accepted = 0;
};

// One pass that keeps the recurrent state after each token; rolling back is choosing one of them.
verdict verify_snapshot(const model &m, sequence &seq, const std::vector<int32_t> &ids, judge &j) {
    const pass out = m.trunk(seq, ids, int64_t(ids.size()), see_nothing);
    j.see(out.logits);
    const int64_t n_accepted = j.n_accepted(), n_drop = int64_t(ids.size()) - 1 - n_accepted;
    if (n_drop > 0) step.choose_plane(seq, n_drop);
    return {step.target_hidden(out, m.rules), n_accepted};
}

// A checkpoint and one pass; after a rejection the checkpoint is restored and the accepted prefix is run again.
verdict verify_replay(const model &m, sequence &seq, const std::vector<int32_t> &ids, judge &j) {
    const checkpoint saved = step.save(seq);
    pass out = m.trunk(seq, ids, 1, see_nothing);
    j.see(out.logits);
    const int64_t n_accepted = j.n_accepted();
    if (n_accepted + 1 < int64_t(ids.size())) {
        step.restore(seq, saved);
        out = m.trunk(seq, {ids.begin(), ids.begin() + n_accepted + 1}, 1, see_nothing);
    }
    return {step.target_hidden(out, m.rules), n_accepted};
}

// One token at a time: a draft token is run only once it is accepted, so nothing is ever rolled back.
verdict verify_two_phase(const model &m, sequence &seq, const std::vector<int32_t> &ids, judge &j) {
    rows hidden;
    for (int64_t n_run = 0; n_run == 0 || j.n_accepted() == n_run; n_run++) {
        const pass out = m.trunk(seq, {ids.at(size_t(n_run))}, 1, see_nothing);
        j.see(out.logits);
        hidden.append(step.target_hidden(out, m.rules));
    }
    return {hidden, hidden.ne1 - 1};
}

verdict verify(const model &m, sequence &seq, const std::vector<int32_t> &ids, judge &j, const std::string &rollback) {
    if (rollback == "snapshot") return verify_snapshot(m, seq, ids, j);
    if (rollback == "replay") return verify_replay(m, seq, ids, j);
    if (rollback == "two-phase") return verify_two_phase(m, seq, ids, j);
    throw error("roll back by " + rollback + " is not supported");
}

// Kept tokens run through the head with the trunk's hidden rows, so that its cells never keep a guess.
void catch_up(const model &m, sequence &seq, const std::vector<int32_t> &ids, const rows &hidden, int64_t pos0,
              const std::vector<float> &pending) {
    const int64_t n_skip = std::max<int64_t>(0, m.rules.first_pos() - pos0), n = int64_t(ids.size());
    if (n_skip >= n) return;
    const rows paired = step.pair_hidden(hidden, pending);
    m.mtp(seq, {ids.begin() + n_skip, ids.end()}, paired.part(n_skip, n), pos0 + n_skip, 1, see_nothing);
}

// The prompt, all but its last token, which opens the first round.
void run_prompt(const model &m, const std::vector<int32_t> &prompt, const run_options &opt, bool is_warm,
                sequence &seq) {
    const int64_t n = int64_t(prompt.size()) - 1;
    for (int64_t pos0 = 0; pos0 < n; pos0 += opt.n_batch) {
        const std::vector<int32_t> ids(prompt.begin() + pos0, prompt.begin() + std::min(n, pos0 + opt.n_batch));
        const pass out = m.trunk(seq, ids, 1, see_nothing);
        const rows &hidden = step.target_hidden(out, m.rules);
        if (is_warm && step.prime_rows(hidden.ne1, m.rules) > 0) catch_up(m, seq, ids, hidden, pos0, seq.pending_h);
        seq.pending_h.assign(hidden.row(hidden.ne1 - 1), hidden.row(hidden.ne1));
    }
}

}  // namespace

// ------------------------------------------------------------------------------------------------------------- runs

run_result run(const model &m, const std::vector<int32_t> &prompt, const run_options &opt) {
    if (prompt.empty()) throw error("a prompt without tokens");
    run_result out;
    out.seq = m.new_sequence(opt.n_ctx);
    sequence &seq = out.seq;
    const bool is_warm = opt.has_given_drafts || opt.policy.n_max > 0;
    run_prompt(m, prompt, opt, is_warm, seq);
    int64_t id_last = prompt.back();
    policy_state policy;
    for (size_t round = 0; out.reason.empty(); round++) {
        if (opt.has_given_drafts && round == opt.given_drafts.size()) break;
        const int64_t left = opt.n_predict - int64_t(out.ids.size()), pos0 = seq.n_past;
        if (left <= 0) { out.reason = "length"; break; }
        if (pos0 >= seq.n_ctx) { out.reason = "context"; break; }

        // DRAFT: a round of n drafts can give n + 1 tokens.
        const int64_t limit = draft_limit(opt.policy, policy, std::min(seq.n_ctx - pos0 - 1, left - 1));
        drafted draft;
        if (opt.has_given_drafts) draft.ids = opt.given_drafts[round];
        if (!opt.has_given_drafts) draft = draft_with_head(m, seq, id_last, limit, opt);
        if (int64_t(draft.ids.size()) > limit) draft.ids.resize(size_t(limit));
        if (draft.dists.empty()) draft.ids.resize(size_t(proposed(opt.policy, int64_t(draft.ids.size()), limit)));
        out.drafts.push_back(draft.ids);

        // VERIFY, ACCEPT, ROLL BACK
        std::vector<int32_t> ids = {int32_t(id_last)};
        for (int64_t id : draft.ids) ids.push_back(int32_t(id));
        const std::vector<float> pending = seq.pending_h;
        judge j(draft, opt, m.eog, pos0);
        const verdict v = verify(m, seq, ids, j, opt.rollback);
        out.n_accepted.push_back(v.n_accepted);

        // CATCH UP
        const int64_t n_kept = v.n_accepted + 1;
        ids.resize(size_t(n_kept));
        if (is_warm) catch_up(m, seq, ids, v.hidden.part(0, n_kept), pos0, pending);
        const int64_t row = step.pending_row(v.n_accepted, v.hidden.ne1);
        seq.pending_h.assign(v.hidden.row(row), v.hidden.row(row + 1));
        policy = after_round(opt.policy, policy, int64_t(draft.ids.size()), v.n_accepted);

        // EMIT
        const bool is_ended = v.n_accepted > 0 && m.eog.count(draft.ids[size_t(v.n_accepted) - 1]) > 0;
        const std::vector<int64_t> tokens = step.emitted(draft.ids, j.target, v.n_accepted, is_ended);
        for (int64_t id : tokens) {
            out.ids.push_back(id);
            if (m.eog.count(id)) { out.reason = "eog"; break; }
        }
        id_last = j.target.at(size_t(v.n_accepted));
    }
    return out;
}

}  // namespace port
