//! A guest on a network: gives its device an address once there is a link, and gives back what a client sends.

use std::ffi::{c_int, c_ulong, c_void};
use std::fs;
use std::io::{Read, Write};
use std::net::TcpListener;
use std::thread;
use std::time::Duration;

use crate::{SOCK_STREAM, mount_at, socket};

unsafe extern "C" {
    fn close(descriptor: c_int) -> c_int;
    fn ioctl(descriptor: c_int, request: c_ulong, argument: *mut c_void) -> c_int;
}

const AF_INET: u8 = 2;
const SIOCGIFFLAGS: c_ulong = 0x8913;
const SIOCSIFFLAGS: c_ulong = 0x8914;
const SIOCSIFADDR: c_ulong = 0x8916;
const SIOCSIFNETMASK: c_ulong = 0x891c;
const IFF_UP: u16 = 1;
const IFF_RUNNING: u16 = 0x40;
/// In 192.0.2.0/24, which is for examples (RFC 5737); the host has 192.0.2.1.
const ADDRESS: [u8; 4] = [192, 0, 2, 2];

/// `struct ifreq` of `eth0`
#[repr(C)]
struct Request {
    name: [u8; 16],
    value: [u8; 24],
}

impl Request {
    fn flags(flags: u16) -> Self {
        let mut request = Self {
            name: [0; 16],
            value: [0; 24],
        };
        request.name[..4].copy_from_slice(b"eth0");
        request.value[..2].copy_from_slice(&flags.to_ne_bytes());
        request
    }

    fn address(octets: [u8; 4]) -> Self {
        let mut request = Self::flags(AF_INET.into());
        request.value[4..8].copy_from_slice(&octets);
        request
    }

    fn send(mut self, number: c_ulong) -> Self {
        // SAFETY: The request is an `ifreq`, which is what these calls read or write.
        unsafe {
            let control = socket(AF_INET.into(), SOCK_STREAM, 0);
            let result = ioctl(control, number, (&raw mut self).cast());
            assert_eq!(result, 0, "{number:#x}: {}", std::io::Error::last_os_error());
            close(control);
        }
        self
    }
}

/// The names of the device's queues that are in use.
fn queues() -> Vec<String> {
    let names = fs::read_dir("/sys/class/net/eth0/queues").unwrap();
    let mut names: Vec<String> = names
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

/// Never returns.
pub fn network() {
    mount_at("sysfs", "/sys", "sysfs");
    println!("init: its queues are {}", queues().join(" "));
    Request::flags(IFF_UP).send(SIOCSIFFLAGS);
    println!("init: the link is awaited");
    while Request::flags(0).send(SIOCGIFFLAGS).value[0] & IFF_RUNNING as u8 == 0 {
        thread::sleep(Duration::from_millis(20));
    }
    println!("init: the link is up");
    Request::address(ADDRESS).send(SIOCSIFADDR);
    Request::address([255, 255, 255, 0]).send(SIOCSIFNETMASK);
    let listener = TcpListener::bind(("192.0.2.2", 7)).unwrap();
    for client in listener.incoming() {
        let mut client = client.unwrap();
        thread::spawn(move || {
            let mut bytes = Vec::new();
            client.read_to_end(&mut bytes).unwrap();
            client.write_all(&bytes).unwrap();
        });
    }
}
