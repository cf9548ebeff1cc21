//! Item tokenizers: from item vectors to semantic IDs with code vectors.

mod rqvae;

use std::collections::HashSet;

use common::rng::{Seed, Stream};
use common::{Error, Result};
use ndarray::{Array1, Array2, ArrayView1, ArrayView2, Axis};

use crate::sid::SidTable;

pub use rqvae::{Letter, RqVae, RqVaeOptions, train_rqvae};

/// Semantic IDs with what they were made from.
#[derive(Debug, Clone)]
pub struct Codebook {
    /// Codes per item.
    pub table: SidTable,
    /// Code vectors per level, `[codes, width]`.
    pub vectors: Vec<Array2<f32>>,
    /// Item vectors z_i, `[items, width]`.
    pub points: Array2<f32>,
}

impl Codebook {
    /// r_i^l: residual of every item on entering `level` (Eq. 1), `[items, width]`.
    pub fn residuals(&self, level: usize) -> Array2<f32> {
        let mut rest = self.points.clone();
        for (vectors, at) in self.vectors.iter().zip(0..level) {
            for (mut row, codes) in rest.rows_mut().into_iter().zip(self.table.rows()) {
                row -= &vectors.row(codes[at] as usize);
            }
        }
        rest
    }

    /// The table without collisions; `counts` are the items' training interactions.
    pub fn distinct(&self, policy: Collisions, counts: &[u64]) -> SidTable {
        match policy {
            Collisions::Number => self.table.deduplicated(counts),
            Collisions::Nearest => self.moved(counts).unwrap_or(self.table.deduplicated(counts)),
        }
    }

    /// The table with colliding items moved; `None` where an item finds no free code.
    fn moved(&self, counts: &[u64]) -> Option<SidTable> {
        let last = self.table.levels() - 1;
        let rest = self.residuals(last);
        let mut order: Vec<usize> = (0..self.table.items()).collect();
        order.sort_by_key(|&item| std::cmp::Reverse(counts[item]));
        let mut taken: HashSet<&[u32]> = HashSet::new();
        let (kept, colliding): (Vec<usize>, Vec<usize>) =
            order.into_iter().partition(|&item| taken.insert(self.table.row(item)));
        let mut taken: HashSet<Vec<u32>> =
            kept.into_iter().map(|item| self.table.row(item).to_vec()).collect();
        let mut changes = Vec::with_capacity(colliding.len());
        for item in colliding {
            let own = rest.row(item);
            let distance = |code: usize| {
                let squares = own.iter().zip(self.vectors[last].row(code));
                squares.map(|(a, b)| (a - b) * (a - b)).sum::<f32>()
            };
            let mut codes: Vec<(f32, u32)> =
                (0..self.table.sizes()[last]).map(|code| (distance(code), code as u32)).collect();
            codes.sort_by(|a, b| a.0.total_cmp(&b.0).then(a.1.cmp(&b.1)));
            let mut row = self.table.row(item).to_vec();
            let free = codes.into_iter().find(|&(_, code)| {
                row[last] = code;
                taken.insert(row.clone())
            })?;
            changes.push((item, last, free.1));
        }
        Some(self.table.replaced(changes))
    }

    /// A given table with code vectors found afterwards: each is the mean residual of its items.
    /// For semantic IDs of another system, whose code vectors are not known.
    ///
    /// # Errors
    /// Another number of points than items.
    pub fn around(table: SidTable, points: Array2<f32>) -> Result<Self> {
        if table.items() != points.nrows() {
            return Err(Error::data(
                format!("{} item vectors for {} semantic IDs", points.nrows(), table.items()),
                "one vector per item",
            ));
        }
        let mut rest = points.clone();
        let mut vectors = Vec::new();
        for level in 0..table.levels() {
            let codes: Vec<u32> = table.rows().map(|row| row[level]).collect();
            let means = means(rest.view(), &codes, table.sizes()[level]);
            for (mut row, &code) in rest.rows_mut().into_iter().zip(&codes) {
                row -= &means.row(code as usize);
            }
            vectors.push(means);
        }
        Ok(Self { table, vectors, points })
    }
}

/// What becomes of items with equal codes.
#[derive(
    Debug,
    Clone,
    Copy,
    Default,
    PartialEq,
    Eq,
    serde::Serialize,
    serde::Deserialize,
    schemars::JsonSchema,
)]
#[serde(rename_all = "snake_case")]
pub enum Collisions {
    /// One more level with a running number (TIGER).
    #[default]
    Number,
    /// The less popular item moves to the nearest code of the last level that is free behind its
    /// other codes (as LETTER moves colliding items); a running number after all where more items
    /// share these codes than the last level has. Saves a token per item.
    Nearest,
}

