//! The guest's way to stop: the keyboard controller's command port, of which only the reset line is there. Linux uses
//! it with `reboot=k`; a program without a kernel executes `mov al, 0xfe; out 0x64, al`.

/// The controller's status on reading, its command on writing.
pub const PORT: u16 = 0x64;
/// The status of a controller that is ready for a command, so that nobody waits for it.
pub const STATUS: u8 = 0;
/// The command that pulses the reset line.
pub const PULSE: u8 = 0xfe;
