//! Safetensors files: validation, typed access, and the comparison of names and shapes with what
//! a model expects.

/// Up to three of `names` that are nearest to `wanted` by Jaro–Winkler similarity, best first.
pub(crate) fn nearest<'n>(wanted: &str, names: impl Iterator<Item = &'n str>) -> Vec<&'n str> {
    const COUNT: usize = 3;
    const LOWEST: f64 = 0.7;
    let mut best: Vec<(f64, &str)> = Vec::new();
    for name in names {
        let similarity = strsim::jaro_winkler(wanted, name);
        if similarity >= LOWEST {
            best.push((similarity, name));
            best.sort_by(|a, b| b.0.total_cmp(&a.0).then(a.1.cmp(b.1)));
            best.truncate(COUNT);
        }
    }
    best.into_iter().map(|(_, name)| name).collect()
}

/// One sentence per tensor of `expected` that is absent or has another shape.
pub(crate) fn problems<'n, N: Iterator<Item = &'n str>>(
    expected: &[(String, Vec<usize>)],
    names: N,
    shape_of: impl Fn(&str) -> Option<Vec<usize>>,
) -> Vec<String> {
    const LISTED: usize = 10;
    let names: Vec<&str> = names.collect();
    let mut problems = Vec::new();
    let mut more = 0;
    for (name, expected) in expected {
        let found = shape_of(name);
        if found.as_ref() == Some(expected) {
            continue;
        }
        if problems.len() == LISTED {
            more += 1;
            continue;
        }
        problems.push(match found {
            Some(found) => format!("{name} has shape {found:?}, expected {expected:?}"),
            None => match nearest(name, names.iter().copied()).as_slice() {
                [] => format!("{name} is missing"),
                near => format!("{name} is missing (nearest: {})", near.join(", ")),
            },
        });
    }
    if more > 0 {
        problems.push(format!("and {more} more"));
    }
    problems
}
