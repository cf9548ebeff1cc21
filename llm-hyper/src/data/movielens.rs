//! MovieLens-100k as an advertisement log: a film is an ad, a rating an impression that was
//! clicked. The cold split is simulated: some well-rated films are hidden from all training.

use std::collections::{BTreeMap, HashSet};

use common::data::movielens::{MovieLens, Rating};
use common::rng::{Seed, Stream};
use common::{Error, Result};
use ndarray::Array2;

use super::{Ad, ColdSplit, Dataset, Feature, Impressions, Kind, Schema};
use crate::config::{Label, MovieLensConfig};

const WEEK: i64 = 7 * 24 * 3600;
/// First age of each bucket of the MovieLens surveys.
const AGES: [(u32, &str); 7] = [
    (0, "people under 18"),
    (18, "people aged 18 to 24"),
    (25, "people aged 25 to 34"),
    (35, "people aged 35 to 44"),
    (45, "people aged 45 to 49"),
    (50, "people aged 50 to 55"),
    (56, "people aged 56 and over"),
];
/// First year of each period of release.
const PERIODS: [(i32, &str); 5] = [
    (0, "fans of films from before 1960"),
    (1960, "fans of films from the 1960s and 1970s"),
    (1980, "fans of films from the 1980s"),
    (1990, "fans of films from the early 1990s"),
    (1996, "fans of the newest films"),
];
/// Strength of the catalogue's genre shares in a user's affinities, in likes.
const SMOOTHING: f32 = 5.0;
/// Liked films kept per impression for embedding match.
const RECENT: usize = 20;

/// Reads the log and hides `config.active` films.
///
/// Features (demographics one-hot; affinities, recency and activity real) use only what the user
/// did strictly before the impression, and never a hidden film.
///
/// # Errors
/// [`Error::Usage`] when fewer films than asked have enough ratings.
pub fn movielens(
    source: &MovieLens,
    config: &MovieLensConfig,
    seed: Seed,
) -> Result<(Dataset, ColdSplit)> {
    let (retired, active) = cold_films(source, config, &mut seed.stream("movielens/cold"))?;
    let mut split = ColdSplit::new(
        retired.clone(),
        active.clone(),
        source.users.len(),
        config.held_out_users,
        &mut seed.stream("movielens/users"),
    );
    let hidden: HashSet<u32> = active.iter().map(|&film| film as u32).collect();
    let genres = genre_names(source);
    let history = History::new(source, &genres, &hidden);
    let mut schema = schema(source, &genres);
    let shown = match config.label {
        Label::Click => {
            clicks(source, config, &retired, &active, &mut seed.stream("movielens/shown"))
        }
        Label::Like => likes(source, &retired, &active),
    };
    let mut impressions = Impressions {
        features: Array2::zeros((shown.len(), schema.len())),
        ..Impressions::default()
    };
    let plain = schema.len() - history.width;
    for (row, shown) in shown.iter().enumerate() {
        let rating = &source.ratings[shown.moment];
        let user = &source.users[rating.user as usize];
        let mut x = impressions.features.row_mut(row);
        let age = AGES.iter().rposition(|(from, _)| user.age >= *from).unwrap_or(0);
        x[age] = 1.0;
        x[AGES.len()] = f32::from(u8::from(user.gender == "M"));
        let name = format!("occupation:{}", user.occupation);
        if let Some(at) = schema.position(&name) {
            x[at] = 1.0;
        }
        for (j, value) in history.features(shown.moment).iter().enumerate() {
            x[plain + j] = *value;
        }
        impressions.ad.push(shown.film);
        impressions.user.push(rating.user as usize);
        impressions.time.push(rating.time);
        impressions.clicked.push(shown.clicked);
        impressions.liked.push(history.recent[shown.moment].clone());
    }
    standardise(&mut schema, &mut impressions, plain, &hidden, &split);

    let last = source.ratings.last().map_or(0, |rating| rating.time);
    let mut start = vec![last; source.movies.len()];
    for rating in source.ratings.iter().rev() {
        start[rating.movie as usize] = rating.time;
    }
    let mut ads = Vec::new();
    let mut expert = Vec::new();
    for (film, movie) in source.movies.iter().enumerate() {
        let year = movie.year.map_or_else(String::new, |year| format!(" ({year})"));
        ads.push(Ad {
            id: movie.id.to_string(),
            title: format!("{}{year}", natural(&movie.title)),
            description: movie.genres.join(", "),
            // A hidden film is an ad that starts when the log ends.
            start: Some(if hidden.contains(&(film as u32)) { last } else { start[film] }),
            ..Ad::default()
        });
        let mut decisive: Vec<usize> = movie
            .genres
            .iter()
            .filter_map(|genre| schema.position(&format!("affinity:{genre}")))
            .collect();
        decisive.extend(
            movie
                .year
                .and_then(|year| schema.position(&format!("period:{}", PERIODS[period(year)].0))),
        );
        expert.push(decisive);
    }
    let name = match config.label {
        Label::Click => "ml-100k click",
        Label::Like => "ml-100k like",
    };
    // A film without an impression in the log has no history to learn from.
    let seen: HashSet<usize> = impressions.ad.iter().copied().collect();
    split.retired.retain(|film| seen.contains(film));
    let users = source.users.len();
    Ok((Dataset { name: name.into(), schema, ads, impressions, users, expert }, split))
}

