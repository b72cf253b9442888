//! What kind of place an address is. Pure.
//!
//! After the registries of special-purpose addresses (RFC 6890 and its successors), and the addresses at which clouds answer questions
//! about the machine that asks.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// A kind of place.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Kind {
    /// Anywhere in the Internet.
    Public,
    /// This machine.
    Loopback,
    /// A network of somebody's own: RFC 1918, unique local, and the shared space of carriers.
    Private,
    /// The link that this machine is on.
    LinkLocal,
    /// Where a cloud tells a machine its secrets.
    Metadata,
    /// Nothing that one could connect to: unspecified, multicast, broadcast, reserved.
    Special,
}

impl Kind {
    /// Returns what people call it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Public => "public",
            Self::Loopback => "loopback",
            Self::Private => "private",
            Self::LinkLocal => "link-local",
            Self::Metadata => "a cloud's metadata service",
            Self::Special => "reserved",
        }
    }
}

/// Addresses of metadata services outside of link-local networks.
const METADATA_V4: [Ipv4Addr; 3] = [
    // Everybody's, Alibaba's, Oracle's older one.
    Ipv4Addr::new(169, 254, 169, 254),
    Ipv4Addr::new(100, 100, 100, 200),
    Ipv4Addr::new(192, 0, 0, 192),
];
/// Amazon's over IPv6.
const METADATA_V6: Ipv6Addr = Ipv6Addr::new(0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x254);

/// Returns the kind of place that `address` is, or leads to.
pub fn kind(address: IpAddr) -> Kind {
    match address {
        IpAddr::V4(address) => kind_v4(address),
        IpAddr::V6(address) => match embedded(address) {
            Some(inner) => match kind_v4(inner) {
                // A translator's own prefix around a public address is as good as that address.
                Kind::Public if is_translated(address) => Kind::Public,
                Kind::Public => Kind::Special,
                inner => inner,
            },
            None => kind_v6(address),
        },
    }
}

fn kind_v4(address: Ipv4Addr) -> Kind {
    let [a, b, c, _] = address.octets();
    match (a, b, c) {
        _ if METADATA_V4.contains(&address) => Kind::Metadata,
        (127, _, _) => Kind::Loopback,
        (10, _, _) | (172, 16..=31, _) | (192, 168, _) | (100, 64..=127, _) => Kind::Private,
        (169, 254, _) => Kind::LinkLocal,
        // This network, protocol assignments, 6to4 relays, benchmarks, multicast, and what lies above.
        (0 | 224..=255, _, _) | (192, 0, 0) | (192, 88, 99) | (198, 18 | 19, _) => Kind::Special,
        _ => Kind::Public,
    }
}

fn kind_v6(address: Ipv6Addr) -> Kind {
    let [first, ..] = address.segments();
    match first {
        _ if address == METADATA_V6 => Kind::Metadata,
        _ if address == Ipv6Addr::LOCALHOST => Kind::Loopback,
        // Unique local, and site-local, which nobody should use any more.
        0xfc00..=0xfdff | 0xfec0..=0xfeff => Kind::Private,
        0xfe80..=0xfebf => Kind::LinkLocal,
        0x2000..=0x3fff => Kind::Public,
        _ => Kind::Special,
    }
}

/// Returns the IPv4 address that packets to `address` end up at.
fn embedded(address: Ipv6Addr) -> Option<Ipv4Addr> {
    let segments = address.segments();
    let of = |high: u16, low: u16| {
        let ([a, b], [c, d]) = (high.to_be_bytes(), low.to_be_bytes());
        Ipv4Addr::new(a, b, c, d)
    };
    match segments {
        // Neither :: nor ::1.
        [0, 0, 0, 0, 0, 0, 0, 0 | 1] => None,
        // ::ffff:a.b.c.d and ::a.b.c.d; NAT64, with the well-known prefix and with a local one; ISATAP.
        [0, 0, 0, 0, 0, 0 | 0xffff, high, low]
        | [0x64, 0xff9b, 0, 0, 0, 0, high, low]
        | [0x64, 0xff9b, 1, _, _, _, high, low]
        | [_, _, _, _, 0 | 0x200, 0x5efe, high, low]
        // 6to4.
        | [0x2002, high, low, ..] => Some(of(high, low)),
        // Teredo's client, which is written inverted.
        [0x2001, 0, _, _, _, _, high, low] => Some(of(!high, !low)),
        _ => None,
    }
}

/// Tells whether `address` is one through which a translator of the network reaches the IPv4 Internet.
fn is_translated(address: Ipv6Addr) -> bool {
    matches!(
        address.segments(),
        [0x64, 0xff9b, 0, 0, 0, 0, ..] | [0, 0, 0, 0, 0, 0xffff, ..] | [0x2002, ..]
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_special_place_is_known() {
        for (text, expected) in [
            ("1.1.1.1", Kind::Public),
            ("100.63.255.255", Kind::Public),
            ("100.128.0.1", Kind::Public),
            ("172.15.0.1", Kind::Public),
            ("172.32.0.1", Kind::Public),
            ("198.17.255.255", Kind::Public),
            ("2606:4700::1111", Kind::Public),
            ("127.0.0.1", Kind::Loopback),
            ("127.255.255.254", Kind::Loopback),
            ("::1", Kind::Loopback),
            ("10.1.2.3", Kind::Private),
            ("172.16.0.1", Kind::Private),
            ("172.31.255.255", Kind::Private),
            ("192.168.1.1", Kind::Private),
            ("100.64.0.1", Kind::Private),
            ("fd12::1", Kind::Private),
            ("fc00::1", Kind::Private),
            ("fec0::1", Kind::Private),
            ("169.254.0.1", Kind::LinkLocal),
            ("fe80::1", Kind::LinkLocal),
            ("169.254.169.254", Kind::Metadata),
            ("100.100.100.200", Kind::Metadata),
            ("192.0.0.192", Kind::Metadata),
            ("fd00:ec2::254", Kind::Metadata),
            ("0.0.0.0", Kind::Special),
            ("0.1.2.3", Kind::Special),
            ("192.0.0.1", Kind::Special),
            ("198.18.0.1", Kind::Special),
            ("224.0.0.1", Kind::Special),
            ("240.0.0.1", Kind::Special),
            ("255.255.255.255", Kind::Special),
            ("::", Kind::Special),
            ("ff02::1", Kind::Special),
            ("4000::1", Kind::Special),
        ] {
            assert_eq!(kind(text.parse().unwrap()), expected, "{text}");
        }
    }

    #[test]
    fn an_address_within_an_address_is_what_it_leads_to() {
        for (text, expected) in [
            ("::ffff:127.0.0.1", Kind::Loopback),
            ("::ffff:7f00:1", Kind::Loopback),
            ("::127.0.0.1", Kind::Loopback),
            ("::ffff:169.254.169.254", Kind::Metadata),
            ("::ffff:10.0.0.1", Kind::Private),
            ("::ffff:1.1.1.1", Kind::Public),
            ("64:ff9b::7f00:1", Kind::Loopback),
            ("64:ff9b::1.1.1.1", Kind::Public),
            ("64:ff9b:1::10.0.0.1", Kind::Private),
            ("2002:7f00:1::", Kind::Loopback),
            ("2002:a9fe:a9fe::1", Kind::Metadata),
            ("2001:0:1:2:3:4:80ff:fffe", Kind::Loopback),
            ("fe80::5efe:127.0.0.1", Kind::Loopback),
            ("::1.1.1.1", Kind::Special),
        ] {
            assert_eq!(kind(text.parse().unwrap()), expected, "{text}");
        }
    }
}
