//! Networks for steps.

use std::io;
use std::os::fd::BorrowedFd;

/// Why a step has no network.
#[derive(Debug, thiserror::Error)]
pub enum NetworkError {
    /// x
    #[error("start the network")]
    Start {
        /// x
        #[source]
        source: io::Error,
    },
}

/// Pool.
#[derive(Debug)]
pub struct NetworkPool;

/// Lease.
#[derive(Debug)]
pub(crate) struct Lease;

impl NetworkPool {
    pub(crate) async fn lease(&self) -> Result<Lease, NetworkError> {
        Err(NetworkError::Start {
            source: io::Error::other("no network"),
        })
    }
    pub(crate) async fn shut_down(self) {}
}
impl Lease {
    pub(crate) fn resolv_conf(&self) -> String {
        String::new()
    }
    pub(crate) fn namespace(&self) -> BorrowedFd<'_> {
        rustix::stdio::stdin()
    }
}

/// Brings loopback up in the network namespace of this thread and opens it as far as Docker does: no port and no echo
/// request needs a capability there.
pub(crate) fn configure_namespace() -> io::Result<()> {
    let socket = rustix::net::socket_with(
        rustix::net::AddressFamily::INET,
        rustix::net::SocketType::DGRAM,
        rustix::net::SocketFlags::CLOEXEC,
        None,
    )?;
    set_loopback_up(&socket)?;
    for (file, value) in [
        ("ip_unprivileged_port_start", "0"),
        ("ping_group_range", "0 2147483647"),
    ] {
        // A kernel without the setting is as strict as it was; ids above those that exist are refused by some.
        let _ = std::fs::write(format!("/proc/sys/net/ipv4/{file}"), value);
    }
    Ok(())
}

fn set_loopback_up(socket: &rustix::fd::OwnedFd) -> io::Result<()> {
    use std::os::fd::AsRawFd as _;
    // SAFETY: all-zero is a valid value of this plain structure.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(*b"lo") {
        *to = libc::c_char::try_from(from).unwrap_or_default();
    }
    let flags = libc::IFF_UP | libc::IFF_RUNNING;
    request.ifr_ifru.ifru_flags = libc::c_short::try_from(flags).map_err(io::Error::other)?;
    // SAFETY: the request is a valid interface request that outlives the call.
    let answer = unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCSIFFLAGS, &raw mut request) };
    if answer == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}
