//! `numeric`, in binary (base 10000 digits) and text, to a scaled `i128` or to the text that Postgres prints.
//!
//! Binary, from `numeric_send`: int16 count of digits, int16 weight of the first digit (its power of 10000), uint16
//! sign (0000 plus, 4000 minus, C000 NaN, D000 infinity, F000 -infinity), uint16 digits to show after the point, then
//! the digits, 0..9999 each.

use super::reader::Reader;
use super::value_error::Fault;

const NEGATIVE: u16 = 0x4000;
const NAN: u16 = 0xC000;
const POSITIVE_INFINITY: u16 = 0xD000;
const NEGATIVE_INFINITY: u16 = 0xF000;

/// The powers of ten that an `i128` holds.
const POWERS: [i128; 39] = {
    let mut powers = [1i128; 39];
    let mut i = 1;
    while i < 39 {
        powers[i] = powers[i - 1] * 10;
        i += 1;
    }
    powers
};

/// The binary form's header and digits.
struct Numeric<'a> {
    weight: i32,
    sign: u16,
    scale: u16,
    digits: &'a [u8],
}

impl<'a> Numeric<'a> {
    #[inline]
    fn read(bytes: &'a [u8]) -> Result<Self, Fault> {
        let mut reader = Reader::new(bytes);
        let count = reader.u16()?;
        let weight = i32::from(reader.i16()?);
        let sign = reader.u16()?;
        let scale = reader.u16()?;
        let digits = reader.rest();
        if digits.len() != 2 * usize::from(count) {
            return Err(Fault::malformed("a numeric whose digits do not match their count"));
        }
        Ok(Numeric { weight, sign, scale, digits })
    }

    #[inline]
    fn digits(&self) -> impl Iterator<Item = Result<u16, Fault>> {
        self.digits.chunks_exact(2).map(|pair| {
            let digit = u16::from_be_bytes([pair[0], pair[1]]);
            if digit < 10_000 { Ok(digit) } else { Err(Fault::malformed("a numeric digit above 9999")) }
        })
    }
}

/// The value times 10^`scale`, exactly, with at most `precision` digits.
#[inline]
pub(crate) fn decimal_from_binary(bytes: &[u8], precision: u8, scale: u8) -> Result<i128, Fault> {
    let numeric = Numeric::read(bytes)?;
    match numeric.sign {
        0 | NEGATIVE => {}
        NAN => return Err(does_not_fit("NaN", precision, scale)),
        POSITIVE_INFINITY => return Err(does_not_fit("Infinity", precision, scale)),
        NEGATIVE_INFINITY => return Err(does_not_fit("-Infinity", precision, scale)),
        sign => return Err(Fault::malformed(format!("a numeric with the unknown sign {sign:#06x}"))),
    }
    let mut value = 0i128;
    // The power of ten that the digit at hand is to be multiplied with, once scaled.
    let mut power = 4 * numeric.weight + i32::from(scale);
    for digit in numeric.digits() {
        let digit = i128::from(digit?);
        let (factor, addend) = match power {
            0.. => (10_000, digit),
            -3..=-1 => {
                // The scale cuts through this digit: what lies behind the cut must be zero.
                let cut = POWERS[power.unsigned_abs() as usize];
                if digit % cut != 0 {
                    return Err(too_fine(precision, scale));
                }
                (10_000 / cut, digit / cut)
            }
            _ if digit == 0 => (1, 0),
            _ => return Err(too_fine(precision, scale)),
        };
        value = value
            .checked_mul(factor)
            .and_then(|value| value.checked_add(addend))
            .ok_or_else(|| too_large(precision, scale))?;
        power -= 4;
    }
    // The last digit's power, where it is still positive, is made of zeros that were not sent.
    let zeros = power + 4;
    if zeros > 0 && value != 0 {
        let zeros = POWERS.get(zeros as usize).ok_or_else(|| too_large(precision, scale))?;
        value = value.checked_mul(*zeros).ok_or_else(|| too_large(precision, scale))?;
    }
    let value = if numeric.sign == NEGATIVE { -value } else { value };
    within(value, precision, scale)
}

