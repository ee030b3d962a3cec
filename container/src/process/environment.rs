//! The program's environment.

use std::ffi::CString;
use std::io::Read;

use crate::plan::ProcessPlan;

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
        let mut passwd = String::new();
        let home = match std::fs::File::open("/etc/passwd") {
            Ok(file) => match file.take(PASSWD_LIMIT).read_to_string(&mut passwd) {
                Ok(_) => home(&passwd, process.user.uid.as_raw()),
                Err(_) => None,
            },
            Err(_) => None,
        };
        // A user without an entry, or an image without users: the root folder, as login does it.
        environment.extend(CString::new(format!("HOME={}", home.unwrap_or("/"))));
    }
    environment
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
