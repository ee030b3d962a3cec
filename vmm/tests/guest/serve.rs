//! A guest that has something of everything a snapshot must carry over, and says on the console how it fares: threads
//! that count on each CPU with vector registers in use, a connection to the host, and a service for it.

use std::arch::asm;
use std::ffi::{c_int, c_uint};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::os::fd::FromRawFd;
use std::sync::OnceLock;
use std::thread;
use std::time::{Duration, Instant};

use crate::{AF_VSOCK, SOCK_STREAM, VsockAddress, connect_to_host, socket};

unsafe extern "C" {
    fn bind(socket: c_int, address: *const VsockAddress, length: c_uint) -> c_int;
    fn listen(socket: c_int, backlog: c_int) -> c_int;
    fn accept(socket: c_int, address: *mut VsockAddress, length: *mut c_uint) -> c_int;
    fn sched_setaffinity(process: c_int, bytes: usize, mask: *const u64) -> c_int;
}

/// Where the guest connects to on the host, and where it is served itself.
const HOST_PORT: c_uint = 1000;
const GUEST_PORT: c_uint = 1024;
const ANY: c_uint = u32::MAX;
/// Passes of an empty loop while the registers must hold, some 20 ms of a processor.
const PASSES: u64 = 50_000_000;

static START: OnceLock<Instant> = OnceLock::new();

/// Never returns.
pub fn serve() {
    START.get_or_init(Instant::now);
    for cpu in 0..thread::available_parallelism().unwrap().get() {
        thread::spawn(move || count(cpu));
    }
    let listener = listen_here();
    thread::spawn(move || echo(listener));
    let mut word = "ready";
    loop {
        let mut stream = connect_to_host(HOST_PORT);
        writeln!(stream, "{word}").unwrap();
        let ended = stream.read(&mut [0]);
        println!("init: the connection ended with {ended:?}");
        word = "again";
    }
}

/// Counts on `cpu` alone.
fn count(cpu: usize) {
    let mask = 1_u64 << cpu;
    // SAFETY: The mask is eight bytes that outlive the call.
    assert_eq!(unsafe { sched_setaffinity(0, 8, &mask) }, 0);
    for number in 0_u64.. {
        let time = START.get().unwrap().elapsed().as_millis();
        let seed = (cpu as u64 + 1) << 32 | number;
        let registers = if registers_hold(seed) { "hold" } else { "are LOST" };
        println!("init: cpu {cpu} number {number} at {time} ms, registers {registers}");
        thread::sleep(Duration::from_millis(5));
    }
}

/// Whether what is put into the vector registers is there a while later.
fn registers_hold(seed: u64) -> bool {
    let mut before = [0_u64; 16];
    for (value, index) in before.iter_mut().zip(1_u64..) {
        *value = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15).wrapping_add(index);
    }
    let mut after = [0_u64; 16];
    let avx = std::is_x86_feature_detected!("avx");
    // SAFETY: Both arrays are 128 bytes, four registers of 32 or eight of 16; AVX is used where it is there.
    unsafe {
        if avx {
            asm!(
                "vmovdqu ymm0, [{from}]", "vmovdqu ymm5, [{from} + 32]",
                "vmovdqu ymm10, [{from} + 64]", "vmovdqu ymm15, [{from} + 96]",
                "2: dec {passes}", "jnz 2b",
                "vmovdqu [{to}], ymm0", "vmovdqu [{to} + 32], ymm5",
                "vmovdqu [{to} + 64], ymm10", "vmovdqu [{to} + 96], ymm15", "vzeroupper",
                from = in(reg) before.as_ptr(), to = in(reg) after.as_mut_ptr(),
                passes = inout(reg) PASSES => _,
                out("ymm0") _, out("ymm5") _, out("ymm10") _, out("ymm15") _,
            );
        } else {
            asm!(
                "movdqu xmm0, [{from}]", "movdqu xmm15, [{from} + 16]",
                "2: dec {passes}", "jnz 2b",
                "movdqu [{to}], xmm0", "movdqu [{to} + 16], xmm15",
                from = in(reg) before.as_ptr(), to = in(reg) after.as_mut_ptr(),
                passes = inout(reg) PASSES => _,
                out("xmm0") _, out("xmm15") _,
            );
            after[4..].copy_from_slice(&before[4..]);
        }
    }
    after == before
}

/// Where clients of the host find the service.
fn listen_here() -> c_int {
    let address = VsockAddress {
        family: AF_VSOCK as u16,
        reserved: 0,
        port: GUEST_PORT,
        context: ANY,
        zero: [0; 4],
    };
    // SAFETY: The address is a `sockaddr_vm` of the length given.
    unsafe {
        let listener = socket(AF_VSOCK, SOCK_STREAM, 0);
        assert_eq!(bind(listener, &address, size_of::<VsockAddress>() as c_uint), 0);
        assert_eq!(listen(listener, 16), 0);
        listener
    }
}

/// Gives back each line that a client sends.
fn echo(listener: c_int) {
    loop {
        // SAFETY: No address is asked for, and the descriptor becomes the stream's alone.
        let client = unsafe {
            let client = accept(listener, std::ptr::null_mut(), std::ptr::null_mut());
            assert!(client >= 0, "{}", std::io::Error::last_os_error());
            TcpStream::from_raw_fd(client)
        };
        thread::spawn(move || {
            let mut lines = BufReader::new(&client).lines();
            while let Some(Ok(line)) = lines.next() {
                // A client that is gone needs no answer.
                let _ = writeln!(&client, "{line} yourself");
            }
        });
    }
}
