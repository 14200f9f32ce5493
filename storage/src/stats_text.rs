//! Values as DuckDB's `CAST(x AS VARCHAR)` prints them: the form of the lake's column statistics.
//!
//! A reader casts the text back and skips files by it, so a text that means another value would hide rows. What has no form that
//! is safe to cast back (infinite dates, years that are not 1 to 9999, bytes) has no text here.

use std::fmt::Write;

use arrow::array::{Array, AsArray};
use arrow::datatypes::{
    DataType, Date32Type, Decimal128Type, Float32Type, Float64Type, Int16Type, Int32Type, Int64Type,
    Time64MicrosecondType, TimeUnit, TimestampMicrosecondType, UInt32Type, UInt64Type,
};

const MICROS_PER_SECOND: i64 = 1_000_000;
const MICROS_PER_DAY: i64 = 86_400 * MICROS_PER_SECOND;

/// The text of one value of an array; `None` for NULL and where no safe text exists.
pub fn value_text(array: &dyn Array, row: usize) -> Option<String> {
    if array.is_null(row) {
        return None;
    }
    match array.data_type() {
        DataType::Boolean => Some(array.as_boolean().value(row).to_string()),
        DataType::Int16 => Some(array.as_primitive::<Int16Type>().value(row).to_string()),
        DataType::Int32 => Some(array.as_primitive::<Int32Type>().value(row).to_string()),
        DataType::Int64 => Some(array.as_primitive::<Int64Type>().value(row).to_string()),
        DataType::UInt32 => Some(array.as_primitive::<UInt32Type>().value(row).to_string()),
        DataType::UInt64 => Some(array.as_primitive::<UInt64Type>().value(row).to_string()),
        DataType::Float32 => float32(array.as_primitive::<Float32Type>().value(row)),
        DataType::Float64 => float64(array.as_primitive::<Float64Type>().value(row)),
        DataType::Decimal128(precision, scale) => {
            Some(decimal(array.as_primitive::<Decimal128Type>().value(row), *precision, *scale))
        }
        DataType::Utf8 => Some(array.as_string::<i32>().value(row).to_string()),
        DataType::Date32 => date(array.as_primitive::<Date32Type>().value(row)),
        DataType::Time64(TimeUnit::Microsecond) => time(array.as_primitive::<Time64MicrosecondType>().value(row)),
        DataType::Timestamp(TimeUnit::Microsecond, zone) => {
            let text = timestamp(array.as_primitive::<TimestampMicrosecondType>().value(row))?;
            Some(if zone.is_some() { format!("{text}+00") } else { text })
        }
        DataType::FixedSizeBinary(16) => Some(uuid(array.as_fixed_size_binary().value(row))),
        _ => None,
    }
}

fn float32(value: f32) -> Option<String> {
    value.is_finite().then(|| float(&format!("{value:e}")))
}

fn float64(value: f64) -> Option<String> {
    value.is_finite().then(|| float(&format!("{value:e}")))
}

/// From Rust's shortest digits (`-1.5e-7`) to DuckDB's form: plain from 1e-4 up to 1e16, else with a signed exponent of two digits.
fn float(scientific: &str) -> String {
    let (mantissa, exponent) = scientific.split_once('e').unwrap_or((scientific, "0"));
    let (sign, mantissa) = mantissa.strip_prefix('-').map_or(("", mantissa), |rest| ("-", rest));
    let exponent: i32 = exponent.parse().unwrap_or_default();
    let digits: String = mantissa.chars().filter(char::is_ascii_digit).collect();
    match exponent {
        0..=15 => {
            let point = exponent as usize + 1;
            let whole = format!("{digits:0<point$}");
            let fraction = if digits.len() > point { &digits[point..] } else { "0" };
            format!("{sign}{}.{fraction}", &whole[..point])
        }
        -4..=-1 => format!("{sign}0.{}{digits}", "0".repeat((-exponent - 1) as usize)),
        _ => {
            let exponent_sign = if exponent < 0 { '-' } else { '+' };
            format!("{sign}{mantissa}e{exponent_sign}{:02}", exponent.unsigned_abs())
        }
    }
}

fn decimal(unscaled: i128, precision: u8, scale: i8) -> String {
    let scale = usize::try_from(scale).unwrap_or_default();
    if scale == 0 {
        return unscaled.to_string();
    }
    let sign = if unscaled < 0 { "-" } else { "" };
    // DuckDB writes a zero before the point only where the type has room for a digit there.
    let width = if usize::from(precision) > scale { scale + 1 } else { scale };
    let digits = format!("{:0>width$}", unscaled.unsigned_abs());
    let (whole, fraction) = digits.split_at(digits.len() - scale);
    format!("{sign}{whole}.{fraction}")
}

