//! The one pass over a word.

use super::{Budget, Escapes, ExpandError, Expanded, Lexer, Quotes, Unset, Variables, pattern};
use crate::limits::{EXPANSION_DEPTH_MAX, VALUE_MAX_BYTES};

/// Expands `text`.
pub(super) fn expand(
    lexer: Lexer,
    text: &str,
    variables: &dyn Variables,
    budget: &Budget,
) -> Result<Expanded, ExpandError> {
    budget.take_bytes(text.len())?;
    let mut reader = Reader {
        rest: text,
        lexer,
        escapes: lexer.escapes,
        depth: 0,
        variables,
        budget,
        found: Expanded::default(),
    };
    let (text, words) = reader.until(None, lexer.escapes)?;
    Ok(Expanded {
        text,
        words,
        ..reader.found
    })
}

struct Reader<'a> {
    rest: &'a str,
    lexer: Lexer,
    escapes: Escapes,
    depth: usize,
    variables: &'a dyn Variables,
    budget: &'a Budget,
    found: Expanded,
}

/// The result so far: as one text, and cut into words.
#[derive(Default)]
struct Output {
    text: String,
    words: Vec<String>,
    word: String,
    in_word: bool,
}

impl Output {
    fn push(&mut self, c: char) {
        self.text.push(c);
        self.split(c);
    }

    fn split(&mut self, c: char) {
        if !c.is_whitespace() {
            self.word.push(c);
            self.in_word = true;
        } else if self.in_word && !self.word.is_empty() {
            self.words.push(std::mem::take(&mut self.word));
            self.in_word = false;
        }
    }

    fn push_whole(&mut self, text: &str) {
        self.text.push_str(text);
        self.word.push_str(text);
        self.in_word = true;
    }

    fn push_value(&mut self, value: &str) {
        self.text.push_str(value);
        value.chars().for_each(|c| self.split(c));
    }

    fn finish(mut self) -> (String, Vec<String>) {
        if !self.word.is_empty() {
            self.words.push(self.word);
        }
        (self.text, self.words)
    }
}

