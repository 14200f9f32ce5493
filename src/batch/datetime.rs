//! Dates, times and timestamps, from Postgres' epoch (2000-01-01) and its ISO text to the lake's (1970-01-01).
//!
//! The text is what `DateStyle` ISO prints: `2024-02-29 23:59:59.123456+05:30 BC`, years of four or more digits.
//! Infinity is DuckDB's: the type's largest value, and minus that value for -infinity.

use super::value_error::Fault;

/// Microseconds in a day.
const DAY: i64 = 86_400_000_000;
/// 2000-01-01 in days since 1970-01-01.
const POSTGRES_EPOCH_DAYS: i32 = 10_957;
/// 2000-01-01 in microseconds since 1970-01-01.
const POSTGRES_EPOCH: i64 = POSTGRES_EPOCH_DAYS as i64 * DAY;

/// DuckDB's `'infinity'::DATE` in days since 1970-01-01; `-infinity` is its negative.
const DATE_INFINITY: i32 = i32::MAX;
/// DuckDB's `'infinity'::TIMESTAMP` in microseconds since 1970-01-01; `-infinity` is its negative.
const TIMESTAMP_INFINITY: i64 = i64::MAX;

/// Days since 1970-01-01 of a binary date.
#[inline]
pub(crate) fn date_from_postgres(days: i32) -> Result<i32, Fault> {
    match days {
        i32::MAX => Ok(DATE_INFINITY),
        i32::MIN => Ok(-DATE_INFINITY),
        _ => finite_date(i64::from(days) + i64::from(POSTGRES_EPOCH_DAYS)),
    }
}

/// Microseconds since 1970-01-01 of a binary timestamp, with or without time zone.
#[inline]
pub(crate) fn timestamp_from_postgres(micros: i64) -> Result<i64, Fault> {
    match micros {
        i64::MAX => Ok(TIMESTAMP_INFINITY),
        i64::MIN => Ok(-TIMESTAMP_INFINITY),
        _ => finite_timestamp(micros.checked_add(POSTGRES_EPOCH)),
    }
}

/// Microseconds since midnight, up to and including 24:00:00.
#[inline]
pub(crate) fn time_from_postgres(micros: i64) -> Result<i64, Fault> {
    if (0..=DAY).contains(&micros) {
        Ok(micros)
    } else {
        Err(Fault::malformed(format!("{micros} µs is no time of day")))
    }
}

/// Microseconds since 1970-01-01 of a finite Postgres timestamp, such as a commit's; `None` past the range.
pub(crate) fn unix_micros(postgres_micros: i64) -> Option<i64> {
    postgres_micros.checked_add(POSTGRES_EPOCH)
}

/// Days since 1970-01-01 of `2024-02-29`, `0044-03-15 BC`, `infinity`.
pub(crate) fn date_from_text(text: &[u8]) -> Result<i32, Fault> {
    match text {
        b"infinity" => return Ok(DATE_INFINITY),
        b"-infinity" => return Ok(-DATE_INFINITY),
        _ => {}
    }
    let parse = || {
        let (number, before_christ) = split_era(text);
        let mut scan = Scan { rest: number };
        let days = scan.date(before_christ)?;
        scan.rest.is_empty().then_some(days)
    };
    finite_date(parse().ok_or_else(|| Fault::not_a("date", text))?)
}

/// Microseconds since midnight of `23:59:59.5` or `24:00:00`.
pub(crate) fn time_from_text(text: &[u8]) -> Result<i64, Fault> {
    let parse = || {
        let mut scan = Scan { rest: text };
        let time = scan.time()?;
        (scan.rest.is_empty() && time <= DAY).then_some(time)
    };
    parse().ok_or_else(|| Fault::not_a("time", text))
}

/// Microseconds since 1970-01-01 of `2024-02-29 23:59:59.5`; with `zoned`, of `2024-02-29 23:59:59.5+05:30` in UTC.
pub(crate) fn timestamp_from_text(text: &[u8], zoned: bool) -> Result<i64, Fault> {
    match text {
        b"infinity" => return Ok(TIMESTAMP_INFINITY),
        b"-infinity" => return Ok(-TIMESTAMP_INFINITY),
        _ => {}
    }
    let parse = || {
        let (number, before_christ) = split_era(text);
        let mut scan = Scan { rest: number };
        let days = scan.date(before_christ)?;
        scan.expect(b' ')?;
        let time = scan.time()?;
        let offset = if zoned { scan.offset()? } else { 0 };
        scan.rest.is_empty().then_some((days, time - offset))
    };
    let (days, time) = parse().ok_or_else(|| Fault::not_a("timestamp", text))?;
    finite_timestamp(days.checked_mul(DAY).and_then(|micros| micros.checked_add(time)))
}