/// One impression: the film, and the rating whose user and moment it took place at.
struct Shown {
    film: usize,
    moment: usize,
    clicked: bool,
}

/// Films with enough ratings, one of each stratum of release years hidden.
fn cold_films(
    source: &MovieLens,
    config: &MovieLensConfig,
    stream: &mut Stream,
) -> Result<(Vec<usize>, Vec<usize>)> {
    let mut count = vec![0; source.movies.len()];
    source.ratings.iter().for_each(|rating| count[rating.movie as usize] += 1);
    let mut films: Vec<usize> =
        (0..count.len()).filter(|&film| count[film] >= config.min_ratings).collect();
    if films.len() < 2 * config.active {
        return Err(Error::usage(format!(
            "bench.movielens.active = {}: only {} films have {} ratings, and at least as many must \
             stay retired",
            config.active,
            films.len(),
            config.min_ratings
        )));
    }
    films.sort_by_key(|&film| (source.movies[film].year, film));
    let mut active = Vec::new();
    for stratum in 0..config.active {
        let from = stratum * films.len() / config.active;
        let to = (stratum + 1) * films.len() / config.active;
        active.push(films[from + stream.below(to - from)]);
    }
    active.sort_unstable();
    let mut retired: Vec<usize> = films.into_iter().filter(|film| !active.contains(film)).collect();
    retired.sort_unstable();
    if config.retired < retired.len() {
        let kept = stream.sample(retired.len(), config.retired);
        let mut kept: Vec<usize> = kept.into_iter().map(|at| retired[at]).collect();
        kept.sort_unstable();
        retired = kept;
    }
    Ok((retired, active))
}

/// Every rating is a click; beside each, `negatives` users of the same week who never rated the
/// film did not click, at a moment of their own activity.
fn clicks(
    source: &MovieLens,
    config: &MovieLensConfig,
    retired: &[usize],
    active: &[usize],
    stream: &mut Stream,
) -> Vec<Shown> {
    let mut raters = vec![HashSet::new(); source.movies.len()];
    let mut by_film = vec![Vec::new(); source.movies.len()];
    let mut weeks: BTreeMap<i64, BTreeMap<u32, Vec<usize>>> = BTreeMap::new();
    for (moment, rating) in source.ratings.iter().enumerate() {
        raters[rating.movie as usize].insert(rating.user);
        by_film[rating.movie as usize].push(moment);
        let week = weeks.entry(rating.time / WEEK).or_default();
        week.entry(rating.user).or_default().push(moment);
    }
    let weeks: BTreeMap<i64, Vec<(u32, Vec<usize>)>> =
        weeks.into_iter().map(|(week, users)| (week, users.into_iter().collect())).collect();
    let mut shown = Vec::new();
    let mut films: Vec<usize> = retired.iter().chain(active).copied().collect();
    films.sort_unstable();
    for film in films {
        let moments = &by_film[film];
        let kept = if moments.len() > config.max_clicks && !active.contains(&film) {
            let mut kept = stream.sample(moments.len(), config.max_clicks);
            kept.sort_unstable();
            kept.into_iter().map(|at| moments[at]).collect()
        } else {
            moments.clone()
        };
        for moment in kept {
            shown.push(Shown { film, moment, clicked: true });
            let week = &weeks[&(source.ratings[moment].time / WEEK)];
            let mut missing = config.negatives;
            // A film that nearly everybody of the week rated may get fewer.
            for _ in 0..20 * config.negatives {
                let (user, moments) = &week[stream.below(week.len())];
                if missing > 0 && !raters[film].contains(user) {
                    let moment = moments[stream.below(moments.len())];
                    shown.push(Shown { film, moment, clicked: false });
                    missing -= 1;
                }
            }
        }
    }
    shown
}

