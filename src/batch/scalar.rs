//! Booleans, integers, floats, uuids and bytea, in binary and text.

use super::value_error::Fault;

/// The `N` bytes of a value of fixed width.
#[inline]
pub(crate) fn fixed<const N: usize>(bytes: &[u8]) -> Result<[u8; N], Fault> {
    bytes.try_into().map_err(|_| Fault::malformed(format!("{} bytes where {N} were expected", bytes.len())))
}

pub(crate) fn bool_from_binary(bytes: &[u8]) -> Result<bool, Fault> {
    Ok(fixed::<1>(bytes)?[0] != 0)
}

pub(crate) fn bool_from_text(text: &[u8]) -> Result<bool, Fault> {
    match text {
        b"t" | b"true" => Ok(true),
        b"f" | b"false" => Ok(false),
        _ => Err(Fault::not_a("boolean", text)),
    }
}

/// A decimal integer that fits into `i64`.
pub(crate) fn integer(text: &[u8]) -> Option<i64> {
    let (negative, digits) = match text {
        [b'-', digits @ ..] => (true, digits),
        digits => (false, digits),
    };
    if digits.is_empty() {
        return None;
    }
    // Collected as a negative number, whose range is the larger one.
    let mut value = 0i64;
    for &byte in digits {
        let digit = byte.wrapping_sub(b'0');
        if digit > 9 {
            return None;
        }
        value = value.checked_mul(10)?.checked_sub(i64::from(digit))?;
    }
    if negative { Some(value) } else { value.checked_neg() }
}

/// An integer of the narrower type `T`.
pub(crate) fn integer_from_text<T: TryFrom<i64>>(text: &[u8], what: &str) -> Result<T, Fault> {
    integer(text).and_then(|value| T::try_from(value).ok()).ok_or_else(|| Fault::not_a(what, text))
}

/// The nearest float to a text, correctly rounded. Postgres prints the shortest text that reads back as the same
/// bits, so this is exact; for `real` the text must be read as `f32`, or it would be rounded twice.
pub(crate) fn float_from_text<T: std::str::FromStr>(text: &[u8], what: &str) -> Result<T, Fault> {
    // The standard library also takes "inf", "nan" and a leading "+", none of which Postgres prints.
    std::str::from_utf8(text).ok().and_then(|text| text.parse().ok()).ok_or_else(|| Fault::not_a(what, text))
}

pub(crate) fn uuid_from_text(text: &[u8]) -> Result<[u8; 16], Fault> {
    let mut uuid = [0; 16];
    let mut filled = 0;
    let mut pending = None;
    for &byte in text {
        if byte == b'-' && pending.is_none() {
            continue;
        }
        let digit = hex_digit(byte).ok_or_else(|| Fault::not_a("uuid", text))?;
        match pending.take() {
            None => pending = Some(digit),
            Some(high) => {
                *uuid.get_mut(filled).ok_or_else(|| Fault::not_a("uuid", text))? = high << 4 | digit;
                filled += 1;
            }
        }
    }
    if filled == 16 && pending.is_none() { Ok(uuid) } else { Err(Fault::not_a("uuid", text)) }
}

/// Appends a bytea given as text: `\x6869` (bytea_output hex) or `hi\\\001` (escape). On failure, `out` may hold a
/// part.
pub(crate) fn bytea_from_text(text: &[u8], out: &mut Vec<u8>) -> Result<(), Fault> {
    if let Some(hex) = text.strip_prefix(b"\\x") {
        if hex.len() % 2 != 0 {
            return Err(Fault::not_a("bytea", text));
        }
        out.reserve(hex.len() / 2);
        for pair in hex.chunks_exact(2) {
            match (hex_digit(pair[0]), hex_digit(pair[1])) {
                (Some(high), Some(low)) => out.push(high << 4 | low),
                _ => return Err(Fault::not_a("bytea", text)),
            }
        }
        return Ok(());
    }
    let mut rest = text;
    loop {
        match rest {
            [] => return Ok(()),
            [b'\\', b'\\', tail @ ..] => {
                out.push(b'\\');
                rest = tail;
            }
            [b'\\', a @ b'0'..=b'3', b @ b'0'..=b'7', c @ b'0'..=b'7', tail @ ..] => {
                out.push((a - b'0') << 6 | (b - b'0') << 3 | (c - b'0'));
                rest = tail;
            }
            [b'\\', ..] => return Err(Fault::not_a("bytea", text)),
            [byte, tail @ ..] => {
                out.push(*byte);
                rest = tail;
            }
        }
    }
}

