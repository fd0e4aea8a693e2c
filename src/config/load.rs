//! From a path to a [`Config`]: the file, its pipeline, and everything built from both.

use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use serde::Deserialize;
use toml::de::{DeTable, DeValue, ValueDeserializer};
use toml::{Spanned, Table};

use super::build::{self, Build};
use super::file::FileConfig;
use super::{Config, Diagnostics, Severity, Written, templates};
use crate::base::diag::{Source, advice};
use crate::base::tomlfile::{self, ROOT, Reading};
use crate::graph::file as pipeline_file;
use crate::graph::spec::PipelineSpec;
use crate::worker::spec::WorkersSpec;

/// Bytes of one file: more is not a configuration.
const FILE_BYTES_MAX: u64 = 8 << 20;

/// Reads and checks the configuration at `path` and the pipeline it names.
///
/// # Errors
/// Everything that is wrong with either file, sorted by place. Warnings alone are no error: they
/// are in [`Config::warnings`].
pub fn load(path: &Path) -> Result<Config, Diagnostics> {
    load_source(&read_source(path)?)
}

/// As [`load`], to take the place of what runs with these workers: they stay, as far as the file
/// does not say otherwise.
///
/// # Errors
/// As [`load`].
pub fn load_over(path: &Path, running: &WorkersSpec) -> Result<Config, Diagnostics> {
    load_for(&read_source(path)?, Some(running))
}

/// As [`load`], for a text that is at hand. `path` is its name in messages and the place from which
/// its pipeline is looked up.
///
/// # Errors
/// As [`load`].
pub fn load_text(path: &Path, text: &str) -> Result<Config, Diagnostics> {
    load_source(&Source::new(path, text))
}

/// Reads a file's text.
///
/// # Errors
/// Why it can't be read.
pub fn read_source(path: &Path) -> Result<Source, Diagnostics> {
    match read_text(path) {
        Ok(text) => Ok(Source::new(path, text)),
        Err(e) => {
            let mut out = Diagnostics::default();
            out.file_error(path, format!("can't be read: {}", reason(&e)));
            Err(out)
        }
    }
}

/// As [`load_text`], with what was set beside the text.
///
/// # Errors
/// As [`load`].
pub fn load_source(source: &Source) -> Result<Config, Diagnostics> {
    load_for(source, None)
}

fn load_for(source: &Source, running: Option<&WorkersSpec>) -> Result<Config, Diagnostics> {
    let mut out = Diagnostics::default();
    let mut file = Table::new();
    let change = |root: &mut DeTable<'_>, out: &mut Diagnostics| {
        file = written(root);
        templates::expand(root, source, out);
    };
    let config = tomlfile::read_changed::<FileConfig>(source, &mut out, change);
    let config = config.map(|reading| build_all(source, (&reading, file), running, &mut out));
    out.sort();
    match config {
        Some(mut config) if !out.has_errors() => {
            config.warnings = out.into_vec();
            debug_assert!(config.warnings.iter().all(|w| w.severity == Severity::Warning));
            Ok(config)
        }
        _ => Err(out),
    }
}

fn build_all(
    source: &Source,
    (reading, file): (&Reading<FileConfig>, Table),
    running: Option<&WorkersSpec>,
    out: &mut Diagnostics,
) -> Config {
    let Reading { value, faulty } = reading;
    let pipeline = match &value.pipeline {
        Some(name) => pipeline(source, name, out),
        None => {
            if !faulty.contains(&ROOT, "pipeline") {
                let what = "`pipeline` is missing: name one such as \"llm-edge\", before the first \
                            `[table]`";
                out.error(source, &(0..0), what);
            }
            None
        }
    };
    let (pipeline, stages) = pipeline.unwrap_or_default();
    let groups = value.tenants.0.iter().map(|(name, _)| name.get_ref().as_str()).collect();
    let mut b = Build { source, faulty, out, running, groups };
    let config = build::build(&mut b, value, pipeline);
    Config { written: Written::new(file, stages), ..config }
}

/// A document as it stands in its file.
fn written(root: &DeTable<'_>) -> Table {
    let document = Spanned::new(0..0, DeValue::Table(root.clone()));
    // Dates and all else that TOML knows are values of this type as well: nothing can fail.
    Table::deserialize(ValueDeserializer::from(document)).unwrap_or_default()
}

/// Finds the pipeline that the configuration names: a path (relative to the configuration), a file
/// in `pipelines/` beside it, or one of those shipped in the binary.
fn pipeline(
    config: &Source,
    name: &Spanned<String>,
    out: &mut Diagnostics,
) -> Option<(PipelineSpec, Table)> {
    let given = name.get_ref().as_str();
    let dir = config.path().parent().unwrap_or(Path::new(""));
    let is_path = given.contains('/') || Path::new(given).extension() == Some(OsStr::new("toml"));
    let path = match is_path {
        true => dir.join(given),
        false => dir.join("pipelines").join(format!("{given}.toml")),
    };
    match read_text(&path) {
        Ok(text) => return parsed(&Source::new(path, text), out),
        Err(e) if is_path || e.kind() != io::ErrorKind::NotFound => {
            let what = format!("the pipeline {} can't be read: {}", path.display(), reason(&e));
            out.error(config, &name.span(), what);
            return None;
        }
        Err(_) => {}
    }
    if let Some(text) = pipeline_file::shipped(given) {
        let path = PathBuf::from(format!("shipped:{given}.toml"));
        return parsed(&Source::new(path, text), out);
    }
    let advice = advice(given, pipeline_file::shipped_names());
    out.error(config, &name.span(), format!("there is no pipeline `{given}`{advice}"));
    None
}

/// What a pipeline's file means, and what it says.
fn parsed(source: &Source, out: &mut Diagnostics) -> Option<(PipelineSpec, Table)> {
    let spec = pipeline_file::parse(source, out)?;
    Some((spec, source.text().parse().unwrap_or_default()))
}

fn read_text(path: &Path) -> io::Result<String> {
    let mut text = String::new();
    let file = File::open(path)?;
    let read = file.take(FILE_BYTES_MAX + 1).read_to_string(&mut text)?;
    if read as u64 > FILE_BYTES_MAX {
        let what = format!("it has more than {FILE_BYTES_MAX} bytes");
        return Err(io::Error::new(io::ErrorKind::FileTooLarge, what));
    }
    Ok(text)
}

/// The reason alone: `io::Error` adds a number that says no more.
fn reason(e: &io::Error) -> String {
    let text = match e.kind() {
        io::ErrorKind::InvalidData => "it is not UTF-8 text".to_string(),
        _ => e.to_string(),
    };
    text.split(" (os error").next().unwrap_or(&text).to_string()
}