fn finite_date(days: i64) -> Result<i32, Fault> {
    match i32::try_from(days) {
        Ok(days) if days.abs_diff(0) < DATE_INFINITY.abs_diff(0) => Ok(days),
        _ => Err(Fault::unrepresentable("a date outside the lake's range (5877642 BC to 5881580 AD)")),
    }
}

#[inline]
fn finite_timestamp(micros: Option<i64>) -> Result<i64, Fault> {
    match micros {
        // Neither infinity, nor i64::MIN, which DuckDB has no meaning for.
        Some(micros) if micros.unsigned_abs() < TIMESTAMP_INFINITY.unsigned_abs() => Ok(micros),
        _ => Err(Fault::unrepresentable("a timestamp outside the lake's range (290309 BC to 294247 AD)")),
    }
}

fn split_era(text: &[u8]) -> (&[u8], bool) {
    match text.strip_suffix(b" BC") {
        Some(number) => (number, true),
        None => (text, false),
    }
}

/// Days since 1970-01-01 in the proleptic Gregorian calendar, with a year 0 (Howard Hinnant's `days_from_civil`).
fn days_from_civil(year: i64, month: i64, day: i64) -> i64 {
    let year = if month <= 2 { year - 1 } else { year };
    let era = year.div_euclid(400);
    let year_of_era = year.rem_euclid(400);
    let day_of_year = (153 * (month + if month > 2 { -3 } else { 9 }) + 2) / 5 + day - 1;
    let day_of_era = year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + day_of_year;
    era * 146_097 + day_of_era - 719_468
}

/// What is left of a text.
struct Scan<'a> {
    rest: &'a [u8],
}

