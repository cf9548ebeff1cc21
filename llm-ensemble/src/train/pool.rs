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
//! | [`Method::SubtypeDs`] | the same per subtype of items | votes are sparse |
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
    for update in [em::Update::Hierarchical, em::Update::Subtypes] {
        let components = update.components(l);
        let fits = check_table("confusion matrices", votes.workers.len() * components, l, 1)
            .and_then(|()| check_table("posteriors", votes.items.len(), components, 1));
        if fits.is_err() {
            report.warnings.push(Warning::MemberLeftOut);
            continue;
        }
        let member = em::run(votes, evidence, options, update);
        scores.iter_mut().zip(&member.posterior).for_each(|(a, b)| *a += b);
        if update == em::Update::Hierarchical {
            report.weights = member.report.weights;
            report.accuracy = member.report.accuracy;
            report.history = member.report.history;
        }
        members += 1.0;
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
