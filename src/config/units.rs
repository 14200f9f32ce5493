//! Sizes and durations as people write them.

use std::time::Duration;

/// Parses a size in bytes: a whole or decimal number and a unit. `KB`, `MB`, `GB`, `TB` are powers of 1000, `KiB`, `MiB`,
/// `GiB`, `TiB` powers of 1024; `B` or no unit is bytes. Upper or lower case, a space before the unit allowed.
///
/// The error says what is wrong, without the key that it was read from.
pub fn parse_size(text: &str) -> Result<u64, String> {
    let (number, unit) = split(text);
    let factor: u64 = match unit.to_ascii_lowercase().as_str() {
        "" | "b" => 1,
        "kb" => 1_000,
        "mb" => 1_000_000,
        "gb" => 1_000_000_000,
        "tb" => 1_000_000_000_000,
        "kib" => 1 << 10,
        "mib" => 1 << 20,
        "gib" => 1 << 30,
        "tib" => 1 << 40,
        _ => return Err(format!("{text:?} is not a size such as \"64MB\", \"64MiB\" or \"1GB\"")),
    };
    scale(number, factor).ok_or_else(|| format!("{text:?} is not a size such as \"64MB\", \"64MiB\" or \"1GB\""))
}

/// Parses a duration: a whole or decimal number and one of the units `us`, `ms`, `s`, `m`, `h`, `d`.
///
/// The error says what is wrong, without the key that it was read from.
pub fn parse_duration(text: &str) -> Result<Duration, String> {
    let (number, unit) = split(text);
    let wrong = || format!("{text:?} is not a duration such as \"1s\", \"500ms\" or \"5m\"");
    let factor: u64 = match unit.to_ascii_lowercase().as_str() {
        "us" | "µs" => 1,
        "ms" => 1_000,
        "s" => 1_000_000,
        "m" | "min" => 60_000_000,
        "h" => 3_600_000_000,
        "d" => 86_400_000_000,
        "" => return Err(format!("{text:?} has no unit; write \"{}s\" for seconds", text.trim())),
        _ => return Err(wrong()),
    };
    scale(number, factor).map(Duration::from_micros).ok_or_else(wrong)
}

/// Prints a size with the unit that divides it evenly, else in bytes: `64MB`, `64MiB`, `1234567B`.
pub fn format_size(bytes: u64) -> String {
    const UNITS: &[(u64, &str)] = &[
        (1_000_000_000_000, "TB"),
        (1 << 40, "TiB"),
        (1_000_000_000, "GB"),
        (1 << 30, "GiB"),
        (1_000_000, "MB"),
        (1 << 20, "MiB"),
        (1_000, "KB"),
        (1 << 10, "KiB"),
    ];
    match UNITS.iter().find(|(factor, _)| bytes >= *factor && bytes.is_multiple_of(*factor)) {
        Some((factor, unit)) => format!("{}{unit}", bytes / factor),
        None => format!("{bytes}B"),
    }
}

/// Prints a size for reading, rounded to a tenth: `64.0 MB`, `1.2 GB`, `512 B`.
pub fn display_size(bytes: u64) -> String {
    let units = ["B", "kB", "MB", "GB", "TB", "PB"];
    let mut value = bytes as f64;
    let mut unit = 0;
    // 999.95 prints as 1000.0 with one digit, so the step comes a little earlier.
    while value >= 999.95 && unit + 1 < units.len() {
        value /= 1000.0;
        unit += 1;
    }
    if unit == 0 { format!("{bytes} B") } else { format!("{value:.1} {}", units[unit]) }
}

fn split(text: &str) -> (&str, &str) {
    let text = text.trim();
    let end = text.find(|c: char| !(c.is_ascii_digit() || c == '.' || c == '_')).unwrap_or(text.len());
    (&text[..end], text[end..].trim_start())
}

/// `number × factor`, exactly, in integers; `None` where it is no number, has too many digits or does not come out even.
fn scale(number: &str, factor: u64) -> Option<u64> {
    let number = number.replace('_', "");
    let (whole, fraction) = number.split_once('.').unwrap_or((&number, ""));
    if whole.is_empty() || fraction.len() > 12 || !fraction.chars().all(|c| c.is_ascii_digit()) {
        return None;
    }
    let whole: u128 = whole.parse::<u64>().ok()?.into();
    let denominator = 10u128.pow(fraction.len() as u32);
    let numerator = if fraction.is_empty() { 0 } else { fraction.parse::<u128>().ok()? };
    let parts = numerator * u128::from(factor);
    if parts % denominator != 0 {
        return None;
    }
    u64::try_from(whole * u128::from(factor) + parts / denominator).ok()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn reads_sizes() {
        assert_eq!(parse_size("64MB"), Ok(64_000_000));
        assert_eq!(parse_size("64MiB"), Ok(64 << 20));
        assert_eq!(parse_size("1GB"), Ok(1_000_000_000));
        assert_eq!(parse_size(" 1.5 gib "), Ok(3 << 29));
        assert_eq!(parse_size("4096"), Ok(4096));
        assert_eq!(parse_size("1_000kb"), Ok(1_000_000));
        for wrong in ["", "MB", "64 M", "-1MB", "1e3", "0.3B", "99999999999TB", "1..5MB", "1.2.3MB", ".5MB"] {
            assert!(parse_size(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn reads_durations() {
        assert_eq!(parse_duration("1s"), Ok(Duration::from_secs(1)));
        assert_eq!(parse_duration("500ms"), Ok(Duration::from_millis(500)));
        assert_eq!(parse_duration("5m"), Ok(Duration::from_secs(300)));
        assert_eq!(parse_duration("0.5 h"), Ok(Duration::from_secs(1800)));
        assert_eq!(parse_duration("10").unwrap_err(), "\"10\" has no unit; write \"10s\" for seconds");
        for wrong in ["", "s", "-1s", "1 fortnight", "0.0000001s"] {
            assert!(parse_duration(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn shows_sizes() {
        assert_eq!(display_size(0), "0 B");
        assert_eq!(display_size(999), "999 B");
        assert_eq!(display_size(999_999), "1.0 MB");
        assert_eq!(display_size(64_000_000), "64.0 MB");
    }

    proptest! {
        #[test]
        fn a_printed_size_reads_back(bytes in any::<u64>()) {
            prop_assert_eq!(parse_size(&format_size(bytes)), Ok(bytes));
        }

        #[test]
        fn even_sizes_read_back(count in 0u64..10_000, unit in prop::sample::select(vec![1u64, 1000, 1_000_000, 1 << 10, 1 << 20, 1 << 30])) {
            prop_assert_eq!(parse_size(&format_size(count * unit)), Ok(count * unit));
        }

        #[test]
        fn any_text_is_read_or_refused(text in "\\PC{0,12}") {
            let _ = parse_size(&text);
            let _ = parse_duration(&text);
        }

        #[test]
        fn milliseconds_are_thousandths(n in 0u64..1_000_000) {
            let seconds = format!("{}.{:03}s", n / 1000, n % 1000);
            prop_assert_eq!(parse_duration(&format!("{n}ms")), parse_duration(&seconds));
        }
    }
}