fn hex_digit(byte: u8) -> Option<u8> {
    match byte {
        b'0'..=b'9' => Some(byte - b'0'),
        b'a'..=b'f' => Some(byte - b'a' + 10),
        b'A'..=b'F' => Some(byte - b'A' + 10),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn integers_cover_their_whole_range_and_no_more() {
        assert_eq!(integer(b"-9223372036854775808"), Some(i64::MIN));
        assert_eq!(integer(b"9223372036854775807"), Some(i64::MAX));
        assert_eq!(integer(b"9223372036854775808"), None);
        assert_eq!(integer(b""), None);
        assert_eq!(integer(b"-"), None);
        assert_eq!(integer(b"1x"), None);
        assert_eq!(integer_from_text::<i16>(b"-32768", "smallint").unwrap(), i16::MIN);
        assert!(integer_from_text::<i16>(b"32768", "smallint").is_err());
        assert_eq!(integer_from_text::<u32>(b"4294967295", "oid").unwrap(), u32::MAX);
        assert!(integer_from_text::<u32>(b"-1", "oid").is_err());
    }

    #[test]
    fn floats_are_read_in_their_own_width() {
        assert_eq!(float_from_text::<f32>(b"1.17549435e-38", "real").unwrap(), f32::MIN_POSITIVE);
        assert_eq!(float_from_text::<f64>(b"5e-324", "double precision").unwrap(), f64::from_bits(1));
        assert!(float_from_text::<f64>(b"-0", "double precision").unwrap().is_sign_negative());
        assert!(float_from_text::<f64>(b"NaN", "double precision").unwrap().is_nan());
        assert_eq!(float_from_text::<f64>(b"-Infinity", "double precision").unwrap(), f64::NEG_INFINITY);
        assert!(float_from_text::<f64>(b"", "double precision").is_err());
        assert!(float_from_text::<f64>(b"\xff", "double precision").is_err());
    }

    #[test]
    fn uuids() {
        let uuid = uuid_from_text(b"00112233-4455-6677-8899-aabbccddeeff").unwrap();
        assert_eq!(uuid, [0, 0x11, 0x22, 0x33, 0x44, 0x55, 0x66, 0x77, 0x88, 0x99, 0xaa, 0xbb, 0xcc, 0xdd, 0xee, 0xff]);
        for wrong in [&b"0011"[..], b"00112233-4455-6677-8899-aabbccddeeffaa", b"g0112233-4455-6677-8899-aabbccddeeff"]
        {
            assert!(uuid_from_text(wrong).is_err());
        }
    }

    #[test]
    fn bytea_in_both_outputs() {
        let bytes = |text: &[u8]| {
            let mut out = Vec::new();
            bytea_from_text(text, &mut out).map(|()| out)
        };
        assert_eq!(bytes(b"\\x").unwrap(), b"");
        assert_eq!(bytes(b"").unwrap(), b"");
        assert_eq!(bytes(b"\\x00fF").unwrap(), [0, 255]);
        assert_eq!(bytes(b"a\\\\\\001\\377").unwrap(), [b'a', b'\\', 1, 255]);
        for wrong in [&b"\\x0"[..], b"\\xzz", b"\\", b"\\9", b"\\400"] {
            assert!(bytes(wrong).is_err());
        }
    }
}
