//! Interfaces and routes of a step's network namespace, and what the host's own look like.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType};

/// Where clouds tell machines their secrets.
const METADATA: [IpAddr; 2] = [
    IpAddr::V4(Ipv4Addr::new(169, 254, 169, 254)),
    IpAddr::V6(Ipv6Addr::new(0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x254)),
];
/// `RTF_REJECT` of the kernel's table of IPv6 routes.
const IPV6_REJECT: u32 = 0x200;

/// Brings loopback up in the network namespace of this thread and opens it as far as Docker does: no port and no echo
/// request needs a capability there.
pub(in crate::sandbox) fn configure_namespace() -> io::Result<()> {
    let socket = rustix::net::socket_with(
        AddressFamily::INET,
        SocketType::DGRAM,
        SocketFlags::CLOEXEC,
        None,
    )?;
    set_loopback_up(&socket)?;
    for (file, value) in [
        ("ip_unprivileged_port_start", "0"),
        ("ping_group_range", "0 65535"),
    ] {
        // A kernel without the setting is as strict as it was.
        let _ = std::fs::write(format!("/proc/sys/net/ipv4/{file}"), value);
    }
    Ok(())
}

fn set_loopback_up(socket: &OwnedFd) -> io::Result<()> {
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

/// Lists the addresses of the host that are neither loopback nor link-local.
pub(super) fn host_addresses() -> io::Result<Vec<IpAddr>> {
    let mut first: *mut libc::ifaddrs = std::ptr::null_mut();
    // SAFETY: the call stores a list that is freed below.
    if unsafe { libc::getifaddrs(&raw mut first) } != 0 {
        return Err(io::Error::last_os_error());
    }
    let mut found = Vec::new();
    let mut next = first;
    // SAFETY: every element is valid until the list is freed, and the last one's successor is null.
    while let Some(entry) = unsafe { next.as_ref() } {
        // SAFETY: an element's address is null or valid for as long as the list.
        found.extend(unsafe { address_of(entry.ifa_addr) });
        next = entry.ifa_next;
    }
    // SAFETY: made by the call above and not used any more.
    unsafe { libc::freeifaddrs(first) };
    found.retain(|address| match address {
        IpAddr::V4(v4) => !v4.is_loopback() && !v4.is_link_local(),
        IpAddr::V6(v6) => !v6.is_loopback() && !v6.is_unicast_link_local(),
    });
    Ok(found)
}

/// Reads an address.
///
/// # Safety
///
/// `address` is null or points to a socket address as long as its family says.
unsafe fn address_of(address: *const libc::sockaddr) -> Option<IpAddr> {
    // SAFETY: by the caller's promise.
    let family = i32::from(unsafe { address.as_ref() }?.sa_family);
    match family {
        libc::AF_INET => {
            // SAFETY: the family says which structure it is.
            let v4 = unsafe { address.cast::<libc::sockaddr_in>().read_unaligned() };
            Some(IpAddr::V4(Ipv4Addr::from(u32::from_be(v4.sin_addr.s_addr))))
        }
        libc::AF_INET6 => {
            // SAFETY: the family says which structure it is.
            let v6 = unsafe { address.cast::<libc::sockaddr_in6>().read_unaligned() };
            Some(IpAddr::V6(Ipv6Addr::from(v6.sin6_addr.s6_addr)))
        }
        _ => None,
    }
}

/// Whether the host has a default route of any kind.
pub(super) fn host_has_a_way_out() -> bool {
    let v4 = std::fs::read_to_string("/proc/net/route").unwrap_or_default();
    let v6 = std::fs::read_to_string("/proc/net/ipv6_route").unwrap_or_default();
    has_default_v4(&v4) || has_default_v6(&v6)
}

fn has_default_v4(table: &str) -> bool {
    table.lines().skip(1).any(|line| {
        let mut words = line.split_ascii_whitespace();
        words.nth(1) == Some("00000000") && words.nth(5) == Some("00000000")
    })
}

fn has_default_v6(table: &str) -> bool {
    table.lines().any(|line| {
        let words: Vec<&str> = line.split_ascii_whitespace().collect();
        let flags = words
            .get(8)
            .and_then(|flags| u32::from_str_radix(flags, 16).ok());
        let anywhere = words
            .first()
            .is_some_and(|to| to.bytes().all(|byte| byte == b'0'))
            && words.get(1) == Some(&"00");
        anywhere && flags.is_some_and(|flags| flags & IPV6_REJECT == 0)
    })
}

/// Makes `addresses` and the metadata services unreachable in the network namespace of this thread.
///
/// An address that the namespace later gets itself is local there, which comes before any route.
pub(super) fn forbid(addresses: &[IpAddr]) -> io::Result<()> {
    let socket = rustix::net::socket_with(
        AddressFamily::NETLINK,
        SocketType::RAW,
        SocketFlags::CLOEXEC,
        None,
    )?;
    for address in addresses.iter().chain(&METADATA) {
        rustix::net::send(
            socket.as_fd(),
            &unreachable_route(*address),
            SendFlags::empty(),
        )?;
        let mut answer = [0_u8; 1024];
        let (_, length) = rustix::net::recv(socket.as_fd(), &mut answer, RecvFlags::empty())?;
        match answer_code(answer.get(..length).unwrap_or_default()) {
            // A host without IPv6 has no such addresses to protect.
            Some(0 | libc::EEXIST | libc::EAFNOSUPPORT | libc::EOPNOTSUPP) => {}
            Some(code) => return Err(io::Error::from_raw_os_error(code)),
            None => return Err(io::ErrorKind::InvalidData.into()),
        }
    }
    Ok(())
}

/// A netlink request for a route that answers "host unreachable" for one address.
fn unreachable_route(address: IpAddr) -> Vec<u8> {
    let (family, bytes) = match address {
        IpAddr::V4(v4) => (libc::AF_INET, v4.octets().to_vec()),
        IpAddr::V6(v6) => (libc::AF_INET6, v6.octets().to_vec()),
    };
    let bits = u8::try_from(bytes.len() * 8).unwrap_or(u8::MAX);
    let mut body = vec![u8::try_from(family).unwrap_or_default(), bits, 0, 0];
    body.extend([
        libc::RT_TABLE_MAIN,
        libc::RTPROT_STATIC,
        libc::RT_SCOPE_UNIVERSE,
        libc::RTN_UNREACHABLE,
    ]);
    body.extend(0_u32.to_ne_bytes());
    let attribute = u16::try_from(4 + bytes.len()).unwrap_or_default();
    body.extend(attribute.to_ne_bytes());
    body.extend(libc::RTA_DST.to_ne_bytes());
    body.extend(bytes);
    let flags = libc::NLM_F_REQUEST | libc::NLM_F_ACK | libc::NLM_F_CREATE | libc::NLM_F_EXCL;
    let mut message = Vec::new();
    message.extend(
        u32::try_from(16 + body.len())
            .unwrap_or_default()
            .to_ne_bytes(),
    );
    message.extend(libc::RTM_NEWROUTE.to_ne_bytes());
    message.extend(u16::try_from(flags).unwrap_or_default().to_ne_bytes());
    message.extend(1_u32.to_ne_bytes());
    message.extend(0_u32.to_ne_bytes());
    message.extend(body);
    message
}

/// The error number in a netlink acknowledgement.
fn answer_code(message: &[u8]) -> Option<i32> {
    let code: [u8; 4] = message.get(16..20)?.try_into().ok()?;
    Some(-i32::from_ne_bytes(code))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_default_route_is_told_from_others() {
        let head = "Iface\tDestination\tGateway\tFlags\tRefCnt\tUse\tMetric\tMask\tMTU\n";
        let default = "eth0\t00000000\t010200C0\t0003\t0\t0\t0\t00000000\t0\n";
        let other = "eth0\t000200C0\t00000000\t0001\t0\t0\t0\t00FFFFFF\t0\n";
        assert!(has_default_v4(&format!("{head}{other}{default}")));
        assert!(!has_default_v4(&format!("{head}{other}")));
        let zeros = "0".repeat(32);
        let line = |flags: &str| {
            format!("{zeros} 00 {zeros} 00 {zeros} 00000400 00000001 00000000 {flags} eth0\n")
        };
        assert!(has_default_v6(&line("00000003")));
        assert!(!has_default_v6(&line("00200200")));
    }

    #[test]
    fn a_route_request_is_as_long_as_it_says() {
        for address in METADATA {
            let message = unreachable_route(address);
            assert_eq!(
                u32::from_ne_bytes(message[..4].try_into().unwrap()) as usize,
                message.len()
            );
        }
    }
}
