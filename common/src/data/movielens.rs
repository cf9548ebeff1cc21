//! MovieLens-100k as the asset `ml-100k` holds it: ratings, movies, users, knowledge graph.
//!
//! The files are RecBole's atomic files: tab-separated, a type after each column name.

use std::collections::HashMap;
use std::path::Path;

use super::{Cell, Column, Format, ReadOptions, Table};
use crate::{Error, Result};

/// The data set. Users and movies are numbered from 0 in the order of their ids.
#[derive(Debug, Clone, PartialEq)]
pub struct MovieLens {
    /// Ascending by time, then user; several of one second stay in the file's order. Ordered by
    /// movie, the last of them would be the one with the highest and so least popular id.
    pub ratings: Vec<Rating>,
    /// By number.
    pub movies: Vec<Movie>,
    /// By number.
    pub users: Vec<User>,
    /// Triples of the knowledge graph, in the file's order.
    pub facts: Vec<Fact>,
}

/// One rating.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rating {
    /// Index into [`MovieLens::users`].
    pub user: u32,
    /// Index into [`MovieLens::movies`].
    pub movie: u32,
    /// 1 to 5.
    pub stars: u8,
    /// Seconds since 1970.
    pub time: i64,
}

/// A movie.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Movie {
    /// Its id in the files.
    pub id: u32,
    /// Title without the year, the article at the end ("Butcher Boy, The"). Not unique.
    pub title: String,
    /// Year of release; two movies have none.
    pub year: Option<i32>,
    /// Genres in the file's order; "unknown" is left out.
    pub genres: Vec<String>,
    /// Its node in the knowledge graph; 84 movies have none.
    pub entity: Option<String>,
}

/// A user.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct User {
    /// The id in the files.
    pub id: u32,
    /// Years.
    pub age: u32,
    /// `F` or `M`.
    pub gender: String,
    /// One of 21.
    pub occupation: String,
    /// As written; not always digits.
    pub zip: String,
}

/// One triple of the knowledge graph.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fact {
    /// Entity.
    pub head: String,
    /// Relation.
    pub relation: String,
    /// Entity.
    pub tail: String,
}

impl MovieLens {
    /// Reads `ml-100k.{inter,item,user,kg,link}` from `folder`.
    ///
    /// # Errors
    /// [`Error::Data`] with file, row and column for a malformed table, a value that is not a
    /// number where one belongs, or a rating of an unknown user or movie; [`Error::Io`].
    pub fn read(folder: &Path) -> Result<Self> {
        let mut movies = movies(folder)?;
        let users = users(folder)?;
        let movie_of = numbers(movies.iter().map(|movie| movie.id));
        let user_of = numbers(users.iter().map(|user| user.id));
        let [item, entity] = ["item_id:token", "entity_id:token"];
        let links = table(folder, "link", &[item, entity])?;
        let (items, entities) = (links.column(item)?, links.column(entity)?);
        for row in 0..links.len() {
            let number = look_up(items.cell(row), &movie_of, "the .item file")?;
            movies[number as usize].entity = Some(entities.text(row).to_owned());
        }
        let facts = facts(folder)?;
        let ratings = ratings(folder, &user_of, &movie_of)?;
        Ok(Self { ratings, movies, users, facts })
    }
}

fn ratings(
    folder: &Path,
    user_of: &HashMap<u32, u32>,
    movie_of: &HashMap<u32, u32>,
) -> Result<Vec<Rating>> {
    let names = ["user_id:token", "item_id:token", "rating:float", "timestamp:float"];
    let table = table(folder, "inter", &names)?;
    let [users, movies, stars, times] = columns(&table, names)?;
    let mut ratings = Vec::with_capacity(table.len());
    for row in 0..table.len() {
        let given = stars.cell(row);
        ratings.push(Rating {
            user: look_up(users.cell(row), user_of, "the .user file")?,
            movie: look_up(movies.cell(row), movie_of, "the .item file")?,
            stars: match given.f64()? {
                value if (1.0..=5.0).contains(&value) => value as u8,
                _ => return Err(given.error("1 to 5 stars")),
            },
            time: times.cell(row).f64()? as i64,
        });
    }
    ratings.sort_by_key(|rating| (rating.time, rating.user));
    Ok(ratings)
}

fn facts(folder: &Path) -> Result<Vec<Fact>> {
    let names = ["head_id:token", "relation_id:token", "tail_id:token"];
    let table = table(folder, "kg", &names)?;
    let [heads, relations, tails] = columns(&table, names)?;
    let fact = |row| Fact {
        head: heads.text(row).to_owned(),
        relation: relations.text(row).to_owned(),
        tail: tails.text(row).to_owned(),
    };
    Ok((0..table.len()).map(fact).collect())
}

fn movies(folder: &Path) -> Result<Vec<Movie>> {
    let names = ["item_id:token", "movie_title:token_seq", "release_year:token", "class:token_seq"];
    let table = table(folder, "item", &names)?;
    let [ids, titles, years, genres] = columns(&table, names)?;
    let mut movies = Vec::with_capacity(table.len());
    for row in 0..table.len() {
        let genres = genres.text(row).split_whitespace().filter(|genre| *genre != "unknown");
        movies.push(Movie {
            id: whole(ids.cell(row))?,
            title: titles.text(row).to_owned(),
            year: years.text(row).parse().ok(),
            genres: genres.map(str::to_owned).collect(),
            entity: None,
        });
    }
    movies.sort_by_key(|movie| movie.id);
    Ok(movies)
}

fn users(folder: &Path) -> Result<Vec<User>> {
    let names =
        ["user_id:token", "age:token", "gender:token", "occupation:token", "zip_code:token"];
    let table = table(folder, "user", &names)?;
    let [ids, ages, genders, occupations, zips] = columns(&table, names)?;
    let mut users = Vec::with_capacity(table.len());
    for row in 0..table.len() {
        users.push(User {
            id: whole(ids.cell(row))?,
            age: whole(ages.cell(row))?,
            gender: genders.text(row).to_owned(),
            occupation: occupations.text(row).to_owned(),
            zip: zips.text(row).to_owned(),
        });
    }
    users.sort_by_key(|user| user.id);
    Ok(users)
}

fn table(folder: &Path, extension: &str, columns: &[&str]) -> Result<Table> {
    let options = ReadOptions { format: Some(Format::Tsv), ..ReadOptions::select(columns) };
    Table::read(&folder.join(format!("ml-100k.{extension}")), &options)
}

fn columns<'a, const N: usize>(table: &'a Table, names: [&str; N]) -> Result<[Column<'a>; N]> {
    let mut found = Vec::with_capacity(N);
    for name in names {
        found.push(table.column(name)?);
    }
    found.try_into().map_err(|_| Error::Bug("as many columns as names".to_owned()))
}

/// A whole number from 0 to 2³² − 1.
fn whole(cell: Cell<'_>) -> Result<u32> {
    u32::try_from(cell.i64()?).map_err(|_| cell.error("a whole number that is not negative"))
}

fn numbers(ids: impl Iterator<Item = u32>) -> HashMap<u32, u32> {
    ids.zip(0..).collect()
}

fn look_up(cell: Cell<'_>, numbers: &HashMap<u32, u32>, place: &str) -> Result<u32> {
    numbers.get(&whole(cell)?).copied().ok_or_else(|| cell.error(format!("an id of {place}")))
}
