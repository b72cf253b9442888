use registry::keychain::{Credential, Secret};

use super::*;

const BASE: &str = "base.example";
const WORKSPACE: &str = "workspace.example";
const ECR: &str = "123456789012.dkr.ecr.eu-west-1.amazonaws.com";
const OTHER: &str = "other.example";
const ADDITIONAL: &str = "additional.example";

const HOSTS: [&str; 5] = [BASE, WORKSPACE, ECR, OTHER, ADDITIONAL];

fn credential(user: &str) -> Credential {
    Credential::Basic {
        username: user.to_owned(),
        password: Secret::new("secret"),
    }
}

fn keychain(user: &str, hosts: &[&str]) -> Keychain {
    let mut keychain = Keychain::empty();
    for host in hosts {
        assert!(keychain.insert(host, credential(user)));
    }
    keychain
}

fn own() -> OwnHosts {
    OwnHosts {
        base: BASE.to_owned(),
        workspace: WORKSPACE.to_owned(),
    }
}

fn selective([base, workspace]: [bool; 2], any_of: &[&str]) -> Grant {
    let any_of: Vec<String> = any_of.iter().map(|host| (*host).to_owned()).collect();
    Grant::Hosts {
        base: base.into(),
        workspace: workspace.into(),
        others: parse_hosts(&any_of).unwrap(),
    }
}

/// Returns whose credential each of the five hosts is pulled with: `s`ervice's, `r`equest's, or `-` none.
fn row(grant: Grant, additional: Keychain) -> String {
    let rights = Rights {
        grant,
        additional,
        ..Rights::default()
    };
    // The service has a credential for everything but the host that only the request knows.
    let service = keychain("service", &[BASE, WORKSPACE, ECR, OTHER]);
    let pull = pull_keychain(&rights, &own(), &service);
    let letter = |host: &str| match pull.get(host) {
        Some(Credential::Basic { username, .. }) if username == "service" => 's',
        Some(_) => 'r',
        None => '-',
    };
    HOSTS.iter().map(|host| letter(host)).collect()
}

#[test]
fn the_written_table_holds_in_all_its_ninety_cells() {
    let of = |grant| row(grant, keychain("request", &[ADDITIONAL]));
    let table = [
        (
            "no auth at all",
            row(Grant::Nothing, Keychain::empty()),
            "-----",
        ),
        ("no mode", of(Grant::Nothing), "----r"),
        ("total", of(Grant::Everything), "ssssr"),
        ("not total", of(Grant::Nothing), "----r"),
        ("nothing", of(selective([false, false], &[])), "----r"),
        ("base", of(selective([true, false], &[])), "s---r"),
        ("workspace", of(selective([false, true], &[])), "-s--r"),
        ("both", of(selective([true, true], &[])), "ss--r"),
        ("other", of(selective([false, false], &[OTHER])), "---sr"),
        (
            "base, other",
            of(selective([true, false], &[OTHER])),
            "s--sr",
        ),
        (
            "workspace, other",
            of(selective([false, true], &[OTHER])),
            "-s-sr",
        ),
        (
            "both, other",
            of(selective([true, true], &[OTHER])),
            "ss-sr",
        ),
        ("ecr", of(selective([false, false], &[ECR])), "--s-r"),
        ("base, ecr", of(selective([true, false], &[ECR])), "s-s-r"),
        (
            "workspace, ecr",
            of(selective([false, true], &[ECR])),
            "-ss-r",
        ),
        ("both, ecr", of(selective([true, true], &[ECR])), "sss-r"),
        (
            "base by name",
            of(selective([false, false], &[BASE])),
            "s---r",
        ),
        (
            "suffixes",
            of(selective(
                [false, false],
                &["example", "x.other.example", "other.example:443"],
            )),
            "----r",
        ),
    ];
    for (what, actual, expected) in table {
        assert_eq!(actual, expected, "{what}");
    }
}

