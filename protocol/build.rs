//! Turns the service definitions into Rust, without protoc.

use std::path::PathBuf;
use std::{env, fs, io};

use ttrpc_codegen::{Codegen, Customize, ProtobufCustomize};

fn main() -> io::Result<()> {
    let definitions = [
        "proto/task.proto",
        "proto/sandbox.proto",
        "proto/event.proto",
        "proto/failure.proto",
    ];
    for definition in definitions {
        println!("cargo:rerun-if-changed={definition}");
    }
    Codegen::new()
        .inputs(definitions)
        .include("proto")
        .rust_protobuf()
        .customize(Customize {
            async_all: true,
            ..Customize::default()
        })
        .rust_protobuf_customize(ProtobufCustomize::default().gen_mod_rs(false))
        .run()?;
    // The generators' own lists of modules carry an inner attribute, which may not stand in an included file.
    let modules = [
        "event",
        "failure",
        "sandbox",
        "sandbox_ttrpc",
        "task",
        "task_ttrpc",
    ];
    let declarations: String = modules
        .iter()
        .map(|module| format!("pub mod {module};\n"))
        .collect();
    let out = PathBuf::from(env::var_os("OUT_DIR").ok_or_else(|| io::Error::other("OUT_DIR is not set"))?);
    fs::write(out.join("modules.rs"), declarations)
}
