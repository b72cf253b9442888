//! `user[:group]` of USER and `--chown`: checked here so that nothing odd is ever taken for root.

/// Highest id: the kernel takes 2³²-1 for "no change".
const ID_MAX: u64 = u32::MAX as u64 - 1;
/// Longest name.
const NAME_MAX_BYTES: usize = 256;

/// Tells what is wrong with `text`, if something is.
pub(super) fn check(text: &str) -> Result<(), &'static str> {
    match text.split_once(':') {
        Some((user, group)) => part(user).and_then(|()| part(group)),
        None => part(text),
    }
}

fn part(name: &str) -> Result<(), &'static str> {
    if name.is_empty() {
        return Err("it is empty");
    }
    if name.len() > NAME_MAX_BYTES {
        return Err("it is too long");
    }
    if name.bytes().all(|byte| byte.is_ascii_digit()) {
        let in_range = name.parse::<u64>().is_ok_and(|id| id <= ID_MAX);
        return in_range
            .then_some(())
            .ok_or("the number is larger than 4294967294");
    }
    if name.starts_with(|c: char| c.is_ascii_digit() || c == '-' || c == '+') {
        return Err("a name starts with neither a digit nor a sign");
    }
    let is_plain = |c: char| !c.is_whitespace() && !c.is_control() && !matches!(c, ':' | '/' | ',');
    if !name.chars().all(is_plain) {
        return Err("it holds a character that names cannot have");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::check;

    #[test]
    fn odd_users_are_refused_before_they_can_become_root() {
        for good in [
            "root",
            "0",
            "1000:1000",
            "app:staff",
            "4294967294",
            "_apt",
            "user.name",
            "a-b",
            "DOMAIN\\user",
        ] {
            assert_eq!(check(good), Ok(()), "{good}");
        }
        for bad in [
            "",
            ":",
            "0:",
            ":0",
            "4294967295",
            "4294967296:0",
            "-1",
            "+1",
            "0x0",
            " 0",
            "0 ",
            "root\n",
            "a:b:c",
            "ro ot",
            "../x",
            "99999999999999999999999",
            "\0",
        ] {
            assert!(check(bad).is_err(), "{bad:?} was accepted");
        }
    }
}
