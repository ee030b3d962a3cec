//! The program of the container engine's own tests.

use std::fs;
use std::path::PathBuf;

/// The engine's tests as cargo built them beside the calling one; `None`, said aloud, where only that was built.
pub fn engine_program() -> Option<PathBuf> {
    let own = std::env::current_exe().expect("a program of cargo's");
    let folder = own.parent().expect("a program of cargo's");
    let programs = fs::read_dir(folder).expect("cargo's folder").flatten();
    let found = programs
        .map(|entry| entry.path())
        .filter(|path| {
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            name.starts_with("engine-") && !name.contains('.')
        })
        .max_by_key(|path| fs::metadata(path).and_then(|metadata| metadata.modified()).ok());
    if found.is_none() {
        println!("SKIPPED: the engine's tests are not built: cargo test -p container --no-run");
    }
    found
}
