//! The first program of the guests that the tests boot: does what the kernel command line says after `--`, and writes
//! what it saw to the console. It is compiled by the tests, without any crate.

use std::ffi::{CString, c_char, c_int, c_uint, c_ulong, c_void};
use std::fs;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::fd::{AsRawFd, FromRawFd};
use std::os::unix::fs::FileExt;
use std::time::Duration;

mod network;
mod serve;

unsafe extern "C" {
    fn mount(
        source: *const c_char,
        target: *const c_char,
        kind: *const c_char,
        flags: c_ulong,
        data: *const c_void,
    ) -> c_int;
    fn ioctl(descriptor: c_int, request: c_ulong, ...) -> c_int;
    fn reboot(command: c_int) -> c_int;
    fn socket(domain: c_int, kind: c_int, protocol: c_int) -> c_int;
    fn connect(socket: c_int, address: *const VsockAddress, length: c_uint) -> c_int;
}

/// `RB_AUTOBOOT`
const RESTART: c_int = 0x0123_4567;
/// `BLKDISCARD` and `BLKZEROOUT`
const DISCARD: c_ulong = 0x1277;
const ZERO_OUT: c_ulong = 0x127f;
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
            "disks" => disks(),
            "entropy" => entropy(),
            "memory" => memory(),
            "share" => share(),
            "vsock" => vsock(),
            "serve" => serve::serve(),
            "network" => network::network(),
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

/// Reads, writes, discards and clears parts of the first disk, and finds that the second one cannot be written.
fn disks() {
    mount_at("devtmpfs", "/devices", "devtmpfs");
    mount_at("sysfs", "/sys", "sysfs");
    for disk in ["vda", "vdb"] {
        let [serial, size, ro] = ["serial", "size", "ro"].map(|file| {
            fs::read_to_string(format!("/sys/block/{disk}/{file}"))
                .unwrap()
                .trim()
                .to_owned()
        });
        println!("init: {disk} is {serial} of {size} sectors, read-only {ro}");
    }
    let disk = fs::File::options()
        .read(true)
        .write(true)
        .open("/devices/vda")
        .unwrap();
    let mut words = [0; 16];
    disk.read_exact_at(&mut words, 512).unwrap();
    println!("init: the disk says {}", String::from_utf8_lossy(&words));
    disk.write_all_at(&[0x5a; 1 << 20], 1 << 20).unwrap();
    disk.sync_all().unwrap();
    for (request, range) in [(DISCARD, [1_u64 << 20, 1 << 18]), (ZERO_OUT, [3 << 19, 1 << 16])] {
        // SAFETY: Both requests read two numbers.
        let result = unsafe { ioctl(disk.as_raw_fd(), request, range.as_ptr()) };
        assert_eq!(result, 0, "{request:#x}: {}", std::io::Error::last_os_error());
    }
    drop(disk);
    let second = fs::File::options().write(true).open("/devices/vdb").unwrap();
    let refused = second.write_all_at(&[0; 512], 0).unwrap_err();
    println!("init: writing to the second disk: {}", refused.kind());
}

/// Uses 16 MiB, frees them and waits for ever.
fn memory() {
    let mut bytes = vec![0_u8; 16 << 20];
    for page in bytes.chunks_mut(4096) {
        page[0] = 1;
    }
    println!(
        "init: {} pages are used",
        bytes.iter().map(|byte| u32::from(*byte)).sum::<u32>()
    );
    drop(bytes);
    println!("init: they are free");
    loop {
        std::thread::sleep(Duration::from_secs(60));
    }
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
