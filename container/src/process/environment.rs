//! The program's environment.

use std::ffi::CString;
use std::fs::File;
use std::io::Read;
use std::path::Path;

use rustix::fs::{FileType, Mode, OFlags};
use rustix::io::Errno;

use crate::plan::ProcessPlan;
use crate::rootfs::ContainerRoot;

/// A passwd file longer than this is not searched to its end.
const PASSWD_LIMIT: u64 = 1 << 20;

/// The configured variables, and HOME, which programs count on, where it is missing. Called inside the container's
/// root.
pub(crate) fn complete(process: &ProcessPlan) -> Vec<CString> {
    let mut environment = process.environment.clone();
    if !environment
        .iter()
        .any(|variable| variable.as_bytes().starts_with(b"HOME="))
    {
        let passwd = read_passwd();
        let home = home(&passwd, process.user.uid.as_raw());
        // A user without an entry, or an image without users: the root folder, as login does it.
        environment.extend(CString::new(format!("HOME={}", home.unwrap_or("/"))));
    }
    environment
}

/// The container's list of users; empty where there is none that can be read at once. The image decides what is at the
/// path: only a regular file, reached without the kernel's own links, is read.
fn read_passwd() -> String {
    let open = || -> Result<File, Errno> {
        let folder = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let root = ContainerRoot::new(rustix::fs::open("/", folder, Mode::empty())?);
        let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY;
        let file = root.open(Path::new("/etc/passwd"), flags)?;
        match FileType::from_raw_mode(rustix::fs::fstat(&file)?.st_mode) {
            FileType::RegularFile => Ok(file.into()),
            _ => Err(Errno::INVAL),
        }
    };
    let mut text = Vec::new();
    if let Ok(file) = open() {
        // What was read until an error may hold the line that is looked for.
        let _ = file.take(PASSWD_LIMIT).read_to_end(&mut text);
    }
    String::from_utf8_lossy(&text).into_owned()
}

/// The sixth field of the user's line (passwd(5)).
fn home(passwd: &str, uid: u32) -> Option<&str> {
    let uid = uid.to_string();
    let line = passwd.lines().find(|line| line.split(':').nth(2) == Some(&uid))?;
    line.split(':').nth(5).filter(|home| home.starts_with('/'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn home_is_the_sixth_field_of_the_line_with_the_uid() {
        let passwd =
            "root:x:0:0:root:/root:/bin/sh\nbad line\na:x:10:0::/home/a:/bin/sh\nb:x:11:0::relative:\n";
        assert_eq!(home(passwd, 0), Some("/root"));
        assert_eq!(home(passwd, 10), Some("/home/a"));
        assert_eq!(home(passwd, 11), None);
        assert_eq!(home(passwd, 1), None);
    }
}