/// Mean of the points of each code; zero for an unused code.
fn means(points: ArrayView2<'_, f32>, codes: &[u32], size: usize) -> Array2<f32> {
    let mut sums = Array2::zeros((size, points.ncols()));
    let mut counts = vec![0f32; size];
    for (row, &code) in points.rows().into_iter().zip(codes) {
        let mut sum = sums.row_mut(code as usize);
        sum += &row;
        counts[code as usize] += 1.0;
    }
    for (mut row, count) in sums.rows_mut().into_iter().zip(counts) {
        row /= count.max(1.0);
    }
    sums
}

/// How items are spread over the codes of a level.
#[derive(
    Debug,
    Clone,
    Copy,
    Default,
    PartialEq,
    Eq,
    serde::Serialize,
    serde::Deserialize,
    schemars::JsonSchema,
)]
#[serde(rename_all = "snake_case")]
pub enum Assignment {
    /// To the nearest code.
    #[default]
    Nearest,
    /// To the nearest code with room for at most `⌈items / codes⌉` items (balanced residual
    /// k-means, the competitor that balances while the codes are made).
    Balanced,
}

/// Residual k-means: level by level, k-means on what the levels before left over (Eq. 1). `codes`
/// per level; at most 25 rounds of Lloyd from a k-means++ start.
///
/// # Errors
/// No points, no codes, or a level that collapses to one used code although the points differ.
pub fn residual_kmeans(
    points: Array2<f32>,
    codes: &[usize],
    assignment: Assignment,
    seed: Seed,
) -> Result<Codebook> {
    if points.nrows() == 0 || codes.is_empty() || codes.contains(&0) {
        return Err(Error::usage(format!(
            "residual k-means of {} items on levels {codes:?}; both must be positive",
            points.nrows()
        )));
    }
    let mut rest = points.clone();
    let mut rows = vec![Vec::with_capacity(codes.len()); points.nrows()];
    let mut vectors = Vec::new();
    for (level, &size) in codes.iter().enumerate() {
        let mut stream = seed.stream(&format!("kmeans/level-{level}"));
        let size = size.min(points.nrows());
        let (centres, chosen) = kmeans(rest.view(), size, assignment, &mut stream);
        check_collapse(&rest, &chosen, level)?;
        for ((mut row, &code), sid) in rest.rows_mut().into_iter().zip(&chosen).zip(&mut rows) {
            row -= &centres.row(code as usize);
            sid.push(code);
        }
        vectors.push(centres);
    }
    Ok(Codebook { table: SidTable::new(&rows)?, vectors, points })
}

/// Refuses a level on which all items took the same code although they differ.
pub(crate) fn check_collapse(rest: &Array2<f32>, chosen: &[u32], level: usize) -> Result<()> {
    let one_code = chosen.iter().all(|&code| code == chosen[0]);
    let differ = rest.rows().into_iter().any(|row| row != rest.row(0));
    if one_code && differ && chosen.len() > 1 {
        return Err(Error::data(
            format!(
                "a collapsed code book: all {} items share one code of level {level}",
                chosen.len()
            ),
            "several used codes; train longer, or use residual k-means",
        ));
    }
    Ok(())
}

/// Centres `[size, width]` and the code of each point.
fn kmeans(
    points: ArrayView2<'_, f32>,
    size: usize,
    assignment: Assignment,
    stream: &mut Stream,
) -> (Array2<f32>, Vec<u32>) {
    let mut centres = plus_plus(points, size, stream);
    let mut chosen = Vec::new();
    for _ in 0..25 {
        let distances = squared_distances(points, &centres);
        let fresh = match assignment {
            Assignment::Nearest => nearest(&distances),
            Assignment::Balanced => balanced(&distances),
        };
        let done = fresh == chosen;
        chosen = fresh;
        let mut counts = vec![0; size];
        chosen.iter().for_each(|&code| counts[code as usize] += 1);
        let fresh = means(points, &chosen, size);
        for (code, count) in counts.into_iter().enumerate() {
            // an unused code keeps its place
            if count > 0 {
                centres.row_mut(code).assign(&fresh.row(code));
            }
        }
        if done {
            break;
        }
    }
    (centres, chosen)
}

