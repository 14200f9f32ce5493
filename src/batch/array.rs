//! One-dimensional arrays, in binary and text.
//!
//! Binary, from `array_send`: int32 dimensions, int32 whether there are NULLs, oid of the element; per dimension
//! int32 size and int32 lower bound; per element int32 length (-1: NULL) and bytes.
//!
//! Text, from `array_out`: `{a,"b \"c\"",NULL}`, led by `[2:4]=` where a lower bound is not 1.

use super::reader::Reader;
use super::value_error::Fault;

/// The most dimensions that Postgres allows.
const MAX_DIMENSIONS: i32 = 6;

/// Calls `element` with each element's bytes, `None` for NULL, in order.
pub(crate) fn each_binary<'a>(
    bytes: &'a [u8],
    mut element: impl FnMut(Option<&'a [u8]>) -> Result<(), Fault>,
) -> Result<(), Fault> {
    let mut reader = Reader::new(bytes);
    let dimensions = reader.i32()?;
    let _has_nulls = reader.i32()?;
    let _element_oid = reader.u32()?;
    match dimensions {
        0 => {}
        1 => {
            let size = reader.i32()?;
            let lower_bound = reader.i32()?;
            if size < 0 {
                return Err(Fault::malformed("an array of negative size"));
            }
            if lower_bound != 1 && size > 0 {
                return Err(other_lower_bound());
            }
            for _ in 0..size {
                match reader.i32()? {
                    -1 => element(None)?,
                    length => {
                        let length = usize::try_from(length)
                            .map_err(|_| Fault::malformed("an array element of negative length"))?;
                        element(Some(reader.take(length)?))?;
                    }
                }
            }
        }
        2..=MAX_DIMENSIONS => return Err(several_dimensions()),
        _ => return Err(Fault::malformed(format!("an array of {dimensions} dimensions"))),
    }
    if reader.is_empty() { Ok(()) } else { Err(Fault::malformed("bytes behind an array's last element")) }
}

/// Calls `element` with each element's text, unquoted, `None` for NULL, in order. `scratch` holds unescaped texts.
pub(crate) fn each_text(
    text: &[u8],
    delimiter: u8,
    scratch: &mut Vec<u8>,
    mut element: impl FnMut(Option<&[u8]>) -> Result<(), Fault>,
) -> Result<(), Fault> {
    let malformed = || Fault::not_a("array", text);
    if text.first() == Some(&b'[') {
        // Bounds are printed only where one of them is not 1; which dimension does not matter.
        return Err(other_lower_bound());
    }
    let mut rest = text.strip_prefix(b"{").and_then(|text| text.strip_suffix(b"}")).ok_or_else(malformed)?;
    if rest.is_empty() {
        return Ok(());
    }
    loop {
        match rest.first() {
            Some(b'{') => return Err(several_dimensions()),
            Some(b'"') => {
                rest = &rest[1..];
                let plain = rest.iter().position(|&b| b == b'"' || b == b'\\').ok_or_else(malformed)?;
                if rest[plain] == b'"' {
                    element(Some(&rest[..plain]))?;
                    rest = &rest[plain + 1..];
                } else {
                    rest = unescape(rest, scratch).ok_or_else(malformed)?;
                    element(Some(scratch))?;
                }
            }
            _ => {
                let end = rest.iter().position(|&b| b == delimiter).unwrap_or(rest.len());
                let (plain, after) = rest.split_at(end);
                if plain.is_empty() || plain.iter().any(|b| matches!(b, b'"' | b'{' | b'}' | b'\\')) {
                    return Err(malformed());
                }
                element((plain != b"NULL").then_some(plain))?;
                rest = after;
            }
        }
        match rest.split_first() {
            None => return Ok(()),
            Some((&byte, after)) if byte == delimiter => rest = after,
            Some(_) => return Err(malformed()),
        }
    }
}

/// Reads a quoted element up to its closing quote into `scratch`; returns what follows the quote.
fn unescape<'a>(quoted: &'a [u8], scratch: &mut Vec<u8>) -> Option<&'a [u8]> {
    scratch.clear();
    let mut rest = quoted;
    loop {
        match rest {
            [b'"', after @ ..] => return Some(after),
            [b'\\', byte, after @ ..] => {
                scratch.push(*byte);
                rest = after;
            }
            [b'\\'] | [] => return None,
            [byte, after @ ..] => {
                scratch.push(*byte);
                rest = after;
            }
        }
    }
}

#[cold]
fn several_dimensions() -> Fault {
    Fault::unrepresentable("an array of several dimensions, which the lake's list can't hold")
}