/// Impressions are ratings, clicks are ratings of 4 and 5: biased, since users choose what they
/// rate.
fn likes(source: &MovieLens, retired: &[usize], active: &[usize]) -> Vec<Shown> {
    let films: HashSet<usize> = retired.iter().chain(active).copied().collect();
    let all = source.ratings.iter().enumerate();
    all.filter(|(_, rating)| films.contains(&(rating.movie as usize)))
        .map(|(moment, rating)| Shown {
            film: rating.movie as usize,
            moment,
            clicked: rating.stars >= 4,
        })
        .collect()
}

fn genre_names(source: &MovieLens) -> Vec<String> {
    let names: std::collections::BTreeSet<&String> =
        source.movies.iter().flat_map(|movie| &movie.genres).collect();
    names.into_iter().cloned().collect()
}

fn period(year: i32) -> usize {
    PERIODS.iter().rposition(|(from, _)| year >= *from).unwrap_or(0)
}

fn schema(source: &MovieLens, genres: &[String]) -> Schema {
    let feature = |name: String, description: String, kind| Feature {
        name,
        description,
        kind,
        mean: 0.0,
        std: 1.0,
    };
    let mut features = Vec::new();
    for (from, description) in AGES {
        features.push(feature(format!("age:{from}"), description.into(), Kind::Binary));
    }
    features.push(feature("gender:male".into(), "men".into(), Kind::Binary));
    let jobs: std::collections::BTreeSet<&str> =
        source.users.iter().map(|user| user.occupation.as_str()).collect();
    for job in jobs {
        let description = match job {
            "none" => "people without an occupation".to_owned(),
            "other" => "people with other occupations".to_owned(),
            "healthcare" => "people who work in healthcare".to_owned(),
            "entertainment" | "marketing" => format!("people who work in {job}"),
            "administrator" => "administrators".to_owned(),
            "retired" => "retired people".to_owned(),
            "salesman" => "salesmen".to_owned(),
            "homemaker" => "homemakers".to_owned(),
            job => format!("{job}s"),
        };
        features.push(feature(format!("occupation:{job}"), description, Kind::Binary));
    }
    for genre in genres {
        let description = match genre.as_str() {
            "Children's" => "fans of children's films".to_owned(),
            "Film-Noir" => "fans of film noir".to_owned(),
            "Sci-Fi" => "fans of science fiction".to_owned(),
            other => format!("fans of {} films", other.to_lowercase()),
        };
        features.push(feature(format!("affinity:{genre}"), description, Kind::Real));
    }
    for (from, description) in PERIODS {
        features.push(feature(format!("period:{from}"), description.into(), Kind::Real));
    }
    for (name, description) in [
        ("activity:ratings", "people who have watched very many films"),
        ("activity:pause", "people who have not watched a film for a long time"),
        ("activity:stars", "people who praise most films"),
    ] {
        features.push(feature(name.into(), description.into(), Kind::Real));
    }
    Schema { features }
}

/// What each user had done before each of the log's moments.
struct History {
    width: usize,
    /// (moments, width)
    values: Vec<f32>,
    recent: Vec<Vec<u32>>,
}