impl Scan<'_> {
    /// `least` to `most` digits.
    fn digits(&mut self, least: usize, most: usize) -> Option<i64> {
        let count = self.rest.iter().take(most).take_while(|byte| byte.is_ascii_digit()).count();
        if count < least {
            return None;
        }
        let (digits, rest) = self.rest.split_at(count);
        self.rest = rest;
        Some(digits.iter().fold(0, |value, digit| value * 10 + i64::from(digit - b'0')))
    }

    fn expect(&mut self, byte: u8) -> Option<()> {
        self.rest = self.rest.strip_prefix(&[byte])?;
        Some(())
    }

    fn take_if(&mut self, byte: u8) -> bool {
        self.expect(byte).is_some()
    }

    fn date(&mut self, before_christ: bool) -> Option<i64> {
        let year = self.digits(4, 9)?;
        self.expect(b'-')?;
        let month = self.digits(2, 2).filter(|month| (1..=12).contains(month))?;
        self.expect(b'-')?;
        let day = self.digits(2, 2).filter(|day| (1..=31).contains(day))?;
        // There was no year 0: 1 BC is the year before 1 AD.
        let year = if before_christ { 1 - year } else { year };
        Some(days_from_civil(year, month, day))
    }

    fn time(&mut self) -> Option<i64> {
        let hour = self.digits(2, 2).filter(|hour| *hour <= 24)?;
        self.expect(b':')?;
        let minute = self.digits(2, 2).filter(|minute| *minute < 60)?;
        self.expect(b':')?;
        let second = self.digits(2, 2).filter(|second| *second < 60)?;
        let mut micros = 0;
        if self.take_if(b'.') {
            let before = self.rest.len();
            micros = self.digits(1, 6)?;
            for _ in before - self.rest.len()..6 {
                micros *= 10;
            }
        }
        Some(((hour * 60 + minute) * 60 + second) * 1_000_000 + micros)
    }

    /// `+05`, `-03:30` or `+00:19:32`, in microseconds east of Greenwich.
    fn offset(&mut self) -> Option<i64> {
        let sign = if self.take_if(b'-') {
            -1
        } else {
            self.expect(b'+')?;
            1
        };
        let mut seconds = self.digits(2, 2)? * 3600;
        if self.take_if(b':') {
            seconds += self.digits(2, 2)? * 60;
            if self.take_if(b':') {
                seconds += self.digits(2, 2)?;
            }
        }
        Some(sign * seconds * 1_000_000)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn timestamp(text: &str) -> Result<i64, Fault> {
        timestamp_from_text(text.as_bytes(), false)
    }

    fn zoned(text: &str) -> Result<i64, Fault> {
        timestamp_from_text(text.as_bytes(), true)
    }

    #[test]
    fn dates() {
        for (text, postgres) in [
            ("2000-01-01", 0),
            ("1970-01-01", -10_957),
            ("1969-12-31", -10_958),
            ("2024-02-29", 8_825),
            ("0001-01-01", -730_119),
            ("0001-12-31 BC", -730_120),
            ("4714-11-24 BC", -2_451_545),
            ("5874897-12-31", 2_145_031_948),
            ("infinity", i32::MAX),
            ("-infinity", i32::MIN),
        ] {
            assert_eq!(date_from_text(text.as_bytes()).unwrap(), date_from_postgres(postgres).unwrap(), "{text}");
        }
        assert_eq!(date_from_text(b"infinity").unwrap(), i32::MAX);
        assert_eq!(date_from_text(b"-infinity").unwrap(), -i32::MAX);
        assert!(date_from_postgres(i32::MAX - 1).unwrap_err().is_unrepresentable());
        for wrong in ["", "2024", "2024-13-01", "2024-01-32", "2024-01-01x", "24-01-01", "01/02/2024"] {
            assert!(!date_from_text(wrong.as_bytes()).unwrap_err().is_unrepresentable(), "{wrong}");
        }
    }

    #[test]
    fn times() {
        assert_eq!(time_from_text(b"00:00:00").unwrap(), 0);
        assert_eq!(time_from_text(b"23:59:59.999999").unwrap(), DAY - 1);
        assert_eq!(time_from_text(b"12:00:00.5").unwrap(), DAY / 2 + 500_000);
        assert_eq!(time_from_text(b"24:00:00").unwrap(), DAY);
        assert_eq!(time_from_postgres(DAY).unwrap(), DAY);
        assert!(time_from_postgres(DAY + 1).is_err());
        assert!(time_from_postgres(-1).is_err());
        for wrong in ["", "24:00:01", "12:00", "12:60:00", "12:00:60", "12:00:00.", "12:00:00+00"] {
            assert!(time_from_text(wrong.as_bytes()).is_err(), "{wrong}");
        }
    }

    #[test]
    fn timestamps() {
        assert_eq!(timestamp("1970-01-01 00:00:00").unwrap(), 0);
        assert_eq!(timestamp("1969-12-31 23:59:59.999999").unwrap(), -1);
        assert_eq!(timestamp("2000-01-01 00:00:00").unwrap(), timestamp_from_postgres(0).unwrap());
        // The least value that Postgres holds: Julian day 0.
        assert_eq!(
            timestamp("4714-11-24 00:00:00 BC").unwrap(),
            timestamp_from_postgres(-211_813_488_000_000_000).unwrap()
        );
        assert_eq!(timestamp("294247-01-10 04:00:54.775806").unwrap(), i64::MAX - 1);
        assert_eq!(timestamp_from_postgres(i64::MAX).unwrap(), i64::MAX);
        assert_eq!(timestamp_from_postgres(i64::MIN).unwrap(), -i64::MAX);
        assert_eq!(timestamp("infinity").unwrap(), i64::MAX);
        assert_eq!(timestamp("-infinity").unwrap(), -i64::MAX);
        for beyond in ["294247-01-10 04:00:54.775807", "294276-12-31 23:59:59.999999", "999999999-01-01 00:00:00"] {
            assert!(timestamp(beyond).unwrap_err().is_unrepresentable(), "{beyond}");
        }
        // 294276-12-31 23:59:59.999999, the greatest that Postgres holds.
        assert!(timestamp_from_postgres(9_223_371_331_200_000_000 - 1).unwrap_err().is_unrepresentable());
        for wrong in ["", "2024-01-01", "2024-01-01T00:00:00", "2024-01-01 00:00:00+00", "Mon Jan 01 00:00:00 2024"] {
            assert!(!timestamp(wrong).unwrap_err().is_unrepresentable(), "{wrong}");
        }
    }

    #[test]
    fn offsets() {
        assert_eq!(zoned("1970-01-01 00:00:00+00").unwrap(), 0);
        assert_eq!(zoned("1970-01-01 05:30:00+05:30").unwrap(), 0);
        assert_eq!(zoned("1969-12-31 21:00:00-03").unwrap(), 0);
        assert_eq!(zoned("1970-01-01 00:19:32+00:19:32").unwrap(), 0);
        assert_eq!(zoned("0044-03-15 12:00:00+00 BC").unwrap(), timestamp("0044-03-15 12:00:00 BC").unwrap());
        assert!(zoned("1970-01-01 00:00:00").is_err());
        assert!(zoned("1970-01-01 00:00:00+0").is_err());
    }
}