fn date(days: i32) -> Option<String> {
    let (year, month, day) = civil(i64::from(days));
    (1..=9999).contains(&year).then(|| format!("{year:04}-{month:02}-{day:02}"))
}

fn time(micros: i64) -> Option<String> {
    (0..=MICROS_PER_DAY).contains(&micros).then(|| clock(micros))
}

fn timestamp(micros: i64) -> Option<String> {
    let day = date(i32::try_from(micros.div_euclid(MICROS_PER_DAY)).ok()?)?;
    Some(format!("{day} {}", clock(micros.rem_euclid(MICROS_PER_DAY))))
}

fn clock(micros: i64) -> String {
    let (seconds, fraction) = (micros / MICROS_PER_SECOND, micros % MICROS_PER_SECOND);
    let mut text = format!("{:02}:{:02}:{:02}", seconds / 3600, seconds / 60 % 60, seconds % 60);
    if fraction != 0 {
        let digits = format!("{fraction:06}");
        text.push('.');
        text.push_str(digits.trim_end_matches('0'));
    }
    text
}

fn uuid(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(36);
    for (index, byte) in bytes.iter().enumerate() {
        if matches!(index, 4 | 6 | 8 | 10) {
            text.push('-');
        }
        // Writing to a String does not fail.
        let _ = write!(text, "{byte:02x}");
    }
    text
}

/// Year, month and day of a day since 1970-01-01 in the proleptic Gregorian calendar (Howard Hinnant, "chrono-Compatible
/// Low-Level Date Algorithms", `civil_from_days`).
fn civil(days: i64) -> (i64, i64, i64) {
    let days = days + 719_468;
    let era = days.div_euclid(146_097);
    let day_of_era = days.rem_euclid(146_097);
    let year_of_era = (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 { month_from_march + 3 } else { month_from_march - 9 };
    (year_of_era + era * 400 + i64::from(month <= 2), month, day)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn floats_are_plain_where_duckdb_has_them_plain() {
        let cases = [
            (0.0, "0.0"),
            (-0.0, "-0.0"),
            (0.1, "0.1"),
            (1.0, "1.0"),
            (123456.789, "123456.789"),
            (1e15, "1000000000000000.0"),
            (1e16, "1e+16"),
            (1e300, "1e+300"),
            (-2.5e-7, "-2.5e-07"),
            (0.001, "0.001"),
        ];
        for (value, text) in cases {
            assert_eq!(float64(value).as_deref(), Some(text));
        }
        assert_eq!(float64(f64::NAN), None);
        assert_eq!(float32(f32::INFINITY), None);
    }

    #[test]
    fn decimals_keep_their_scale() {
        assert_eq!(decimal(-5, 4, 2), "-0.05");
        assert_eq!(decimal(12345, 5, 2), "123.45");
        assert_eq!(decimal(-5, 2, 2), "-.05");
        assert_eq!(decimal(7, 9, 0), "7");
        assert_eq!(decimal(i128::MIN, 38, 0), i128::MIN.to_string());
    }

    #[test]
    fn days_and_times() {
        assert_eq!(date(0).as_deref(), Some("1970-01-01"));
        assert_eq!(date(-1).as_deref(), Some("1969-12-31"));
        assert_eq!(date(-719_162).as_deref(), Some("0001-01-01"));
        assert_eq!(date(-719_163), None);
        assert_eq!(date(2_932_896).as_deref(), Some("9999-12-31"));
        assert_eq!(date(2_932_897), None);
        assert_eq!(date(i32::MAX), None);
        assert_eq!(time(MICROS_PER_DAY).as_deref(), Some("24:00:00"));
        assert_eq!(timestamp(-1).as_deref(), Some("1969-12-31 23:59:59.999999"));
        assert_eq!(timestamp(i64::MAX), None);
        assert_eq!(timestamp(-i64::MAX), None);
    }

    #[test]
    fn every_day_of_the_calendar_follows_the_one_before() {
        let mut before = civil(-719_163);
        for days in -719_162..=2_932_896 {
            let now = civil(days);
            let next_day = now.0 == before.0 && now.1 == before.1 && now.2 == before.2 + 1;
            let next_month = now.2 == 1 && (now.1 == before.1 + 1 && now.0 == before.0 || now.1 == 1 && before.1 == 12);
            assert!(next_day || next_month, "{before:?} {now:?}");
            before = now;
        }
    }
}
