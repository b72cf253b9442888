//! The ports of EXPOSE: `[[address:]host:]port[-port][/protocol]`, of which only port and protocol are kept.

/// Most ports that one EXPOSE may name, ranges counted in full: all of TCP, UDP and SCTP.
pub(super) const PORTS_MAX: usize = 3 * 65_536;

/// Adds the ports that `spec` names to `ports`, as `8080/tcp`.
pub(super) fn parse(spec: &str, ports: &mut Vec<String>) -> Result<(), &'static str> {
    let mut fields = spec.rsplitn(3, ':');
    let (container, host, address) = (
        fields.next().unwrap_or_default(),
        fields.next().unwrap_or_default(),
        fields.next().unwrap_or_default(),
    );
    let (container, protocol) = container.split_once('/').unwrap_or((container, ""));
    let protocol = match protocol.to_ascii_lowercase().as_str() {
        "" | "tcp" => "tcp",
        "udp" => "udp",
        "sctp" => "sctp",
        _ => return Err("the protocol is tcp, udp or sctp"),
    };
    let bare = address.trim_start_matches('[').trim_end_matches(']');
    if !address.is_empty() && bare.parse::<std::net::IpAddr>().is_err() {
        return Err("what stands before the ports is no IP address");
    }
    let (first, last) = range(container)?;
    if !host.is_empty() {
        let (host_first, host_last) = range(host)?;
        if first != last && host_last - host_first != last - first {
            return Err("the two ranges have different lengths");
        }
    }
    ports.extend((first..=last).map(|port| format!("{port}/{protocol}")));
    Ok(())
}

fn range(text: &str) -> Result<(u16, u16), &'static str> {
    let number = |text: &str| {
        let is_number = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
        let number = is_number.then(|| text.parse::<u16>().ok()).flatten();
        number.ok_or("a port is a number up to 65535")
    };
    let (first, last) = text.split_once('-').unwrap_or((text, text));
    match (number(first)?, number(last)?) {
        (first, last) if first <= last => Ok((first, last)),
        _ => Err("the range ends before it starts"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_are_parsed_and_ranges_are_spelled_out() {
        for (spec, expected) in [
            ("80", Some("80/tcp")),
            ("80/UDP", Some("80/udp")),
            ("80-82/sctp", Some("80/sctp 81/sctp 82/sctp")),
            ("8080:80", Some("80/tcp")),
            ("127.0.0.1:8080:80", Some("80/tcp")),
            ("[::1]:8080:80", Some("80/tcp")),
            ("8000-8001:80-81", Some("80/tcp 81/tcp")),
            ("8000-8001:80", Some("80/tcp")),
            ("", None),
            ("x", None),
            ("65536", None),
            ("-1", None),
            ("82-80", None),
            ("80/quic", None),
            ("host:1:2", None),
            ("1-3:1-2", None),
        ] {
            let mut ports = Vec::new();
            let parsed = parse(spec, &mut ports).ok().map(|()| ports.join(" "));
            assert_eq!(parsed.as_deref(), expected, "{spec:?}");
        }
    }
}
