//! Prints a line.

#![forbid(unsafe_code)]

fn main() {
    let mut buffer = itoa::Buffer::new();
    println!("rust {}", buffer.format(42u64));
}
