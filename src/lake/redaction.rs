//! Keeps passwords out of DuckDB's error texts.

/// What must not be printed, and the shapes in which connection strings show it.
#[derive(Clone, Default)]
pub(crate) struct Redaction {
    secrets: Vec<String>,
}

/// Settings of connection strings and secrets whose values are secret.
const KEYWORDS: [&str; 6] = ["password", "passwd", "sslpassword", "secret", "session_token", "key_id"];

impl Redaction {
    /// Adds a text that must not be printed.
    pub(crate) fn add(&mut self, secret: &str) {
        // One and two characters would turn ordinary words into stars.
        if secret.len() > 2 {
            self.secrets.push(secret.to_owned());
            self.secrets.push(secret.replace('\'', "''"));
            self.secrets.push(secret.replace('\\', "\\\\").replace('\'', "\\'"));
            self.secrets.sort_by_key(|secret| std::cmp::Reverse(secret.len()));
            self.secrets.dedup();
        }
    }

    /// `text` without secrets.
    pub(crate) fn text(&self, text: &str) -> String {
        let mut text = text.to_owned();
        for secret in &self.secrets {
            text = text.replace(secret.as_str(), "***");
        }
        for keyword in KEYWORDS {
            text = hide_values(&text, keyword);
        }
        hide_addresses(&text)
    }
}

/// Replaces the value after `keyword=` and `keyword '…'`.
fn hide_values(text: &str, keyword: &str) -> String {
    let lower = text.to_ascii_lowercase();
    let mut hidden = String::with_capacity(text.len());
    let mut from = 0;
    while let Some(found) = lower[from..].find(keyword) {
        let end = from + found + keyword.len();
        hidden.push_str(&text[from..end]);
        from = end;
        let rest = &text[end..];
        let gap = rest.len() - rest.trim_start_matches([' ', '=']).len();
        let value = &rest[gap..];
        if value.starts_with('\'') {
            let length = quoted_length(value);
            hidden.push_str(&rest[..gap]);
            hidden.push_str("***");
            from = end + gap + length;
        } else if rest[..gap].contains('=') {
            let length = value.find(|c: char| c.is_whitespace() || matches!(c, '"' | ';' | '&')).unwrap_or(value.len());
            hidden.push_str(&rest[..gap]);
            hidden.push_str("***");
            from = end + gap + length;
        }
    }
    hidden.push_str(&text[from..]);
    hidden
}

/// Bytes of the quoted text that begins `text`, its quotes included; doubled and backslashed quotes belong to it.
fn quoted_length(text: &str) -> usize {
    let bytes = text.as_bytes();
    let mut at = 1;
    while at < bytes.len() {
        match bytes[at] {
            b'\\' => at += 2,
            b'\'' if bytes.get(at + 1) == Some(&b'\'') => at += 2,
            b'\'' => return at + 1,
            _ => at += 1,
        }
    }
    text.len()
}

/// Hides the password of `postgres://user:password@host`.
fn hide_addresses(text: &str) -> String {
    let mut hidden = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(found) = rest.find("://") {
        let (before, after) = rest.split_at(found + 3);
        hidden.push_str(before);
        let end = after.find(|c: char| c.is_whitespace() || matches!(c, '"' | '\'')).unwrap_or(after.len());
        let authority = &after[..end];
        match authority.rfind('@').and_then(|at| authority[..at].find(':').map(|colon| (colon, at))) {
            Some((colon, at)) => {
                hidden.push_str(&authority[..colon]);
                hidden.push_str(":***");
                hidden.push_str(&authority[at..]);
            }
            None => hidden.push_str(authority),
        }
        rest = &after[end..];
    }
    hidden.push_str(rest);
    hidden
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_are_hidden_in_every_shape() {
        let mut redaction = Redaction::default();
        redaction.add("p'w");
        for (text, expected) in [
            ("host=h password=abc dbname=d", "host=h password=*** dbname=d"),
            ("PASSWORD 'a''b c', USER 'u'", "PASSWORD ***, USER 'u'"),
            ("at \"password='x y\\'z' host=h\"", "at \"password=*** host=h\""),
            ("postgres://u:geheim@h:1/d failed", "postgres://u:***@h:1/d failed"),
            ("PASSWORD authentication failed for user \"u\"", "PASSWORD authentication failed for user \"u\""),
            ("the p'w and the p''w", "the *** and the ***"),
            ("ducklake:s3://bucket/prefix", "ducklake:s3://bucket/prefix"),
            ("password=", "password=***"),
        ] {
            assert_eq!(redaction.text(text), expected);
        }
    }
}
