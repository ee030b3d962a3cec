//! The first program of the guests that the tests boot: does what the kernel command line says after `--`, and writes
//! what it saw to the console. It is compiled by the tests, without any crate.

use std::ffi::{CString, c_char, c_int, c_uint, c_ulong, c_void};
use std::fs;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::fd::FromRawFd;

mod serve;

unsafe extern "C" {
    fn mount(
        source: *const c_char,
        target: *const c_char,
        kind: *const c_char,
        flags: c_ulong,
        data: *const c_void,
    ) -> c_int;
    fn reboot(command: c_int) -> c_int;
    fn socket(domain: c_int, kind: c_int, protocol: c_int) -> c_int;
    fn connect(socket: c_int, address: *const VsockAddress, length: c_uint) -> c_int;
}

/// `RB_AUTOBOOT`
const RESTART: c_int = 0x0123_4567;
const AF_VSOCK: c_int = 40;
const SOCK_STREAM: c_int = 1;
const HOST: c_uint = 2;

/// `struct sockaddr_vm`
#[repr(C)]
struct VsockAddress {
    family: u16,
    reserved: u16,
    port: c_uint,
    context: c_uint,
    zero: [u8; 4],
}

fn main() {
    for order in std::env::args().skip(1) {
        println!("init: {order}");
        match order.as_str() {
            "cpus" => println!("init: {} cpus", std::thread::available_parallelism().unwrap()),
            "entropy" => entropy(),
            "share" => share(),
            "vsock" => vsock(),
            "serve" => serve::serve(),
            // SAFETY: The call takes numbers.
            "restart" => assert_eq!(unsafe { reboot(RESTART) }, 0),
            "return" => return,
            other => panic!("unknown order {other:?}"),
        }
    }
}

fn mount_at(source: &str, target: &str, kind: &str) {
    fs::create_dir_all(target).unwrap();
    let [source, place, kind] = [source, target, kind].map(|text| CString::new(text).unwrap());
    // SAFETY: All three are strings that live longer than the call, and no data is passed.
    let result = unsafe {
        mount(
            source.as_ptr(),
            place.as_ptr(),
            kind.as_ptr(),
            0,
            std::ptr::null(),
        )
    };
    assert_eq!(
        result,
        0,
        "mounting {target}: {}",
        std::io::Error::last_os_error()
    );
}

/// Reads from the virtio entropy device.
fn entropy() {
    mount_at("devtmpfs", "/dev", "devtmpfs");
    let mut bytes = [0; 16];
    fs::File::open("/dev/hwrng")
        .unwrap()
        .read_exact(&mut bytes)
        .unwrap();
    println!(
        "init: entropy is {}",
        if bytes == [0; 16] { "zero" } else { "there" }
    );
}

/// Reads and writes files of the directory shared as `share`.
fn share() {
    mount_at("share", "/share", "virtiofs");
    let question = fs::read_to_string("/share/question").unwrap();
    fs::write("/share/answer", format!("{question} yes")).unwrap();
}

/// Connects to port 1000 of the host, says a word and prints the answer.
fn vsock() {
    let mut stream = connect_to_host(1000);
    stream.write_all(b"ping").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    println!("init: the host says {answer}");
}

fn connect_to_host(port: c_uint) -> TcpStream {
    let address = VsockAddress {
        family: AF_VSOCK as u16,
        reserved: 0,
        port,
        context: HOST,
        zero: [0; 4],
    };
    // SAFETY: The address is a `sockaddr_vm` of the length given, and the descriptor becomes the stream's alone.
    unsafe {
        let descriptor = socket(AF_VSOCK, SOCK_STREAM, 0);
        let result = connect(descriptor, &address, size_of::<VsockAddress>() as c_uint);
        assert_eq!(result, 0, "connecting: {}", std::io::Error::last_os_error());
        // Reading and writing a stream socket does not depend on its family.
        TcpStream::from_raw_fd(descriptor)
    }
}
