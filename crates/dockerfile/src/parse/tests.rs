use std::time::Instant;

use proptest::prelude::*;

use super::*;

fn messages(text: &str) -> Vec<String> {
    let (_, found) = parse(text.as_bytes());
    found.iter().map(ToString::to_string).collect()
}

#[test]
fn every_word_knows_its_place() {
    let text = "FROM a \\\n # c\n  AS b\nENV A=1 \\\n  B='x y'\n";
    let (file, found) = parse(text.as_bytes());
    assert_eq!(found, []);
    let at = |span: Span| (text.get(span.start..span.end).unwrap(), span.line);
    let [from, env] = file.instructions.as_slice() else {
        panic!("{file:?}")
    };
    let (Body::From { image, name }, Body::Env(pairs)) = (&from.body, &env.body) else {
        panic!("{file:?}")
    };
    assert_eq!(at(image.span), ("a", 1));
    assert_eq!(at(name.as_ref().unwrap().span), ("b", 3));
    assert_eq!((from.span.line, from.span.end_line), (1, 3));
    assert_eq!(at(env.keyword), ("ENV", 4));
    assert_eq!(at(pairs[1].name.span), ("B", 5));
    assert_eq!(at(pairs[1].value.span), ("'x y'", 5));
}

#[test]
fn two_escape_characters_at_the_end_do_not_continue_a_line() {
    let (file, _) = parse(b"FROM a\nRUN x \\\\\nRUN y\n");
    assert_eq!(file.instructions.len(), 3);
}

#[test]
fn directives_count_only_at_the_top() {
    let escape = |text: &str| parse(text.as_bytes()).0.escape;
    assert_eq!(escape("# escape=`\nFROM a\n"), '`');
    assert_eq!(escape("#ESCAPE = ` \nFROM a\n"), '`');
    assert_eq!(
        escape("# check=skip=all\n# syntax=docker/dockerfile:1\n# escape=`\nFROM a\n"),
        '`'
    );
    assert_eq!(escape("\n# escape=`\nFROM a\n"), '\\');
    assert_eq!(escape("# other=1\n# escape=`\nFROM a\n"), '\\');
    assert_eq!(escape("FROM a\n# escape=`\n"), '\\');
    assert_eq!(messages("# escape=x\nFROM a\n").len(), 1);
    let (file, _) = parse(b"# check=error=true;skip=JSONArgs\nFROM a\n");
    assert_eq!(file.check.unwrap().text, "error=true;skip=JSONArgs");
}

#[test]
fn only_the_standard_syntax_is_accepted() {
    let hex = "a".repeat(64);
    for good in [
        "docker/dockerfile:1",
        "docker/dockerfile",
        "docker/dockerfile:1.7-labs",
        "docker.io/docker/dockerfile:1.12.0",
        "docker/dockerfile:labs",
        &format!("docker/dockerfile:1.4@sha256:{hex}"),
    ] {
        assert_eq!(
            messages(&format!("# syntax={good}\nFROM a\n")),
            [""; 0],
            "{good}"
        );
    }
    for bad in [
        "docker/dockerfile:2",
        "docker/dockerfile-upstream:master",
        "evil/x",
        "docker/dockerfile:10",
        "x",
    ] {
        assert_eq!(
            messages(&format!("# syntax={bad}\nFROM a\n")).len(),
            1,
            "{bad}"
        );
    }
}

#[test]
fn heredocs_in_lists_are_plain_words() {
    let (file, found) = parse(b"FROM a\nCOPY [\"<<EOF\", \"/x\"]\nRUN [\"cat\", \"<<EOF\"]\n");
    assert_eq!(found, []);
    assert!(
        file.instructions
            .iter()
            .all(|instruction| instruction.heredocs.is_empty())
    );
}

#[test]
fn a_heredoc_of_a_wrong_line_is_not_taken_for_instructions() {
    let found = messages("FROM a\nRUN --bad=1 <<EOF\nnot an instruction\nEOF\nRUN x\n");
    assert_eq!(found, ["line 2: RUN has no flag \"--bad\""]);
}

#[test]
fn quotes_in_heredoc_names_stop_expansion() {
    for (opener, expand) in [
        ("<<E", true),
        ("<<\"E\"", false),
        ("<<'E'", false),
        ("<<\\E", true),
    ] {
        let (file, found) = parse(format!("FROM a\nCOPY {opener} /x\n$a\nE\n").as_bytes());
        assert_eq!(found, [], "{opener}");
        assert_eq!(file.instructions[1].heredocs[0].expand, expand, "{opener}");
    }
}