#[test]
fn a_requests_own_credential_never_takes_the_place_of_the_services() {
    let additional = || keychain("request", &HOSTS);
    assert_eq!(row(Grant::Everything, additional()), "ssssr");
    assert_eq!(row(selective([true, true], &[]), additional()), "ssrrr");
    assert_eq!(row(Grant::Nothing, additional()), "rrrrr");
}

#[test]
fn results_are_published_with_the_services_own_credentials_alone() {
    let service = keychain("service", &[BASE, WORKSPACE, ECR, OTHER]);
    let publish = publish_keychain(&own(), &service);
    let hosts: Vec<&str> = publish.hosts().collect();
    assert_eq!(hosts, [BASE, WORKSPACE]);
}

#[test]
fn hosts_are_compared_in_the_form_that_is_dialled() {
    let rights = Rights {
        grant: selective(
            [false, false],
            &["INDEX.docker.io", "Registry.Example:5000"],
        ),
        additional: Keychain::empty(),
        ..Rights::default()
    };
    assert!(rights.may_use("docker.io", &own()));
    assert!(rights.may_use("registry.example:5000", &own()));
    assert!(!rights.may_use("registry.example", &own()));
    for bad in [
        "",
        "user@host",
        "host/path",
        "https://host",
        "ho st",
        "host:099999",
        "*",
    ] {
        assert!(parse_hosts(&[bad.to_owned()]).is_err(), "{bad:?}");
    }
}

#[test]
fn only_amazons_own_hosts_are_ecr() {
    for (host, region) in [
        ("123456789012.dkr.ecr.us-east-1.amazonaws.com", "us-east-1"),
        (
            "123456789012.dkr.ecr.us-gov-west-1.amazonaws.com",
            "us-gov-west-1",
        ),
        (
            "123456789012.dkr.ecr-fips.us-east-1.amazonaws.com",
            "us-east-1",
        ),
        (
            "123456789012.dkr.ecr.cn-north-1.amazonaws.com.cn",
            "cn-north-1",
        ),
        ("123456789012.dkr-ecr.eu-west-1.on.aws", "eu-west-1"),
    ] {
        let parsed = EcrHost::parse(host).map(|ecr| ecr.region);
        assert_eq!(parsed.as_deref(), Some(region), "{host}");
    }
    for host in [
        "123456789012.dkr.ecr.us-east-1.amazonaws.com.evil.test",
        "evil.123456789012.dkr.ecr.us-east-1.amazonaws.com",
        "123456789012xdkrxecrxus-east-1xamazonawsxcom",
        "123456789012.dkr.ecr.us-east-1.amazonawsxcom",
        "123456789012.dkr.ecr.us-east-1.amazonaws.com:443",
        "123456789012.dkr.ecr.us-east-1.amazonaws.com.",
        "123456789012.dkr.ecr.us-east-1.amazonaws.com.cn",
        "123456789012.dkr.ecr.us-east.amazonaws.com",
        "123456789012.dkr.ecr.us-east-1.evil.amazonaws.com",
        "12345678901.dkr.ecr.us-east-1.amazonaws.com",
        "1234567890123.dkr.ecr.us-east-1.amazonaws.com",
        "123456789012.DKR.ecr.us-east-1.amazonaws.com",
        "123456789012.dkr.ecr.us-east-1.on.aws",
        "123456789012.dkr-ecr.us-east-1.amazonaws.com",
        "public.ecr.aws",
    ] {
        assert_eq!(EcrHost::parse(host), None, "{host}");
    }
}

#[test]
fn a_tenant_is_a_plain_word() {
    assert!(Tenant::default().is_default());
    assert!(Tenant::new("team-a.1").is_ok());
    for bad in [
        "",
        "a/b",
        "A",
        "a\n",
        "a..b",
        "-a",
        "a.",
        ".",
        "..",
        "ä",
        &"a".repeat(129),
    ] {
        assert!(Tenant::new(bad).is_err(), "{bad:?}");
    }
}
