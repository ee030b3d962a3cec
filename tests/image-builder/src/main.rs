//! Makes the demo's image.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, ensure};
use clap::{Parser, Subcommand};
use image_builder::Layout;
use image_builder::busybox::{self, Program};

/// Makes OCI images from programs of this host.
#[derive(Parser)]
struct Arguments {
    #[command(subcommand)]
    image: Kind,
}

#[derive(Subcommand)]
enum Kind {
    /// An image of the host's static busybox, tagged `latest`, as an OCI image layout.
    Busybox {
        /// The folder to write; an OCI image layout there is replaced.
        out: PathBuf,
        /// The static busybox to take.
        #[arg(long, default_value = busybox::BUSYBOX)]
        busybox: PathBuf,
        /// Adds a static program of the host as DEST in the image.
        #[arg(long = "with", value_name = "FILE:DEST")]
        programs: Vec<Program>,
    },
}

fn main() -> anyhow::Result<()> {
    let Kind::Busybox {
        out,
        busybox,
        programs,
    } = Arguments::parse().image;
    let image = busybox::image(&busybox, &programs)?;
    clear(&out)?;
    Layout::new()
        .add(&image, "latest")
        .write_folder(&out)
        .with_context(|| format!("writing the image to {}", out.display()))?;
    println!("oci:{}:latest {}", out.display(), image.write()?.manifest.digest);
    Ok(())
}

/// Removes an image written before. A folder that holds anything else is left alone.
fn clear(out: &Path) -> anyhow::Result<()> {
    let failed = || format!("clearing {}", out.display());
    let Ok(mut entries) = std::fs::read_dir(out) else {
        return Ok(());
    };
    if entries.next().is_none() {
        return Ok(());
    }
    ensure!(
        out.join("oci-layout").is_file(),
        "{} holds something else than an OCI image: choose another folder",
        out.display()
    );
    std::fs::remove_dir_all(out.join("blobs")).with_context(failed)?;
    for file in ["index.json", "oci-layout"] {
        std::fs::remove_file(out.join(file)).with_context(failed)?;
    }
    Ok(())
}