impl History {
    fn new(source: &MovieLens, genres: &[String], hidden: &HashSet<u32>) -> Self {
        let width = genres.len() + PERIODS.len() + 3;
        let films = source.movies.len() as f32;
        let genre_of: Vec<Vec<usize>> = source
            .movies
            .iter()
            .map(|movie| {
                let at = |genre| genres.iter().position(|known| known == genre);
                movie.genres.iter().filter_map(at).collect()
            })
            .collect();
        let period_of: Vec<Option<usize>> =
            source.movies.iter().map(|movie| movie.year.map(period)).collect();
        let mut base = vec![0.0f32; genres.len() + PERIODS.len()];
        for film in 0..source.movies.len() {
            genre_of[film].iter().for_each(|&g| base[g] += 1.0 / films);
            if let Some(period) = period_of[film] {
                base[genres.len() + period] += 1.0 / films;
            }
        }
        let mut values = vec![0.0; source.ratings.len() * width];
        let mut recent = vec![Vec::new(); source.ratings.len()];
        let mut by_user: Vec<Vec<usize>> = vec![Vec::new(); source.users.len()];
        for (moment, rating) in source.ratings.iter().enumerate() {
            by_user[rating.user as usize].push(moment);
        }
        for moments in &by_user {
            let (mut liked, mut rated, mut stars) = (0.0f32, 0.0f32, 0.0f32);
            let mut counts = vec![0.0f32; base.len()];
            let mut latest: Vec<u32> = Vec::new();
            let mut last_time: Option<i64> = None;
            // Ratings of one second are one moment: none of them came before another.
            let same = |a: &usize, b: &usize| source.ratings[*a].time == source.ratings[*b].time;
            for group in moments.chunk_by(same) {
                for &moment in group {
                    let row = &mut values[moment * width..(moment + 1) * width];
                    for ((out, count), base) in row.iter_mut().zip(&counts).zip(&base) {
                        *out = (count + SMOOTHING * base) / (liked + SMOOTHING);
                    }
                    let now = source.ratings[moment].time;
                    let pause = last_time.map_or(365.0, |then| (now - then) as f32 / 86_400.0);
                    row[base.len()] = rated.ln_1p();
                    row[base.len() + 1] = pause.ln_1p();
                    row[base.len() + 2] = (stars + SMOOTHING * 3.5) / (rated + SMOOTHING);
                    recent[moment] = latest.clone();
                }
                for &moment in group {
                    let Rating { movie, stars: given, time, .. } = source.ratings[moment];
                    if hidden.contains(&movie) {
                        continue;
                    }
                    rated += 1.0;
                    stars += f32::from(given);
                    last_time = Some(time);
                    if given >= 4 {
                        liked += 1.0;
                        genre_of[movie as usize].iter().for_each(|&g| counts[g] += 1.0);
                        if let Some(period) = period_of[movie as usize] {
                            counts[genres.len() + period] += 1.0;
                        }
                        latest.push(movie);
                        if latest.len() > RECENT {
                            latest.remove(0);
                        }
                    }
                }
            }
        }
        Self { width, values, recent }
    }

    fn features(&self, moment: usize) -> &[f32] {
        &self.values[moment * self.width..(moment + 1) * self.width]
    }
}

/// Mean and std of the real features over what training may see: retired films, users not held out.
fn standardise(
    schema: &mut Schema,
    impressions: &mut Impressions,
    plain: usize,
    hidden: &HashSet<u32>,
    split: &ColdSplit,
) {
    let known: Vec<usize> = (0..impressions.len())
        .filter(|&row| !hidden.contains(&(impressions.ad[row] as u32)))
        .filter(|&row| !split.held_out[impressions.user[row]])
        .collect();
    for j in plain..schema.len() {
        let values: Vec<f64> =
            known.iter().map(|&row| f64::from(impressions.features[[row, j]])).collect();
        let (mean, sd) = common::stats::mean_sd(&values);
        let feature = &mut schema.features[j];
        if sd > 0.0 && sd.is_finite() {
            (feature.mean, feature.std) = (mean, sd);
        }
        for x in impressions.features.column_mut(j) {
            *x = ((f64::from(*x) - schema.features[j].mean) / schema.features[j].std) as f32;
        }
    }
}

/// "Butcher Boy, The" → "The Butcher Boy".
fn natural(title: &str) -> String {
    for article in ["The", "A", "An"] {
        if let Some(rest) = title.strip_suffix(&format!(", {article}")) {
            return format!("{article} {rest}");
        }
    }
    title.to_owned()
}
