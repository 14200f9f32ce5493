//! What every connection to a source pins, whatever the server, the database or the role sets.

use crate::sql;

/// Parameters, their values, and the first major version that knows them.
///
/// The forms of dates, intervals, floats, bytea and money are those that the text decoders read; they hold for pgoutput's
/// text and for `column::text` in COPY alike, so that a value looks the same whichever way it came.
const PINNED: [(&str, &str, u32); 16] = [
    // Row-level security would silently empty a COPY; off, it is an error instead.
    ("row_security", "off", 0),
    ("client_encoding", "UTF8", 0),
    ("DateStyle", "ISO, YMD", 0),
    ("IntervalStyle", "postgres", 0),
    ("TimeZone", "UTC", 0),
    // 3 and 1 both mean the shortest text that reads back as the same float.
    ("extra_float_digits", "3", 0),
    ("bytea_output", "hex", 0),
    ("lc_monetary", "C", 0),
    ("standard_conforming_strings", "on", 0),
    // Nothing but pg_catalog: no table or function of a user can stand in for the catalog's, and types print qualified.
    ("search_path", "", 0),
    ("quote_all_identifiers", "off", 0),
    ("statement_timeout", "0", 0),
    ("lock_timeout", "0", 0),
    ("idle_in_transaction_session_timeout", "0", 0),
    ("idle_session_timeout", "0", 14),
    ("transaction_timeout", "0", 17),
];

/// The statements that pin everything, for a server of this major version.
///
/// Sent after the login and not as `options` of the startup packet, which poolers and hosted proxies refuse or lose.
pub(crate) fn pin(major: u32) -> String {
    let known = PINNED.iter().filter(|(.., since)| major >= *since);
    known.map(|(name, value, _)| format!("SET {name} = {};", sql::literal(value))).collect()
}

/// The major version in a `server_version` such as `15.18 (Debian 15.18-1)`, `18beta1` or `16devel`; 0 where there is none.
pub(crate) fn major_version(server_version: &str) -> u32 {
    let digits = server_version.split(|c: char| !c.is_ascii_digit()).next().unwrap_or("");
    digits.parse().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions() {
        assert_eq!(major_version("15.18 (Debian 15.18-0+deb12u1)"), 15);
        assert_eq!(major_version("18beta1"), 18);
        assert_eq!(major_version("x"), 0);
        assert!(!pin(16).contains("transaction_timeout"));
        assert!(pin(17).contains("SET transaction_timeout = '0';"));
        assert!(pin(15).contains("SET DateStyle = 'ISO, YMD';"));
        assert!(pin(15).contains("SET search_path = '';"));
    }
}