/// Greedy k-means++: of a few centres drawn in proportion to the squared distance to the nearest
/// one so far, the one that leaves the least distance. Plain k-means++ spends its centres on
/// outliers of residuals, and most codes then hold a single item.
fn plus_plus(points: ArrayView2<'_, f32>, size: usize, stream: &mut Stream) -> Array2<f32> {
    let mut centres = Array2::zeros((size, points.ncols()));
    let trials = 2 + (size as f64).ln() as usize;
    let blocks = Blocks::of(points);
    // per candidate: sum and values of the distances to the nearest centre if it became one
    let with = |candidates: &[usize], nearest: &[f64]| -> Vec<(f64, Vec<f64>)> {
        let rows: Vec<_> = candidates.iter().map(|&candidate| points.row(candidate)).collect();
        let closer = |(best, distance): (&f64, f32)| best.min(f64::from(distance));
        let nearest = |distances: Vec<f32>| {
            let nearest: Vec<f64> = nearest.iter().zip(distances).map(closer).collect();
            (nearest.iter().sum(), nearest)
        };
        blocks.squared_distances(&rows).into_iter().map(nearest).collect()
    };
    let mut candidates = vec![stream.below(points.nrows())];
    let mut nearest = vec![f64::INFINITY; points.nrows()];
    for code in 0..size {
        let mut best: Option<(f64, usize, Vec<f64>)> = None;
        for (&candidate, (left, distances)) in candidates.iter().zip(with(&candidates, &nearest)) {
            if best.as_ref().is_none_or(|(least, ..)| left < *least) {
                best = Some((left, candidate, distances));
            }
        }
        if let Some((_, candidate, distances)) = best {
            centres.row_mut(code).assign(&points.row(candidate));
            nearest = distances;
        }
        candidates = (0..trials).map(|_| stream.weighted(&nearest)).collect();
    }
    centres
}

/// Points in blocks, in each one coordinate of all its points after another: sums over the
/// coordinates of a point are slow one by one, and fast for a block of points side by side.
struct Blocks {
    points: usize,
    width: usize,
    values: Vec<f32>,
}

impl Blocks {
    /// Points of a block.
    const POINTS: usize = 16;

    fn of(points: ArrayView2<'_, f32>) -> Self {
        let (count, width) = points.dim();
        let mut values = vec![0.0; count.div_ceil(Self::POINTS) * Self::POINTS * width];
        for (point, row) in points.rows().into_iter().enumerate() {
            let first = point / Self::POINTS * Self::POINTS * width + point % Self::POINTS;
            for (at, &value) in row.iter().enumerate() {
                values[first + at * Self::POINTS] = value;
            }
        }
        Self { points: count, width, values }
    }

    /// Per centre the squared distance of every point.
    fn squared_distances(&self, centres: &[ArrayView1<'_, f32>]) -> Vec<Vec<f32>> {
        let padded = self.points.next_multiple_of(Self::POINTS);
        let mut distances = vec![Vec::with_capacity(padded); centres.len()];
        for block in 0..self.points.div_ceil(Self::POINTS) {
            let values = &self.values[block * Self::POINTS * self.width..];
            for (centre, distances) in centres.iter().zip(&mut distances) {
                let mut sums = [0f32; Self::POINTS];
                for (values, centre) in values.chunks_exact(Self::POINTS).zip(centre) {
                    for (sum, value) in sums.iter_mut().zip(values) {
                        *sum += (value - centre) * (value - centre);
                    }
                }
                distances.extend(sums);
            }
        }
        distances.iter_mut().for_each(|distances| distances.truncate(self.points));
        distances
    }
}

/// `[points, centres]`, each without the point's own squared norm, which changes no comparison.
fn squared_distances(points: ArrayView2<'_, f32>, centres: &Array2<f32>) -> Array2<f32> {
    let norms: Array1<f32> = centres.map_axis(Axis(1), |row| row.dot(&row));
    let mut distances = points.dot(&centres.t());
    distances.mapv_inplace(|product| -2.0 * product);
    distances += &norms;
    distances
}

fn nearest(distances: &Array2<f32>) -> Vec<u32> {
    let least = |row: ndarray::ArrayView1<'_, f32>| {
        row.iter().enumerate().fold((0, f32::INFINITY), |best, (code, &distance)| {
            if distance < best.1 { (code, distance) } else { best }
        })
    };
    distances.rows().into_iter().map(|row| least(row).0 as u32).collect()
}

