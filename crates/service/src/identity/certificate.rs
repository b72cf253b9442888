//! What a client's certificate calls its owner. Whoever calls has verified that somebody trusted has signed it.

use rustls_pki_types::CertificateDer;
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::{FromDer as _, X509Certificate};

use crate::config::CertificateName;

/// Most names of one certificate that are looked at.
const NAMES_MAX: usize = 64;

/// The names in a certificate.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PeerNames {
    names: Vec<CertificateName>,
}

impl PeerNames {
    /// Returns the names in a certificate; none for one that cannot be read.
    pub fn of(certificate: &CertificateDer<'_>) -> Self {
        let Ok((_, certificate)) = X509Certificate::from_der(certificate) else {
            return Self::default();
        };
        let common = certificate.subject().iter_common_name();
        let common = common.filter_map(|name| name.as_str().ok());
        let mut names: Vec<CertificateName> = common
            .map(|name| CertificateName::Common(name.to_owned()))
            .collect();
        if names.len() > 1 {
            // Which of them is meant is not ours to choose.
            names.clear();
        }
        if let Ok(Some(alternative)) = certificate.subject_alternative_name() {
            names.extend(alternative.value.general_names.iter().filter_map(name_of));
        }
        names.truncate(NAMES_MAX);
        Self { names }
    }

    #[cfg(test)]
    pub(super) fn of_names(names: Vec<CertificateName>) -> Self {
        Self { names }
    }

    /// Tells whether this is one of the names.
    pub(super) fn has(&self, name: &CertificateName) -> bool {
        self.names.contains(name)
    }
}

fn name_of(name: &GeneralName<'_>) -> Option<CertificateName> {
    match name {
        GeneralName::DNSName(name) => Some(CertificateName::Dns(name.to_ascii_lowercase())),
        GeneralName::URI(name) => Some(CertificateName::Uri((*name).to_owned())),
        GeneralName::RFC822Name(name) => Some(CertificateName::Email((*name).to_owned())),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use rcgen::{CertificateParams, DnType, KeyPair, SanType};

    use super::*;

    fn names(change: impl FnOnce(&mut CertificateParams)) -> PeerNames {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.distinguished_name = rcgen::DistinguishedName::new();
        change(&mut params);
        let key = KeyPair::generate().unwrap();
        PeerNames::of(params.self_signed(&key).unwrap().der())
    }

    #[test]
    fn subject_and_alternative_names_are_read_and_compared_whole() {
        let peer = names(|params| {
            params.distinguished_name.push(DnType::CommonName, "ci");
            params.subject_alt_names = vec![
                SanType::DnsName("CI.example.com".try_into().unwrap()),
                SanType::URI("spiffe://example.com/ci".try_into().unwrap()),
                SanType::Rfc822Name("ci@example.com".try_into().unwrap()),
            ];
        });
        for name in [
            "cn:ci",
            "dns:ci.example.com",
            "uri:spiffe://example.com/ci",
            "email:ci@example.com",
        ] {
            assert!(peer.has(&name.parse().unwrap()), "{name}");
        }
        for name in [
            "cn:c",
            "cn:ci.example.com",
            "dns:example.com",
            "uri:spiffe://example.com",
        ] {
            assert!(!peer.has(&name.parse().unwrap()), "{name}");
        }
    }

    #[test]
    fn what_is_no_certificate_has_no_names() {
        for bytes in [&b""[..], b"\x30\x80", &[0xff; 4096]] {
            assert_eq!(
                PeerNames::of(&CertificateDer::from(bytes.to_vec())),
                PeerNames::default()
            );
        }
        assert_eq!(names(|_| ()), PeerNames::default());
    }
}
