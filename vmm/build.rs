//! Names the build after what it is made of, so that a snapshot can tell whether it is another build's.

use std::error::Error;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use sha2::{Digest, Sha256};

/// What decides how a machine's state is read and written: this crate and the versions of all others.
const SOURCES: [&str; 4] = ["src", "Cargo.toml", "build.rs", "../Cargo.lock"];
/// What the compiler is told beside them.
const SETTINGS: [&str; 4] = ["TARGET", "PROFILE", "OPT_LEVEL", "CARGO_ENCODED_RUSTFLAGS"];

fn main() -> Result<(), Box<dyn Error>> {
    let mut files = Vec::new();
    for source in SOURCES {
        println!("cargo::rerun-if-changed={source}");
        collect(Path::new(source), &mut files)?;
    }
    files.sort();
    let mut hash = Sha256::new();
    let mut add = |name: &str, contents: &[u8]| {
        hash.update((name.len() as u64).to_le_bytes());
        hash.update(name);
        hash.update((contents.len() as u64).to_le_bytes());
        hash.update(contents);
    };
    for file in files {
        add(&file.to_string_lossy(), &fs::read(&file)?);
    }
    for setting in SETTINGS {
        add(setting, std::env::var(setting).unwrap_or_default().as_bytes());
    }
    let compiler = Command::new(std::env::var("RUSTC")?).arg("-vV").output()?;
    add("compiler", &compiler.stdout);
    let name: String = hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect();
    println!("cargo::rustc-env=BULKHEAD_VMM_BUILD={name}");
    Ok(())
}

fn collect(path: &Path, files: &mut Vec<PathBuf>) -> Result<(), Box<dyn Error>> {
    if !path.is_dir() {
        files.push(path.to_owned());
        return Ok(());
    }
    for entry in fs::read_dir(path)? {
        collect(&entry?.path(), files)?;
    }
    Ok(())
}
