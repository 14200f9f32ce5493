//! Types without a lake type, printed from their binary form as their output functions do, under `IntervalStyle`
//! postgres.
//!
//! * `interval_send`: int64 microseconds, int32 days, int32 months.
//! * `timetz_send`: int64 microseconds since midnight, int32 seconds west of Greenwich.
//! * `bit_send` and `varbit_send`: int32 count of bits, then the bits, padded to bytes.

use std::io::Write;

use super::datetime;
use super::reader::Reader;
use super::value_error::Fault;

/// Appends `1 year 2 mons -3 days +04:05:06.789`. On failure, `out` is as it was.
pub(crate) fn interval(bytes: &[u8], out: &mut Vec<u8>) -> Result<(), Fault> {
    let mut reader = Reader::new(bytes);
    let (micros, days, months) = (reader.i64()?, reader.i32()?, reader.i32()?);
    if !reader.is_empty() {
        return Err(Fault::malformed("an interval of more than 16 bytes"));
    }
    // What PostgreSQL 17 and later mean by the extremes of all three fields.
    match (micros, days, months) {
        (i64::MAX, i32::MAX, i32::MAX) => {
            out.extend_from_slice(b"infinity");
            return Ok(());
        }
        (i64::MIN, i32::MIN, i32::MIN) => {
            out.extend_from_slice(b"-infinity");
            return Ok(());
        }
        _ => {}
    }
    let mut first = true;
    let mut after_negative = false;
    for (value, unit) in [(months / 12, "year"), (months % 12, "mon"), (days, "day")] {
        if value == 0 {
            continue;
        }
        let space = if first { "" } else { " " };
        let sign = if after_negative && value > 0 { "+" } else { "" };
        let plural = if value == 1 { "" } else { "s" };
        print(out, format_args!("{space}{sign}{value} {unit}{plural}"));
        first = false;
        after_negative = value < 0;
    }
    if first || micros != 0 {
        let space = if first { "" } else { " " };
        let sign = match (micros < 0, after_negative) {
            (true, _) => "-",
            (false, true) => "+",
            (false, false) => "",
        };
        print(out, format_args!("{space}{sign}"));
        clock(micros.unsigned_abs(), out);
    }
    Ok(())
}

/// Appends `12:34:56.789+05:30`. On failure, `out` is as it was.
pub(crate) fn timetz(bytes: &[u8], out: &mut Vec<u8>) -> Result<(), Fault> {
    let mut reader = Reader::new(bytes);
    let micros = datetime::time_from_postgres(reader.i64()?)?;
    let west = reader.i32()?;
    if !reader.is_empty() {
        return Err(Fault::malformed("a time with time zone of more than 12 bytes"));
    }
    clock(micros.unsigned_abs(), out);
    let sign = if west <= 0 { '+' } else { '-' };
    let seconds = west.unsigned_abs();
    let (hours, minutes, seconds) = (seconds / 3600, seconds / 60 % 60, seconds % 60);
    print(out, format_args!("{sign}{hours:02}"));
    if minutes != 0 || seconds != 0 {
        print(out, format_args!(":{minutes:02}"));
    }
    if seconds != 0 {
        print(out, format_args!(":{seconds:02}"));
    }
    Ok(())
}

/// Appends `101`. On failure, `out` is as it was.
pub(crate) fn bits(bytes: &[u8], out: &mut Vec<u8>) -> Result<(), Fault> {
    let mut reader = Reader::new(bytes);
    let count = usize::try_from(reader.i32()?).map_err(|_| Fault::malformed("a negative count of bits"))?;
    let packed = reader.rest();
    if packed.len() != count.div_ceil(8) {
        return Err(Fault::malformed("a bit string whose bytes do not match its count of bits"));
    }
    out.extend((0..count).map(|bit| b'0' + (packed[bit / 8] >> (7 - bit % 8) & 1)));
    Ok(())
}

/// Hours, of two or more digits, minutes, seconds, and the fraction without its last zeros.
fn clock(micros: u64, out: &mut Vec<u8>) {
    let seconds = micros / 1_000_000;
    print(out, format_args!("{:02}:{:02}:{:02}", seconds / 3600, seconds / 60 % 60, seconds % 60));
    let fraction = micros % 1_000_000;
    if fraction > 0 {
        print(out, format_args!(".{fraction:06}"));
        while out.last() == Some(&b'0') {
            out.pop();
        }
    }
}

/// Writing into a vector can't fail.
fn print(out: &mut Vec<u8>, arguments: std::fmt::Arguments<'_>) {
    let _ = out.write_fmt(arguments);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn printed(print: fn(&[u8], &mut Vec<u8>) -> Result<(), Fault>, bytes: &[u8]) -> Result<String, Fault> {
        let mut out = Vec::new();
        print(bytes, &mut out)?;
        Ok(String::from_utf8(out).unwrap())
    }

    // The finite values are tested with what a server prints: `value_tests.rs`.
    #[test]
    fn infinite_intervals() {
        let extreme = [&i64::MAX.to_be_bytes()[..], &i32::MAX.to_be_bytes(), &i32::MAX.to_be_bytes()].concat();
        assert_eq!(printed(interval, &extreme).unwrap(), "infinity");
        let extreme = [&i64::MIN.to_be_bytes()[..], &i32::MIN.to_be_bytes(), &i32::MIN.to_be_bytes()].concat();
        assert_eq!(printed(interval, &extreme).unwrap(), "-infinity");
    }

    #[test]
    fn malformed_bytes_are_refused() {
        assert!(printed(interval, &[0; 15]).is_err());
        assert!(printed(interval, &[0; 17]).is_err());
        assert!(printed(timetz, &[0; 11]).is_err());
        assert!(printed(timetz, &[0xff; 12]).is_err());
        assert!(printed(bits, &[0, 0, 0, 9, 0xff]).is_err());
        assert!(printed(bits, &[0xff; 4]).is_err());
    }
}