#[test]
fn words_that_only_look_like_heredocs_are_none() {
    for line in [
        "RUN a <<<word",
        "RUN cat a<<EOF",
        "RUN echo \"<<EOF\"",
        "RUN $((1<<2))",
    ] {
        let (file, found) = parse(format!("FROM a\n{line}\n").as_bytes());
        assert_eq!(found, [], "{line}");
        assert_eq!(file.instructions[1].heredocs, [], "{line}");
    }
}

#[test]
fn the_name_of_a_heredoc_may_stand_apart() {
    for (line, n_heredocs) in [("RUN cat << EOF", 1), ("RUN cat 3<<  EOF", 1)] {
        let (file, found) = parse(format!("FROM a\n{line}\nx\nEOF\n").as_bytes());
        assert_eq!(found, [], "{line}");
        assert_eq!(file.instructions[1].heredocs.len(), n_heredocs, "{line}");
    }
    let (file, _) = parse(b"FROM a\nRUN cat <<- EOF\nENV A=1\n");
    assert_eq!(file.instructions.len(), 3);
}

/// D-05 and D-02: what is too large is refused, quickly, with its line.
#[test]
fn size_bombs_are_refused_in_time() {
    let started = Instant::now();
    let one = |text: String| {
        let found = messages(&text);
        assert!(!found.is_empty(), "{} bytes were accepted", text.len());
        found.into_iter().next().unwrap()
    };
    assert!(one("x".repeat(limits::FILE_MAX_BYTES + 1)).contains("larger than"));
    assert!(one("FROM a\n".to_owned() + &"RUN x\n".repeat(100_000)).contains("instructions"));
    assert!(one("FROM a\n".repeat(10_000)).contains("more than 200 stages"));
    assert!(
        one(format!(
            "FROM a\nRUN {}\n",
            "x".repeat(limits::LINE_MAX_BYTES)
        ))
        .contains("line 2: this line")
    );
    assert!(
        one(format!("FROM a\n#{}\n", "x".repeat(limits::LINE_MAX_BYTES)))
            .contains("line 2: this line")
    );
    assert!(one(format!("FROM a\nRUN {}\n", "<<A ".repeat(1000))).contains("heredocs"));
    assert!(one(format!("FROM a\nRUN <<A\n{}", "x\n".repeat(100_000))).contains("is not ended"));
    assert_eq!(
        messages(&("FROM a\n".to_owned() + &"X\n".repeat(1000))).len(),
        limits::DIAGNOSTICS_MAX
    );
    let continued = format!("FROM a\nRUN x{}\n", " \\\n y".repeat(100_000));
    assert_eq!(messages(&continued), [""; 0]);
    for pair in ["A=1 ", "ENV=1 ", "\"a b\"=c "] {
        let line = pair.repeat(limits::LINE_MAX_BYTES / pair.len() - 2);
        assert_eq!(
            messages(&format!("FROM a\nENV {line}\nLABEL {line}\n")),
            [""; 0]
        );
    }
    assert!(
        started.elapsed().as_secs() < 20,
        "took {:?}",
        started.elapsed()
    );
}

#[test]
fn bytes_that_are_no_text_are_refused_with_their_line() {
    for (bytes, expected) in [
        (
            b"FROM a\nRUN \xc3\x28\n".as_slice(),
            "line 2: the Dockerfile is not valid UTF-8",
        ),
        (b"\xff\xfeF\0", "line 1: the Dockerfile holds a NUL byte"),
        (b"FROM a\n\n\0", "line 3: the Dockerfile holds a NUL byte"),
    ] {
        assert_eq!(parse(bytes).1[0].to_string(), expected);
    }
}

/// Renders everything that was found, so that spans are tried too.
fn parse_and_render(text: &[u8]) {
    let (_, found) = parse(text);
    let shown = String::from_utf8_lossy(text);
    for one in &found {
        assert!(!crate::render(one, &shown, "Dockerfile").is_empty());
    }
}

proptest! {
    #[test]
    fn no_bytes_make_it_panic(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        parse_and_render(&bytes);
    }

    #[test]
    fn no_text_makes_it_panic(
        lines in prop::collection::vec(
            "(FROM|from|RUN|COPY|ADD|ENV|ARG|LABEL|ONBUILD|HEALTHCHECK|SHELL|VOLUME|# escape=`|EOF|é)?[ <E\\[\\]\"'=,$`\\\\a-c\t-]{0,20}",
            0..8,
        ),
        end in "(\n|\r\n|)",
    ) {
        let text = lines.join(if end.is_empty() { "\n" } else { &end });
        parse_and_render(text.as_bytes());
    }
}
