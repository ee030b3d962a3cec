//! Terminals.

use std::fs;
use std::io::{Read, Write};
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixListener;

use container::{CreateError, Stdio};
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};
use serde_json::json;

use crate::bundle::{TestBundle, chain, files, wait};

crate::tests!(
    a_terminal_is_the_callers_and_has_the_configured_size,
    a_terminal_is_sent_to_the_console_socket,
    streams_that_contradict_the_configuration_are_refused,
    a_console_socket_nobody_listens_at_undoes_the_creation,
);

fn with_terminal(script: &str) -> TestBundle {
    let mut bundle = TestBundle::shell(script);
    bundle.config["process"]["terminal"] = true.into();
    bundle.config["process"]["consoleSize"] = json!({ "height": 33, "width": 101 });
    bundle
}

/// Everything until the other end is closed, which a terminal reports as an error.
fn read_all(terminal: OwnedFd) -> String {
    let mut terminal = fs::File::from(terminal);
    let (mut text, mut buffer) = (Vec::new(), [0; 4096]);
    while let Ok(length) = terminal.read(&mut buffer) {
        if length == 0 {
            break;
        }
        text.extend_from_slice(&buffer[..length]);
    }
    String::from_utf8_lossy(&text).replace('\r', "")
}

fn a_terminal_is_the_callers_and_has_the_configured_size() {
    let mut bundle =
        with_terminal("tty; stty size; stat -c %u $(tty); echo to >/dev/console; read line; echo got $line");
    bundle.config["process"]["user"] = json!({ "uid": 1000, "gid": 1000 });
    let mut container = bundle
        .create(Stdio::Terminal)
        .unwrap_or_else(|error| panic!("{}", chain(&error)));
    let terminal = container.take_terminal().unwrap();
    assert!(container.take_terminal().is_none());
    container.start().unwrap();
    fs::File::from(terminal.try_clone().unwrap())
        .write_all(b"typed\n")
        .unwrap();
    // The terminal echoes what is typed whenever it arrives.
    let output = read_all(terminal).replacen("typed\n", "", 1);
    assert_eq!(output, "/dev/pts/0\n33 101\n1000\nto\ngot typed\n");
    assert_eq!(wait(&container), 0);
    container.delete(false).unwrap();
}

fn a_terminal_is_sent_to_the_console_socket() {
    let bundle = with_terminal("echo through the socket");
    // Longer than a socket address can be.
    let folder = bundle.folder.join("d".repeat(120));
    fs::create_dir(&folder).unwrap();
    std::env::set_current_dir(&folder).unwrap();
    let listener = UnixListener::bind("console").unwrap();
    let path = folder.join("console");
    let mut container = bundle
        .create_with_console(&path)
        .unwrap_or_else(|error| panic!("{}", chain(&error)));
    assert!(container.take_terminal().is_none());
    let (client, _) = listener.accept().unwrap();
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let mut name = [0; 64];
    recvmsg(
        &client,
        &mut [std::io::IoSliceMut::new(&mut name)],
        &mut ancillary,
        RecvFlags::empty(),
    )
    .unwrap();
    let terminal = ancillary
        .drain()
        .find_map(|message| match message {
            RecvAncillaryMessage::ScmRights(mut descriptors) => descriptors.next(),
            _ => None,
        })
        .unwrap();
    container.start().unwrap();
    assert_eq!(read_all(terminal), "through the socket\n");
    assert_eq!(wait(&container), 0);
    container.delete(false).unwrap();
}

fn streams_that_contradict_the_configuration_are_refused() {
    let with = with_terminal("true");
    let without = TestBundle::named("-without", &["true"]);
    let (stdio, _) = files(&with.folder);
    for (bundle, stdio) in [
        (&with, stdio),
        (&with, Stdio::Inherit),
        (&without, Stdio::Terminal),
    ] {
        let error = bundle.create(stdio).unwrap_err();
        assert!(
            error.is(|error| matches!(error, CreateError::Terminal(_)), ""),
            "{}",
            chain(&error)
        );
    }
}

fn a_console_socket_nobody_listens_at_undoes_the_creation() {
    let bundle = with_terminal("true");
    let path = bundle.folder.join("nobody");
    let error = bundle.create_with_console(&path).unwrap_err();
    assert!(
        error.is(|error| matches!(error, CreateError::ConsoleSocket(_)), "nobody"),
        "{}",
        chain(&error)
    );
}