/// Every point to its nearest code with room; points that would lose most by waiting choose first.
fn balanced(distances: &Array2<f32>) -> Vec<u32> {
    let (points, codes) = distances.dim();
    let room = points.div_ceil(codes);
    let regret = |row: ndarray::ArrayView1<'_, f32>| {
        let (mut first, mut second) = (f32::INFINITY, f32::INFINITY);
        for &distance in row {
            if distance < first {
                (first, second) = (distance, first);
            } else if distance < second {
                second = distance;
            }
        }
        second - first
    };
    let regrets: Vec<f32> = distances.rows().into_iter().map(regret).collect();
    let mut order: Vec<usize> = (0..points).collect();
    order.sort_by(|&a, &b| regrets[b].total_cmp(&regrets[a]).then(a.cmp(&b)));
    let mut left = vec![room; codes];
    let mut chosen = vec![0; points];
    for point in order {
        let mut best = (0, f32::INFINITY);
        for (code, &distance) in distances.row(point).iter().enumerate() {
            if left[code] > 0 && distance < best.1 {
                best = (code, distance);
            }
        }
        chosen[point] = best.0 as u32;
        left[best.0] -= 1;
    }
    chosen
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn points() -> Array2<f32> {
        let mut stream = Seed::new(1).stream("points");
        Array2::from_shape_fn((120, 5), |(row, _)| (row % 4) as f32 * 3.0 + stream.normal() as f32)
    }

    #[test]
    fn residuals_shrink_and_add_up() {
        let book = residual_kmeans(points(), &[8, 8], Assignment::Nearest, Seed::new(1)).unwrap();
        let energy = |level| book.residuals(level).iter().map(|v| v * v).sum::<f32>();
        assert!(energy(1) < 0.3 * energy(0), "{} {}", energy(0), energy(1));
        assert!(energy(2) < energy(1));
        let back = &book.residuals(0) - &book.points;
        assert!(back.iter().all(|v| *v == 0.0));
    }

    #[test]
    fn balanced_codes_hold_no_more_than_their_share() {
        let book = residual_kmeans(points(), &[8, 7], Assignment::Balanced, Seed::new(1)).unwrap();
        for (level, room) in [(0, 15), (1, 18)] {
            let carried = book.table.token_popularity(level, &[1; 120]);
            assert!(carried.iter().all(|&n| n <= room), "{carried:?}");
        }
        let free = residual_kmeans(points(), &[8, 7], Assignment::Nearest, Seed::new(1)).unwrap();
        assert!(free.table.token_popularity(0, &[1; 120]).iter().any(|&n| n > 15));
    }

    #[test]
    fn colliding_items_move_to_the_nearest_free_code() {
        let rows = [vec![0, 0], vec![0, 0], vec![1, 2], vec![0, 1], vec![0, 0]];
        let table = SidTable::new(&rows).unwrap();
        let points = ndarray::array![[0.1f32], [0.0], [9.0], [1.0], [2.0]];
        let vectors =
            vec![ndarray::array![[0.0f32], [9.0]], ndarray::array![[0.0f32], [1.0], [3.0]]];
        let book = Codebook { table: table.clone(), vectors, points };
        // item 1 is the most popular and stays; code 1 is taken, so 4 (at 2.0) and 0 get what is left
        let distinct = book.distinct(Collisions::Nearest, &[1, 5, 0, 0, 2]);
        assert_eq!(distinct, book.distinct(Collisions::Number, &[1, 5, 0, 0, 2]));
        assert_eq!(distinct.levels(), 3);
        let fewer = SidTable::new(&rows[..4]).unwrap();
        let book = Codebook {
            table: fewer,
            points: book.points.slice(ndarray::s![..4, ..]).to_owned(),
            ..book
        };
        let distinct = book.distinct(Collisions::Nearest, &[1, 5, 0, 0]);
        assert_eq!(distinct.row(0), [0, 2]);
        assert_eq!((distinct.row(1), distinct.unique()), (&[0, 0][..], 4));
    }

    #[test]
    fn given_codes_get_the_means_of_their_items() {
        let table = SidTable::new(&[vec![0], vec![0], vec![1]]).unwrap();
        let points = ndarray::array![[1.0f32], [3.0], [7.0]];
        let book = Codebook::around(table, points).unwrap();
        assert_eq!(book.vectors[0], ndarray::array![[2.0f32], [7.0]]);
        assert_eq!(book.residuals(1), ndarray::array![[-1.0f32], [1.0], [0.0]]);
    }
}