/// The text's value times 10^`scale`, exactly, with at most `precision` digits.
pub(crate) fn decimal_from_text(text: &[u8], precision: u8, scale: u8) -> Result<i128, Fault> {
    if matches!(text, b"NaN" | b"Infinity" | b"-Infinity") {
        return Err(does_not_fit(&String::from_utf8_lossy(text), precision, scale));
    }
    let (negative, number) = match text {
        [b'-', number @ ..] => (true, number),
        number => (false, number),
    };
    let mut value = 0i128;
    let mut digits = 0usize;
    let mut fraction: Option<u8> = None;
    for &byte in number {
        match (byte, fraction) {
            (b'0'..=b'9', Some(shown)) if shown >= scale => {
                digits += 1;
                if byte != b'0' {
                    return Err(too_fine(precision, scale));
                }
            }
            (b'0'..=b'9', _) => {
                digits += 1;
                fraction = fraction.map(|shown| shown + 1);
                value = value
                    .checked_mul(10)
                    .and_then(|value| value.checked_add(i128::from(byte - b'0')))
                    .ok_or_else(|| too_large(precision, scale))?;
            }
            (b'.', None) => fraction = Some(0),
            _ => return Err(Fault::not_a("numeric", text)),
        }
    }
    if digits == 0 {
        return Err(Fault::not_a("numeric", text));
    }
    let missing = usize::from(scale - fraction.unwrap_or(0));
    value =
        POWERS.get(missing).and_then(|power| value.checked_mul(*power)).ok_or_else(|| too_large(precision, scale))?;
    within(if negative { -value } else { value }, precision, scale)
}

/// Appends the text that `numeric_out` prints for a binary numeric. On failure, `out` may hold a part.
pub(crate) fn text_from_binary(bytes: &[u8], out: &mut Vec<u8>) -> Result<(), Fault> {
    let numeric = Numeric::read(bytes)?;
    match numeric.sign {
        0 => {}
        NEGATIVE => out.push(b'-'),
        NAN => {
            out.extend_from_slice(b"NaN");
            return Ok(());
        }
        POSITIVE_INFINITY => {
            out.extend_from_slice(b"Infinity");
            return Ok(());
        }
        NEGATIVE_INFINITY => {
            out.extend_from_slice(b"-Infinity");
            return Ok(());
        }
        sign => return Err(Fault::malformed(format!("a numeric with the unknown sign {sign:#06x}"))),
    }
    let digit_at = |power: i32| -> Result<u16, Fault> {
        let index = numeric.weight - power;
        if index < 0 {
            return Ok(0);
        }
        match numeric.digits.chunks_exact(2).nth(index as usize) {
            None => Ok(0),
            Some(pair) => match u16::from_be_bytes([pair[0], pair[1]]) {
                digit @ 0..10_000 => Ok(digit),
                _ => Err(Fault::malformed("a numeric digit above 9999")),
            },
        }
    };
    if numeric.weight < 0 {
        out.push(b'0');
    }
    let mut leading = true;
    for power in (0..=numeric.weight).rev() {
        let four = four_digits(digit_at(power)?);
        let skipped = if leading { four.iter().take(3).take_while(|&&digit| digit == b'0').count() } else { 0 };
        out.extend_from_slice(&four[skipped..]);
        leading = false;
    }
    if numeric.scale > 0 {
        out.push(b'.');
        let mut left = usize::from(numeric.scale);
        let mut power = -1;
        while left > 0 {
            let shown = left.min(4);
            out.extend_from_slice(&four_digits(digit_at(power)?)[..shown]);
            left -= shown;
            power -= 1;
        }
    }
    Ok(())
}

fn four_digits(digit: u16) -> [u8; 4] {
    let ascii = |value: u16| b'0' + (value % 10) as u8;
    [ascii(digit / 1000), ascii(digit / 100), ascii(digit / 10), ascii(digit)]
}

