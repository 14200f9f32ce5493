//! The last guard before a text leaves the program: what looks like a password is taken out. The parts that know secrets
//! never print them; this catches what a library's error message may carry.

use std::borrow::Cow;

/// Words before `=` or `:` whose value is a secret.
const WORDS: &[&str] =
    &["password", "passwd", "secret_access_key", "session_token", "secret", "key_id", "access_key_id"];

/// `text` with the passwords of addresses and of `password=…` pairs replaced by `***`.
pub(super) fn redact(text: &str) -> Cow<'_, str> {
    let text = addresses(text);
    match pairs(&text) {
        Some(redacted) => Cow::Owned(redacted),
        None => text,
    }
}

/// `scheme://user:password@host` → `scheme://user:***@host`. A password may hold `@` and `/`: the last `@` before the next
/// space or quote ends it.
fn addresses(text: &str) -> Cow<'_, str> {
    let mut out = String::new();
    let mut rest = text;
    while let Some(at) = rest.find("://") {
        let (before, after) = rest.split_at(at + 3);
        out.push_str(before);
        let end =
            after.find(|c: char| c.is_whitespace() || matches!(c, '"' | '\'' | '`' | '<' | '>')).unwrap_or(after.len());
        let (address, tail) = after.split_at(end);
        let authority_end = address.rfind('@');
        match (authority_end, address.find(':')) {
            (Some(host), Some(colon)) if colon < host => {
                out.push_str(&address[..=colon]);
                out.push_str("***");
                out.push_str(&address[host..]);
            }
            _ => out.push_str(address),
        }
        rest = tail;
    }
    if out.is_empty() {
        return Cow::Borrowed(text);
    }
    out.push_str(rest);
    Cow::Owned(out)
}

/// `password=x`, `password='x y'`, `SECRET 'x'` → the value replaced. `None` where nothing was found.
fn pairs(text: &str) -> Option<String> {
    let lower = text.to_ascii_lowercase();
    let mut cuts: Vec<(usize, usize)> = Vec::new();
    for word in WORDS {
        for (at, _) in lower.match_indices(word) {
            // Only whole words: "secretary=x" and "no_secret" say nothing.
            let before = lower[..at].chars().next_back();
            if before.is_some_and(|c| c.is_ascii_alphanumeric() || c == '_') {
                continue;
            }
            if let Some((start, end)) = value_after(&text[at + word.len()..]) {
                cuts.push((at + word.len() + start, at + word.len() + end));
            }
        }
    }
    if cuts.is_empty() {
        return None;
    }
    cuts.sort_unstable();
    let mut out = String::with_capacity(text.len());
    let mut done = 0;
    for (start, end) in cuts {
        if start >= done {
            out.push_str(&text[done..start]);
            out.push_str("***");
            done = end;
        }
    }
    out.push_str(&text[done..]);
    Some(out)
}

/// Where the value lies in what follows a word: after `=` or `:`, or directly in single quotes after spaces.
fn value_after(text: &str) -> Option<(usize, usize)> {
    let trimmed = text.trim_start_matches(['"', '\\']).trim_start();
    let (assigned, value) = match trimmed.strip_prefix(['=', ':']) {
        Some(value) => (true, value.trim_start()),
        None => (false, trimmed),
    };
    // Inside a JSON text the quotes themselves are escaped.
    let value = value.trim_start_matches('\\');
    let start = text.len() - value.len();
    let quote = value.chars().next().filter(|c| matches!(c, '\'' | '"'));
    match quote {
        Some(quote) => {
            let end = value[1..].find(quote).map_or(value.len(), |end| end + 1);
            let end = 1 + value[1..end].trim_end_matches('\\').len();
            (assigned || quote == '\'').then_some((start + 1, start + end))
        }
        None if assigned => {
            let end = value
                .find(|c: char| c.is_whitespace() || matches!(c, ',' | ';' | '&' | '"' | '\'' | ')' | '}'))
                .unwrap_or(value.len());
            (end > 0).then_some((start, start + end))
        }
        None => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn takes_passwords_out() {
        let cases = [
            (
                "connect to postgres://app:hid@den@db:5432/shop failed",
                "connect to postgres://app:***@db:5432/shop failed",
            ),
            ("\"postgres://app:hidden@db/shop\"", "\"postgres://app:***@db/shop\""),
            ("host=db password=hidden dbname=shop", "host=db password=*** dbname=shop"),
            ("host=db password='hid den' dbname=shop", "host=db password='***' dbname=shop"),
            (
                "CREATE SECRET (TYPE s3, KEY_ID 'hidden', SECRET 'hidden')",
                "CREATE SECRET (TYPE s3, KEY_ID '***', SECRET '***')",
            ),
            ("{\"password\": \"hidden\"}", "{\"password\": \"***\"}"),
            ("{\\\"password\\\":\\\"hidden\\\"}", "{\\\"password\\\":\\\"***\\\"}"),
        ];
        for (text, expected) in cases {
            let got = redact(text);
            assert!(!got.contains("hidden") && !got.contains("hid@den") && !got.contains("hid den"), "{got}");
            assert_eq!(got, expected);
        }
    }

    #[test]
    fn leaves_the_rest_alone() {
        for text in [
            "http://127.0.0.1:9000/bucket",
            "s3://bucket/a:b",
            "the password is wrong",
            "password authentication failed for user \"x\"",
            "größe=3",
            "secret \"duckpipe_s3\" does not exist",
        ] {
            assert_eq!(redact(text), text);
        }
    }
}