impl Reader<'_> {
    fn peek(&self) -> Option<char> {
        self.rest.chars().next()
    }

    fn next(&mut self) -> Option<char> {
        let mut chars = self.rest.chars();
        let c = chars.next();
        self.rest = chars.as_str();
        c
    }

    /// Reads up to `stop` (which is consumed), or to the end without one.
    fn until(
        &mut self,
        stop: Option<char>,
        escapes: Escapes,
    ) -> Result<(String, Vec<String>), ExpandError> {
        if self.depth > EXPANSION_DEPTH_MAX {
            return Err(ExpandError::TooDeep);
        }
        self.depth += 1;
        let outer = std::mem::replace(&mut self.escapes, escapes);
        let result = self.until_inner(stop);
        self.escapes = outer;
        self.depth -= 1;
        result
    }

    fn until_inner(&mut self, stop: Option<char>) -> Result<(String, Vec<String>), ExpandError> {
        let special_quotes = self.lexer.quotes != Quotes::Ordinary;
        let mut output = Output::default();
        while let Some(c) = self.next() {
            if Some(c) == stop {
                return Ok(output.finish());
            }
            match c {
                '$' => {
                    let value = self.dollar()?;
                    output.push_value(&value);
                }
                '\'' if special_quotes => output.push_whole(&self.single_quoted()?),
                '"' if special_quotes => output.push_whole(&self.double_quoted()?),
                c if c == self.lexer.escape => {
                    if self.escapes == Escapes::Keep {
                        output.push_whole(c.encode_utf8(&mut [0; 4]));
                    }
                    match self.next() {
                        Some(c) => output.push_whole(c.encode_utf8(&mut [0; 4])),
                        None => break,
                    }
                }
                c => output.push(c),
            }
            if output.text.len() > VALUE_MAX_BYTES {
                return Err(ExpandError::TooLong);
            }
        }
        match stop {
            None => Ok(output.finish()),
            Some('/') => Err(ExpandError::MissingReplacement),
            Some(_) => Err(ExpandError::Unclosed("${")),
        }
    }

    fn single_quoted(&mut self) -> Result<String, ExpandError> {
        let end = self
            .rest
            .find('\'')
            .ok_or(ExpandError::Unclosed("a single quote"))?;
        let (inner, after) = self.rest.split_at(end);
        self.rest = after.strip_prefix('\'').unwrap_or(after);
        Ok(match self.lexer.quotes {
            Quotes::Keep => format!("'{inner}'"),
            _ => inner.to_owned(),
        })
    }

    fn double_quoted(&mut self) -> Result<String, ExpandError> {
        let escape = self.lexer.escape;
        let keep_quotes = self.lexer.quotes == Quotes::Keep;
        let mut text = String::new();
        if keep_quotes {
            text.push('"');
        }
        while let Some(c) = self.next() {
            match c {
                '"' => {
                    if keep_quotes {
                        text.push('"');
                    }
                    return Ok(text);
                }
                '$' => text.push_str(&self.dollar()?),
                c if c == escape => {
                    if self.escapes == Escapes::Keep {
                        text.push(c);
                    }
                    match self.peek() {
                        None => {}
                        Some(escaped) if escaped == '"' || escaped == '$' || escaped == escape => {
                            text.push(escaped);
                            self.next();
                        }
                        // Anything else needs no escape: the character stands for itself.
                        Some(_) => text.push(c),
                    }
                }
                c => text.push(c),
            }
            if text.len() > VALUE_MAX_BYTES {
                return Err(ExpandError::TooLong);
            }
        }
        Err(ExpandError::Unclosed("a double quote"))
    }

    /// Reads what follows a `$` and returns its value.
    fn dollar(&mut self) -> Result<String, ExpandError> {
        let value = if self.peek() == Some('{') {
            self.next();
            self.braces()?
        } else {
            let name = self.name();
            if name.is_empty() {
                return Ok("$".to_owned());
            }
            match self.lookup(&name) {
                None if self.lexer.unset == Unset::Keep => format!("${name}"),
                value => value.unwrap_or_default(),
            }
        };
        self.budget.take_bytes(value.len())?;
        Ok(value)
    }

    fn braces(&mut self) -> Result<String, ExpandError> {
        match self.peek() {
            None => return Err(ExpandError::Unclosed("${")),
            Some('{' | '}' | ':') => return Err(ExpandError::BadSubstitution),
            Some(_) => {}
        }
        let name = self.name();
        let Some(first) = self.next() else {
            return Err(ExpandError::Unclosed("${"));
        };
        let mut modifier = first.to_string();
        let operator = match first {
            '}' => {
                return Ok(match self.lookup(&name) {
                    None if self.lexer.unset == Unset::Keep => format!("${{{name}}}"),
                    value => value.unwrap_or_default(),
                });
            }
            '/' => return self.replacement(&name),
            ':' => {
                let second = self.next().ok_or(ExpandError::Unclosed("${"))?;
                modifier.push(second);
                second
            }
            first => first,
        };
        let takes_colon = !matches!(operator, '#' | '%');
        if !matches!(operator, '+' | '-' | '?' | '#' | '%') || (first == ':' && !takes_colon) {
            return Err(ExpandError::Modifier(modifier));
        }
        let escapes = match operator {
            '#' | '%' => Escapes::Keep,
            _ => Escapes::Remove,
        };
        let (word, _) = self.until(Some('}'), escapes)?;
        let value = self.lookup(&name);
        if value.is_none() && self.lexer.unset == Unset::Keep {
            return Ok(format!("${{{name}{modifier}{word}}}"));
        }
        let empty_counts = first != ':';
        self.modified(
            operator,
            &name,
            value.filter(|v| empty_counts || !v.is_empty()),
            word,
        )
    }

    /// Applies an operator; `value` is `None` also for an empty value after `:`.
    fn modified(
        &self,
        operator: char,
        name: &str,
        value: Option<String>,
        word: String,
    ) -> Result<String, ExpandError> {
        match operator {
            '-' => Ok(value.unwrap_or(word)),
            '+' => Ok(value.map(|_| word).unwrap_or_default()),
            '?' => value.ok_or_else(|| {
                let set = self.variables.value(name).is_some();
                let default = if set {
                    "is not allowed to be empty"
                } else {
                    "is not allowed to be unset"
                };
                let message = if word.is_empty() {
                    default.to_owned()
                } else {
                    word
                };
                ExpandError::Required {
                    name: name.to_owned(),
                    message,
                }
            }),
            _ => {
                let (word, reach) = match word.strip_prefix(operator) {
                    Some(rest) => (rest, pattern::Reach::Longest),
                    None => (word.as_str(), pattern::Reach::Shortest),
                };
                let pattern = pattern::Pattern::parse(word)?;
                let value = value.unwrap_or_default();
                let rest = if operator == '#' {
                    pattern.without_prefix(&value, reach, self.budget)?
                } else {
                    pattern.without_suffix(&value, reach, self.budget)?
                };
                Ok(rest.to_owned())
            }
        }
    }

    fn replacement(&mut self, name: &str) -> Result<String, ExpandError> {
        let all = self.peek() == Some('/');
        if all {
            self.next();
        }
        let (word, _) = self.until(Some('/'), Escapes::Keep)?;
        let (replacement, _) = self.until(Some('}'), Escapes::Keep)?;
        let value = self.lookup(name);
        if value.is_none() && self.lexer.unset == Unset::Keep {
            return Ok(format!("${{{name}/{word}/{replacement}}}"));
        }
        let value = value.unwrap_or_default();
        let pattern = pattern::Pattern::parse(&word)?;
        let count = if all { usize::MAX } else { 1 };
        pattern.replace(&value, &replacement, count, self.budget)
    }

    fn lookup(&mut self, name: &str) -> Option<String> {
        let value = self.variables.value(name).map(str::to_owned);
        let set = match value {
            Some(_) => &mut self.found.used,
            None => &mut self.found.unset,
        };
        set.insert(name.to_owned());
        value
    }

    /// Reads a variable's name: letters, digits and `_`; or only digits; or one of the shell's special characters.
    fn name(&mut self) -> String {
        let mut name = String::new();
        match self.peek() {
            Some(c) if c.is_numeric() => {
                while let Some(c) = self.peek().filter(|c| c.is_numeric()) {
                    name.push(c);
                    self.next();
                }
            }
            Some(c) if "@*#?-$!".contains(c) => {
                name.push(c);
                self.next();
            }
            _ => {
                while let Some(c) = self.peek().filter(|c| c.is_alphanumeric() || *c == '_') {
                    name.push(c);
                    self.next();
                }
            }
        }
        name
    }
}
