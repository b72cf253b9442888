//! The signals of STOPSIGNAL: names with or without `SIG`, or numbers.

use crate::suggest::did_you_mean;

/// Highest signal number of Linux.
const NUMBER_MAX: u32 = 64;
/// Linux's names besides the real-time ones.
const NAMES: [&str; 36] = [
    "ABRT", "ALRM", "BUS", "CHLD", "CLD", "CONT", "FPE", "HUP", "ILL", "INT", "IO", "IOT", "KILL",
    "PIPE", "POLL", "PROF", "PWR", "QUIT", "RTMAX", "RTMIN", "SEGV", "STKFLT", "STOP", "SYS",
    "TERM", "TRAP", "TSTP", "TTIN", "TTOU", "URG", "USR1", "USR2", "VTALRM", "WINCH", "XCPU",
    "XFSZ",
];

/// Tells whether `text` is a signal.
pub(super) fn is_known(text: &str) -> bool {
    if let Ok(number) = text.parse::<u32>() {
        return (1..=NUMBER_MAX).contains(&number);
    }
    let name = text.to_ascii_uppercase();
    let name = name.strip_prefix("SIG").unwrap_or(&name);
    let offset = |prefix: &str, max: u32| {
        let number = name
            .strip_prefix(prefix)
            .and_then(|n| n.parse::<u32>().ok());
        number.is_some_and(|number| (1..=max).contains(&number))
    };
    NAMES.contains(&name) || offset("RTMIN+", 15) || offset("RTMAX-", 14)
}

/// Returns a hint at the name that was probably meant.
pub(super) fn suggestion(text: &str) -> Option<String> {
    let name = text.to_ascii_uppercase();
    let name = name.strip_prefix("SIG").unwrap_or(&name);
    did_you_mean(name, NAMES).map(|hint| hint.replace("mean ", "mean SIG"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signals_are_names_or_numbers() {
        for known in ["SIGTERM", "term", "9", "64", "SIGRTMIN+3", "RTMAX-1"] {
            assert!(is_known(known), "{known}");
        }
        for unknown in ["", "0", "65", "-1", "SIGFOO", "RTMIN+16", "SIG", "TERM "] {
            assert!(!is_known(unknown), "{unknown}");
        }
        assert_eq!(
            suggestion("SIGTREM").as_deref(),
            Some("did you mean SIGTERM?")
        );
    }
}