#[cold]
fn other_lower_bound() -> Fault {
    Fault::unrepresentable("an array whose lower bound is not 1, which the lake's list can't hold")
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn text(array: &str, delimiter: u8) -> Result<Vec<Option<String>>, Fault> {
        let mut elements = Vec::new();
        each_text(array.as_bytes(), delimiter, &mut Vec::new(), |element| {
            elements.push(element.map(|bytes| String::from_utf8(bytes.to_vec()).unwrap()));
            Ok(())
        })?;
        Ok(elements)
    }

    fn binary(bytes: &[u8]) -> Result<Vec<Option<Vec<u8>>>, Fault> {
        let mut elements = Vec::new();
        each_binary(bytes, |element| {
            elements.push(element.map(<[u8]>::to_vec));
            Ok(())
        })?;
        Ok(elements)
    }

    /// What `array_send` writes for the given dimensions (size, lower bound) and elements.
    fn sent(dimensions: &[(i32, i32)], elements: &[Option<&[u8]>]) -> Vec<u8> {
        let mut bytes = Vec::new();
        bytes.extend((dimensions.len() as i32).to_be_bytes());
        bytes.extend(i32::from(elements.contains(&None)).to_be_bytes());
        bytes.extend(25u32.to_be_bytes());
        for (size, lower_bound) in dimensions {
            bytes.extend(size.to_be_bytes());
            bytes.extend(lower_bound.to_be_bytes());
        }
        for element in elements {
            match element {
                None => bytes.extend((-1i32).to_be_bytes()),
                Some(element) => {
                    bytes.extend((element.len() as i32).to_be_bytes());
                    bytes.extend(*element);
                }
            }
        }
        bytes
    }

    #[test]
    fn texts() {
        let some = |text: &str| Some(text.to_owned());
        assert_eq!(text("{}", b',').unwrap(), []);
        assert_eq!(text("{1,NULL,-3}", b',').unwrap(), [some("1"), None, some("-3")]);
        assert_eq!(text(r#"{"","NULL","a,b","{x}"}"#, b',').unwrap(), ["", "NULL", "a,b", "{x}"].map(some));
        assert_eq!(text(r#"{"a\"b","\\","c"}"#, b',').unwrap(), ["a\"b", "\\", "c"].map(some));
        assert_eq!(text("{(1,1),(0,0);(2,2),(1,1)}", b';').unwrap(), ["(1,1),(0,0)", "(2,2),(1,1)"].map(some));
        assert!(text("{{1,2},{3,4}}", b',').unwrap_err().is_unrepresentable());
        assert!(text("[0:1]={1,2}", b',').unwrap_err().is_unrepresentable());
        for wrong in ["", "{", "}", "1,2", "{1,}", "{,1}", "{\"a}", "{\"a\"b}", "{a\"b}", "{\"a\\", "{a}b}"] {
            assert!(!text(wrong, b',').unwrap_err().is_unrepresentable(), "{wrong}");
        }
    }

    #[test]
    fn binaries() {
        assert_eq!(binary(&sent(&[], &[])).unwrap(), Vec::<Option<Vec<u8>>>::new());
        assert_eq!(
            binary(&sent(&[(3, 1)], &[Some(b"a"), None, Some(b"")])).unwrap(),
            [Some(b"a".to_vec()), None, Some(vec![])]
        );
        assert!(binary(&sent(&[(1, 2)], &[Some(b"a")])).unwrap_err().is_unrepresentable());
        assert!(binary(&sent(&[(1, 1), (1, 1)], &[Some(b"a")])).unwrap_err().is_unrepresentable());
        let mut longer = sent(&[(1, 1)], &[Some(b"a")]);
        longer.push(0);
        assert!(!binary(&longer).unwrap_err().is_unrepresentable());
        assert!(binary(&sent(&[(-1, 1)], &[])).is_err());
        assert!(binary(&sent(&[(i32::MAX, 1)], &[])).is_err());
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..64)) {
            let _ = binary(&bytes);
            let _ = each_text(&bytes, b',', &mut Vec::new(), |_| Ok(()));
        }

        #[test]
        fn arbitrary_array_like_texts_never_panic(text in r#"\{[,"\\{}NULa1 ]{0,24}\}"#) {
            let _ = each_text(text.as_bytes(), b',', &mut Vec::new(), |_| Ok(()));
        }

        #[test]
        fn quoted_texts_read_back(elements in proptest::collection::vec(proptest::option::of(".*"), 1..6)) {
            let printed: Vec<String> = elements
                .iter()
                .map(|element| match element {
                    None => "NULL".to_owned(),
                    Some(text) => format!("\"{}\"", text.replace('\\', "\\\\").replace('"', "\\\"")),
                })
                .collect();
            prop_assert_eq!(text(&format!("{{{}}}", printed.join(",")), b',').unwrap(), elements);
        }
    }
}
