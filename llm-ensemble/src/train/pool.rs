//! Ours: a linear opinion pool over structures of error.
//!
//! Which structure a crowd's errors have is not known without gold, and a likelihood over votes
//! does not tell: it prefers the richer model on sparse votes, too. So three models that fail in
//! different places each give a posterior, and the pool is their mean, with equal weights
//! (Stone 1961):
//!
//! | member | errors are | fails where |
//! |---|---|---|
//! | [`Method::Iwmv`] | one accuracy per worker | errors depend on the class |
//! | [`Method::HierarchicalDs`] | a confusion matrix per worker, shrunk | workers err together |
//! | [`Method::SubtypeDs`] or without subtypes | the same per subtype of items | votes are sparse |
//!
//! The third member takes subtypes only if they raise the evidence (the variational lower bound of
//! ln P(votes)); with one subtype it is variational Dawid–Skene.
//!
//! Two members that agree outvote the third, and a hesitant member yields to a certain one.
//! Nothing is tuned: shrinkage comes from empirical Bayes, the subtype prior from its source.

use super::{Consensus, EmReport, Evidence, Method, Options, Warning, check_table};
use super::{em, iwmv, one_coin, posterior_consensus};
use crate::votes::Votes;

pub(super) fn fit(votes: &Votes, evidence: &Evidence, options: &Options) -> Consensus {
    let l = votes.labels.len();
    let vote = iwmv::iterative_weighted_vote(votes, Method::Iwmv, evidence, options);
    let mut scores = one_coin::vote_posterior(votes, &vote.label);
    let mut report = EmReport {
        weights: vote.weights,
        accuracy: vote.accuracy,
        history: Vec::new(),
        warnings: vote.warnings,
    };
    let mut members = 1.0;
    let hierarchical = member(votes, evidence, options, &[em::Update::Hierarchical]);
    let subtypes = [em::Update::Subtypes(1), em::Update::Subtypes(em::SUBTYPES)];
    let correlated = member(votes, evidence, options, &subtypes);
    for fit in [&hierarchical, &correlated] {
        match fit {
            Some(fit) => {
                scores.iter_mut().zip(&fit.posterior).for_each(|(a, b)| *a += b);
                members += 1.0;
            }
            None => report.warnings.push(Warning::MemberLeftOut),
        }
    }
    if let Some(fit) = hierarchical {
        report = EmReport { warnings: report.warnings, ..fit.report };
    }
    scores.iter_mut().for_each(|p| *p /= members);
    for (item, row) in scores.chunks_mut(l.max(1)).enumerate() {
        if let Some(gold) = evidence.gold_of(item) {
            row.fill(0.0);
            row[gold as usize] = 1.0;
        } else if votes.range(item).is_empty() {
            row.fill(0.0);
        }
    }
    posterior_consensus(votes, Method::OpinionPool, evidence, options, scores, report)
}

/// The fit with the highest evidence among those whose tables fit into memory.
fn member(
    votes: &Votes,
    evidence: &Evidence,
    options: &Options,
    updates: &[em::Update],
) -> Option<em::EmFit> {
    let l = votes.labels.len();
    let mut best: Option<em::EmFit> = None;
    for &update in updates {
        let components = update.components(l);
        let fits = check_table("confusion matrices", votes.workers.len() * components, l, 1)
            .and_then(|()| check_table("posteriors", votes.items.len(), components, 1));
        if fits.is_err() {
            continue;
        }
        let fit = em::run(votes, evidence, options, update);
        if best.as_ref().is_none_or(|best| fit.evidence > best.evidence) {
            best = Some(fit);
        }
    }
    best
}