#[inline]
fn within(value: i128, precision: u8, scale: u8) -> Result<i128, Fault> {
    let limit = POWERS.get(usize::from(precision)).copied().unwrap_or(i128::MAX);
    if value.unsigned_abs() < limit.unsigned_abs() { Ok(value) } else { Err(too_large(precision, scale)) }
}

#[cold]
fn does_not_fit(value: &str, precision: u8, scale: u8) -> Fault {
    Fault::unrepresentable(format!("{value} does not fit the lake's DECIMAL({precision},{scale})"))
}

#[cold]
fn too_large(precision: u8, scale: u8) -> Fault {
    Fault::unrepresentable(format!("a number with too many digits for the lake's DECIMAL({precision},{scale})"))
}

#[cold]
fn too_fine(precision: u8, scale: u8) -> Fault {
    Fault::unrepresentable(format!(
        "a number with too many digits after the point for the lake's DECIMAL({precision},{scale})"
    ))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// A binary numeric as `numeric_send` writes it.
    fn numeric(weight: i16, sign: u16, scale: u16, digits: &[u16]) -> Vec<u8> {
        let mut bytes = Vec::new();
        bytes.extend((digits.len() as u16).to_be_bytes());
        bytes.extend(weight.to_be_bytes());
        bytes.extend(sign.to_be_bytes());
        bytes.extend(scale.to_be_bytes());
        digits.iter().for_each(|digit| bytes.extend(digit.to_be_bytes()));
        bytes
    }

    /// The binary form of a decimal text, made the slow way: by aligning its digits to groups of four.
    fn binary_of(text: &str) -> Vec<u8> {
        let (sign, number) = match text.strip_prefix('-') {
            Some(number) => (NEGATIVE, number),
            None => (0, text),
        };
        let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
        let padded_whole = format!("{whole:0>width$}", width = whole.len().div_ceil(4) * 4);
        let padded_fraction = format!("{fraction:0<width$}", width = fraction.len().div_ceil(4) * 4);
        let all = format!("{padded_whole}{padded_fraction}");
        let mut groups: Vec<u16> =
            all.as_bytes().chunks(4).map(|four| std::str::from_utf8(four).unwrap().parse().unwrap()).collect();
        let mut weight = (padded_whole.len() / 4) as i16 - 1;
        while groups.first() == Some(&0) {
            groups.remove(0);
            weight -= 1;
        }
        while groups.last() == Some(&0) {
            groups.pop();
        }
        if groups.is_empty() {
            return numeric(0, 0, fraction.len() as u16, &[]);
        }
        numeric(weight, sign, fraction.len() as u16, &groups)
    }

    fn text(bytes: &[u8]) -> String {
        let mut out = Vec::new();
        text_from_binary(bytes, &mut out).unwrap();
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn scaled_values_from_both_forms() {
        for (value, precision, scale, expected) in [
            ("0", 10, 2, 0),
            ("0.00", 10, 2, 0),
            ("1", 10, 2, 100),
            ("-1.5", 10, 2, -150),
            ("12345.67", 7, 2, 1_234_567),
            ("0.0001", 4, 4, 1),
            ("10000", 5, 0, 10_000),
            ("100000000", 38, 0, 100_000_000),
            ("1.50", 2, 1, 15),
            ("0.00012", 5, 5, 12),
            ("99999999999999999999999999999999999999", 38, 0, POWERS[38 - 1] * 9 + (POWERS[37] - 1)),
            ("-0.99999999999999999999999999999999999999", 38, 38, -(POWERS[37] * 9 + (POWERS[37] - 1))),
        ] {
            assert_eq!(decimal_from_text(value.as_bytes(), precision, scale).unwrap(), expected, "{value} as text");
            assert_eq!(
                decimal_from_binary(&binary_of(value), precision, scale).unwrap(),
                expected,
                "{value} in binary"
            );
        }
    }

    #[test]
    fn what_does_not_fit_is_refused_and_never_rounded() {
        for (value, precision, scale) in
            [("1.005", 10, 2), ("100", 2, 0), ("10", 3, 2), ("0.00001", 38, 4), ("1e", 38, 0), ("1", 38, 38)]
        {
            assert!(decimal_from_text(value.as_bytes(), precision, scale).is_err(), "{value}");
        }
        assert!(decimal_from_binary(&binary_of("1.005"), 10, 2).unwrap_err().is_unrepresentable());
        assert!(decimal_from_binary(&binary_of("100"), 2, 0).unwrap_err().is_unrepresentable());
        assert!(decimal_from_binary(&binary_of("0.00001"), 38, 4).unwrap_err().is_unrepresentable());
        for sign in [NAN, POSITIVE_INFINITY, NEGATIVE_INFINITY] {
            assert!(decimal_from_binary(&numeric(0, sign, 0, &[]), 38, 4).unwrap_err().is_unrepresentable());
        }
        for value in ["NaN", "Infinity", "-Infinity"] {
            assert!(decimal_from_text(value.as_bytes(), 38, 4).unwrap_err().is_unrepresentable());
        }
        for value in ["", "-", ".", "1.2.3", "abc"] {
            assert!(!decimal_from_text(value.as_bytes(), 38, 4).unwrap_err().is_unrepresentable(), "{value}");
        }
        assert!(!decimal_from_binary(&numeric(0, 0, 0, &[10_000]), 38, 0).unwrap_err().is_unrepresentable());
        assert!(!decimal_from_binary(&[0, 1, 0, 0, 0, 0, 0, 0], 38, 0).unwrap_err().is_unrepresentable());
        assert!(!decimal_from_binary(&numeric(0, 1, 0, &[1]), 38, 0).unwrap_err().is_unrepresentable());
    }

    #[test]
    fn the_text_is_what_postgres_prints() {
        for value in ["0", "0.00", "1", "-1.50", "10000", "100000000", "12345.678", "0.0001", "0.00010", "-0.00000001"]
        {
            assert_eq!(text(&binary_of(value)), value);
        }
        assert_eq!(text(&numeric(0, NAN, 0, &[])), "NaN");
        assert_eq!(text(&numeric(0, POSITIVE_INFINITY, 0, &[])), "Infinity");
        assert_eq!(text(&numeric(0, NEGATIVE_INFINITY, 0, &[])), "-Infinity");
    }

    proptest! {
        #[test]
        fn binary_and_text_decode_equally(value in any::<i128>(), precision in 1u8..=38, scale in 0u8..=38) {
            let scale = scale.min(precision);
            let value = value % POWERS[usize::from(precision)];
            let digits = format!("{:0>width$}", value.unsigned_abs(), width = usize::from(scale) + 1);
            let (whole, fraction) = digits.split_at(digits.len() - usize::from(scale));
            let sign = if value < 0 { "-" } else { "" };
            let text = if scale == 0 { format!("{sign}{whole}") } else { format!("{sign}{whole}.{fraction}") };
            prop_assert_eq!(decimal_from_text(text.as_bytes(), precision, scale).unwrap(), value);
            prop_assert_eq!(decimal_from_binary(&binary_of(&text), precision, scale).unwrap(), value);
            prop_assert_eq!(self::text(&binary_of(&text)), text);
        }

        #[test]
        fn arbitrary_bytes_never_panic(
            bytes in proptest::collection::vec(any::<u8>(), 0..64),
            precision in 1u8..=38,
            scale in 0u8..=38,
        ) {
            let scale = scale.min(precision);
            let _ = decimal_from_binary(&bytes, precision, scale);
            let _ = decimal_from_text(&bytes, precision, scale);
            let _ = text_from_binary(&bytes, &mut Vec::new());
        }

        #[test]
        fn arbitrary_digits_never_panic(
            weight in any::<i16>(), sign in proptest::sample::select(vec![0, NEGATIVE, NAN, 7]), scale in any::<u16>(),
            digits in proptest::collection::vec(0u16..10_001, 0..16), precision in 1u8..=38, lake_scale in 0u8..=38,
        ) {
            let bytes = numeric(weight, sign, scale, &digits);
            let _ = decimal_from_binary(&bytes, precision, lake_scale.min(precision));
            let _ = text_from_binary(&bytes, &mut Vec::new());
        }
    }
}
